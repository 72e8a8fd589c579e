"""Safetensors files read and written piece by piece, by plain file I/O.

The library maps a file into memory, where every page that was touched counts as ours; a 55 GB checkpoint must take its
own size once. So tensors are read straight into their place, and written one after the other behind a header that is
known beforehand. Format: https://huggingface.co/docs/safetensors. Knows nothing of models.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from model.config import CheckpointError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000  # the library's own limit
CHUNK_BYTES = 16 * 2**20
PADDING = "padding."  # tensors of zeros that put the next one where it belongs


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: bytes [begin, end) of its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


class SafetensorsFile:
    """An open file. The header is checked against the file's length at once: a truncated file is an error here."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError naming the file, and the tensor where one is at fault."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise CheckpointError(f"{path.name} is missing from {path.parent}; copy the checkpoint again.") from None
        except OSError as error:
            raise CheckpointError(f"{path.name} cannot be opened ({error.strerror}); check its permissions.") from error
        try:
            self.tensors = _read_header(self._fd, path)
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> Tensor:
        """The tensor, in memory of its own."""
        info = self.tensors[name]
        out = torch.empty(info.shape, dtype=info.dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Tensor, on_bytes: Callable[[int], None] | None = None) -> None:
        """Fills `out`, a contiguous CPU tensor of the stored dtype and shape, without a copy in between. on_bytes hears
        how many were read, at most CHUNK_BYTES at a time."""
        info = self.tensors[name]
        assert out.dtype == info.dtype
        assert tuple(out.shape) == info.shape
        assert out.is_contiguous()
        self._fill(name, _bytes_of(out), info.begin, on_bytes)

    def read_rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows [begin, end) of the first dimension, in memory of their own."""
        info = self.tensors[name]
        row_bytes = info.num_bytes // max(info.shape[0], 1)
        out = torch.empty((end - begin, *info.shape[1:]), dtype=info.dtype)
        self._fill(name, _bytes_of(out), info.begin + begin * row_bytes)
        return out

    def _fill(self, name: str, target: memoryview, offset: int, on_bytes: Callable[[int], None] | None = None) -> None:
        done = 0
        while done < len(target):
            try:
                num = os.preadv(self._fd, [target[done : done + CHUNK_BYTES]], offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path.name}: tensor {name} cannot be read ({error.strerror}); copy the file again."
                ) from error
            if num == 0:
                raise CheckpointError(f"{self.path.name} ended inside tensor {name}; copy the file again.")
            done += num
            if on_bytes is not None:
                on_bytes(num)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class SafetensorsWriter:
    """Writes a file whose tensors are known by dtype and shape beforehand, in any order, a tensor or some rows at a
    time. The file appears under its name only with `finish`, complete and on the disk; until then it is `.partial`.

    alignment: None, largest items first, one after the other; or bytes, each tensor in the order given at a multiple of
    it. `header` is what stands before the tensors.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], alignment: int | None = None
    ) -> None:
        self.path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self.header, self.tensors, size = lay_out(tensors, alignment)
        self._missing = {name: info.num_bytes for name, info in self.tensors.items()}
        self._fd = os.open(self._partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        try:
            # Reserved at once, so that a disk without room for the file says so before hours of work.
            os.posix_fallocate(self._fd, 0, size)
            os.pwrite(self._fd, self.header, 0)
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, tensor: Tensor, first_row: int = 0) -> None:
        """Writes a whole tensor, or consecutive rows of it that begin at `first_row`. Raises OSError (disk full)."""
        info = self.tensors[name]
        assert tensor.dtype == info.dtype, name
        assert tuple(tensor.shape[1:]) == info.shape[1:], name
        data = _bytes_of(tensor.contiguous())
        offset = info.begin + first_row * (info.num_bytes // max(info.shape[0], 1) if info.shape else 0)
        assert offset + len(data) <= info.end, name
        self._missing[name] -= len(data)
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done : done + CHUNK_BYTES], offset + done)

    def finish(self) -> None:
        """Puts the file under its name. Every tensor must have been written."""
        unwritten = [name for name, missing in self._missing.items() if missing]
        assert not unwritten, unwritten
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1
        os.replace(self._partial, self.path)

    def discard(self) -> None:
        """Removes what was written; safe to call twice, and after `finish` does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.discard()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; works for the dtypes NumPy lacks, and for scalars."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def lay_out(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], alignment: int | None = None
) -> tuple[bytes, dict[str, TensorInfo], int]:
    """The header's bytes, each tensor's place, and the file's size. Tensors are aligned to 64 bytes from the start:
    a header padded with spaces, then largest items first, so that no element straddles its own size.

    With an `alignment` they keep their order and each begins at a multiple of it. The format knows no gaps: what lies
    between are tensors of zeros, PADDING and a number, which are not among the places.
    """
    names = list(tensors) if alignment else sorted(tensors, key=lambda name: -tensors[name][0].itemsize)
    places: dict[str, tuple[int, int]] = {}
    position = 0
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name in names:
        dtype, shape = tensors[name]
        num_bytes = math.prod(shape) * dtype.itemsize
        if alignment and (gap := -position % alignment):
            offsets = [position, position + gap]
            entries[f"{PADDING}{len(places)}"] = {"dtype": "U8", "shape": [gap], "data_offsets": offsets}
            position += gap
        places[name] = (position, position + num_bytes)
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": list(places[name])}
        position += num_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % (alignment or 64))
    base = len(text) + 8
    infos = {n: TensorInfo(*tensors[n], base + begin, base + end) for n, (begin, end) in places.items()}
    return len(text).to_bytes(8, "little") + text, infos, base + position


def _read_header(fd: int, path: Path) -> dict[str, TensorInfo]:
    size = os.fstat(fd).st_size
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(f"{path.name} is truncated or not a safetensors file; copy the file again.")
    try:
        entries = json.loads(os.pread(fd, length, 8))
        infos = dict(_read_entries(entries, 8 + length, path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path.name} has a damaged header ({error}); copy the file again.") from error
    for name, info in infos.items():
        if info.end > size:
            raise CheckpointError(f"{path.name} is truncated inside tensor {name}; copy the file again.")
    return infos


def _read_entries(entries: Mapping[str, dict[str, object]], base: int, path: Path) -> Iterator[tuple[str, TensorInfo]]:
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        stored, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])  # type: ignore[attr-defined]
        begin, end = (int(n) for n in entry["data_offsets"])  # type: ignore[attr-defined]
        if stored not in DTYPES:
            raise CheckpointError(f"{path.name}: tensor {name} is stored as {stored}, which is not supported.")
        dtype = DTYPES[stored]
        if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(f"{path.name}: the bytes of tensor {name} do not fit its shape; copy the file again.")
        yield name, TensorInfo(dtype, shape, base + begin, base + end)
