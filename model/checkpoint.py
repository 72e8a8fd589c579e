"""Checkpoint folders: safetensors files, sharded or not, to parameters and back.

Names, shapes and dtypes are checked against the config before any weight is read; whatever is missing, left over or
misshapen is named. Knows nothing of the mathematics beyond the module tree, nor of tokenizers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import CheckpointError, ModelConfig, read_json
from model.formats import ON_THE_FLY, PLAIN, Format, find_format, list_formats
from model.huge_pages import prefer_huge_pages
from model.modeling import BailingMoeV2ForCausalLM, Experts
from model.quantized import Matrix, QuantizedExperts, count_parameters, list_matrices, name_quantization
from model.safetensors_file import CHUNK_BYTES, SafetensorsFile
from model.weights import FLOATS, ProgressCallback, Watch, Weights

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HASHES = "SHA256SUMS"
PACKED = "packed.json"  # the manifest of a folder that `bedside pack` wrote; see model.packed
_SHA256 = re.compile("[0-9a-f]{64}")
PRECISIONS: Mapping[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
QUANTIZATIONS = ("int4", "fp8", "nf4", "int8")
# Below this many parameters a model is computed in f32 unless told otherwise. Above, f32 would double the memory.
MAX_F32_PARAMETERS = 1_000_000_000


def load_model(
    folder: str | Path,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    *,
    on_progress: ProgressCallback | None = None,
    cancel: threading.Event | None = None,
) -> BailingMoeV2ForCausalLM:
    """The model of a checkpoint folder, in eval mode; quantized weights stay packed, the rest is in `dtype`, which is
    what the model computes in (None: as config.json says; for quantized weights f32 if the model is small, else bf16).

    dtype may also be a name of PRECISIONS or QUANTIZATIONS; "nf4" and "int8" quantize plain weights while loading.
    expert_bias stays float32. on_progress hears of bytes read, from this thread; `cancel` raises LoadCancelled.
    Anything that does not fit raises CheckpointError naming the file or tensor; an unknown precision, ValueError.
    """
    return _load(Path(folder), dtype, device, on_progress, cancel, always_hash=False)[0]


def load_hashed_model(
    folder: str | Path,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    *,
    on_progress: ProgressCallback | None = None,
    cancel: threading.Event | None = None,
) -> tuple[BailingMoeV2ForCausalLM, str]:
    """`load_model`, and `weights_sha256` of what was loaded, for which the files are hashed once."""
    model, sha256 = _load(Path(folder), dtype, device, on_progress, cancel, always_hash=True)
    assert sha256 is not None
    return model, sha256


def _load(
    folder: Path,
    dtype: torch.dtype | str | None,
    device: str | torch.device,
    on_progress: ProgressCallback | None,
    cancel: threading.Event | None,
    always_hash: bool,
) -> tuple[BailingMoeV2ForCausalLM, str | None]:
    dtype, quantization = find_precision(dtype)
    sha256 = None
    # 1. what is there, and whether it is what the config describes: headers only
    with open_checkpoint(folder, quantization) as checkpoint:
        config, model, weights, jobs = checkpoint.config, checkpoint.model, checkpoint.weights, checkpoint.jobs
        _check_precision(folder, quantization, name_quantization(model))
        # 2. whether the bytes are what the publisher wrote
        if always_hash or _read_stated_hashes(folder):
            sha256 = weights_sha256(folder, on_progress=on_progress, cancel=cancel)
        # 3. only now is memory taken, and each tensor read into its place, so no weight exists twice
        if dtype is None and list_matrices(model):
            dtype = torch.float32 if is_small(model) else torch.bfloat16
        model.to(dtype or stored_dtype(config)).to_empty(device=device)
        model.tie_weights()
        prefer_huge_pages((*model.parameters(), *model.buffers()))
        weights.watch = Watch("reading", weights.num_bytes, on_progress, cancel)
        plain = [_Job(name, partial(weights.read_into, name, tensor)) for name, tensor in named_tensors(model)]
        with torch.no_grad():
            for job in sorted([*jobs, *plain], key=lambda job: weights.place(job.tensor)):
                job.read()
    for _, matrix in list_matrices(model):
        matrix.simplify()
    return model.eval(), sha256


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """A folder whose headers fit its config. `model` has no memory yet: it lies on the meta device; `jobs` fill its
    packed matrices once it has. `formats` are those that its matrices may be stored in."""

    config: ModelConfig
    model: BailingMoeV2ForCausalLM
    weights: Weights
    formats: Sequence[Format]
    jobs: Sequence[_Job]


@contextmanager
def open_checkpoint(folder: Path, quantization: str | None = None) -> Iterator[OpenCheckpoint]:
    """Opens a folder's files and holds every tensor's name, dtype and shape against its config, reading headers only;
    plain weights may be quantized on the fly. Raises CheckpointError naming what does not fit."""
    config = _read_config(folder)
    with ExitStack() as stack:
        files = {name: stack.enter_context(SafetensorsFile(folder / name)) for name in list_shards(folder)}
        weights = Weights(files, _locate_tensors(folder, files))
        formats = _choose_formats(config, quantization)
        with torch.device("meta"):
            model = BailingMoeV2ForCausalLM(config)
        jobs = _plan_matrices(model, weights, formats)
        for name, tensor in named_tensors(model):
            weights.check(name, FLOATS, tuple(tensor.shape))
        weights.check_all_used()
        yield OpenCheckpoint(config, model, weights, formats, jobs)


def is_small(model: BailingMoeV2ForCausalLM) -> bool:
    """Whether a model is best computed in f32: exact, and quick on a CPU without bf16 arithmetic."""
    return count_parameters(model) < MAX_F32_PARAMETERS


def default_dtype(folder: Path) -> torch.dtype | None:
    """What to compute in unless told otherwise: f32 for a small model, else None, which leaves it to load_model."""
    with torch.device("meta"):
        return torch.float32 if is_small(BailingMoeV2ForCausalLM(ModelConfig.from_hf(folder))) else None


def find_precision(precision: str | torch.dtype | None) -> tuple[torch.dtype | None, str | None]:
    """What to compute in and what to quantize to, by name; None is "as stored". ValueError for an unknown name."""
    if precision is None or isinstance(precision, torch.dtype):
        return precision, None
    if precision in QUANTIZATIONS:
        return None, precision
    if precision not in PRECISIONS:
        known = ", ".join((*PRECISIONS, *QUANTIZATIONS))
        raise ValueError(f"Unknown precision {precision!r}; this version knows {known}.")
    return PRECISIONS[precision], None


def _read_config(folder: Path) -> ModelConfig:
    """The folder's config; older GPTQ writers keep the quantization in a file of its own."""
    config = ModelConfig.from_hf(folder)
    beside = folder / "quantize_config.json"
    if config.quantization_config is None and beside.is_file():
        return replace(config, quantization_config={"quant_method": "gptq"} | read_json(beside))
    return config


def _choose_formats(config: ModelConfig, quantization: str | None) -> Sequence[Format]:
    is_plain = config.quantization_config is None
    on_the_fly = quantization if is_plain and quantization in ON_THE_FLY else None
    return list_formats(config.quantization_config or {}, on_the_fly)


def _check_precision(folder: Path, wanted: str | None, found: str | None) -> None:
    if wanted is not None and (found or "").split(" ")[0] != wanted:
        raise CheckpointError(
            f"{folder.name} is stored as {found or 'plain weights'}, not as {wanted}; leave the precision out, or give "
            f"the folder of a checkpoint in {wanted}."
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """One matrix or tensor to be read; `tensor` names its bulk."""

    tensor: str
    read: Callable[[], None]


def _plan_matrices(model: BailingMoeV2ForCausalLM, weights: Weights, formats: Sequence[Format]) -> list[_Job]:
    """Puts empty matrices where a checkpoint's weights are packed; returns how they are to be filled."""
    jobs: list[_Job] = []

    def plan(names: Sequence[str], shape: tuple[int, ...], kind: Format) -> Matrix:
        matrix = kind.plan(weights, names, shape)
        for number, name in enumerate(names):
            expert = number if len(shape) == 3 else None
            jobs.append(_Job(f"{name}.{kind.main}", partial(kind.fill, weights, name, matrix, expert)))
        return matrix

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not (name == "lm_head" and model.config.tie_word_embeddings):
            kind = find_format(formats, weights, [name])
            if kind is not PLAIN:
                model.set_submodule(name, plan([name], tuple(module.weight.shape), kind))
        elif isinstance(module, Experts):
            E, D, F = module.down_proj.shape
            stacks = {
                projection: ([f"{name}.{expert}.{projection}" for expert in range(E)], shape)
                for projection, shape in (("gate_proj", (E, F, D)), ("up_proj", (E, F, D)), ("down_proj", (E, D, F)))
            }
            kinds = {projection: find_format(formats, weights, names) for projection, (names, _) in stacks.items()}
            if any(kind is not PLAIN for kind in kinds.values()):
                matrices = [plan(*stacks[projection], kinds[projection]) for projection in stacks]
                model.set_submodule(name, QuantizedExperts(*matrices))
    return jobs


def save_checkpoint(model: BailingMoeV2ForCausalLM, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes config.json and model.safetensors in `dtype`, expert_bias in float32; a crash spares the old files.
    Raises ValueError for a quantized model, whose weights are no longer known."""
    if list_matrices(model):
        raise ValueError("A quantized model cannot be saved; copy its folder, or save the model it was made from.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", torch.float32 if name.endswith("expert_bias") else dtype).clone()
        for name, tensor in named_tensors(model)
    }
    config = replace(model.config, torch_dtype=str(dtype).removeprefix("torch."), quantization_config=None)
    partial = folder / ".partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, folder / WEIGHTS)
    partial.write_text(json.dumps(config.to_hf(), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "config.json")


def named_tensors(model: BailingMoeV2ForCausalLM) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, view into the model) for every tensor of a checkpoint: written to load, read to save. Packed
    matrices are not among them."""
    packed = {name for name, _ in list_matrices(model)}
    for name, tensor in model.state_dict(keep_vars=False).items():
        prefix, _, last = name.rpartition(".")
        if prefix in packed:
            continue
        if last == "gate_up_proj":
            width = tensor.shape[1] // 2
            for expert, matrix in enumerate(tensor):
                yield f"{prefix}.{expert}.gate_proj.weight", matrix[:width]
                yield f"{prefix}.{expert}.up_proj.weight", matrix[width:]
        elif last == "down_proj":
            for expert, matrix in enumerate(tensor):
                yield f"{prefix}.{expert}.down_proj.weight", matrix
        elif not (name == "lm_head.weight" and model.config.tie_word_embeddings):
            yield name, tensor


def list_shards(folder: Path) -> list[str]:
    """File names of a checkpoint's weights, in order."""
    if (folder / INDEX).is_file():
        names = set(_read_weight_map(folder).values())
        strange = next((name for name in names if Path(name).name != name), None)
        if strange is not None:
            raise CheckpointError(f"{INDEX} names the file {strange!r}, which lies outside the checkpoint folder.")
        return sorted(names)
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / PACKED).is_file():
        raise CheckpointError(
            f"{folder} is packed for the C++ kernels, which alone can run it; give the folder that it was packed from."
        )
    raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; give the folder of a complete checkpoint.")


def weights_sha256(
    folder: str | Path, *, on_progress: ProgressCallback | None = None, cancel: threading.Event | None = None
) -> str:
    """SHA-256 of the weights: of the file itself, or of the lines `<sha256>  <file name>` if there are several.

    Raises CheckpointError naming a file that is not what the folder's own hashes say; LoadCancelled by `cancel`.
    """
    folder = Path(folder)
    names = list_shards(folder)
    missing = next((name for name in names if not (folder / name).is_file()), None)
    if missing is not None:
        raise CheckpointError(f"{missing} is missing from {folder}; copy the checkpoint again.")
    stated = _read_stated_hashes(folder)
    watch = Watch("verifying", sum((folder / name).stat().st_size for name in names), on_progress, cancel)
    digests = {}
    for name in names:
        digests[name] = _hash_file(folder / name, watch)
        if stated.get(name, digests[name]) != digests[name]:
            raise CheckpointError(f"{name} is damaged: its SHA-256 is not the stated one; copy the file again.")
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()).hexdigest()


def stored_dtype(config: ModelConfig) -> torch.dtype:
    """The dtype config.json names for the weights."""
    dtype = getattr(torch, config.torch_dtype, None)
    if not isinstance(dtype, torch.dtype) or dtype not in PRECISIONS.values():
        raise CheckpointError(
            f"config.json: torch_dtype {config.torch_dtype!r} is not supported; use bfloat16 or float32."
        )
    return dtype


def _read_weight_map(folder: Path) -> dict[str, str]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX} has no weight_map; copy the checkpoint again.")
    return {str(name): str(file) for name, file in weight_map.items()}


def _locate_tensors(folder: Path, files: Mapping[str, SafetensorsFile]) -> dict[str, str]:
    """Tensor name -> file that really holds it. An index that disagrees with its files is an error."""
    found: dict[str, str] = {}
    for file, shard in files.items():
        for name in shard.tensors:
            if name in found:
                raise CheckpointError(f"Tensor {name} is in both {found[name]} and {file}; copy the checkpoint again.")
            found[name] = file
    if (folder / INDEX).is_file():
        for name, file in _read_weight_map(folder).items():
            if found.get(name) != file:
                raise CheckpointError(f"Tensor {name} is missing from {file}, where {INDEX} places it.")
    return found


def _read_stated_hashes(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, where the folder tells: in SHA256SUMS, or in what the hub's client notes of a download."""
    if (folder / HASHES).is_file():
        lines = (folder / HASHES).read_text(encoding="utf-8", errors="replace").splitlines()
        return dict(_read_hash_line(line) for line in lines if line.strip())
    stated = {}
    for note in (folder / ".cache" / "huggingface" / "download").glob("*.safetensors.metadata"):
        # commit, etag, time; the etag of a large file is its SHA-256.
        etag = [*note.read_text(encoding="utf-8", errors="replace").split(), "", ""][1]
        if _SHA256.fullmatch(etag):
            stated[note.name.removesuffix(".metadata")] = etag
    return stated


def _read_hash_line(line: str) -> tuple[str, str]:
    digest, _, name = line.strip().partition(" ")
    if not _SHA256.fullmatch(digest.lower()) or not name.strip():
        raise CheckpointError(f"{HASHES}: {line[:80]!r} is not a line of sha256sum; write the file anew or remove it.")
    return name.strip().removeprefix("*").removeprefix("./"), digest.lower()


def _hash_file(path: Path, watch: Watch) -> str:
    digest, buffer = hashlib.sha256(), bytearray(CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while num := file.readinto(buffer):
            digest.update(memoryview(buffer)[:num])
            watch.add(path.name, num)
    return digest.hexdigest()
