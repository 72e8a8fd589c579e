"""Attention over a paged cache, with FlashAttention's online softmax (https://arxiv.org/abs/2205.14135): for runs of
rows, and for single rows with the keys split over programs, since one row alone would keep few of them busy.

Queries of one kv head lie together: a program reads its keys once for all of them.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.gpu.arithmetic import dot, find_arch, launch_options, to_bf16, wait_for_inputs
from model.kernels.gpu.buffers import AttentionScratch, count_splits
from model.kernels.gpu.cache import load_vectors, prefetch_vectors, view_cache


@triton.jit
def _attend_tile(
    q, best, total, acc, first, length, last_key, table_ptr, head_page, vectors_ptr, scales_ptr, which_stride,
    block_stride, scale, KEYS: tl.constexpr, S: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """The softmax so far, as (best, total, acc) to the base 2, goes on over one tile of keys. last_key: what each row
    may see."""
    key = first + tl.arange(0, KEYS)
    column = tl.arange(0, S.block)
    is_key = key < length
    block = tl.load(table_ptr + key // S.block_tokens, mask=is_key, other=0).to(tl.int64)
    page, place = block * block_stride + head_page, key % S.block_tokens
    k, k_scales = load_vectors(vectors_ptr, scales_ptr, page, place, is_key, column, S)
    v, v_scales = load_vectors(vectors_ptr, scales_ptr, page + which_stride, place, is_key, column, S)
    scores = dot(q, tl.trans(k), tl.zeros([q.shape[0], KEYS], tl.float32)) * scale
    if S.kind != 0:
        scores *= k_scales[None, :]
    if IS_MASKED:
        scores = tl.where(key[None, :] <= last_key[:, None], scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, 1))
    p = tl.math.exp2(scores - new_best[:, None])
    shrink = tl.math.exp2(best - new_best)
    total = total * shrink + tl.sum(p, 1)
    if S.kind != 0:
        p *= v_scales[None, :]
    return new_best, total, dot(to_bf16(p), v, acc * shrink[:, None])


@triton.jit
def _attend_decode(
    q_ptr, vectors_ptr, scales_ptr, tables_ptr, lengths_ptr, out_ptr, parts_ptr, bounds_ptr, arrivals_ptr,
    table_stride, which_stride, block_stride, scale, ROWS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
    S: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = S.num_q // S.num_kv
    WIDTH: tl.constexpr = S.width
    BLOCK: tl.constexpr = S.block  # named: Triton 3.6 takes no attribute for a shape
    t, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # 1. where this program's keys lie, which no kernel writes; they come while what it waits for still runs
    table_ptr = tables_ptr + t * table_stride
    length = tl.load(lengths_ptr + t)
    share = tl.cdiv(tl.cdiv(length, KEYS), SPLITS) * KEYS
    num_used = tl.cdiv(length, tl.maximum(share, 1))
    if split > 0 and split >= num_used:
        return
    first_key, end_key = split * share, tl.minimum(split * share + share, length)
    key = tl.minimum(first_key + tl.arange(0, KEYS), tl.maximum(end_key - 1, 0))
    page = tl.load(table_ptr + key // S.block_tokens).to(tl.int64) * block_stride + kv_head * S.page
    prefetch_vectors(vectors_ptr, page, key % S.block_tokens, S)
    prefetch_vectors(vectors_ptr, page + which_stride, key % S.block_tokens, S)
    wait_for_inputs()
    # 2. its share
    member, column = tl.arange(0, ROWS), tl.arange(0, S.block)
    is_member = member < GROUP
    is_out = is_member[:, None] & (column < WIDTH)[None, :]
    vector = (t * S.num_q + kv_head * GROUP + member).to(tl.int64)
    places = vector[:, None] * WIDTH + column[None, :]
    if length == 0:
        tl.store(out_ptr + places, tl.zeros([ROWS, BLOCK], tl.bfloat16), mask=is_out)
        return
    q = tl.load(q_ptr + places, mask=is_out, other=0.0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    last_key = member * 0 + (length - 1)
    for first in range(first_key, end_key, KEYS):
        best, total, acc = _attend_tile(
            q, best, total, acc, first, length, last_key, table_ptr, kv_head * S.page, vectors_ptr, scales_ptr,
            which_stride, block_stride, scale, KEYS, S, True,
        )  # fmt: skip
    if num_used == 1:
        tl.store(out_ptr + places, to_bf16(acc / total[:, None]), mask=is_out)
        return
    # 3. whoever comes last joins all shares, in their order: the result does not depend on who that is
    part = vector * SPLITS + split
    tl.store(parts_ptr + part[:, None] * WIDTH + column[None, :], acc, mask=is_out)
    tl.store(bounds_ptr + part * 2, best, mask=is_member)
    tl.store(bounds_ptr + part * 2 + 1, total, mask=is_member)
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + t * S.num_kv + kv_head, 1, sem="acq_rel", scope="gpu") == num_used - 1:
        tl.store(arrivals_ptr + t * S.num_kv + kv_head, 0)
        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK], tl.float32)
        for s in range(num_used):
            part = vector * SPLITS + s
            part_best = tl.load(bounds_ptr + part * 2, mask=is_member, other=0.0, cache_modifier=".cg")
            part_total = tl.load(bounds_ptr + part * 2 + 1, mask=is_member, other=1.0, cache_modifier=".cg")
            part_ptrs = parts_ptr + part[:, None] * WIDTH + column[None, :]
            part_acc = tl.load(part_ptrs, mask=is_out, other=0.0, cache_modifier=".cg")
            new_best = tl.maximum(best, part_best)
            old, new = tl.math.exp2(best - new_best), tl.math.exp2(part_best - new_best)
            total = total * old + part_total * new
            acc = acc * old[:, None] + part_acc * new[:, None]
            best = new_best
        tl.store(out_ptr + places, to_bf16(acc / total[:, None]), mask=is_out)


@triton.jit
def _attend_prefill(
    q_ptr, vectors_ptr, scales_ptr, tables_ptr, starts_ptr, lengths_ptr, out_ptr, table_stride, which_stride,
    block_stride, scale, ROWS: tl.constexpr, KEYS: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    BLOCK: tl.constexpr = S.block
    # The last rows see the most keys: their programs start first.
    tile, head, sequence = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts_ptr + sequence)
    num_rows = tl.load(starts_ptr + sequence + 1) - start
    if tile * ROWS >= num_rows:
        return
    row, column = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, S.block)
    is_out = (row < num_rows)[:, None] & (column < S.width)[None, :]
    places = ((start + row).to(tl.int64) * S.num_q + head)[:, None] * S.width + column[None, :]
    q = tl.load(q_ptr + places, mask=is_out, other=0.0)
    length = tl.load(lengths_ptr + sequence)
    first_key = length - num_rows + tile * ROWS  # the last one that the first row sees
    last_key = length - num_rows + row
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    table_ptr = tables_ptr + sequence * table_stride
    head_page = head // (S.num_q // S.num_kv) * S.page
    # 1. tiles of keys that every row sees whole, 2. those in which rows end
    num_whole = (first_key + 1) // KEYS * KEYS
    for first in range(0, num_whole, KEYS):
        best, total, acc = _attend_tile(
            q, best, total, acc, first, length, last_key, table_ptr, head_page, vectors_ptr, scales_ptr,
            which_stride, block_stride, scale, KEYS, S, False,
        )  # fmt: skip
    for first in range(num_whole, tl.minimum(first_key + ROWS, length), KEYS):
        best, total, acc = _attend_tile(
            q, best, total, acc, first, length, last_key, table_ptr, head_page, vectors_ptr, scales_ptr,
            which_stride, block_stride, scale, KEYS, S, True,
        )  # fmt: skip
    tl.store(out_ptr + places, to_bf16(acc / total[:, None]), mask=is_out)


def attend_decode(
    q_THC: Tensor, pages: Tensor, tables_TM: Tensor, lengths_T: Tensor, out_TE: Tensor, scratch: AttentionScratch
) -> None:
    """See model.kernels.gpu.reference. All but tables' rows contiguous."""
    num_tokens, num_q, width = q_THC.shape
    if not num_tokens:
        return
    cache = view_cache(pages, num_q, width)
    num_kv = cache.shape.num_kv
    splits, keys = count_splits(num_kv), 128 if find_arch() >= 90 else 64  # what shared memory holds
    _attend_decode[(num_tokens, num_kv, splits)](
        q_THC, cache.vectors, cache.scales, tables_TM, lengths_T, out_TE, scratch.parts, scratch.bounds,
        scratch.arrivals, tables_TM.stride(0), *cache.strides, _softmax_scale(width),
        ROWS=max(triton.next_power_of_2(num_q // num_kv), 16), KEYS=keys, SPLITS=splits, S=cache.shape,
        num_warps=4, num_stages=3, **launch_options(),
    )  # fmt: skip


def attend_prefill(
    q_THC: Tensor,
    pages: Tensor,
    tables_BM: Tensor,
    starts_B1: Tensor,
    lengths_B: Tensor,
    max_tokens: int,
    out_TE: Tensor,
) -> None:
    """See model.kernels.gpu.reference. All but tables' rows contiguous."""
    num_q, width = q_THC.shape[1:]
    if not max_tokens:
        return
    cache = view_cache(pages, num_q, width)
    rows = 128 if max_tokens > 64 else 64
    is_hopper = find_arch() >= 90
    keys = (128 if cache.shape.kind == 0 else 64) if is_hopper else 32  # what registers and shared memory hold
    _attend_prefill[(triton.cdiv(max_tokens, rows), num_q, len(lengths_B))](
        q_THC, cache.vectors, cache.scales, tables_BM, starts_B1, lengths_B, out_TE, tables_BM.stride(0),
        *cache.strides, _softmax_scale(width), ROWS=rows, KEYS=keys, S=cache.shape,
        num_warps=rows // 16, num_stages=3 if is_hopper else 2, **launch_options(),
    )  # fmt: skip


def _softmax_scale(width: int) -> float:
    """1/sqrt(C), and to the base 2, which is what the chip has an instruction for."""
    return math.log2(math.e) / math.sqrt(width)
