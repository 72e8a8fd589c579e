"""The choice of experts, in float32: sigmoid scores, the best groups, the best experts in them, by score + bias; and,
ahead of it, what attention adds to the residual stream and the norm of that."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.gpu.arithmetic import launch_options, round_to, wait_for_inputs
from model.kernels.gpu.buffers import STEP_ROWS, Routing
from model.kernels.gpu.linear import linear
from model.kernels.gpu.norm import add_norm, count_warps, normalize

FEW_ROWS = 4  # up to which each program normalises for itself; of more rows that would read too much


@triton.jit
def _choose(t, logits_ptr, bias_ptr, slots_ptr, ids_ptr, factors_ptr, R: tl.constexpr, HAS_SLOTS: tl.constexpr):
    NUM: tl.constexpr = R.num_experts
    GROUPS: tl.constexpr = R.num_groups
    SIZE: tl.constexpr = NUM // GROUPS
    TOP_GROUPS: tl.constexpr = R.top_groups
    TOP_K: tl.constexpr = R.top_k
    expert = tl.arange(0, NUM)
    score = tl.sigmoid(tl.load(logits_ptr + t * NUM + expert, cache_modifier=".cg"))
    choice = score + tl.load(bias_ptr + expert)
    # 1. groups, by their two best
    if TOP_GROUPS < GROUPS:
        by_group = tl.reshape(choice, [GROUPS, SIZE])
        best, place = tl.max(by_group, 1, return_indices=True)
        if SIZE > 1:
            best += tl.max(tl.where(tl.arange(0, SIZE)[None, :] == place[:, None], float("-inf"), by_group), 1)
        group = tl.arange(0, GROUPS)
        is_kept = group < 0
        for _ in tl.static_range(TOP_GROUPS):
            winner = tl.argmax(best, 0)
            is_kept |= group == winner
            best = tl.where(group == winner, float("-inf"), best)
        choice = tl.reshape(tl.where(is_kept[:, None], by_group, float("-inf")), [NUM])
    # 2. experts; past the routed ones stand the shared ones
    k = tl.arange(0, triton.next_power_of_2(R.num_slots))
    ids = k + (NUM - TOP_K)
    for rank in tl.static_range(TOP_K):
        winner = tl.argmax(choice, 0)
        ids = tl.where(k == rank, winner, ids)
        choice = tl.where(expert == winner, float("-inf"), choice)
    is_routed = k < TOP_K
    factors = tl.sum(tl.where((ids[:, None] == expert[None, :]) & is_routed[:, None], score[None, :], 0.0), 1)
    if TOP_K > 1:
        factors = factors / (tl.sum(factors, 0) + 1e-20)
    factors = tl.where(is_routed, factors * R.scale, 1.0)
    if HAS_SLOTS:
        is_filling = tl.load(slots_ptr + t) < 0
        ids = tl.where(is_filling, -1, ids)
        factors = tl.where(is_filling, 0.0, factors)
    place = t * R.num_slots + k
    tl.store(ids_ptr + place, ids, mask=k < R.num_slots)
    tl.store(factors_ptr + place, factors, mask=k < R.num_slots)


@triton.jit
def _choose_all(logits_ptr, bias_ptr, slots_ptr, ids_ptr, factors_ptr, R: tl.constexpr, HAS_SLOTS: tl.constexpr):
    wait_for_inputs()
    _choose(tl.program_id(0), logits_ptr, bias_ptr, slots_ptr, ids_ptr, factors_ptr, R, HAS_SLOTS)


@triton.jit
def _route(
    residual_ptr, y_ptr, norm_ptr, normed_ptr, weight_ptr, logits_ptr, arrivals_ptr, bias_ptr, slots_ptr, ids_ptr,
    factors_ptr, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr, HAS_SLOTS: tl.constexpr,
    IS_NORMED: tl.constexpr,
):  # fmt: skip
    t, expert = tl.program_id(1), tl.program_id(0)
    column = tl.arange(0, BLOCK)
    is_column = column < WIDTH
    place = t * WIDTH + column
    # Weights come while what the program waits for still runs: no kernel writes them.
    weight = tl.load(weight_ptr + expert * WIDTH + column, mask=is_column, other=0.0)
    norm = tl.load(norm_ptr + column, mask=is_column, other=0.0)
    wait_for_inputs()
    if IS_NORMED:
        normed = tl.load(normed_ptr + place, mask=is_column, other=0.0)
    else:
        residual = tl.load(residual_ptr + place, mask=is_column, other=0.0).to(tl.float32)
        residual += tl.load(y_ptr + place, mask=is_column, other=0.0).to(tl.float32)
        rounded = round_to(residual, residual_ptr)
        normed = normalize(rounded.to(tl.float32), norm, normed_ptr, eps, WIDTH)
    tl.store(logits_ptr + t * R.num_experts + expert, tl.sum(weight.to(tl.float32) * normed.to(tl.float32), 0))
    # Whoever comes last has all the logits, and chooses; and all have read the residual stream.
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + t, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
        tl.store(arrivals_ptr + t, 0)
        if not IS_NORMED:
            tl.store(residual_ptr + place, rounded, mask=is_column)
            tl.store(normed_ptr + place, normed, mask=is_column)
        _choose(t, logits_ptr, bias_ptr, slots_ptr, ids_ptr, factors_ptr, R, HAS_SLOTS)


def add_norm_route(
    residual_TD: Tensor,
    y_TD: Tensor,
    norm_D: Tensor,
    eps: float,
    normed_TD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor,
    routing: Routing,
    slots_T: Tensor | None,
    logits_TE: Tensor,
    ids_TS: Tensor,
    factors_TS: Tensor,
    arrivals_T: Tensor,
) -> None:
    """See model.kernels.gpu.reference. All contiguous. Raises ValueError for experts or groups that are no power of
    two."""
    num_tokens, width = residual_TD.shape
    for number in (routing.num_experts, routing.num_groups):
        if number & (number - 1):
            raise ValueError(f"The GPU router needs a power of two of experts and of groups, not {number}.")
    if not num_tokens:
        return
    slots = ids_TS if slots_T is None else slots_T
    options: dict[str, Any] = {"R": routing, "HAS_SLOTS": slots_T is not None, **launch_options()}
    if num_tokens > FEW_ROWS:
        add_norm(residual_TD, y_TD[:, None], None, norm_D, eps, normed_TD)
    if num_tokens <= STEP_ROWS:
        _route[(routing.num_experts, num_tokens)](
            residual_TD, y_TD, norm_D, normed_TD, weight_ED, logits_TE, arrivals_T, bias_E, slots, ids_TS, factors_TS,
            eps, WIDTH=width, BLOCK=triton.next_power_of_2(width), IS_NORMED=num_tokens > FEW_ROWS,
            num_warps=count_warps(width), **options,
        )  # fmt: skip
    else:
        linear(normed_TD, weight_ED, logits_TE)
        _choose_all[(num_tokens,)](logits_TE, bias_E, slots, ids_TS, factors_TS, num_warps=1, **options)
