"""What sampling needs of the logits, on the card: the few largest of each row, and whether all are numbers.

A logit and its id make one whole number that sorts as wanted: a float's bits, turned so that they sort as it does, then
the id counted backwards. What is no finite number sorts above all.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.gpu.arithmetic import launch_options, wait_for_inputs
from model.kernels.gpu.buffers import LOGITS_CHUNK

VOID = tl.constexpr(0x7FFFFFFFFFFFFFFF)
LOWEST = tl.constexpr(-0x7FFFFFFFFFFFFFFF)


@triton.jit
def _largest(keys, K: tl.constexpr):
    """The K largest, descending. Triton 3.6 cannot compile tl.topk for one."""
    return tl.max(keys, 0, keep_dims=True) if K == 1 else tl.topk(keys, K)


@triton.jit
def _top_of_chunk(logits_ptr, keys_ptr, num_logits, stride, K: tl.constexpr, CHUNK: tl.constexpr):
    wait_for_inputs()
    row, chunk = tl.program_id(1), tl.program_id(0)
    i = chunk * CHUNK + tl.arange(0, CHUNK)
    logit = tl.load(logits_ptr + row.to(tl.int64) * stride + i, mask=i < num_logits, other=0.0)
    bits = logit.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    key = (ordered << 32) | (0xFFFFFFFF - i.to(tl.int64))
    is_finite = (bits & 0x7F800000) != 0x7F800000
    key = tl.where(is_finite, key, VOID)
    key = tl.where(i < num_logits, key, LOWEST)
    place = (row * tl.num_programs(0) + chunk) * K + tl.arange(0, K)
    tl.store(keys_ptr + place, _largest(key, K))


@triton.jit
def _top_of_keys(keys_ptr, fewer_ptr, num_keys, K: tl.constexpr, CHUNK: tl.constexpr):
    wait_for_inputs()
    row, chunk = tl.program_id(1), tl.program_id(0)
    i = chunk * CHUNK + tl.arange(0, CHUNK)
    keys = tl.load(keys_ptr + row * num_keys + i, mask=i < num_keys, other=LOWEST)
    tl.store(fewer_ptr + (row * tl.num_programs(0) + chunk) * K + tl.arange(0, K), _largest(keys, K))


@triton.jit
def _top_of_row(keys_ptr, values_ptr, ids_ptr, finite_ptr, num_keys, K: tl.constexpr, BLOCK: tl.constexpr):
    wait_for_inputs()
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    top = _largest(tl.load(keys_ptr + row * num_keys + i, mask=i < num_keys, other=LOWEST), K)
    ordered = (top >> 32).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    place = row * K + tl.arange(0, K)
    tl.store(values_ptr + place, bits.to(tl.float32, bitcast=True))
    tl.store(ids_ptr + place, (0xFFFFFFFF - (top & 0xFFFFFFFF)).to(tl.int32))
    tl.store(finite_ptr + row, tl.max(top, 0) != VOID)


@triton.jit
def _penalize(logits_ptr, is_seen_ptr, penalty_ptr, num_logits, stride, CHUNK: tl.constexpr):
    wait_for_inputs()
    row = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    ptrs = logits_ptr + row * stride + i
    is_seen = tl.load(is_seen_ptr + row * num_logits + i, mask=i < num_logits, other=0) != 0
    logit = tl.load(ptrs, mask=is_seen, other=0.0)
    penalty = tl.load(penalty_ptr + row)
    tl.store(ptrs, tl.where(logit > 0, tl.div_rn(logit, penalty), logit * penalty), mask=is_seen)


def top_logits(logits_NV: Tensor, values_Nk: Tensor, ids_Nk: Tensor, is_finite_N: Tensor, keys: Tensor) -> None:
    """See model.kernels.gpu.reference."""
    num_rows, num_logits = logits_NV.shape
    k = values_Nk.shape[1]
    if k & (k - 1):
        raise ValueError(f"The GPU keeps a power of two of logits a row, not {k}.")
    if not num_rows:
        return
    options = {"K": k, "num_warps": 4, **launch_options()}
    held, spare = keys
    chunks = triton.cdiv(num_logits, LOGITS_CHUNK)
    _top_of_chunk[(chunks, num_rows)](logits_NV, held, num_logits, logits_NV.stride(0), CHUNK=LOGITS_CHUNK, **options)
    while (num_keys := chunks * k) > LOGITS_CHUNK:  # one program would take ten times as long as many
        chunks = triton.cdiv(num_keys, LOGITS_CHUNK)
        _top_of_keys[(chunks, num_rows)](held, spare, num_keys, CHUNK=LOGITS_CHUNK, **options)
        held, spare = spare, held
    block = max(triton.next_power_of_2(num_keys), 2 * k)
    _top_of_row[(num_rows,)](held, values_Nk, ids_Nk, is_finite_N, num_keys, BLOCK=block, **options)


def penalize(logits_NV: Tensor, is_seen_NV: Tensor, penalty_N: Tensor) -> None:
    """See model.kernels.gpu.reference."""
    num_rows, num_logits = logits_NV.shape
    if num_rows:
        grid = (triton.cdiv(num_logits, LOGITS_CHUNK), num_rows)
        _penalize[grid](
            logits_NV,
            is_seen_NV,
            penalty_N,
            num_logits,
            logits_NV.stride(0),
            CHUNK=LOGITS_CHUNK,
            num_warps=4,
            **launch_options(),
        )
