"""Reading and writing safetensors piece by piece: the library reads what we write, damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import CheckpointError
from model.safetensors_file import SafetensorsFile, SafetensorsWriter

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.randn(5, 3).to(torch.bfloat16),
    "c": torch.randn(4, 4).to(torch.float8_e4m3fn),
    "d": torch.tensor(7, dtype=torch.int64),
    "e": torch.empty(0, 3),
}


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        for name, tensor in TENSORS.items():
            read = file.read(name)
            assert read.dtype == tensor.dtype
            assert torch.equal(read.float(), tensor.float())
        assert torch.equal(file.read_rows("a", 1, 3), TENSORS["a"][1:3])


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, {n: (t.dtype, tuple(t.shape)) for n, t in TENSORS.items()}) as writer:
        writer.write("a", TENSORS["a"][2:], first_row=2)
        assert not path.exists()
        writer.write("a", TENSORS["a"][:2])
        for name in "bcde":
            writer.write(name, TENSORS[name])
        writer.finish()
    for name, tensor in load_file(path).items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor.float(), TENSORS[name].float())
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_an_unfinished_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), SafetensorsWriter(tmp_path / "x", {"a": (torch.float32, (2,))}):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_bytes", [0, 4, 20, 200])
def test_a_truncated_file_is_named(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(64)}, path)
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(CheckpointError, match=r"x\.safetensors is truncated"):
        SafetensorsFile(path)


def test_a_header_that_lies_about_a_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(64)}, path)
    path.write_bytes(path.read_bytes().replace(b"[64]", b"[65]"))
    with pytest.raises(CheckpointError, match="tensor weight do not fit"):
        SafetensorsFile(path)
