"""The preflight of a checkpoint: its precision, what it needs, what is missing, and no load that cannot fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.config import EMBEDDED_CHECKPOINT, Settings
from app.doctor import Check, run_checks
from app.weight_files import read_weights
from model.config import CheckpointError


def checks_of(checkpoint: Path, folder: Path) -> dict[str, Check]:
    return {check.name: check for check in run_checks(Settings(data_dir=folder, checkpoint=checkpoint))}


@pytest.mark.parametrize(
    ("case", "precision"),
    [
        ("q_ct_int4", "int4 (compressed-tensors)"),
        ("q_gptq_int4", "int4 (GPTQ)"),
        ("q_fp8_block", "fp8 (blocks)"),
        ("q_nf4", "nf4 (bitsandbytes)"),
        ("d_bias_sharded", "f32"),
    ],
)
def test_each_published_form_is_recognised(shared: Path, case: str, precision: str) -> None:
    files = read_weights(shared / "golden" / case)
    assert files.precision == precision
    assert files.num_bytes == sum(path.stat().st_size for path in (shared / "golden" / case).glob("model*.safetensors"))


def test_plain_weights_need_what_the_precision_set_makes_of_them() -> None:
    files = read_weights(EMBEDDED_CHECKPOINT)
    need = {name: files.memory_bytes(name) / files.num_values for name in ("auto", "f32", "bf16", "int8", "nf4")}
    assert need == {"auto": 4.0, "f32": 4.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.5625}


def test_the_embedded_model_passes_with_its_precision(tmp_path: Path) -> None:
    checks = checks_of(EMBEDDED_CHECKPOINT, tmp_path)
    assert checks["weights"].passed
    assert checks["weights"].message.startswith("bf16, ")
    assert "Bedside nano" in checks["checkpoint"].message


def test_every_missing_shard_is_named(tmp_path: Path) -> None:
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = {"weight_map": {f"tensor{n}": name for n, name in enumerate(shards)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / shards[1]).touch()
    with pytest.raises(CheckpointError, match="2 of 3 files are missing") as error:
        read_weights(tmp_path)
    assert [name in str(error.value) for name in shards] == [True, False, True]
    weights = checks_of(tmp_path, tmp_path / "data")["weights"]
    assert (weights.passed, weights.message) == (False, str(error.value))


def test_a_checkpoint_that_does_not_fit_in_memory_is_not_loaded(tmp_path: Path) -> None:
    num_bytes = 4 * 10**12
    header = json.dumps({"x": {"dtype": "BF16", "shape": [num_bytes // 2], "data_offsets": [0, num_bytes]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + num_bytes)  # a hole: it takes no disk
    checks = checks_of(tmp_path, tmp_path / "data")
    assert "4000.00 GB" in checks["weights"].message
    assert not checks["memory"].passed
    assert "lower precision" in checks["memory"].message
    assert checks["checkpoint"].message.startswith("not loaded")
