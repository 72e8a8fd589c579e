"""A packed folder to a model that the C++ kernels run: mapped, copied, or with its experts left on the disk.

map: the kernels read the system's own copy of the files; nothing is read twice, and the second start finds it there. On
a file system with large folios (ext4 since Linux 6.16, XFS) it lies on pages of 2 MiB. copy: read into memory of our
own on such pages, for file systems without. disk: attention, shared experts, routers and head are held, and the routed
experts read as they are chosen (model.kernels.expert_cache), for models larger than memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.backend import count_cache_bytes, find_cache_dtype
from model.checkpoint import PRECISIONS
from model.config import CheckpointError, ModelConfig
from model.huge_pages import prefer_huge_pages
from model.kernels.build import KernelsUnavailableError, Library, load_library
from model.kernels.cpu_decoder import name_layout
from model.kernels.expert_cache import ExpertCache, ExpertFile, Place
from model.modeling import BailingMoeV2ForCausalLM, MoE
from model.packed.manifest import PROJECTIONS, ExpertMatrix, Manifest, experts_name, read_manifest
from model.packed.memory import available_bytes
from model.packed.verify import WeightsGuard, verify_files
from model.quantized import DenseMatrix, Matrix, QuantizedExperts, TiledInt4Matrix
from model.safetensors_file import CHUNK_BYTES, DTYPES, SafetensorsFile, TensorInfo
from model.weights import ProgressCallback, Watch

MODES = ("auto", "map", "copy", "disk")
NUM_READERS = 2
RESERVE_BYTES = 2**30  # for the rest of the program, beside weights and KV cache
ALWAYS_FITS_BYTES = 2**30
EMBEDDING = "model.word_embeddings.weight"
_MADV_HUGEPAGE, _MADV_POPULATE_READ = 14, 22  # <linux/mman.h>


@dataclass(frozen=True, slots=True)
class PackedModel:
    """mode: one of MODES, as chosen. experts: where they are read as they are chosen, else None. guard: to be asked
    before every pass. was_trusted: some file was not hashed now, since it had been before."""

    model: BailingMoeV2ForCausalLM
    manifest: Manifest
    mode: str
    experts: ExpertCache | None
    guard: WeightsGuard
    was_trusted: bool

    def describe(self) -> dict[str, str]:
        """For the Model screen and the answer's record."""
        words = {"map": "packed, mapped", "copy": "packed, copied into memory", "disk": "packed, experts from the disk"}
        facts = {"weights": words[self.mode], "packed sha256": self.manifest.sha256}
        if self.experts is not None:
            num_experts = self.model.config.num_experts * len(self.experts.files)
            facts["experts in memory"] = f"at most {self.experts.num_slots:,} of {num_experts:,}"
        return facts


def load_packed(
    folder: Path,
    dtype: torch.dtype | None = None,
    kernels: str = "auto",
    mode: str = "auto",
    expert_bytes: int | None = None,
    cache: str = "auto",
    *,
    on_progress: ProgressCallback | None = None,
    cancel: threading.Event | None = None,
) -> PackedModel:
    """dtype: what to compute in, by default as the source. expert_bytes: memory for experts in mode "disk", by default
    what is free. cache: what keys and values will be stored as, see model.backend_choice.make_backend; room is left for
    them. Raises CheckpointError naming what is wrong with the folder or why it cannot run here, GenerationError where
    memory is too small even for mode "disk", LoadCancelled."""
    library = _require_kernels(folder, kernels)
    manifest, config = read_manifest(folder), ModelConfig.from_hf(folder)
    if manifest.layout != name_layout(library):
        raise CheckpointError(
            f"{folder.name} is packed in the layout {manifest.layout}, and these kernels read {name_layout(library)}; "
            f"pack it again from {manifest.source}."
        )
    was_trusted = verify_files(folder, manifest.files, on_progress=on_progress, cancel=cancel)
    dtype = dtype or PRECISIONS[manifest.dtype]
    reserved = count_cache_bytes(config, find_cache_dtype(cache, dtype)) + RESERVE_BYTES
    with ExitStack() as stack:
        names = sorted(name for name in manifest.files if name.endswith(".safetensors"))
        files = {name: stack.enter_context(SafetensorsFile(folder / name)) for name in names}
        tensors = {name: (file, info) for file, held in files.items() for name, info in held.tensors.items()}
        if mode == "auto":
            fits = manifest.num_bytes <= ALWAYS_FITS_BYTES or manifest.num_bytes + reserved <= available_bytes()
            mode = "map" if fits or not manifest.experts else "disk"
        experts = _open_experts(folder, manifest, config, tensors) if mode == "disk" else {}
        guard = WeightsGuard(folder, manifest.files, library.handle.bedside_map_num_lost)
        watch = Watch("reading", manifest.num_bytes - _experts_bytes(experts, config), on_progress, cancel)
        views = _hold_files(folder, files, mode, library, watch)
    kept = None
    if experts:
        if expert_bytes is None:
            expert_bytes = available_bytes() - reserved
        kept = ExpertCache(experts, config.num_experts, expert_bytes)
    model = _Builder(config, manifest, dtype, views).build()
    return PackedModel(model, manifest, mode, kept, guard, was_trusted)


def _require_kernels(folder: Path, kernels: str) -> Library:
    try:
        if kernels == "reference":
            raise KernelsUnavailableError("torch was asked for.")
        return load_library(None if kernels == "auto" else kernels)
    except KernelsUnavailableError as error:
        raise CheckpointError(
            f"{folder.name} is packed for the C++ kernels, which cannot be used: {error} Give the folder that it was "
            "packed from instead."
        ) from error


# --- the bytes --------------------------------------------------------------------------------------------------


def _hold_files(
    folder: Path, files: Mapping[str, SafetensorsFile], mode: str, library: Library, watch: Watch
) -> dict[str, tuple[Tensor, TensorInfo]]:
    """By tensor, the bytes of its file and its place in them; in mode "disk" an expert tensor has none."""
    counting = threading.Lock()

    def count(name: str, num_bytes: int) -> None:
        with counting:
            watch.add(name, num_bytes)

    def hold(name: str) -> Tensor:
        infos, path = files[name].tensors, folder / name
        # Of the embedding a token needs one row: left to the system, what is never asked for takes no memory.
        if mode == "map" or (mode == "disk" and EMBEDDING in infos):
            data = _map_file(path, library, will_need=mode == "map")
            count(name, len(data))
            return data
        ends = [info.begin for tensor, info in infos.items() if mode == "disk" and tensor.endswith(".mlp.experts")]
        return _copy_file(path, min(ends, default=path.stat().st_size), lambda num: count(name, num))

    with ThreadPoolExecutor(NUM_READERS) as pool:
        held = dict(zip(files, pool.map(hold, files), strict=True))
    return {tensor: (held[name], info) for name, file in files.items() for tensor, info in file.tensors.items()}


class _Mapped:
    """A mapped file. What cannot be read later becomes zeros, and is counted: see kernels/cpu/mapped.cpp."""

    def __init__(self, path: Path, library: Library) -> None:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        self.bytes = np.frombuffer(mapped, np.uint8)
        self.address = self.bytes.ctypes.data
        self._handle = library.handle
        self._handle.bedside_map_watch(ctypes.c_void_p(self.address), ctypes.c_int64(len(self.bytes)))

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._handle.bedside_map_unwatch(ctypes.c_void_p(self.address))


def _map_file(path: Path, library: Library, will_need: bool) -> Tensor:
    """The file as bytes that cannot be written to. will_need: asks for all of it at once, and for large pages; what
    cannot be read is then an error here."""
    held = _Mapped(path, library)
    if will_need:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        arguments = (ctypes.c_void_p(held.address), ctypes.c_size_t(len(held.bytes)))
        madvise(*arguments, _MADV_HUGEPAGE)  # a wish
        if madvise(*arguments, _MADV_POPULATE_READ) and ctypes.get_errno() not in (0, 22):  # EINVAL: before Linux 5.14
            raise CheckpointError(f"{path.name} cannot be read ({os.strerror(ctypes.get_errno())}); check the disk.")
    # torch has no read-only tensors and warns of such buffers; the pages themselves stay write-protected.
    alias = (ctypes.c_uint8 * len(held.bytes)).from_address(held.address)
    alias.owner = held  # type: ignore[attr-defined]
    return torch.frombuffer(alias, dtype=torch.uint8)


def _copy_file(path: Path, num_bytes: int, on_bytes: Callable[[int], None]) -> Tensor:
    """The first bytes of a file, in memory of our own on large pages."""
    out = torch.empty(num_bytes, dtype=torch.uint8)
    prefer_huge_pages([out])
    target, done = out.numpy().data, 0
    with path.open("rb", buffering=0) as file:
        while done < num_bytes:
            num = file.readinto(target[done : done + CHUNK_BYTES])
            if not num:
                raise CheckpointError(f"{path.name} ended early; pack the checkpoint again.")
            done += num
            on_bytes(num)
    return out


def _open_experts(
    folder: Path, manifest: Manifest, config: ModelConfig, tensors: Mapping[str, tuple[str, TensorInfo]]
) -> dict[int, ExpertFile]:
    files = {}
    for layer, matrices in manifest.experts.items():
        name = experts_name(layer)
        if name not in tensors:
            raise CheckpointError(f"Tensor {name} is missing from {folder}; pack the checkpoint again.")
        file, info = tensors[name]
        places = [_describe_place(matrix) for matrix in matrices]
        files[layer] = ExpertFile(folder / file, info.begin, info.shape[1], (places[0], places[1], places[2]))
    return files


def _describe_place(matrix: ExpertMatrix) -> Place:
    if not matrix.group:
        return Place(matrix.parts[0].offset)
    scales = matrix.parts[1]
    return Place(matrix.parts[0].offset, scales.offset, scales.dtype == "BF16")


def _experts_bytes(experts: Mapping[int, ExpertFile], config: ModelConfig) -> int:
    return sum(file.stride * config.num_experts for file in experts.values())


# --- the model --------------------------------------------------------------------------------------------------


class _Builder:
    """Puts views into the files where a model's weights belong."""

    def __init__(
        self,
        config: ModelConfig,
        manifest: Manifest,
        dtype: torch.dtype,
        views: Mapping[str, tuple[Tensor, TensorInfo]],
    ) -> None:
        self._config, self._manifest, self._dtype, self._views = config, manifest, dtype, views

    def build(self) -> BailingMoeV2ForCausalLM:
        """Raises CheckpointError naming a tensor that is missing or misshapen."""
        with torch.device("meta"):
            model = BailingMoeV2ForCausalLM(self._config)
        for name, module in list(model.named_modules()):
            if isinstance(module, MoE):
                layer = int(name.split(".")[2])
                module.experts = self._experts(layer)  # type: ignore[assignment]
            elif isinstance(module, nn.Linear) and name in self._manifest.groups:
                model.set_submodule(name, self._int4(name, (module.out_features, module.in_features)))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_meta or ".mlp.experts." in name or (name == "lm_head.weight" and self._is_tied):
                continue
            owner = model.get_submodule(name.rpartition(".")[0])
            view = self._view(name, tuple(tensor.shape))
            if tensor.dim() == 1 and not name.endswith("expert_bias"):
                view = view.to(self._dtype)  # a norm, by which the model tells what it computes in
            if isinstance(tensor, nn.Parameter):
                setattr(owner, name.rpartition(".")[2], nn.Parameter(view, requires_grad=False))
            else:
                setattr(owner, name.rpartition(".")[2], view)
        model.tie_weights()
        return model.eval()

    @property
    def _is_tied(self) -> bool:
        return self._config.tie_word_embeddings

    def _view(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        if name not in self._views:
            raise CheckpointError(f"Tensor {name} is missing from the packed folder; pack the checkpoint again.")
        data, info = self._views[name]
        if shape is not None and info.shape != shape:
            raise CheckpointError(
                f"Tensor {name} has shape {info.shape} and config.json asks for {shape}; pack the checkpoint again."
            )
        return data[info.begin : info.end].view(info.dtype).view(info.shape)

    def _int4(self, name: str, shape: tuple[int, int]) -> TiledInt4Matrix:
        tiles, scales = self._view(f"{name}.tiles"), self._view(f"{name}.scales")
        return TiledInt4Matrix(shape, self._manifest.groups[name], tiles, scales)

    def _experts(self, layer: int) -> QuantizedExperts:
        D, F, E = self._config.hidden_size, self._config.moe_intermediate_size, self._config.num_experts
        name = experts_name(layer)
        if layer not in self._manifest.experts or name not in self._views:
            raise CheckpointError(f"Tensor {name} is missing from the packed folder; pack the checkpoint again.")
        data, info = self._views[name]
        if info.end > len(data):  # left on the disk
            bytes_ES = torch.empty(info.shape, dtype=torch.uint8, device="meta")
        else:
            bytes_ES = self._view(name)
        made: list[Matrix] = []
        shapes = ((E, F, D), (E, F, D), (E, D, F))
        for projection, shape, matrix in zip(PROJECTIONS, shapes, self._manifest.experts[layer], strict=True):
            parts = []
            for part in matrix.parts:
                dtype = DTYPES[part.dtype]
                num_bytes = int(np.prod(part.shape)) * dtype.itemsize
                if len(bytes_ES) != E or part.offset + num_bytes > bytes_ES.shape[1]:
                    raise CheckpointError(f"{name}.{projection} does not fit its tensor; pack the checkpoint again.")
                cut = bytes_ES[:, part.offset : part.offset + num_bytes].view(dtype)
                parts.append(cut.unflatten(1, part.shape))
            if matrix.group:
                made.append(TiledInt4Matrix(shape, matrix.group, *parts))
            else:
                dense = DenseMatrix(shape)
                dense.weight = nn.Parameter(parts[0], requires_grad=False)
                made.append(dense)
        return QuantizedExperts(*made)
