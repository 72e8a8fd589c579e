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
