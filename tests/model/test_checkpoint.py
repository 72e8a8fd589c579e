from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from contracts import LoadCancelled, LoadProgress
from model.checkpoint import INDEX, WEIGHTS, load_model, save_checkpoint, weights_sha256
from model.config import CheckpointError
from model.weights import Watch
from tests.model.conftest import make_model
from tests.model.goldens import LOCAL

EXPERT = "model.layers.2.mlp.experts.3.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be broken."""
    shutil.copytree(LOCAL / "c_mtp", tmp_path, dirs_exist_ok=True)
    return tmp_path


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def split_into_shards(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / WEIGHTS).unlink()


def change_index(folder: Path, change: Callable[[dict], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"num_nextn_predict_layers": 1}])
def test_saved_model_loads_back_equal(changes: dict, tmp_path: Path) -> None:
    model = make_model(**changes)
    model.model.layers[1].mlp.gate.expert_bias += 0.123456
    save_checkpoint(model, tmp_path, torch.float32)
    loaded = load_model(tmp_path)
    assert loaded.config.context_length == model.config.context_length
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    is_tied = loaded.lm_head.weight is loaded.model.word_embeddings.weight
    assert is_tied == model.config.tie_word_embeddings


def test_saving_twice_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    save_checkpoint(make_model(0), tmp_path)
    save_checkpoint(make_model(1), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]


def test_bf16_keeps_the_expert_bias_exact(tmp_path: Path) -> None:
    model = make_model()
    model.model.layers[1].mlp.gate.expert_bias += 0.123456
    save_checkpoint(model, tmp_path, torch.bfloat16)
    loaded = load_model(tmp_path)
    assert loaded.lm_head.weight.dtype is torch.bfloat16
    assert torch.equal(loaded.model.layers[1].mlp.gate.expert_bias, model.model.layers[1].mlp.gate.expert_bias)
    assert load_model(tmp_path, torch.float32).lm_head.weight.dtype is torch.float32
    with torch.inference_mode():
        assert loaded(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_shards_and_one_file_give_the_same_model(folder: Path) -> None:
    whole = load_model(folder).state_dict()
    split_into_shards(folder)
    sharded = load_model(folder).state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(EXPERT), rf"{EXPERT} is missing"),
        (lambda t: t.pop("model.layers.1.mlp.gate.expert_bias"), "expert_bias is missing"),
        (lambda t: t.update({"model.layers.9.x": torch.zeros(1)}), "model.layers.9.x has no place"),
        (lambda t: t.update({EXPERT: torch.zeros(3, 64)}), rf"{EXPERT} has shape \(3, 64\); .* \(32, 64\)"),
        (lambda t: t.update({EXPERT: torch.zeros(32, 64, dtype=torch.int32)}), rf"{EXPERT} is stored as I32"),
    ],
)
def test_wrong_tensor_is_named(folder: Path, change: Callable[[dict[str, Tensor]], object], says: str) -> None:
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=says):
        load_model(folder)


def test_checkpoint_without_the_mtp_layer_its_config_names_is_refused(folder: Path) -> None:
    change_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.4." in name])
    with pytest.raises(CheckpointError, match=r"model\.layers\.4\..* is missing from the checkpoint \(and \d+ more\)"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_truncated_file_is_named(folder: Path, keep: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda index: index["weight_map"].update({EXPERT: "c.safetensors"}), "c.safetensors is missing"),
        (lambda index: index["weight_map"].update({"x": "a.safetensors"}), "x is missing from a.safetensors"),
        (lambda index: index["weight_map"].update({"x": "../a.safetensors"}), "outside the checkpoint"),
        (lambda index: index.pop("weight_map"), "no weight_map"),
    ],
)
def test_index_that_disagrees_with_its_files_is_refused(folder: Path, change: Callable, says: str) -> None:
    split_into_shards(folder)
    change_index(folder, change)
    with pytest.raises(CheckpointError, match=says):
        load_model(folder)


def test_tensor_in_two_shards_is_refused(folder: Path) -> None:
    split_into_shards(folder)
    save_file(load_file(folder / "a.safetensors") | load_file(folder / "b.safetensors"), folder / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"is in both a\.safetensors and b\.safetensors"):
        load_model(folder)


def test_folder_without_weights_is_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="holds neither"):
        load_model(folder)


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def write_sums(folder: Path, *names: str) -> None:
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()} *./{name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def write_hub_notes(folder: Path, *names: str) -> None:
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text("c0ffee\nd41d8cd98f00b204e9800998ecf8427e\n1700000000.0\n")
    for name in names:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        (notes / f"{name}.metadata").write_text(f"c0ffee\n{digest}\n1700000000.0\n")


@pytest.mark.parametrize("write_hashes", [write_sums, write_hub_notes])
def test_flipped_byte_is_found_where_the_folder_has_hashes(folder: Path, write_hashes: Callable) -> None:
    split_into_shards(folder)
    write_hashes(folder, "a.safetensors", "b.safetensors")
    load_model(folder)
    flip_last_byte(folder / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors is damaged: its SHA-256"):
        load_model(folder)


def test_line_that_is_no_hash_is_named(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text("model.safetensors\n")
    with pytest.raises(CheckpointError, match=r"SHA256SUMS: 'model\.safetensors' is not a line"):
        load_model(folder)


def test_progress_counts_every_byte_of_each_step(folder: Path) -> None:
    split_into_shards(folder)
    write_sums(folder, "a.safetensors", "b.safetensors")
    seen: list[LoadProgress] = []
    load_model(folder, torch.float32, on_progress=seen.append)
    assert list(dict.fromkeys(progress.step for progress in seen)) == ["verifying", "reading"]
    size = sum((folder / name).stat().st_size for name in ("a.safetensors", "b.safetensors"))
    for step, at_least in (("verifying", size), ("reading", size - 100_000)):  # headers are not counted
        steps = [progress for progress in seen if progress.step == step]
        done = [progress.bytes_done for progress in steps]
        assert done == sorted(done)
        assert done[-1] == steps[-1].bytes_total
        assert at_least <= done[-1] <= size
        assert steps[-1].file == "b.safetensors"
        assert steps[-1].seconds_left == 0


def test_progress_moves_within_a_large_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.safetensors_file.CHUNK_BYTES", 4096)
    monkeypatch.setattr("model.weights.REPORT_S", 0)
    seen: list[LoadProgress] = []
    load_model(folder, on_progress=seen.append)
    done = [0, *(progress.bytes_done for progress in seen)]
    assert 0 < max(after - before for before, after in pairwise(done)) <= 4096
    assert seen[-1].bytes_total > 400_000


@pytest.mark.parametrize("step", ["verifying", "reading"])
def test_loading_stops_when_asked(folder: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, begun = threading.Event(), []
    write_sums(folder, WEIGHTS)

    class Stop(Watch):
        def add(self, file: str, num_bytes: int) -> None:
            begun.append(self._step)
            if self._step == step:
                cancel.set()
            super().add(file, num_bytes)

    monkeypatch.setattr("model.checkpoint.Watch", Stop)
    with pytest.raises(LoadCancelled):
        load_model(folder, cancel=cancel)
    assert begun[-1] == step
    assert begun.count(step) == 1


def test_index_and_files_are_checked_before_a_byte_is_hashed(folder: Path) -> None:
    write_sums(folder, WEIGHTS)
    change_tensors(folder, lambda tensors: tensors.pop(EXPERT))
    with pytest.raises(CheckpointError, match=f"{EXPERT} is missing"):
        load_model(folder)


def test_hash_tells_weights_apart(folder: Path) -> None:
    whole = weights_sha256(folder)
    assert whole == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    split_into_shards(folder)
    sharded = weights_sha256(folder)
    flip_last_byte(folder / "b.safetensors")
    assert len({whole, sharded, weights_sha256(folder)}) == 3
