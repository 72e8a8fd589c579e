"""Writes a packed folder, a matrix at a time: memory does not grow with the model. Nothing is quantized.

Files first, each read back from the disk and compared; packed.json last. What is finished is noted in `.pack.json`,
with which the same command goes on after an interruption.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.checkpoint import PACKED, OpenCheckpoint, is_small, named_tensors, open_checkpoint, weights_sha256
from model.config import CheckpointError, ModelConfig
from model.formats import find_format
from model.kernels.build import KernelsUnavailableError
from model.kernels.cpu_decoder import Int4Tiles, Threads, check_matrix, check_supported, name_layout
from model.modeling import BailingMoeV2ForCausalLM, MoE
from model.packed.manifest import (
    PAGE,
    PROJECTIONS,
    ExpertMatrix,
    Manifest,
    PackedFile,
    Part,
    expert_stride,
    experts_name,
)
from model.packed.verify import recall_digest, remember_digest
from model.quantize.folder import (
    check_space,
    check_target,
    list_side_files,
    open_journal,
    write_bytes,
    write_json,
    writing_to,
)
from model.quantize.shards import evict, hash_file
from model.quantized import Int4Matrix, QuantizedExperts, list_matrices
from model.safetensors_file import NAMES, SafetensorsWriter, lay_out
from model.weights import ProgressCallback, Watch

JOURNAL = ".pack.json"
ALIGNMENT = 64  # of the parts of an expert: the widest load of the kernels, and a line of the cache
Shape = tuple[int, ...]
Stored = tuple[torch.dtype, Shape]


class Source(Protocol):
    """What is packed. `model` lies on the meta device and holds an Int4Matrix wherever the source has INT4; dtype is
    what the model computes in."""

    config: ModelConfig
    model: BailingMoeV2ForCausalLM
    dtype: torch.dtype

    def stored_dtype(self, name: str) -> torch.dtype:
        """Of a plain tensor, by its name in a checkpoint."""
        ...

    def read_plain(self, name: str) -> Tensor: ...

    def read_int4(self, name: str, shape: tuple[int, int]) -> Int4Matrix:
        """One matrix [O, I], by its module's name. Raises CheckpointError if the kernels cannot use it."""
        ...


class CheckpointSource:
    """A checkpoint folder that was opened."""

    def __init__(self, checkpoint: OpenCheckpoint) -> None:
        self.config, self.model = checkpoint.config, checkpoint.model
        self._weights, self._formats = checkpoint.weights, checkpoint.formats
        is_exact = is_small(self.model) or (
            not list_matrices(self.model) and self.stored_dtype("model.norm.weight") == torch.float32
        )
        self.dtype = torch.float32 if is_exact else torch.bfloat16

    def stored_dtype(self, name: str) -> torch.dtype:
        return self._weights.info(name).dtype

    def read_plain(self, name: str) -> Tensor:
        return self._weights.read(name)

    def read_int4(self, name: str, shape: tuple[int, int]) -> Int4Matrix:
        kind = find_format(self._formats, self._weights, [name])
        matrix = kind.plan(self._weights, [name], shape).to_empty(device="cpu")
        kind.fill(self._weights, name, matrix, None)
        matrix.simplify()
        try:
            check_matrix(name, matrix)
        except KernelsUnavailableError as error:
            raise CheckpointError(f"The checkpoint cannot be packed: {error}.") from error
        assert isinstance(matrix, Int4Matrix)
        return matrix


def pack_checkpoint(
    source_folder: str | Path,
    target_folder: str | Path,
    *,
    overwrite: bool = False,
    on_progress: ProgressCallback | None = None,
    cancel: threading.Event | None = None,
) -> Manifest:
    """Writes `target_folder`, or goes on with it, after the source's own hashes were checked.

    Raises CheckpointError or ValueError for a source that cannot be packed or a target that must not be written,
    OutputError for a disk that is full or fails, LoadCancelled; what was finished is kept.
    """
    source_folder, target = Path(source_folder), Path(target_folder)
    check_target(source_folder, target)
    with open_checkpoint(source_folder) as checkpoint:
        _require_support(source_folder, checkpoint.model)
        source = CheckpointSource(checkpoint)
        sha256 = weights_sha256(source_folder, on_progress=on_progress, cancel=cancel)
        name = source_folder.resolve().name
        side_files = [source_folder / "config.json", *list_side_files(source_folder)]
        with one_thread() as threads:
            packer = Packer(source, threads)
            return packer.write(target, name, sha256, side_files, overwrite, on_progress, cancel)


def _require_support(folder: Path, model: BailingMoeV2ForCausalLM) -> None:
    """Zero points and orders of activations may turn out to be none when they are read; all else is known now."""
    for _, matrix in list_matrices(model):
        if isinstance(matrix, Int4Matrix):
            matrix.zeros = matrix.g_idx = None
    try:
        check_supported(model)
    except KernelsUnavailableError as error:
        raise CheckpointError(f"{folder.name} cannot be packed: {error}; make an INT4 copy of it first.") from error


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor of a packed file; write(put) calls put(tensor, first row) in the order of rows."""

    name: str
    dtype: torch.dtype
    shape: Shape
    write: Callable[[Callable[[Tensor, int], None]], None]


class Packer:
    """Writes one source."""

    def __init__(self, source: Source, threads: Threads) -> None:
        """Raises KernelsUnavailableError without the C++ kernels, whose layout is written."""
        self._source, self._threads = source, threads
        self._sizes: dict[tuple[object, ...], tuple[Stored, Stored]] = {}
        self._groups: dict[str, int] = {}
        self._experts: dict[int, tuple[ExpertMatrix, ...]] = {}
        self._plan = self._plan_files()

    def write(
        self,
        target: Path,
        name: str,
        sha256: str,
        side_files: Sequence[Path],
        overwrite: bool = False,
        on_progress: ProgressCallback | None = None,
        cancel: threading.Event | None = None,
    ) -> Manifest:
        """name and sha256 tell what is packed; side_files are copied. As `pack_checkpoint`."""
        layout = name_layout(self._threads.library)
        sizes = {file: lay_out(_shapes(entries), PAGE)[2] for file, entries in self._plan.items()}
        with writing_to(target), _locked(target):
            if overwrite:
                (target / PACKED).unlink(missing_ok=True)  # from now on the folder is not whole
            identity = {"source": name, "sha256": sha256, "layout": layout, "sizes": sizes}
            journal = open_journal(target, identity, overwrite, JOURNAL, _digest_of)
            done = journal["shards"]
            check_space(target, sum(size for file, size in sizes.items() if file not in done))
            watch = Watch("packing", sum(sizes.values()), on_progress, cancel)
            with ThreadPoolExecutor(1) as checker:  # a file is read back while the next one is made
                pending: Future[None] | None = None
                for file, entries in self._plan.items():
                    if file in done:
                        watch.add(file, sizes[file])
                        continue
                    digest = self._write_file(target / file, entries, watch)
                    if pending is not None:
                        pending.result()
                    pending = checker.submit(self._finish_file, target, file, digest, journal)
                if pending is not None:
                    pending.result()
            files = {file: PackedFile(sizes[file], done[file]["sha256"]) for file in self._plan}
            for path in side_files:
                data = path.read_bytes()
                write_bytes(target / path.name, data)
                files[path.name] = PackedFile(len(data), hashlib.sha256(data).hexdigest())
                remember_digest(target / path.name, files[path.name].sha256)
            dtype = "f32" if self._source.dtype == torch.float32 else "bf16"
            manifest = Manifest(layout, dtype, name, sha256, files, self._groups, self._experts)
            write_bytes(target / PACKED, manifest.to_json().encode())
        return manifest

    # --- what goes where --------------------------------------------------------------------------------------------

    def _plan_files(self) -> dict[str, list[_Entry]]:
        """A file for what lies outside the layers, then one a layer, the experts last in each."""
        config, model = self._source.config, self._source.model
        by_layer: dict[int, list[_Entry]] = {layer: [] for layer in range(-1, config.num_layers)}
        for name, tensor in named_tensors(model):
            if ".mlp.experts." not in name:
                by_layer[_layer_of(name)].append(self._plan_plain(name, tuple(tensor.shape)))
        for name, matrix in list_matrices(model):
            if ".mlp.experts." not in name:
                assert isinstance(matrix, Int4Matrix)
                by_layer[_layer_of(name)] += self._plan_int4(name, matrix)
        for layer, module in enumerate(model.model.layers):
            if isinstance(module.mlp, MoE):
                by_layer[layer].append(self._plan_experts(layer, module.mlp))
        total = len(by_layer) - 1
        return {f"packed-{layer + 1:05d}-of-{total:05d}.safetensors": found for layer, found in by_layer.items()}

    def _plan_plain(self, name: str, shape: Shape) -> _Entry:
        dtype = self._packed_dtype(name, shape)

        def write(put: Callable[[Tensor, int], None]) -> None:
            put(self._source.read_plain(name).to(dtype), 0)

        return _Entry(name, dtype, shape, write)

    def _packed_dtype(self, name: str, shape: Shape) -> torch.dtype:
        """As stored, if the kernels know it, or as computed in; what is no matrix, f32, as the kernels take it."""
        if len(shape) == 1:
            return torch.float32
        return torch.bfloat16 if self._source.stored_dtype(name) == torch.bfloat16 else self._source.dtype

    def _plan_int4(self, name: str, matrix: Int4Matrix) -> list[_Entry]:
        rows, cols = matrix.shape
        self._groups[name] = matrix.group_size
        tiles, scales = self._measure(matrix)
        made: list[Int4Tiles] = []

        def write_tiles(put: Callable[[Tensor, int], None]) -> None:
            made.append(self._tile(name, (rows, cols)))
            put(made[0].tiles.view(-1), 0)

        def write_scales(put: Callable[[Tensor, int], None]) -> None:
            put(made.pop().scales, 0)

        return [_Entry(f"{name}.tiles", *tiles, write_tiles), _Entry(f"{name}.scales", *scales, write_scales)]

    def _plan_experts(self, layer: int, mlp: MoE) -> _Entry:
        config = self._source.config
        D, F = config.hidden_size, config.moe_intermediate_size
        shapes = {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
        offset, matrices = 0, []
        for projection, shape in shapes.items():
            stack = getattr(mlp.experts, projection) if isinstance(mlp.experts, QuantizedExperts) else None
            if isinstance(stack, Int4Matrix):
                group, stored = stack.group_size, self._measure(stack)
            else:
                first = f"{experts_name(layer)}.0.{projection}.weight"
                group, stored = 0, ((self._packed_dtype(first, shape), shape),)
            parts = []
            for dtype, part_shape in stored:
                parts.append(Part(offset, NAMES[dtype], part_shape))
                offset += -(-math.prod(part_shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
            matrices.append(ExpertMatrix(group, tuple(parts)))
        self._experts[layer] = tuple(matrices)
        stride = expert_stride(matrices)

        def write(put: Callable[[Tensor, int], None]) -> None:
            for expert in range(config.num_experts):
                row = torch.zeros(stride, dtype=torch.uint8)
                for projection, matrix in zip(PROJECTIONS, self._experts[layer], strict=True):
                    name = f"{experts_name(layer)}.{expert}.{projection}"
                    for part, tensor in zip(matrix.parts, self._read(name, shapes[projection], matrix), strict=True):
                        data = tensor.contiguous().view(-1).view(torch.uint8)
                        row[part.offset : part.offset + len(data)] = data
                put(row[None], expert)

        return _Entry(experts_name(layer), torch.uint8, (config.num_experts, stride), write)

    def _read(self, name: str, shape: tuple[int, int], matrix: ExpertMatrix) -> list[Tensor]:
        if matrix.group:
            tiles = self._tile(name, shape)
            return [tiles.tiles, tiles.scales]
        dtype = self._packed_dtype(f"{name}.weight", shape)
        return [self._source.read_plain(f"{name}.weight").to(dtype)]

    def _tile(self, name: str, shape: tuple[int, int]) -> Int4Tiles:
        matrix = self._source.read_int4(name, shape)
        return Int4Tiles(matrix.packed, matrix.scales, shape[1], self._threads)

    def _measure(self, matrix: Int4Matrix) -> tuple[Stored, Stored]:
        """dtype and shape of the tiles and of the scales: those of a matrix of zeros, since only the kernels know."""
        rows, cols = matrix.shape[-2:]
        key = (rows, cols, matrix.group_size, matrix.scales.dtype)
        if key not in self._sizes:
            zeros = torch.zeros(rows, cols // 8, dtype=torch.int32)
            scales = torch.ones(rows, matrix.num_groups, dtype=matrix.scales.dtype)
            tiles = Int4Tiles(zeros, scales, cols, self._threads)
            stored = (torch.uint8, (tiles.tiles.numel(),)), (tiles.scales.dtype, tuple(tiles.scales.shape))
            self._sizes[key] = stored
        return self._sizes[key]

    # --- one file ---------------------------------------------------------------------------------------------------

    def _write_file(self, path: Path, entries: Sequence[_Entry], watch: Watch) -> str:
        """Writes and syncs the file; the SHA-256 of what was meant."""
        with SafetensorsWriter(path, _shapes(entries), PAGE) as writer:
            digest, position = hashlib.sha256(writer.header), len(writer.header)
            watch.add(path.name, position)
            for entry in entries:
                info = writer.tensors[entry.name]
                digest.update(bytes(info.begin - position))
                watch.add(path.name, info.begin - position)

                def put(tensor: Tensor, first_row: int, name: str = entry.name) -> None:
                    tensor = tensor.contiguous()
                    writer.write(name, tensor, first_row)
                    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
                    watch.add(path.name, tensor.nbytes)

                entry.write(put)
                position = info.end
            writer.finish()
        return digest.hexdigest()

    def _finish_file(self, target: Path, file: str, digest: str, journal: dict[str, Any]) -> None:
        """Notes the file as finished. Raises CheckpointError if the disk gives back something else than was written."""
        evict(target / file)
        if hash_file(target / file) != digest:
            (target / file).unlink()
            raise CheckpointError(f"{file} does not read back as it was written; check the disk and pack again.")
        remember_digest(target / file, digest)  # so that not even the first start need hash it
        journal["shards"][file] = {"sha256": digest}
        write_json(target / JOURNAL, journal)


@contextmanager
def one_thread() -> Iterator[Threads]:
    """A matrix is too small for several threads to be worth their meeting, torch's or ours."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield Threads(1)
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Raises ValueError where another process is writing the same folder."""
    target.mkdir(parents=True, exist_ok=True)
    fd = os.open(target, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"Another process is packing into {target}; wait for it, or end it.") from error
    finally:
        os.close(fd)


def _digest_of(path: Path) -> str:
    return recall_digest(path) or hash_file(path)


def _shapes(entries: Sequence[_Entry]) -> Mapping[str, Stored]:
    return {entry.name: (entry.dtype, entry.shape) for entry in entries}


def _layer_of(name: str) -> int:
    """The layer's number, -1 outside the layers."""
    return int(name.split(".")[2]) if name.startswith("model.layers.") else -1
