"""Queries, keys and values of a step of answers in one kernel: the product, and what follows it for each head."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.gpu.arithmetic import round_to, wait_for_inputs
from model.kernels.gpu.buffers import STEP_ROWS
from model.kernels.gpu.cache import view_cache
from model.kernels.gpu.layout import Weight
from model.kernels.gpu.linear import linear
from model.kernels.gpu.product import as_operand, choose_tile, multiply
from model.kernels.gpu.rope import finish_heads, norm_rope_store


@triton.jit(do_not_specialize=["num_tokens"])
def _project(
    x_ptr, w_ptr, s_ptr, qkv_ptr, arrivals_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, positions_ptr,
    slots_ptr, q_ptr, vectors_ptr, scales_ptr, eps, which_stride, block_stride, num_tokens, x_stride,
    HALF: tl.constexpr, S: tl.constexpr, W: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    first_row = tl.program_id(0) * TILE.rows
    wait_for_inputs()
    rows = first_row + tl.arange(0, TILE.rows)
    tokens = tl.program_id(1) * TILE.tokens + tl.arange(0, TILE.tokens)
    is_row, is_token = rows < W.rows, tokens < num_tokens
    t = tokens.to(tl.int64)
    y = multiply(x_ptr + t * x_stride, is_token, w_ptr, s_ptr, rows, is_row, W, TILE)
    tl.store(qkv_ptr + t[None, :] * W.rows + rows[:, None], round_to(y, qkv_ptr), mask=is_token[None, :])
    # Whoever comes last of a head's programs has all of it, and finishes it.
    tl.debug_barrier()
    head = first_row // S.width
    arrival_ptr = arrivals_ptr + tl.program_id(1) * (W.rows // S.width) + head
    if tl.atomic_add(arrival_ptr, 1, sem="acq_rel", scope="gpu") == S.width // TILE.rows - 1:
        tl.store(arrival_ptr, 0)
        finish_heads(
            t, head + tl.zeros([1], tl.int32), is_token, qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr,
            positions_ptr, slots_ptr, q_ptr, vectors_ptr, scales_ptr, eps, which_stride, block_stride, HALF, S, ".cg",
        )  # fmt: skip


def project(
    x_TD: Tensor,
    weight: Weight,
    qkv_TN: Tensor,
    arrivals: Tensor,
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
    w = as_operand(weight)
    tile, options = choose_tile(num_tokens, w.layout)
    if not num_tokens:
        return
    heads = (q_weight_C, k_weight_C, eps, cos_PR, sin_PR, positions_T, slots_T, pages, q_out_THC)
    if num_tokens > STEP_ROWS or width % tile.rows:
        linear(x_TD, weight, qkv_TN)
        norm_rope_store(qkv_TN, *heads)
        return
    cache = view_cache(pages, num_q, width)
    _project[(w.layout.rows // tile.rows, triton.cdiv(num_tokens, tile.tokens))](
        x_TD, w.words, w.scales, qkv_TN, arrivals, q_weight_C, k_weight_C, cos_PR, sin_PR, positions_T, slots_T,
        q_out_THC, cache.vectors, cache.scales, eps, *cache.strides, num_tokens, x_TD.stride(0),
        HALF=cos_PR.shape[-1], S=cache.shape, W=w.layout, TILE=tile, **options,
    )  # fmt: skip
