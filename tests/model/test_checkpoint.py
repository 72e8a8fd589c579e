from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import INDEX, WEIGHTS, load_model, save_checkpoint, weights_sha256
from model.config import CheckpointError
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
    with pytest.raises(CheckpointError, match=r"model\.safetensors is (truncated|missing|damaged)"):
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


def test_hash_tells_weights_apart(folder: Path) -> None:
    whole = weights_sha256(folder)
    assert whole == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    split_into_shards(folder)
    sharded = weights_sha256(folder)
    data = bytearray((folder / "b.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "b.safetensors").write_bytes(data)
    assert len({whole, sharded, weights_sha256(folder)}) == 3
