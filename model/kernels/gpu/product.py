"""The inner loop that every product with a weight shares: rows of W by columns of tokens, y^T = W x^T.

The weight's rows are the tile's long side, so that one token wastes no more of the tensor cores than eight do. Packed
words go from shared memory to registers as operands of the tensor cores, are unpacked there two at a time, and are
exact; see model.kernels.gpu.layout. Accumulates in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.gpu.arithmetic import INTERPRETED, dot, find_arch, launch_options, scale_bf16
from model.kernels.gpu.buffers import MULTIPROCESSORS as _MULTIPROCESSORS
from model.kernels.gpu.buffers import STEP_ROWS
from model.kernels.gpu.layout import FP8_BLOCK, SLAB_ROWS, Int4Weight, Weight, shape_of
from model.kernels.gpu.layout import SCALE_RUN as _SCALE_RUN

# Two words in a register -> two bf16, bits moved, times a scale, plus an offset. INT4: OR-ed into the last bits of 128,
# a nibble n gives 128 + n; minus 136 it is n - 8, where the tensor cores do not take the 136 off themselves. FP8: e4m3
# goes to where bf16 has its exponent and mantissa; the exponents' biases differ by 120.
_NIBBLE = "shr.u32 t, $1, {shift}; lop3.b32 t, t, 0x000F000F, 0x43004300, 0xEA;"
_BYTE = "shl.b32 t, $1, {shift}; and.b32 s, t, 0x80008000; shr.u32 t, t, 4; and.b32 t, t, 0x07F007F0; or.b32 t, t, s;"
_UNPACK = "{{{{ .reg .b32 t, s, m, b; {move} mov.b32 m, {scale}; mov.b32 b, {offset}; fma.rn.bf16x2 $0, t, m, b; }}}}"
_FROM_NIBBLE = _UNPACK.format(move=_NIBBLE, scale="0x3F803F80", offset="0xC308C308")  # 1, -136
_FROM_BYTE = _UNPACK.format(move=_BYTE, scale="0x7B807B80", offset="0x80008000")  # 2 ** 120, -0
_BIASED = f"{{{{ .reg .b32 t; {_NIBBLE} mov.b32 $0, t; }}}}"
BIASED_PLANES = tuple(_BIASED.format(shift=4 * plane) for plane in range(4))
INT4_PLANES = tuple(_FROM_NIBBLE.format(shift=4 * plane) for plane in range(4))
FP8_PLANES = tuple(_FROM_BYTE.format(shift=8 - 8 * plane) for plane in range(2))
MULTIPROCESSORS = tl.constexpr(_MULTIPROCESSORS)
# Into how many parts, a warp each, a program cuts the columns where tokens are few: the same for one token as for
# STEP_ROWS, so that a row's sums are added in one order.
SPLIT = 4
LARGE_SPLIT = 2  # of a matrix with so many rows that its programs fill the chip anyway: the head
EXPERT_SPLIT = (4, 1)  # where a row is longer than there are rows, as in gate and up; where it is not, as in down
LARGE = 256 * _MULTIPROCESSORS
FEW = 16  # tokens of a tile up to which its rows are chosen to fill the chip
SCALE_RUN = tl.constexpr(_SCALE_RUN)
_INT4_PLANES = tl.constexpr(INT4_PLANES)
_BIASED_PLANES = tl.constexpr(BIASED_PLANES)
_FP8_PLANES = tl.constexpr(FP8_PLANES)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a kernel must know of a weight when it is compiled. planes: values a word; group: columns of a group; slab,
    step, row: distances of 16 rows, of groups and of rows, expert and scales: of experts among words and scales, all in
    elements."""

    rows: int
    columns: int
    planes: int
    group: int
    slab: int
    step: int
    row: int
    expert: int
    scales: int


@dataclass(frozen=True, slots=True)
class Tile:
    """rows by tokens of a program. split: how many warps share the columns; 0: all warps share the rows."""

    rows: int
    tokens: int
    split: int


@dataclass(frozen=True, slots=True)
class Operand:
    """A weight as kernels take it. A bf16 one has no scales; its values stand there."""

    words: Tensor
    scales: Tensor
    layout: Layout


def as_operand(weight: Weight) -> Operand:
    rows, columns = shape_of(weight)
    if isinstance(weight, Tensor):
        stride = weight.stride(0) if weight.dim() > 2 else 0
        layout = Layout(rows, columns, 1, FP8_BLOCK, SLAB_ROWS * columns, FP8_BLOCK, columns, stride, stride)
        return Operand(weight, weight, layout)
    words, scales = weight.words, weight.scales
    planes, group = (4, weight.group) if isinstance(weight, Int4Weight) else (2, FP8_BLOCK)
    is_stack = words.dim() > 3
    strides = (words.stride(0), scales.stride(0)) if is_stack else (0, 0)
    return Operand(
        words,
        scales,
        Layout(rows, columns, planes, group, words.stride(-3), words.stride(-2), group // planes, *strides),
    )


def choose_tile(num_tokens: int, layout: Layout) -> tuple[Tile, dict[str, Any]]:
    """The tile of a product of so many tokens, and the launch options. Measured on an H200; see docs/gpu-kernels.md."""
    if num_tokens > STEP_ROWS:
        return _many(layout, 128)
    tokens = 32 if num_tokens > FEW else _round_up(num_tokens)
    if layout.rows >= LARGE:
        return _few(layout, 64, tokens, LARGE_SPLIT)
    return _few(layout, 32 if tokens == 32 else layout.rows // (2 * MULTIPROCESSORS.value), tokens, SPLIT)


def choose_expert_tile(tokens: int, layout: Layout, num_blocks: int) -> tuple[Tile, dict[str, Any]]:
    """The same for num_blocks blocks of up to `tokens` tokens of one expert."""
    if tokens > FEW:
        return _many(layout, tokens)
    split = EXPERT_SPLIT[layout.columns < layout.rows]
    if layout.rows * num_blocks >= LARGE * 2:
        return _few(layout, 64, tokens, split)
    return _few(layout, 32, tokens, split, num_stages=4 if split > 1 else 3)


def _round_up(num_tokens: int) -> int:
    return 8 if num_tokens <= 8 else 16


def _few(layout: Layout, rows: int, tokens: int, split: int, num_stages: int = 3) -> tuple[Tile, dict[str, Any]]:
    most = 64 // (4 // layout.planes)  # more would not fit the registers
    return Tile(max(16, min(most, _floor_power_of_2(rows))), tokens, split), _options(split, num_stages, layout)


def _many(layout: Layout, tokens: int) -> tuple[Tile, dict[str, Any]]:
    if tokens <= 64:
        return Tile(64, tokens, 0), _options(4, 3, layout)
    rows = 128 if find_arch() >= 90 or layout.planes == 4 else 64
    return Tile(rows, tokens, 0), _options(8, 3, layout)


def _floor_power_of_2(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)


def _options(num_warps: int, num_stages: int, layout: Layout) -> dict[str, Any]:
    """Fewer stages where shared memory is smaller than Hopper's, and so are its transfers in flight."""
    if find_arch() < 90:
        num_stages = 2 if layout.planes < 4 or num_warps > 4 else min(num_stages, 3)
    return {"num_warps": num_warps, "num_stages": num_stages, **launch_options()}


@triton.jit
def unpack(words, plane: tl.constexpr, PLANES: tl.constexpr):
    """bf16 values of one plane of packed words: nibble - 8, or an e4m3."""
    if PLANES == 1:
        values = words
    elif not INTERPRETED:
        asm: tl.constexpr = _INT4_PLANES[plane] if PLANES == 4 else _FP8_PLANES[plane]
        values = tl.inline_asm_elementwise(asm, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
    elif PLANES == 4:
        values = (((words >> (4 * plane)) & 0xF) - 8).to(tl.float32).to(tl.bfloat16)
    else:
        byte = (words.to(tl.int32) >> (8 * plane)) & 0xFF
        bits = ((byte & 0x80) << 24) | ((byte & 0x7F) << 20)
        values = (bits.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(tl.bfloat16)
    return values


@triton.jit
def unpack_biased(words, plane: tl.constexpr):
    """bf16 values of one plane of INT4: nibble + 128, at half of unpack's instructions."""
    if INTERPRETED:
        values = (((words >> (4 * plane)) & 0xF) + 128).to(tl.float32).to(tl.bfloat16)
    else:
        asm: tl.constexpr = _BIASED_PLANES[plane]
        values = tl.inline_asm_elementwise(asm, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
    return values


@triton.jit
def load_scales(s_ptr, rows, g, is_there, W: tl.constexpr):
    """One a row and group: INT4's bf16 in runs of 8 groups, 16 rows together; FP8's f32 one a block of 128 rows."""
    NUM_GROUPS: tl.constexpr = (W.columns + W.group - 1) // W.group
    if W.planes == 4:
        RUNS: tl.constexpr = (NUM_GROUPS + SCALE_RUN - 1) // SCALE_RUN
        places = (rows // 16 * 16 * RUNS + rows % 16) * SCALE_RUN + g // SCALE_RUN * (15 * SCALE_RUN) + g
    else:
        places = (rows // 128) * NUM_GROUPS + g
    return tl.load(s_ptr + places, mask=is_there, other=0.0)


@triton.jit
def multiply_few(x_ptrs_T, is_token_T, w_ptr, s_ptr, rows_N, is_row_N, W: tl.constexpr, TILE: tl.constexpr):
    """y^T [rows, tokens] f32 of few tokens: each of `split` warps takes a run of the groups, then all add up, so that a
    program of few rows has enough warps. x_ptrs: where the tokens' rows begin.

    The scales of all rounds are asked for at once, ahead of the words: in the loop each would hold up its round by the
    way to memory. Which one a round takes is chosen among registers."""
    PLANES: tl.constexpr = W.planes
    GROUP: tl.constexpr = W.group
    WORDS: tl.constexpr = GROUP // PLANES
    NUM_GROUPS: tl.constexpr = (W.columns + GROUP - 1) // GROUP
    SPLIT: tl.constexpr = TILE.split
    ROWS: tl.constexpr = TILE.rows  # named: Triton 3.6 takes no attribute for a shape
    TOKENS: tl.constexpr = TILE.tokens
    ROUNDS: tl.constexpr = (NUM_GROUPS + SPLIT - 1) // SPLIT
    split = tl.arange(0, SPLIT)
    word = tl.arange(0, WORDS)
    w_ptrs = w_ptr + ((rows_N // 16) * W.slab + (rows_N % 16) * W.row)[None, :, None] + word[None, None, :]
    x_ptrs = x_ptrs_T[None, None, :] + word[None, :, None]
    acc = tl.zeros([SPLIT, ROWS, TOKENS], tl.float32)
    if PLANES > 1:
        of_round = tl.arange(0, triton.next_power_of_2(ROUNDS))
        of_group = (split * ROUNDS)[:, None, None] + of_round[None, None, :]
        is_scale = is_row_N[None, :, None] & (of_round < ROUNDS)[None, None, :] & (of_group < NUM_GROUPS)
        scales = load_scales(s_ptr, rows_N[None, :, None], of_group, is_scale, W)
    for number in range(ROUNDS):
        g = split * ROUNDS + number
        is_word = is_row_N[None, :, None] & (g < NUM_GROUPS)[:, None, None]
        if PLANES == 1 and W.columns % GROUP:
            is_word &= (g[:, None] * GROUP + word[None, :] < W.columns)[:, None, :]
        words = tl.load(w_ptrs + (g * W.step)[:, None, None], mask=is_word, other=0)
        part = tl.zeros([SPLIT, ROWS, TOKENS], tl.float32)
        odd = tl.zeros([SPLIT, ROWS, TOKENS], tl.float32)  # two sums: half as long a chain of dependent products
        for plane in tl.static_range(PLANES):
            column = g * GROUP + plane * WORDS
            is_x = is_token_T[None, None, :] & (g < NUM_GROUPS)[:, None, None]
            if W.columns % GROUP:
                is_x &= (column[:, None] + word[None, :] < W.columns)[:, :, None]
            x = tl.load(x_ptrs + column[:, None, None], mask=is_x, other=0.0)
            if PLANES == 4:  # the second product is the same for all rows: 16 of them are computed
                part = dot(unpack_biased(words, plane), x, part)
                odd = dot(tl.full([SPLIT, ROWS, WORDS], -136.0, tl.bfloat16), x, odd)
            elif plane % 2:
                odd = dot(unpack(words, plane, PLANES), x, odd)
            else:
                part = dot(unpack(words, plane, PLANES), x, part)
        if PLANES > 1:
            scale = tl.sum(tl.where(of_round[None, None, :] == number, scales, 0.0).to(tl.float32), 2)
            acc += (part + odd) * scale[:, :, None]
        else:
            acc += part
    return tl.sum(acc, 0)


@triton.jit
def multiply_many(x_ptrs_T, is_token_T, w_ptr, s_ptr, rows_N, is_row_N, W: tl.constexpr, TILE: tl.constexpr):
    """y^T [rows, tokens] f32 of many tokens. INT4 is scaled before it is multiplied, rounded to bf16 as model.quantized
    does it, so that the tensor cores need not stop at each group."""
    PLANES: tl.constexpr = W.planes
    GROUP: tl.constexpr = W.group
    WORDS: tl.constexpr = GROUP // PLANES
    NUM_GROUPS: tl.constexpr = (W.columns + GROUP - 1) // GROUP
    ROWS: tl.constexpr = TILE.rows
    TOKENS: tl.constexpr = TILE.tokens
    word = tl.arange(0, WORDS)
    w_ptrs = w_ptr + ((rows_N // 16) * W.slab + (rows_N % 16) * W.row)[:, None] + word[None, :]
    x_ptrs = x_ptrs_T[None, :] + word[:, None]
    acc = tl.zeros([ROWS, TOKENS], tl.float32)
    for g in range(NUM_GROUPS):
        is_word = is_row_N[:, None] & (word < WORDS)[None, :]
        if PLANES == 1 and W.columns % GROUP:
            is_word &= (g * GROUP + word < W.columns)[None, :]
        words = tl.load(w_ptrs + g * W.step, mask=is_word, other=0)
        if PLANES > 1:
            scale = load_scales(s_ptr, rows_N, g, is_row_N, W).to(tl.float32)
        if PLANES == 2:
            part = tl.zeros([ROWS, TOKENS], tl.float32)
        for plane in tl.static_range(PLANES):
            column = g * GROUP + plane * WORDS
            is_x = is_token_T[None, :] & (word < WORDS)[:, None]
            if W.columns % GROUP:
                is_x &= (column + word < W.columns)[:, None]
            x = tl.load(x_ptrs + column, mask=is_x, other=0.0)
            w = unpack(words, plane, PLANES)
            if PLANES == 4:
                w = scale_bf16(w, scale[:, None])
            if PLANES == 2:
                part = dot(w, x, part)
            else:
                acc = dot(w, x, acc)
        if PLANES == 2:
            acc += part * scale[:, None]
    return acc


@triton.jit
def multiply(x_ptrs_T, is_token_T, w_ptr, s_ptr, rows_N, is_row_N, W: tl.constexpr, TILE: tl.constexpr):
    if TILE.split:
        y = multiply_few(x_ptrs_T, is_token_T, w_ptr, s_ptr, rows_N, is_row_N, W, TILE)
    else:
        y = multiply_many(x_ptrs_T, is_token_T, w_ptr, s_ptr, rows_N, is_row_N, W, TILE)
    return y
