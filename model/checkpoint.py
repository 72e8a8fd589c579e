"""Checkpoint folders: safetensors files, sharded or not, to parameters and back.

Names, shapes and dtypes are checked against the config before any weight is read; whatever is missing, left over or
misshapen is named. Knows nothing of the mathematics beyond the module tree, nor of tokenizers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import CheckpointError, ModelConfig, read_json
from model.modeling import BailingMoeV2ForCausalLM

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PRECISIONS: Mapping[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_STORED_DTYPES = {"F32", "BF16", "F16"}


def load_model(
    folder: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> BailingMoeV2ForCausalLM:
    """The model of a checkpoint folder, in eval mode, its weights in `dtype` (None: as config.json says).

    expert_bias stays float32. Anything that does not fit raises CheckpointError naming the file or tensor.
    """
    folder = Path(folder)
    config = ModelConfig.from_hf(folder)
    if config.quantization_config is not None:
        method = config.quantization_config.get("quant_method", "unnamed")
        raise CheckpointError(
            f"{folder.name}: weights quantized by {method!r} are not supported yet; use the bf16 or f32 checkpoint."
        )
    with torch.device("meta"):
        model = BailingMoeV2ForCausalLM(config)
    with ExitStack() as stack:
        files = {name: stack.enter_context(_open_shard(folder / name)) for name in list_shards(folder)}
        shard_of = _locate_tensors(folder, files)
        _check_tensors(dict(named_tensors(model)), files, shard_of)
        # Only now is memory taken; each tensor is copied into its place, so no weight exists twice.
        model.to(dtype or stored_dtype(config)).to_empty(device=device)
        model.tie_weights()
        with torch.no_grad():
            for name, target in named_tensors(model):
                target.copy_(_read_tensor(files[shard_of[name]], name, folder / shard_of[name]))
    return model.eval()


def save_checkpoint(model: BailingMoeV2ForCausalLM, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes config.json and model.safetensors in `dtype`, expert_bias in float32; a crash spares the old files."""
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
    """(checkpoint name, view into the model) for every tensor of a checkpoint: written to load, read to save."""
    for name, tensor in model.state_dict(keep_vars=False).items():
        prefix, _, last = name.rpartition(".")
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
    raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; give the folder of a complete checkpoint.")


def weights_sha256(folder: str | Path) -> str:
    """SHA-256 of the weights: of the file itself, or of the lines `<sha256>  <file name>` if there are several."""
    folder = Path(folder)
    digests = {name: _hash_file(folder / name) for name in list_shards(folder)}
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


def _open_shard(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing from {path.parent}; copy the checkpoint again.")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is truncated or damaged ({error}); copy the file again.") from error


def _read_tensor(shard: Any, name: str, path: Path) -> Tensor:
    try:
        return shard.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name}: tensor {name} cannot be read ({error}); copy the file again.") from error


def _read_weight_map(folder: Path) -> dict[str, str]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX} has no weight_map; copy the checkpoint again.")
    return {str(name): str(file) for name, file in weight_map.items()}


def _locate_tensors(folder: Path, files: Mapping[str, Any]) -> dict[str, str]:
    """Tensor name -> file that really holds it. An index that disagrees with its files is an error."""
    found: dict[str, str] = {}
    for file, shard in files.items():
        for name in shard.keys():  # noqa: SIM118
            if name in found:
                raise CheckpointError(f"Tensor {name} is in both {found[name]} and {file}; copy the checkpoint again.")
            found[name] = file
    if (folder / INDEX).is_file():
        for name, file in _read_weight_map(folder).items():
            if found.get(name) != file:
                raise CheckpointError(f"Tensor {name} is missing from {file}, where {INDEX} places it.")
    return found


def _check_tensors(expected: Mapping[str, Tensor], files: Mapping[str, Any], shard_of: Mapping[str, str]) -> None:
    missing = [name for name in expected if name not in shard_of]
    if missing:
        raise CheckpointError(f"Tensor {missing[0]} is missing from the checkpoint{_and_more(missing)}.")
    extra = sorted(set(shard_of) - set(expected))
    if extra:
        raise CheckpointError(
            f"Tensor {extra[0]} has no place in the model that config.json describes{_and_more(extra)}."
        )
    for name, target in expected.items():
        stored = files[shard_of[name]].get_slice(name)
        if tuple(stored.get_shape()) != tuple(target.shape):
            raise CheckpointError(
                f"Tensor {name} has shape {tuple(stored.get_shape())}; config.json asks for {tuple(target.shape)}."
            )
        if stored.get_dtype() not in _STORED_DTYPES:
            raise CheckpointError(f"Tensor {name} is stored as {stored.get_dtype()}; use a bf16 or f32 checkpoint.")


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _hash_file(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing from {path.parent}; copy the checkpoint again.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
