from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.logits import run_logits
from tests.model.goldens import LOCAL, find_differences, load_goldens


def write_inputs(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("case", ["a_tiny", "b_yarn", "c_mtp", "d_bias_sharded", "e_leftpad", "f_decode"])
def test_file_to_file_matches_the_goldens(case: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / case
    goldens = load_goldens(folder)
    if case == "f_decode":
        goldens = {"input_ids": goldens["full.input_ids"], "logits": goldens["full.logits"]}
    inputs = {k: v for k, v in goldens.items() if k in ("input_ids", "attention_mask", "position_ids")}
    run_logits(folder, write_inputs(tmp_path / "in", **inputs), tmp_path / "out")
    ours = load_file(tmp_path / "out")
    compared = {name: tensor for name, tensor in goldens.items() if name in ours or name == "attention_mask"}
    assert len(compared) >= (8 if case != "f_decode" else 1)
    assert find_differences(ours, compared) == []
    assert ours["logits"].dtype is torch.float32


@pytest.mark.parametrize("case", ["q_ct_int4", "q_gptq_int4", "q_fp8_block", "q_nf4"])
def test_quantized_checkpoint_is_computed_in_f32(case: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / case
    goldens = load_goldens(folder)
    run_logits(folder, write_inputs(tmp_path / "in", input_ids=goldens["input_ids"]), tmp_path / "out")
    assert find_differences(load_file(tmp_path / "out"), {"logits": goldens["logits"]}) == []
    stored = case.split("_")[1].replace("ct", "int4").replace("gptq", "int4")
    run_logits(folder, tmp_path / "in", tmp_path / "named", precision=stored)
    assert torch.equal(load_file(tmp_path / "named")["logits"], load_file(tmp_path / "out")["logits"])


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_plain_checkpoint_is_quantized_on_the_fly(precision: str, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", input_ids=torch.tensor([[1, 2, 3]]))
    run_logits(LOCAL / "c_mtp", inputs, tmp_path / "plain")
    run_logits(LOCAL / "c_mtp", inputs, tmp_path / "rounded", precision=precision)
    plain, rounded = (load_file(tmp_path / name)["logits"] for name in ("plain", "rounded"))
    assert not torch.allclose(plain, rounded, atol=1e-4)
    assert torch.corrcoef(torch.stack((plain.flatten(), rounded.flatten())))[0, 1] > 0.6


def test_clone_alone_matches_file_to_file(tmp_path: Path) -> None:
    goldens = load_goldens(LOCAL / "c_mtp")
    run_logits(LOCAL / "c_mtp", write_inputs(tmp_path / "in", input_ids=goldens["input_ids"]), tmp_path / "out")
    ours = load_file(tmp_path / "out")
    assert len(ours) == 8
    assert find_differences(ours, {name: goldens[name] for name in ours}) == []


@pytest.mark.parametrize("case", ["b_yarn", "e_leftpad"])
def test_the_c_kernels_match_file_to_file(shared: Path, tmp_path: Path, case: str) -> None:
    goldens = load_goldens(shared / "golden" / case)
    given = {name: goldens[name] for name in ("input_ids", "attention_mask", "position_ids")}
    run_logits(shared / "golden" / case, write_inputs(tmp_path / "in", **given), tmp_path / "out", kernels="avx2")
    ours = load_file(tmp_path / "out")
    kept = {name: goldens[name] for name in ours} | {"attention_mask": goldens["attention_mask"]}
    assert find_differences(ours, kept) == []


def test_padding_between_words_is_refused_by_the_c_kernels(tmp_path: Path) -> None:
    holed = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 0, 1]])}
    with pytest.raises(ValueError, match="on the left only"):
        run_logits(LOCAL / "f_decode", write_inputs(tmp_path / "in", **holed), tmp_path / "out", kernels="avx2")


def test_mtp_logits_only_where_there_is_such_a_layer(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", input_ids=torch.tensor([[1, 2, 3]]))
    run_logits(LOCAL / "c_mtp", inputs, tmp_path / "mtp", kernels="reference")
    run_logits(LOCAL / "f_decode", inputs, tmp_path / "plain", precision="bf16")
    assert "mtp_logits.0" in load_file(tmp_path / "mtp")
    assert set(load_file(tmp_path / "plain")) == {"logits"} | {
        f"router.{layer}.{name}" for layer in (1, 2, 3) for name in ("topk_ids", "topk_weights")
    }


@pytest.mark.parametrize(
    ("tensors", "options", "says"),
    [
        ({"input_ids": [[1]]}, {"precision": "int3"}, "Unknown precision 'int3'"),
        ({"input_ids": [[1]]}, {"precision": "int4"}, "c_mtp is stored as plain weights, not as int4"),
        ({"input_ids": [[1]]}, {"kernels": "cuda"}, "Unknown kernels 'cuda'"),
        ({"tokens": [[1]]}, {}, "must hold integer input_ids"),
        ({"input_ids": [1, 2]}, {}, "must hold integer input_ids"),
        ({"input_ids": [[512]]}, {}, "between 0 and 511"),
        ({"input_ids": [[-1]]}, {}, "between 0 and 511"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, {}, "attention_mask has shape"),
    ],
)
def test_unusable_input_is_said_in_a_sentence(tensors: dict, options: dict, says: str, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", **{name: torch.tensor(value) for name, value in tensors.items()})
    with pytest.raises(ValueError, match=says):
        run_logits(LOCAL / "c_mtp", inputs, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent cannot be read"):
        run_logits(LOCAL / "c_mtp", tmp_path / "absent", tmp_path / "out")
    inputs = write_inputs(tmp_path / "in", input_ids=torch.tensor([[1]]))
    with pytest.raises(ValueError, match="cannot be written"):
        run_logits(LOCAL / "c_mtp", inputs, tmp_path / "no" / "out")
