"""The experts of a layer: gate and up with SiLU in one kernel, down in another, over tokens sorted by expert.

A block is up to so many pairs (token, slot) of one expert. One token needs no sorting: each of its slots is a block.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.gpu.arithmetic import launch_options, round_to, wait_for_inputs
from model.kernels.gpu.buffers import MAX_EXPERT_BLOCK, MIN_EXPERT_BLOCK, STEP_ROWS, ExpertScratch
from model.kernels.gpu.layout import SLAB_ROWS, Weight, shape_of
from model.kernels.gpu.product import FEW, as_operand, choose_expert_tile, multiply

PAIRS = 1024, 4096  # that a program of the sort looks at in one go, of few and of many


@triton.jit(do_not_specialize=["num_pairs", "num_owners"])
def _sort(
    ids_ptr, order_ptr, owners_ptr, num_pairs, num_owners, BINS: tl.constexpr, TOKENS: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """One program an expert: it counts all, since others' runs come before its own, and writes its own."""
    wait_for_inputs()
    expert = tl.program_id(0)
    bins = tl.arange(0, BINS)
    counts = tl.zeros([BINS], tl.int32)
    for first in range(0, num_pairs, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1)
        counts += tl.histogram(tl.maximum(ids, 0), BINS, mask=ids >= 0)
    blocks = tl.cdiv(counts, TOKENS)
    first_block = tl.sum(tl.where(bins < expert, blocks, 0), 0)
    num_blocks = tl.sum(tl.where(bins == expert, blocks, 0), 0)
    place = first_block * TOKENS
    for first in range(0, num_pairs, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        is_own = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1) == expert
        rank = tl.cumsum(is_own.to(tl.int32), 0)
        tl.store(order_ptr + place + rank - 1, pair, mask=is_own)
        place += tl.sum(is_own.to(tl.int32), 0)
    rest = place + tl.arange(0, TOKENS)
    tl.store(order_ptr + rest, -1, mask=rest < (first_block + num_blocks) * TOKENS)
    for first in range(0, num_blocks, 32):
        block = first + tl.arange(0, 32)
        tl.store(owners_ptr + first_block + block, expert, mask=block < num_blocks)
    if expert == 0:
        for first in range(tl.sum(blocks, 0), num_owners, 32):
            block = first + tl.arange(0, 32)
            tl.store(owners_ptr + block, -1, mask=block < num_owners)


@triton.jit
def _find_pairs(block, ids_ptr, order_ptr, owners_ptr, TOKENS: tl.constexpr, IS_SORTED: tl.constexpr):
    """(expert or -1, the pairs of a block, -1 where there is none)."""
    column = tl.arange(0, TOKENS)
    if IS_SORTED:
        expert = tl.load(owners_ptr + block)
        pairs = tl.load(order_ptr + block * TOKENS + column)
    else:
        expert = tl.load(ids_ptr + block)
        pairs = tl.where(column == 0, block, -1)
    return expert, pairs


@triton.jit
def _gate_up(
    x_ptr, w_ptr, s_ptr, inner_ptr, ids_ptr, order_ptr, owners_ptr, x_stride, SLOTS: tl.constexpr,
    IS_SORTED: tl.constexpr, W: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    expert, pairs = _find_pairs(tl.program_id(1), ids_ptr, order_ptr, owners_ptr, TILE.tokens, IS_SORTED)
    if expert < 0:
        return
    WIDTH: tl.constexpr = W.rows // 2
    HALF: tl.constexpr = TILE.rows // 2
    TOKENS: tl.constexpr = TILE.tokens
    # Of 16 rows 8 are gate and 8 up: a thread then holds both halves of a product, and SiLU needs no exchange.
    i = tl.arange(0, TILE.rows)
    row = tl.program_id(0) * HALF + i // 16 * 8 + i % 8
    rows = row + (i % 16) // 8 * WIDTH
    x_ptrs = x_ptr + (pairs // SLOTS).to(tl.int64) * x_stride
    e = expert.to(tl.int64)
    y = multiply(x_ptrs, pairs >= 0, w_ptr + e * W.expert, s_ptr + e * W.scales, rows, row < WIDTH, W, TILE)
    gate, up = tl.split(tl.permute(tl.reshape(y, [HALF // 8, 2, 8, TOKENS]), [0, 2, 3, 1]))
    inner = tl.reshape(gate * tl.sigmoid(gate) * up, [HALF, TOKENS])
    row = tl.program_id(0) * HALF + tl.arange(0, HALF)
    inner_ptrs = inner_ptr + pairs.to(tl.int64)[None, :] * WIDTH + row[:, None]
    tl.store(inner_ptrs, round_to(inner, inner_ptr), mask=(pairs >= 0)[None, :] & (row < WIDTH)[:, None])


@triton.jit
def _down(
    inner_ptr, w_ptr, s_ptr, out_ptr, ids_ptr, order_ptr, owners_ptr, IS_SORTED: tl.constexpr, W: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    expert, pairs = _find_pairs(tl.program_id(1), ids_ptr, order_ptr, owners_ptr, TILE.tokens, IS_SORTED)
    if expert < 0:
        return
    rows = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    x_ptrs = inner_ptr + pairs.to(tl.int64) * W.columns
    e = expert.to(tl.int64)
    y = multiply(x_ptrs, pairs >= 0, w_ptr + e * W.expert, s_ptr + e * W.scales, rows, rows < W.rows, W, TILE)
    out_ptrs = out_ptr + pairs.to(tl.int64)[None, :] * W.rows + rows[:, None]
    tl.store(out_ptrs, round_to(y, out_ptr), mask=(pairs >= 0)[None, :] & (rows < W.rows)[:, None])


def experts(
    x_TD: Tensor, ids_TS: Tensor, gate_up: Weight, down: Weight, out_TSD: Tensor, scratch: ExpertScratch
) -> None:
    """See model.kernels.gpu.reference. Raises ValueError for a width that is no multiple of 16."""
    num_tokens, slots = ids_TS.shape
    pairs, width = num_tokens * slots, shape_of(down)[1]
    if width % SLAB_ROWS:
        raise ValueError(f"The GPU kernels need experts of a multiple of {SLAB_ROWS} wide, not {width}.")
    if not num_tokens:
        return
    num_experts = (gate_up if isinstance(gate_up, Tensor) else gate_up.words).shape[0]
    tokens, is_sorted = choose_block(num_tokens, slots, num_experts), num_tokens > 1
    num_blocks = count_blocks(pairs, num_experts, tokens) if is_sorted else pairs
    sorting = (ids_TS, scratch.order, scratch.owners)
    if is_sorted:
        _sort[(num_experts,)](
            *sorting, pairs, num_blocks,
            BINS=triton.next_power_of_2(num_experts), TOKENS=tokens, PAIRS=PAIRS[pairs > PAIRS[1]], num_warps=4,
            **launch_options(),
        )  # fmt: skip
    w = as_operand(gate_up)
    tile, options = choose_expert_tile(tokens, w.layout, num_blocks)
    _gate_up[(triton.cdiv(2 * width, tile.rows), num_blocks)](
        x_TD, w.words, w.scales, scratch.inner, *sorting, x_TD.stride(0),
        SLOTS=slots, IS_SORTED=is_sorted, W=w.layout, TILE=tile, **options,
    )  # fmt: skip
    w = as_operand(down)
    tile, options = choose_expert_tile(tokens, w.layout, num_blocks)
    _down[(triton.cdiv(w.layout.rows, tile.rows), num_blocks)](
        scratch.inner, w.words, w.scales, out_TSD, *sorting, IS_SORTED=is_sorted, W=w.layout, TILE=tile, **options
    )


def choose_block(num_tokens: int, slots: int, num_experts: int) -> int:
    """Tokens of a block: about as many as an expert gets, and in a step of answers never so many that they would be
    summed otherwise."""
    size = triton.next_power_of_2(triton.cdiv(num_tokens * slots, num_experts))
    return min(max(size, MIN_EXPERT_BLOCK), MAX_EXPERT_BLOCK if num_tokens > STEP_ROWS else FEW)


def count_blocks(pairs: int, num_experts: int, block: int) -> int:
    """The most blocks that pairs can fall into: every expert's last one may be almost empty."""
    return (pairs + min(pairs, num_experts) * (block - 1)) // block
