"""The tensors of a checkpoint folder by name, whatever file they lie in: checked, read into place, counted.

Knows nothing of models or precisions; model.formats and model.checkpoint ask it by name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
from torch import Tensor

from contracts import LoadCancelled, LoadProgress
from model.config import CheckpointError
from model.safetensors_file import CHUNK_BYTES, NAMES, SafetensorsFile, TensorInfo

ProgressCallback = Callable[[LoadProgress], None]
FLOATS = (torch.bfloat16, torch.float32, torch.float16)
REPORT_S = 0.1  # often enough for a moving bar; a hundred thousand small tensors must not mean as many reports


class Watch:
    """Counts the bytes of one step of loading, reports them, and stops it when `cancel` is set."""

    def __init__(
        self,
        step: str,
        bytes_total: int,
        on_progress: ProgressCallback | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self._step, self._total, self._done = step, bytes_total, 0
        self._on_progress, self._cancel = on_progress, cancel
        self._started = self._reported = time.perf_counter()

    def add(self, file: str, num_bytes: int) -> None:
        """Raises LoadCancelled."""
        if self._cancel is not None and self._cancel.is_set():
            raise LoadCancelled("Loading was cancelled.")
        self._done += num_bytes
        now = time.perf_counter()
        is_last = self._done >= self._total
        if self._on_progress is None or (now - self._reported < REPORT_S and not is_last):
            return
        self._reported = now
        seconds_left = (now - self._started) * (self._total - self._done) / self._done if self._done else None
        self._on_progress(LoadProgress(self._step, file, self._done, self._total, seconds_left))


class Weights:
    """What the open files of a checkpoint hold. Every tensor asked for is remembered, so that the rest can be named."""

    def __init__(self, files: Mapping[str, SafetensorsFile], file_of: Mapping[str, str]) -> None:
        self._files, self._file_of = files, file_of
        self._used: set[str] = set()
        self._missing: list[str] = []
        self.watch: Watch | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def info(self, name: str) -> TensorInfo:
        """Raises CheckpointError if there is no such tensor."""
        if name not in self:
            raise CheckpointError(f"Tensor {name} is missing from the checkpoint.")
        self._used.add(name)
        return self._files[self._file_of[name]].tensors[name]

    def check(self, name: str, dtypes: Collection[torch.dtype], shape: tuple[int, ...]) -> None:
        """Raises CheckpointError for another dtype or shape; a missing tensor is noted for `check_all_used`."""
        if name not in self:
            self._missing.append(name)
            return
        info = self.info(name)
        if info.shape != shape:
            raise CheckpointError(f"{self.where(name)} has shape {info.shape}; config.json asks for {shape}.")
        if info.dtype not in dtypes:
            wanted = " or ".join(NAMES[dtype] for dtype in dtypes)
            raise CheckpointError(f"{self.where(name)} is stored as {NAMES[info.dtype]}; it must be {wanted}.")

    def check_all_used(self) -> None:
        """Raises CheckpointError for tensors that were asked for and are missing, or are there and were not."""
        if self._missing:
            raise CheckpointError(
                f"Tensor {self._missing[0]} is missing from the checkpoint{_and_more(len(self._missing))}."
            )
        extra = sorted(set(self._file_of) - self._used)
        if extra:
            raise CheckpointError(
                f"{self.where(extra[0])} has no place in the model that config.json describes{_and_more(len(extra))}."
            )

    def where(self, name: str) -> str:
        return f"{self._file_of[name]}: tensor {name}"

    def place(self, name: str) -> tuple[str, int]:
        """File and offset, to read in the order of the disk."""
        return self._file_of[name], self.info(name).begin

    @property
    def num_bytes(self) -> int:
        """Of all tensors asked for."""
        return sum(self.info(name).num_bytes for name in list(self._used))

    def read(self, name: str) -> Tensor:
        """The tensor as stored, in memory of its own."""
        info = self.info(name)
        tensor = self._files[self._file_of[name]].read(name)
        self._count(name, info.num_bytes)
        return tensor

    def read_into(self, name: str, out: Tensor) -> None:
        """Fills `out`, of as many values, converting to its dtype and moving to its device.

        On the CPU and in the stored dtype the bytes go straight into their place; else by rows, so that no second copy
        of a large tensor ever exists.
        """
        info, file = self.info(name), self._files[self._file_of[name]]
        out = out.view(info.shape)
        if out.device.type == "cpu" and out.dtype == info.dtype and out.is_contiguous():
            file.read_into(name, out, partial(self._count, name))
            return
        row_bytes = max(info.num_bytes // max(info.shape[0], 1), 1)
        step = max(CHUNK_BYTES // row_bytes, 1)
        for begin in range(0, info.shape[0], step):
            rows = file.read_rows(name, begin, min(begin + step, info.shape[0]))
            out[begin : begin + step].copy_(rows)
            self._count(name, rows.nbytes)

    def _count(self, name: str, num_bytes: int) -> None:
        if self.watch is not None:
            self.watch.add(self._file_of[name], num_bytes)


def _and_more(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""
