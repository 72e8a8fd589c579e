"""The quantized formats of published checkpoints in plain torch: the definition that kernels and loaders are held to.

Suffixes: O output rows, I input columns, N groups of Q consecutive columns. All weights are [..., O, I], y = x W^T, any
number of leading dimensions (stacked experts). Computes in float32 unless told otherwise. Knows nothing of files.
"""

from __future__ import annotations

import torch
from torch import Tensor

INT4_MIN, INT4_MAX = -8, 7
_NIBBLES = torch.arange(0, 32, 4, dtype=torch.int32)


def pack_int4(q_OI: Tensor) -> Tensor:
    """int8 values in [-8, 7] [..., O, I] -> int32 [..., O, ceil(I/8)]: column i in bits 4(i%8), stored as q + 8.

    The layout of compressed-tensors' `pack-quantized`; columns beyond I are filled with nibble 0, as it does.
    """
    nibbles = q_OI.to(torch.int32) - INT4_MIN
    if spare := -q_OI.shape[-1] % 8:
        nibbles = torch.nn.functional.pad(nibbles, (0, spare))
    shifted = nibbles.unflatten(-1, (-1, 8)) << _NIBBLES.to(nibbles.device)
    return shifted.sum(-1, dtype=torch.int32)


def unpack_int4(packed: Tensor, num_columns: int) -> Tensor:
    """The inverse of pack_int4: int8 [..., O, num_columns] in [-8, 7]."""
    nibbles = (packed[..., None] >> _NIBBLES.to(packed.device)) & 0xF
    return (nibbles.flatten(-2)[..., :num_columns] + INT4_MIN).to(torch.int8)


def dequantize_int4(
    packed: Tensor,
    scales_ON: Tensor,
    num_columns: int,
    g_idx_I: Tensor | None = None,
    zeros_ON: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[..., O, I]: W[o,i] = (q[o,i] - zero[o,g]) scale[o,g], g = i // group size, or g_idx[i] after act-order.

    packed int32 [..., O, ceil(I/8)]; scales [..., O, N] float; g_idx i32 [..., I]; zeros int8 [..., O, N] in q's range
    (None: symmetric, all 0).
    """
    q_OI = unpack_int4(packed, num_columns).to(dtype)
    scale_OI = spread_groups(scales_ON.to(dtype), num_columns, g_idx_I)
    if zeros_ON is not None:
        q_OI = q_OI - spread_groups(zeros_ON.to(dtype), num_columns, g_idx_I)
    return q_OI * scale_OI


def spread_groups(values_ON: Tensor, num_columns: int, g_idx_I: Tensor | None = None) -> Tensor:
    """One value a group -> one a column, [..., O, I]; the last group may be short."""
    if g_idx_I is not None:
        index = g_idx_I.long()[..., None, :].expand(*values_ON.shape[:-1], num_columns)
        return values_ON.gather(-1, index)
    size = -(-num_columns // values_ON.shape[-1])
    return values_ON.repeat_interleave(size, dim=-1)[..., :num_columns]


def dequantize_fp8(
    weight_OI: Tensor, scale_inv: Tensor, block: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """[..., O, I]: each weight times the scale_inv of its block; the last block of a row or column may be ragged.

    weight float8_e4m3fn; scale_inv f32 [..., ceil(O/block[0]), ceil(I/block[1])].
    """
    rows, columns = weight_OI.shape[-2:]
    scale = scale_inv.to(dtype).repeat_interleave(block[0], dim=-2)[..., :rows, :]
    return weight_OI.to(dtype) * scale.repeat_interleave(block[1], dim=-1)[..., :columns]


def dequantize_nf4(
    packed: Tensor, absmax: Tensor, quant_map: Tensor, shape: tuple[int, int], block: int = 64
) -> Tensor:
    """f32 [O, I]: quant_map[code] times the absmax of its block of consecutive values, row-major across rows.

    packed u8 [ceil(O I/2)], the first of two codes in the high nibble; absmax f32 [ceil(O I/block)]; quant_map f32
    [16]. NF4 is QLoRA's (https://arxiv.org/abs/2305.14314), the layout bitsandbytes'. Its own dequantize_4bit (0.50.2)
    is wrong on a CPU where I is no multiple of 64, so this one is used everywhere.
    """
    num_values = shape[0] * shape[1]
    codes = torch.stack((packed >> 4, packed & 0xF), dim=-1).flatten()[:num_values]
    return quant_map[codes.int()].mul_(absmax.repeat_interleave(block)[:num_values]).view(shape)


def dequantize_absmax(
    codes: Tensor, nested_absmax: Tensor, nested_map: Tensor, offset: float, block: int = 256
) -> Tensor:
    """Undoes QLoRA's double quantization: codes u8 [n] -> absmax f32 [n].

    nested_absmax f32 [ceil(n/block)], nested_map f32 [256]; `offset` is the mean that was taken off before.
    """
    scale = nested_absmax.repeat_interleave(block)[: codes.numel()]
    return nested_map[codes.int()] * scale + offset


def dequantize_int8(weight_OI: Tensor, absmax_O: Tensor) -> Tensor:
    """f32 [..., O, I]: q absmax/127 by row, as LLM.int8() stores weights (https://arxiv.org/abs/2208.07339)."""
    return weight_OI.float() * (absmax_O / 127)[..., None]


def gptq_to_int4(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, is_v2: bool, is_symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """GPTQ's tensors -> (packed i32 [O, I/8], scales [O, N], zeros i8 [O, N]) as dequantize_int4 takes them.

    qweight i32 [I/8, O]: nibble i%8 along the input, so that the transpose already is our packing. qzeros i32 [N, O/8],
    scales [N, O]. Version 1 stores zero - 1, version 2 the zero itself. Some writers call version 2 version 1; a
    symmetric file gives itself away, since its zero is 8 in every place.
    """
    num_rows = qweight.shape[1]
    stored_NO = unpack_int4(qzeros, num_rows).to(torch.int32) - INT4_MIN
    is_v2 = is_v2 or (is_symmetric and bool((stored_NO == -INT4_MIN).all()))
    # & 15: zero 0 is stored as -1, which is 15 in four bits.
    zeros_NO = stored_NO if is_v2 else (stored_NO + 1) & 0xF
    return qweight.T, scales.T, (zeros_NO + INT4_MIN).to(torch.int8).T
