"""How weights lie in GPU memory, so that a program reads them in one run of 16-byte loads.

Knows nothing of Triton; pack and unpack are exact. Suffixes: O rows, I columns, N groups of Q consecutive columns.

A slab is 16 rows by one group, kept in one piece; slabs follow each other along the columns, then along the rows. Its
words are int16 [16, Q/4] (INT4) or [16, Q/2] (FP8): word i of a row holds, from the lowest bits on, the columns i,
i + Q/4, i + 2 Q/4, i + 3 Q/4 of the group. A plane, which is the same bits of neighbouring words, is thus a run of
columns: unpacked two words at a time it is an operand of the tensor cores, and no value moves between threads. INT4's
scales lie by themselves, those of 16 rows together, of a row those of 8 consecutive groups: a thread fetches these at
once. Rows and columns that a matrix lacks are zero. bf16 matrices lie as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.quantization import INT4_MIN, unpack_int4

SLAB_ROWS = 16
FP8_BLOCK = 128
INT4_GROUPS = (128, 64)  # columns that share a scale, as the kernels read them
SCALE_RUN = 8  # groups whose scales lie side by side


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """A weight [O, I] or a stack [E, O, I]: words i16 [*, ceil(O/16), ceil(I/Q), 16 Q/4], and scales bf16
    [*, ceil(O/16), ceil(N/8) 16 x 8]. W = (nibble - 8) scale."""

    words: Tensor
    scales: Tensor
    num_rows: int
    num_columns: int
    group: int

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.scales.nbytes


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A weight [O, I] or a stack: words i16 [*, ceil(O/16), ceil(I/128), 16 x 64] of e4m3 pairs, and scales f32
    [*, ceil(O/128), ceil(I/128)], one a block of 128 x 128."""

    words: Tensor
    scales: Tensor
    num_rows: int
    num_columns: int

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.scales.nbytes


Weight = Tensor | Int4Weight | Fp8Weight  # a tensor: bf16 [O, I] or [E, O, I], its columns side by side


def pack_int4_weight(packed_OW: Tensor, scales_ON: Tensor, num_columns: int, group: int) -> Int4Weight:
    """From a symmetric checkpoint's tensors: packed i32 [*, O, ceil(I/8)] as model.quantization packs them, scales
    [*, O, ceil(I/group)] of any float dtype, which become bf16.

    Raises ValueError for a group that is no multiple of 64 and less than a row: dequantize such a matrix to bf16.
    """
    size = _find_group(group, num_columns)
    q_OI = unpack_int4(packed_OW, num_columns)
    rows, groups = q_OI.shape[-2], -(-num_columns // size)
    nibbles = F.pad(q_OI.short() - INT4_MIN, (0, groups * size - num_columns, 0, -rows % SLAB_ROWS), value=-INT4_MIN)
    scales = F.pad(_spread(scales_ON, group, size, groups), (0, -groups % SCALE_RUN, 0, -rows % SLAB_ROWS))
    words = _to_slabs(_join_planes(nibbles, size, 4)).contiguous()
    runs = _to_slabs(scales.to(torch.bfloat16).unflatten(-1, (-1, SCALE_RUN))).flatten(-2)
    return Int4Weight(words, runs, rows, num_columns, size)


def unpack_int4_weight(weight: Int4Weight) -> tuple[Tensor, Tensor]:
    """(q i8 [*, O, I] in [-8, 7], scales bf16 [*, O, ceil(I/Q)]): what was packed."""
    nibbles = _split_planes(_from_slabs(weight.words), 4)
    scales = _from_slabs(weight.scales.unflatten(-1, (-1, SLAB_ROWS * SCALE_RUN))).flatten(-2)
    q = (nibbles[..., : weight.num_rows, : weight.num_columns] + INT4_MIN).to(torch.int8)
    return q, scales[..., : weight.num_rows, : -(-weight.num_columns // weight.group)]


def pack_fp8_weight(weight_OI: Tensor, scale_inv: Tensor) -> Fp8Weight:
    """From a checkpoint's float8_e4m3fn [*, O, I] and f32 [*, ceil(O/128), ceil(I/128)]."""
    rows, columns = weight_OI.shape[-2:]
    values = F.pad(weight_OI.view(torch.uint8).short(), (0, -columns % FP8_BLOCK, 0, -rows % SLAB_ROWS))
    words = _to_slabs(_join_planes(values, FP8_BLOCK, 2))
    return Fp8Weight(words.contiguous(), scale_inv.float().contiguous(), rows, columns)


def unpack_fp8_weight(weight: Fp8Weight) -> Tensor:
    """float8_e4m3fn [*, O, I]: what was packed."""
    values = _split_planes(_from_slabs(weight.words), 2)[..., : weight.num_rows, : weight.num_columns]
    return values.to(torch.uint8).contiguous().view(torch.float8_e4m3fn)


def dequantize(weight: Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [O, I] or [E, O, I] in plain numbers."""
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    if isinstance(weight, Int4Weight):
        q, scales = unpack_int4_weight(weight)
        return q.to(dtype) * scales.to(dtype).repeat_interleave(weight.group, -1)[..., : weight.num_columns]
    scales = weight.scales.to(dtype).repeat_interleave(FP8_BLOCK, -2).repeat_interleave(FP8_BLOCK, -1)
    return unpack_fp8_weight(weight).to(dtype) * scales[..., : weight.num_rows, : weight.num_columns]


def join_rows(weights: Sequence[Weight]) -> Weight:
    """One weight whose rows are those of all, in order: gate over up, or q over k over v. Raises ValueError where a
    part would end within a slab, or within a block of FP8."""
    first = weights[0]
    if isinstance(first, Tensor):
        return torch.cat([weight for weight in weights if isinstance(weight, Tensor)], -2)
    unit = SLAB_ROWS if isinstance(first, Int4Weight) else FP8_BLOCK
    if any(shape_of(weight)[0] % unit for weight in weights[:-1]):
        raise ValueError(f"Only parts of a multiple of {unit} rows can be joined.")
    return _join(weights, (-3, -2), sum(shape_of(weight)[0] for weight in weights))


def join_experts(weights: Sequence[Weight]) -> Weight:
    """One stack of several: the routed experts and, behind them, the shared ones."""
    first = weights[0]
    if isinstance(first, Tensor):
        return torch.cat([weight for weight in weights if isinstance(weight, Tensor)])
    return _join(weights, (0, 0), first.num_rows)


def _join(weights: Sequence[Weight], dims: tuple[int, int], num_rows: int) -> Weight:
    """dims: of the words and of the scales."""
    packed = [weight for weight in weights if not isinstance(weight, Tensor)]
    words = torch.cat([weight.words for weight in packed], dims[0])
    scales = torch.cat([weight.scales for weight in packed], dims[1])
    return replace(packed[0], words=words, scales=scales, num_rows=num_rows)


def shape_of(weight: Weight) -> tuple[int, int]:
    """(O, I)."""
    if isinstance(weight, Tensor):
        return weight.shape[-2], weight.shape[-1]
    return weight.num_rows, weight.num_columns


def _find_group(group: int, num_columns: int) -> int:
    for size in INT4_GROUPS:
        if group % size == 0 or (group >= num_columns and num_columns <= size):
            return size
    raise ValueError(f"The GPU kernels read INT4 in groups of a multiple of 64 columns, not of {group}.")


def _spread(scales_ON: Tensor, group: int, size: int, groups: int) -> Tensor:
    """One scale a group of the checkpoint's -> one a group of the kernels'."""
    return scales_ON.repeat_interleave(max(group // size, 1), -1)[..., :groups]


def _join_planes(values: Tensor, group: int, planes: int) -> Tensor:
    """i16 [*, O, N Q] of 16/planes bits each -> words i16 [*, O, N, Q/planes]."""
    split = values.int().unflatten(-1, (-1, planes, group // planes))
    shifts = torch.arange(0, 16, 16 // planes, dtype=torch.int32, device=values.device)
    return (split << shifts[:, None]).sum(-2, dtype=torch.int32).to(torch.int16)


def _split_planes(words: Tensor, planes: int) -> Tensor:
    """The inverse of _join_planes, [*, O, N Q] i32."""
    shifts = torch.arange(0, 16, 16 // planes, dtype=torch.int32, device=words.device)
    return ((words.int()[..., None, :] >> shifts[:, None]) & ((1 << 16 // planes) - 1)).flatten(-3)


def _to_slabs(words: Tensor) -> Tensor:
    """[*, O, N, W] -> [*, O/16, N, 16 W]."""
    return words.unflatten(-3, (-1, SLAB_ROWS)).transpose(-3, -2).flatten(-2)


def _from_slabs(slabs: Tensor) -> Tensor:
    """The inverse of _to_slabs."""
    return slabs.unflatten(-1, (SLAB_ROWS, -1)).transpose(-3, -2).flatten(-4, -3)
