"""Routed experts that the kernels read from their files as they are chosen: a model larger than memory.

Holds the files open and speaks to cpu/residency.h, which decides what is kept. Knows nothing of how a folder is packed:
it is told where each layer's experts lie.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from ctypes import Structure, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from contracts import GenerationError

PAGE = 4096  # files and memory are read by whole pages, past the system's own copy


class ExpertReadError(GenerationError):
    """An expert could not be read; the message names the file."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a matrix lies in the bytes of an expert; scales None: a plain matrix."""

    data: int
    scales: int | None = None
    has_bf16_scales: bool = False


@dataclass(frozen=True, slots=True)
class ExpertFile:
    """A layer's experts: from byte `begin` of the file on, `stride` bytes each, both multiples of PAGE. places: of
    gate, up and down."""

    path: Path
    begin: int
    stride: int
    places: tuple[Place, Place, Place]


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """Since the start, in experts that layers wanted: hits were kept from earlier, prefetched came by a guess, misses
    were waited for. guessed: those that the guess named, of which guessed_right were wanted. num_slots: room for so
    many."""

    hits: int = 0
    prefetched: int = 0
    misses: int = 0
    guessed: int = 0
    guessed_right: int = 0
    bytes_read: int = 0
    num_slots: int = 0

    @property
    def share_in_memory(self) -> float:
        """Of the experts wanted, those that nobody had to wait long for; 1 before the first."""
        found = self.hits + self.prefetched
        return found / (found + self.misses) if found + self.misses else 1.0


class _Place(Structure):
    _fields_ = [("data", c_int64), ("scales", c_int64), ("scales_bf16", c_int32), ("unused", c_int32)]


class _Counts(Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("hits", "prefetched", "misses", "guessed", "guessed_right", "bytes_read")],
        ("slots", c_int64),
        ("error", c_int32),
        ("error_layer", c_int32),
    ]


class ExpertCache:
    """Room for some experts of all layers together, and the files that the others are read from."""

    def __init__(self, files: Mapping[int, ExpertFile], num_experts: int, num_bytes: int) -> None:
        """files: by layer. num_bytes: how much memory the experts may take. Raises GenerationError if that is less than
        one layer's, which a long prompt may choose all of."""
        self._pointer, self._library = c_void_p(), cast(Any, None)
        self._fds: dict[int, int] = {}
        strides = {file.stride for file in files.values()}
        assert len(strides) == 1, "the experts of all layers are of one size"
        self.stride = strides.pop()
        self.num_slots = min(num_bytes // self.stride, num_experts * len(files))
        if self.num_slots < num_experts:
            needed = num_experts * self.stride
            raise GenerationError(
                f"The experts of one layer take {needed / 1e9:.2f} GB and {num_bytes / 1e9:.2f} GB of memory are free "
                "for them; end other programs, or use a machine with more memory."
            )
        self._num_experts = num_experts
        self.files = files
        self._fds = {layer: _open_direct(file.path) for layer, file in files.items()}

    def __del__(self) -> None:
        if self._library is not None and self._pointer:
            self._library.bedside_residency_free(self._pointer)
        for fd in self._fds.values():
            os.close(fd)

    def attach(self, library: ctypes.CDLL, decoder: c_void_p) -> None:
        """Lets a decoder whose experts have no data read them from here; it must not outlive this object."""
        self._library = library
        create = library.bedside_residency_new
        create.restype = c_void_p
        arguments = (max(self.files) + 1, self._num_experts, c_int64(self.stride), self.num_slots)
        self._pointer = c_void_p(create(*arguments))
        if not self._pointer:
            raise GenerationError("The system refuses the memory for the experts; end other programs and start again.")
        for layer, file in self.files.items():
            places = (_Place * 3)(*[_describe(place) for place in file.places])
            set_layer = library.bedside_residency_set_layer
            set_layer(self._pointer, decoder, layer, self._fds[layer], c_int64(file.begin), places)

    @property
    def counts(self) -> ExpertCounts:
        found = self._read_counts()
        return ExpertCounts(
            found.hits,
            found.prefetched,
            found.misses,
            found.guessed,
            found.guessed_right,
            found.bytes_read,
            self.num_slots,
        )

    def error(self) -> ExpertReadError:
        """The last failure to read, as what a request is told."""
        found = self._read_counts()
        path = self.files[found.error_layer].path
        why = os.strerror(found.error) if found.error > 0 else "the file is too short"
        return ExpertReadError(
            f"An expert of layer {found.error_layer} could not be read from {path.name} ({why}); nothing was answered. "
            "Check the disk, and pack the checkpoint again if that lasts."
        )

    def _read_counts(self) -> _Counts:
        if not self._pointer:
            return _Counts()
        read = self._library.bedside_residency_counts
        read.restype = _Counts
        counts = read(self._pointer)
        assert isinstance(counts, _Counts)
        return counts


def _describe(place: Place) -> _Place:
    return _Place(place.data, -1 if place.scales is None else place.scales, place.has_bf16_scales, 0)


def _open_direct(path: Path) -> int:
    """Opened past the page cache; plainly where the file system has no such thing."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return os.open(path, os.O_RDONLY)
