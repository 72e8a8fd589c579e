"""QK-norm, rotation and the cache, between the QKV product and attention: one pass over what that product gave."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.gpu.arithmetic import launch_options, to_bf16, to_e4m3, wait_for_inputs
from model.kernels.gpu.cache import view_cache

HEADS = 8  # of a program


@triton.jit
def finish_heads(
    t, head, is_there, qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, q_ptr,
    vectors_ptr, scales_ptr, eps, which_stride, block_stride, HALF: tl.constexpr, S: tl.constexpr,
    MODIFIER: tl.constexpr,
):  # fmt: skip
    """Norm, rotation and storage of vectors: heads [N or 1] of tokens t i64 [N or 1], where is_there [N or 1].
    MODIFIER: ".cg" where programs of the same launch wrote qkv."""
    WIDTH: tl.constexpr = S.width
    FIRST_V: tl.constexpr = S.num_q + S.num_kv
    NUM: tl.constexpr = S.num_q + 2 * S.num_kv
    column = tl.arange(0, S.block)
    is_value = is_there[:, None] & (column < WIDTH)[None, :]
    is_q, is_v = head < S.num_q, head >= FIRST_V
    # 1. the norm; x's partner in the rotation is read again, which costs a cache hit and no exchange between threads
    partner = tl.where(column < HALF, column + HALF, tl.where(column < 2 * HALF, column - HALF, column))
    x_ptrs = qkv_ptr + (t * NUM + head)[:, None] * WIDTH
    x = tl.load(x_ptrs + column[None, :], mask=is_value, other=0.0, cache_modifier=MODIFIER).to(tl.float32)
    other = tl.load(x_ptrs + partner[None, :], mask=is_value, other=0.0, cache_modifier=MODIFIER).to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)[:, None]
    normed = _weigh(x * factor, q_weight_ptr, k_weight_ptr, column, is_q, WIDTH)
    normed_other = _weigh(other * factor, q_weight_ptr, k_weight_ptr, partner, is_q, WIDTH)
    # 2. the rotation of the first 2 HALF columns
    turn = tl.load(positions_ptr + t, mask=is_there, other=0).to(tl.int64)[:, None] * HALF + (column % HALF)[None, :]
    is_turned = (column < 2 * HALF)[None, :]
    cos = tl.load(cos_ptr + turn, mask=is_turned, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + turn, mask=is_turned, other=0.0).to(tl.float32)
    sin = tl.where((column < HALF)[None, :], -sin, sin)
    rotated = normed * cos + normed_other * sin
    value = to_bf16(tl.where(is_v[:, None], x, rotated))
    # 3. out: q to its tensor, k and v into the page of their head
    q_ptrs = q_ptr + (t * S.num_q + head)[:, None] * WIDTH + column[None, :]
    tl.store(q_ptrs, value, mask=is_value & is_q[:, None])
    slot = tl.load(slots_ptr + t, mask=is_there, other=-1).to(tl.int64)
    is_kept = is_there & (slot >= 0) & (head >= S.num_q)
    kv_head = head - tl.where(is_v, FIRST_V, S.num_q)
    page = tl.where(is_v, which_stride, 0) + slot // S.block_tokens * block_stride + kv_head * S.page
    place = slot % S.block_tokens
    ptrs = vectors_ptr + (page + place * WIDTH)[:, None] + column[None, :]
    is_kv = is_value & is_kept[:, None]
    if S.kind == 0:
        tl.store(ptrs, value, mask=is_kv)
    else:
        exact = value.to(tl.float32)
        scale = tl.max(tl.abs(exact), 1) / (127.0 if S.kind == 1 else 448.0)
        scaled = exact / tl.maximum(scale, 1e-30)[:, None]
        if S.kind == 1:
            tl.store(ptrs, _round_even(scaled).to(tl.int8), mask=is_kv)
        else:
            tl.store(ptrs, to_e4m3(scaled), mask=is_kv)
        scale_ptrs = scales_ptr + page // 4 + S.block_tokens * WIDTH // 4 + place
        tl.store(scale_ptrs, scale, mask=is_kept)


@triton.jit
def _norm_rope_store(
    qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, q_ptr, vectors_ptr,
    scales_ptr, eps, which_stride, block_stride, HALF: tl.constexpr, HEADS: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    t = tl.program_id(0).to(tl.int64) + tl.zeros([1], tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    finish_heads(
        t, head, head < S.num_q + 2 * S.num_kv, qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, positions_ptr,
        slots_ptr, q_ptr, vectors_ptr, scales_ptr, eps, which_stride, block_stride, HALF, S, "",
    )  # fmt: skip


@triton.jit
def _weigh(normed, q_weight_ptr, k_weight_ptr, column, is_q, WIDTH: tl.constexpr):
    """Rounded as model.modeling does it: before the weight and after."""
    q_weight = tl.load(q_weight_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    k_weight = tl.load(k_weight_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    weight = tl.where(is_q[:, None], q_weight[None, :], k_weight[None, :])
    return to_bf16(to_bf16(normed).to(tl.float32) * weight).to(tl.float32)


@triton.jit
def _round_even(x):
    """float32 in [-2 ** 22, 2 ** 22] to the nearest whole number, ties to even."""
    magic = 12582912.0  # 1.5 x 2 ** 23: its last bit is worth 1
    return (x + magic) - magic


def norm_rope_store(
    qkv_TN: Tensor,
    q_weight_C: Tensor,
    k_weight_C: Tensor,
    eps: float,
    cos_PR: Tensor,
    sin_PR: Tensor,
    positions_T: Tensor,
    slots_T: Tensor,
    pages: Tensor,
    q_out_THC: Tensor,
) -> None:
    """See model.kernels.gpu.reference."""
    num_tokens, num_q, width = q_out_THC.shape
    if not num_tokens:
        return
    cache = view_cache(pages, num_q, width)
    _norm_rope_store[(num_tokens, triton.cdiv(num_q + 2 * cache.shape.num_kv, HEADS))](
        qkv_TN, q_weight_C, k_weight_C, cos_PR, sin_PR, positions_T, slots_T, q_out_THC, cache.vectors, cache.scales,
        eps, *cache.strides, HALF=cos_PR.shape[-1], HEADS=HEADS, S=cache.shape, num_warps=4, **launch_options(),
    )  # fmt: skip
