"""Tiny checkpoints in every published precision, encoded by each format's definition, and the weights they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import WEIGHTS, save_checkpoint
from tests.model.conftest import make_model

Tensors = dict[str, Tensor]
Encoded = tuple[Tensors, Tensor]
"""Tensors by their name behind the module's, `.weight_packed` and so on; and the weight [O, I] they stand for."""
Encode = Callable[[Tensor], Encoded]


def is_matrix(name: str) -> bool:
    return name.endswith(("proj.weight", "dense.weight", "query_key_value.weight"))


def is_expert(name: str) -> bool:
    return ".mlp.experts." in name


def write_quantized(
    folder: Path, encode: Encode, quantization: dict[str, Any], chosen: Callable[[str], bool] = is_matrix
) -> Tensors:
    """Writes a random tiny checkpoint with the chosen matrices encoded; returns all its weights as they are meant."""
    torch.manual_seed(0)
    save_checkpoint(make_model(), folder, torch.float32)
    stored, meant = Tensors(), Tensors()
    for name, tensor in load_file(folder / WEIGHTS).items():
        meant[name] = tensor
        if not chosen(name):
            stored[name] = tensor
            continue
        encoded, meant[name] = encode(tensor)
        stored |= {name.removesuffix(".weight") + suffix: part.contiguous() for suffix, part in encoded.items()}
    save_file(stored, folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return meant


def pack_rows(values: Tensor) -> Tensor:
    """[R, C] of 0..15 -> i32 [ceil(R/8), C]: value r in bits 4(r%8)."""
    padded = torch.nn.functional.pad(values.long(), (0, 0, 0, -len(values) % 8))
    shifts = torch.arange(0, 32, 4)[None, :, None]
    return (padded.unflatten(0, (-1, 8)) << shifts).sum(1).to(torch.int32)


def choose_groups(columns: int, group: int, act_order: bool) -> Tensor:
    in_order = torch.arange(columns) // group
    return in_order[torch.randperm(columns)] if act_order else in_order


def encode_int4(group: int, *, asymmetric: bool = False, act_order: bool = False) -> Encode:
    """compressed-tensors' pack-quantized; group 0 is one scale a row."""

    def encode(weight: Tensor) -> Encoded:
        rows, columns = weight.shape
        num_groups = -(-columns // (group or columns))
        q, scales = torch.randint(-8, 8, (rows, columns)), torch.rand(rows, num_groups) / 50 + 1e-3
        zeros = torch.randint(-8, 8, (rows, num_groups)) if asymmetric else torch.zeros(rows, num_groups)
        g = choose_groups(columns, group or columns, act_order)
        stored = {".weight_packed": pack_rows((q + 8).T).T, ".weight_scale": scales}
        stored[".weight_shape"] = torch.tensor([rows, columns])
        if asymmetric:
            stored[".weight_zero_point"] = pack_rows(zeros + 8)
        if act_order:
            stored[".weight_g_idx"] = g.int()
        return stored, (q - zeros[:, g]).float() * scales[:, g]

    return encode


def encode_gptq(group: int, *, version: int = 1, symmetric: bool = True, act_order: bool = False) -> Encode:
    def encode(weight: Tensor) -> Encoded:
        rows, columns = weight.shape
        num_groups = -(-columns // group)
        q, scales = torch.randint(0, 16, (rows, columns)), (torch.rand(rows, num_groups) / 50 + 1e-3).half()
        zeros = torch.full((rows, num_groups), 8) if symmetric else torch.randint(0, 16, (rows, num_groups))
        g = choose_groups(columns, group, act_order)
        stored = {".qweight": pack_rows(q.T), ".scales": scales.T, ".g_idx": g.int()}
        stored[".qzeros"] = pack_rows((zeros - 1) & 15 if version == 1 else zeros).T
        return stored, (q - zeros[:, g]).float() * scales.float()[:, g]

    return encode


def encode_fp8(block: tuple[int, int]) -> Encode:
    def encode(weight: Tensor) -> Encoded:
        rows, columns = weight.shape
        scale = torch.rand(-(-rows // block[0]), -(-columns // block[1])) / 10 + 1e-3
        values = weight.mul(10).to(torch.float8_e4m3fn)
        o, i = torch.arange(rows) // block[0], torch.arange(columns) // block[1]
        return {".weight": values, ".weight_scale_inv": scale}, values.float() * scale[o][:, i]

    return encode


def encode_nf4(double: bool) -> Encode:
    """As bitsandbytes itself writes it. The weight meant is the one before, met only nearly."""
    import bitsandbytes.functional as functional

    def encode(weight: Tensor) -> Encoded:
        packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
        parts = {f".weight.{name}": part for name, part in state.as_dict(packed=True).items()}
        return {".weight": packed} | parts, weight

    return encode
