"""What is written: the plan of files and tensors, and the writer of one file, which reads it back and compares."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from model.config import CheckpointError
from model.quantize.rtn import PackedWeight
from model.quantize.source import QuantizeOptions, Source
from model.safetensors_file import SafetensorsFile, SafetensorsWriter

COPY_ELEMENTS = 2**24
NUM_WORKERS = 2
T = TypeVar("T")
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Step:
    """How far a run is: which file of how many, and source bytes, of which `skipped` were done by an earlier run."""

    number: int
    num_shards: int
    done_bytes: int
    skipped_bytes: int
    total_bytes: int
    seconds: float

    @property
    def bytes_per_s(self) -> float:
        return (self.done_bytes - self.skipped_bytes) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        return (self.total_bytes - self.done_bytes) / max(self.bytes_per_s, 1e-9)


class Progress:
    """Counts source bytes and shows each step."""

    def __init__(self, num_shards: int, total_bytes: int, show: Callable[[Step], None]) -> None:
        self._num_shards, self._total, self._show = num_shards, total_bytes, show
        self._number = self._done = self._skipped = 0
        self._started = time.monotonic()

    def skip(self, num_bytes: int) -> None:
        """A file that an earlier run finished."""
        self._number += 1
        self._done += num_bytes
        self._skipped += num_bytes
        self._started = time.monotonic()

    def begin(self) -> None:
        """The next file."""
        self._number += 1

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        seconds = time.monotonic() - self._started
        self._show(Step(self._number, self._num_shards, self._done, self._skipped, self._total, seconds))


@dataclass(frozen=True, slots=True)
class Shard:
    """One file to write: a layer's tensors, or (layer None) those outside the layers."""

    file: str
    layer: int | None
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """`quantized` and `kept` divide the weights of linear layers; `undivided` are kept since the group does not fit."""

    shards: tuple[Shard, ...]
    quantized: frozenset[str]
    kept: tuple[str, ...]
    undivided: tuple[str, ...]


def make_plan(source: Source, options: QuantizeOptions) -> Plan:
    """Raises ValueError if nothing would be quantized, or a head is asked for that the checkpoint does not have."""
    if options.lm_head and "lm_head.weight" not in source.linears:
        raise ValueError("The checkpoint has no lm_head of its own (it is tied to the embeddings): leave out lm-head.")
    wanted = {name for name in source.linears if _is_wanted(name, options)}
    # compressed-tensors divides columns into whole groups only (quantization/lifecycle/forward_helpers.py, 0.20.0).
    undivided = {name for name in wanted if source.shapes[name][1] % options.group_size}
    if wanted == undivided:
        raise ValueError(
            f"No weight has columns that are a multiple of {options.group_size}; use a smaller group size."
        )
    quantized = frozenset(wanted - undivided)
    kept = tuple(name for name in source.shapes if name in source.linears - quantized)
    by_layer: dict[int | None, list[str]] = {layer: [] for layer in range(source.config.num_layers)}
    for name in source.shapes:
        by_layer.setdefault(_layer_of(name), []).append(name)
    total = len(by_layer)
    shards = tuple(
        Shard(f"model-{number:05d}-of-{total:05d}.safetensors", layer, tuple(names))
        for number, (layer, names) in enumerate(by_layer.items(), start=1)
    )
    return Plan(shards, quantized, kept, tuple(name for name in kept if name in undivided))


def lay_out(source: Source, shard: Shard, plan: Plan, options: QuantizeOptions) -> Layout:
    """The tensors of a file: dtype and shape by name."""
    layout: Layout = {}
    for name in shard.names:
        shape = source.shapes[name]
        if name in plan.quantized:
            rows, columns = shape
            layout[f"{name}_packed"] = (torch.int32, (rows, columns // 8))
            layout[f"{name}_scale"] = (source.dtype, (rows, columns // options.group_size))
            layout[f"{name}_shape"] = (torch.int64, (2,))
        else:
            layout[name] = (source.copy_dtype(name), shape)
    return layout


def layout_bytes(layout: Layout) -> int:
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())


class ShardWriter:
    """Writes a file of the plan; it stands under its name only after `finish`."""

    def __init__(self, path: Path, layout: Layout, source: Source, progress: Progress) -> None:
        self.source = source
        self._path, self._progress = path, progress
        self._digests = {name: hashlib.sha256() for name in layout}
        self._errors: dict[str, tuple[str, float, float]] = {}
        self._writer = SafetensorsWriter(path, layout)

    def put(self, name: str, weight: PackedWeight, method: str, first_row: int = 0) -> None:
        """Writes rows of a quantized weight, in order. Raises OSError (disk full)."""
        if first_row == 0:
            self._write(f"{name}_shape", torch.tensor(self.source.shapes[name]), 0)
        self._write(f"{name}_packed", weight.packed, first_row)
        self._write(f"{name}_scale", weight.scales, first_row)
        _, error, norm = self._errors.get(name, (method, 0.0, 0.0))
        self._errors[name] = (method, error + weight.squared_error, norm + weight.squared_norm)
        self._progress.advance(self.source.source_bytes(name) * len(weight.packed) // self.source.shapes[name][0])

    def copy(self, name: str) -> None:
        """Copies a tensor that stays as it is, by rows."""
        dtype = self.source.copy_dtype(name)
        for begin, end in self.source.row_pieces(name, COPY_ELEMENTS):
            self._write(name, self.source.read_rows(name, begin, end).to(dtype), begin)
        self._progress.advance(self.source.source_bytes(name))

    def finish(self) -> dict[str, object]:
        """Puts the file in place, reads it back from the disk and returns its journal entry.

        Raises CheckpointError naming the tensor that reads back differently.
        """
        self._writer.finish()
        evict(self._path)
        with SafetensorsFile(self._path) as written:
            for name, digest in self._digests.items():
                if hash_tensor(written.read(name)).digest() != digest.digest():
                    self._path.unlink()
                    raise CheckpointError(
                        f"{self._path.name}: tensor {name} does not read back as it was written; check the disk and "
                        "run the same command again."
                    )
        errors = {n: [method, math.sqrt(e / norm) if norm else 0.0] for n, (method, e, norm) in self._errors.items()}
        return {"sha256": hash_file(self._path), "tensors": errors}

    def _write(self, name: str, tensor: Tensor, first_row: int) -> None:
        tensor = tensor.contiguous()
        self._digests[name].update(hash_input(tensor))
        self._writer.write(name, tensor, first_row)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.discard()


def run_ordered(pool: ThreadPoolExecutor, work: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Results in the order of the arguments, with a bounded number of them under way or waiting."""
    pending: deque[Future[T]] = deque()
    for item in arguments:
        pending.append(pool.submit(work, *item))
        if len(pending) > 2 * NUM_WORKERS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextmanager
def start_workers() -> Iterator[ThreadPoolExecutor]:
    """Workers that each compute on one core: the steps are too short to be worth dividing among cores."""
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(NUM_WORKERS, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)  # the workers' setting is also the default of threads to come


def hash_input(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def hash_tensor(tensor: Tensor) -> hashlib._Hash:
    return hashlib.sha256(hash_input(tensor))


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def evict(path: Path) -> None:
    """Asks the system to forget its copy of a file, so that what is read next comes from the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _is_wanted(name: str, options: QuantizeOptions) -> bool:
    if name == "lm_head.weight":
        return options.lm_head
    if name.endswith(".eh_proj.weight"):
        return options.mtp_projection
    return options.attention or ".attention." not in name


def _layer_of(name: str) -> int | None:
    return int(name.split(".")[2]) if name.startswith("model.layers.") else None
