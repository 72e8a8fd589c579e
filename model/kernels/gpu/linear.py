"""y = x W^T for weights of bf16, FP8 or INT4: one kernel, whose tile the number of tokens chooses."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.gpu.arithmetic import round_to, wait_for_inputs
from model.kernels.gpu.layout import Weight, shape_of
from model.kernels.gpu.product import as_operand, choose_tile, multiply


@triton.jit(do_not_specialize=["num_tokens"])  # no compilation in the middle of an answer
def _linear(x_ptr, w_ptr, s_ptr, out_ptr, num_tokens, x_stride, out_stride, W: tl.constexpr, TILE: tl.constexpr):
    wait_for_inputs()
    rows = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    tokens = tl.program_id(1) * TILE.tokens + tl.arange(0, TILE.tokens)
    is_row, is_token = rows < W.rows, tokens < num_tokens
    x_ptrs = x_ptr + tokens.to(tl.int64) * x_stride
    y = multiply(x_ptrs, is_token, w_ptr, s_ptr, rows, is_row, W, TILE)
    out_ptrs = out_ptr + tokens.to(tl.int64)[None, :] * out_stride + rows[:, None]
    tl.store(out_ptrs, round_to(y, out_ptr), mask=is_token[None, :] & is_row[:, None])


def linear(x_TI: Tensor, weight: Weight, out_TO: Tensor) -> None:
    """See model.kernels.gpu.reference."""
    num_tokens, (num_rows, _) = len(x_TI), shape_of(weight)
    if not num_tokens:
        return
    w = as_operand(weight)
    tile, options = choose_tile(num_tokens, w.layout)
    _linear[(triton.cdiv(num_rows, tile.rows), triton.cdiv(num_tokens, tile.tokens))](
        x_TI, w.words, w.scales, out_TO, num_tokens, x_TI.stride(0), out_TO.stride(0), W=w.layout, TILE=tile, **options
    )
