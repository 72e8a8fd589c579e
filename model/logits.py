"""One pass of the decoder over given token ids, file to file: what `bedside logits` runs.

The form is fixed, so that any build can be compared with any other and with the reference implementation.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import find_precision, load_model
from model.config import ModelConfig
from model.kernels.build import VARIANTS, Library, load_library
from model.kernels.cpu_decoder import BLOCK_TOKENS, CpuDecoder, Threads
from model.modeling import BailingMoeV2ForCausalLM, ModelOutput
from model.weights import ProgressCallback

KERNEL_NAMES = ("reference", *VARIANTS)


def run_logits(
    checkpoint: str | Path,
    input_path: str | Path,
    output_path: str | Path,
    precision: str | None = None,
    kernels: str | None = None,
    on_progress: ProgressCallback | None = None,
) -> None:
    """Reads `input_ids` [B,S] and, if there, `attention_mask` [B,S] and `position_ids` [B,S]; writes `logits` [B,S,V]
    f32, `router.{i}.topk_ids` and `router.{i}.topk_weights` [B,S,K] of each MoE layer i, and `mtp_logits.0` where the
    checkpoint has such a layer.

    precision None computes in f32 whatever the weights are stored in, since that is exact; "nf4" and "int8" quantize
    plain weights first. kernels: "reference" (torch, the default) or a variant of the C++ ones, which know padding on
    the left only and give no `mtp_logits.0`. Raises ValueError for an unknown precision or kernels and for unusable
    input, CheckpointError for an unusable checkpoint, KernelsUnavailableError.
    """
    precision = precision or "f32"
    find_precision(precision)
    if kernels not in (None, *KERNEL_NAMES):
        raise ValueError(f"Unknown kernels {kernels!r}; this version has {', '.join(KERNEL_NAMES)}.")
    inputs = _read_inputs(Path(input_path), ModelConfig.from_hf(Path(checkpoint)))
    model = load_model(checkpoint, precision, on_progress=on_progress)
    if kernels in VARIANTS:
        _write(_run_kernels(model, inputs, load_library(kernels)), Path(output_path))
        return
    with torch.inference_mode():
        output = model(
            inputs["input_ids"],
            inputs.get("attention_mask"),
            inputs.get("position_ids"),
            output_router=True,
            output_mtp=True,
        )
    _write(_name_tensors(output, len(inputs["input_ids"])), Path(output_path))


def _run_kernels(model: BailingMoeV2ForCausalLM, inputs: dict[str, Tensor], library: Library) -> dict[str, Tensor]:
    """The same tensors by the C++ kernels; rows of padding are zero. Positions count from a row's first real token:
    they are relative, so where they begin makes no difference."""
    ids_BS, config = inputs["input_ids"], model.config
    is_real_BS = inputs.get("attention_mask", torch.ones_like(ids_BS)).bool()
    steps_BS = inputs["position_ids"].diff() if "position_ids" in inputs else torch.ones_like(ids_BS[:, 1:])
    both_BS = is_real_BS[:, 1:] & is_real_BS[:, :-1]
    if bool((is_real_BS[:, :-1] & ~is_real_BS[:, 1:]).any()) or bool((steps_BS[both_BS] != 1).any()):
        raise ValueError("These kernels take padding on the left only, and positions that count up by one.")
    texts = [row[is_real].tolist() for row, is_real in zip(ids_BS, is_real_BS, strict=True)]
    num_blocks = -(-ids_BS.shape[1] // BLOCK_TOKENS)
    decoder = CpuDecoder(model, Threads(1, library), num_blocks * len(texts), torch.float32)
    tables = [list(range(row * num_blocks, (row + 1) * num_blocks)) for row in range(len(texts))]
    out = decoder.forward(texts, [0] * len(texts), tables, list(range(sum(map(len, texts)))))

    def spread(rows: Tensor) -> Tensor:
        full = rows.new_zeros(*ids_BS.shape, rows.shape[-1])
        full[is_real_BS] = rows
        return full

    named = {"logits": spread(out.logits)}
    for layer in filter(config.is_moe_layer, range(config.num_hidden_layers)):
        named[f"router.{layer}.topk_ids"] = spread(out.topk_ids[layer].long())
        named[f"router.{layer}.topk_weights"] = spread(out.topk_weights[layer])
    return named


def _read_inputs(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}).") from error
    ids = tensors.get("input_ids")
    if ids is None or ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
        raise ValueError(f"{path} must hold integer input_ids of shape [batch, tokens], at least one.")
    if not 0 <= int(ids.min()) <= int(ids.max()) < config.vocab_size:
        raise ValueError(f"{path}: input_ids must lie between 0 and {config.vocab_size - 1}, the model's vocabulary.")
    inputs = {name: tensors[name] for name in ("input_ids", "attention_mask", "position_ids") if name in tensors}
    for name, tensor in inputs.items():
        if tensor.shape != ids.shape:
            raise ValueError(f"{path}: {name} has shape {tuple(tensor.shape)}, but input_ids {tuple(ids.shape)}.")
    return {name: tensor.long() for name, tensor in inputs.items()}


def _name_tensors(output: ModelOutput, num_rows: int) -> dict[str, Tensor]:
    named = {"logits": output.logits}
    for layer, router in (output.router or {}).items():
        for name, tensor in (("topk_ids", router.topk_ids), ("topk_weights", router.topk_weights)):
            named[f"router.{layer}.{name}"] = tensor.view(num_rows, -1, tensor.shape[-1])
    if output.mtp_logits is not None:
        named["mtp_logits.0"] = output.mtp_logits
    return named


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written ({error}).") from error
