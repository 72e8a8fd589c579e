"""RMSNorm, and with it what a layer's parts add to the residual stream. One program a row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.gpu.arithmetic import launch_options, round_to, wait_for_inputs


@triton.jit
def normalize(x, weight, out_ptr, eps, WIDTH: tl.constexpr):
    """RMSNorm of a row f32, as what out_ptr points to: rounded before the weight and after."""
    normed = x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    return round_to(round_to(normed, out_ptr).to(tl.float32) * weight.to(tl.float32), out_ptr)


@triton.jit
def _rms_norm(
    x_ptr, rows_ptr, weight_ptr, out_ptr, x_stride, out_stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    GATHERS: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    n = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + n) if GATHERS else n
    column = tl.arange(0, BLOCK)
    is_column = column < WIDTH
    x = tl.load(x_ptr + row * x_stride + column, mask=is_column, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=is_column, other=0.0)
    tl.store(out_ptr + n * out_stride + column, normalize(x, weight, out_ptr, eps, WIDTH), mask=is_column)


@triton.jit
def _add_norm(
    residual_ptr, y_ptr, factors_ptr, weight_ptr, out_ptr, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    SLOTS: tl.constexpr, HAS_FACTORS: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    t = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    is_column = column < WIDTH
    total = tl.load(residual_ptr + t * WIDTH + column, mask=is_column, other=0.0).to(tl.float32)
    for slot in tl.static_range(SLOTS):
        y_ptrs = y_ptr + (t * SLOTS + slot) * WIDTH + column
        if HAS_FACTORS:
            factor = tl.load(factors_ptr + t * SLOTS + slot)
            y = tl.load(y_ptrs, mask=is_column, other=0.0).to(tl.float32)
            total += tl.where(factor == 0.0, 0.0, factor * y)  # 0 marks a slot that nothing was written for
        else:
            total += tl.load(y_ptrs, mask=is_column, other=0.0).to(tl.float32)
    rounded = round_to(total, residual_ptr)
    tl.store(residual_ptr + t * WIDTH + column, rounded, mask=is_column)
    weight = tl.load(weight_ptr + column, mask=is_column, other=0.0)
    normed = normalize(rounded.to(tl.float32), weight, out_ptr, eps, WIDTH)
    tl.store(out_ptr + t * WIDTH + column, normed, mask=is_column)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, out_ND: Tensor, rows_N: Tensor | None = None) -> None:
    """See model.kernels.gpu.reference."""
    num_rows, width = out_ND.shape
    if num_rows:
        _rms_norm[(num_rows,)](
            x_TD, x_TD if rows_N is None else rows_N, weight_D, out_ND, x_TD.stride(0), out_ND.stride(0), eps,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), GATHERS=rows_N is not None,
            num_warps=count_warps(width), **launch_options(),
        )  # fmt: skip


def add_norm(
    residual_TD: Tensor, y_TSD: Tensor, factors_TS: Tensor | None, weight_D: Tensor, eps: float, out_TD: Tensor
) -> None:
    """See model.kernels.gpu.reference. All contiguous."""
    num_tokens, slots, width = y_TSD.shape
    if num_tokens:
        _add_norm[(num_tokens,)](
            residual_TD, y_TSD, y_TSD if factors_TS is None else factors_TS, weight_D, out_TD, eps,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), SLOTS=slots, HAS_FACTORS=factors_TS is not None,
            num_warps=count_warps(width), **launch_options(),
        )  # fmt: skip


def count_warps(width: int) -> int:
    """So that a thread holds 16 numbers: two loads of 16 bytes."""
    return min(max(width // (32 * 16), 1), 16)
