"""How weights lie for the GPU, and the instructions that unpack them: both exact, and checked without Triton."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.kernels.gpu import layout
from model.quantization import dequantize_fp8, dequantize_int4, pack_int4

Words = NDArray[np.uint32]


def make_int4(*shape: int, group: int = 128) -> tuple[Tensor, Tensor, layout.Int4Weight]:
    q = torch.randint(-8, 8, shape, dtype=torch.int8)
    scales = torch.rand(*shape[:-1], -(-shape[-1] // group)).bfloat16()
    return q, scales, layout.pack_int4_weight(pack_int4(q), scales, shape[-1], group)


def make_fp8(*shape: int) -> tuple[Tensor, Tensor, layout.Fp8Weight]:
    values = torch.randn(shape).to(torch.float8_e4m3fn)
    scales = torch.rand(*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    return values, scales, layout.pack_fp8_weight(values, scales)


@pytest.mark.parametrize("shape", [(16, 128), (17, 200), (2, 33, 384), (3, 1, 64)])
@pytest.mark.parametrize("group", [64, 128, 256])
def test_int4_comes_back_as_it_was(shape: tuple[int, ...], group: int) -> None:
    q, scales, weight = make_int4(*shape, group=group)
    unpacked, _ = layout.unpack_int4_weight(weight)
    assert torch.equal(unpacked, q)
    by_definition = dequantize_int4(
        pack_int4(q), scales, shape[-1], (torch.arange(shape[-1]) // group).int().expand(*shape[:-2], -1)
    )
    assert torch.equal(layout.dequantize(weight), by_definition)


@pytest.mark.parametrize("shape", [(16, 128), (130, 200), (2, 33, 256)])
def test_fp8_comes_back_as_it_was(shape: tuple[int, ...]) -> None:
    values, scales, weight = make_fp8(*shape)
    assert torch.equal(layout.unpack_fp8_weight(weight).view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(layout.dequantize(weight), dequantize_fp8(values, scales, (128, 128)))


def test_a_group_that_the_kernels_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match="not of 32"):
        make_int4(16, 256, group=32)


def test_a_slab_is_one_run_of_memory_and_so_are_eight_scales_of_a_row() -> None:
    _, scales, weight = make_int4(32, 9 * 128)
    assert weight.words.shape == (2, 9, 16 * 32)
    assert weight.scales.shape == (2, 2 * 16 * 8)
    assert torch.equal(weight.scales[1, 3 * 8 : 4 * 8], scales[16 + 3, :8])
    assert torch.equal(weight.scales[1, (16 + 3) * 8], scales[16 + 3, 8])


@pytest.mark.parametrize("make", [make_int4, make_fp8])
def test_parts_are_joined(make: Callable[..., tuple[Tensor, Tensor, layout.Weight]]) -> None:
    (*_, a), (*_, b) = make(2, 128, 200), make(2, 130, 200)
    rows = layout.join_rows([a, b])
    assert torch.equal(layout.dequantize(rows), torch.cat([layout.dequantize(a), layout.dequantize(b)], 1))
    stack = layout.join_experts([a, a])
    assert torch.equal(layout.dequantize(stack), layout.dequantize(a).repeat(2, 1, 1))
    with pytest.raises(ValueError, match="multiple of"):
        layout.join_rows([b, a])


# --- the instructions -------------------------------------------------------------------------------------------------


def to_pairs(words: Words) -> NDArray[np.float64]:
    """Registers of two bf16 each -> [n, 2], the low half first."""
    halves = np.stack((words << 16, words & 0xFFFF0000), -1).astype(np.uint32)
    return halves.view(np.float32).astype(np.float64)


def from_pairs(pairs: NDArray[np.float64]) -> Words:
    bits = torch.from_numpy(pairs).to(torch.bfloat16).view(torch.int16).numpy().astype(np.uint16).astype(np.uint32)
    return bits[:, 0] | bits[:, 1] << 16


def run_ptx(source: str, word: Words) -> Words:
    """What a block of PTX makes of the register $1: the few instructions in use, by the PTX ISA's description."""
    registers = {"$1": word}
    for line in source.strip("{} ").split(";"):
        name, _, rest = line.strip().partition(" ")
        out, *operands = [operand.strip() for operand in rest.split(",")]
        if not name or name == ".reg":
            continue
        values = [registers[o] if o in registers else np.full_like(word, int(o, 0)) for o in operands]
        if name == "mov.b32":
            registers[out] = values[0]
        elif name in ("and.b32", "or.b32"):
            registers[out] = values[0] & values[1] if name == "and.b32" else values[0] | values[1]
        elif name in ("shl.b32", "shr.u32"):
            registers[out] = values[0] << values[1] if name == "shl.b32" else values[0] >> values[1]
        elif name == "lop3.b32":
            assert int(operands[3], 0) == (0xF0 & 0xCC) | 0xAA
            registers[out] = values[0] & values[1] | values[2]
        else:
            assert name == "fma.rn.bf16x2"
            a, b, c = map(to_pairs, values)
            registers[out] = from_pairs(a * b + c)
    return registers["$0"]


def test_two_words_are_unpacked_exactly() -> None:
    product = pytest.importorskip("model.kernels.gpu.product", exc_type=ImportError)
    low = np.arange(65536, dtype=np.uint32)
    high = np.random.default_rng(0).permutation(low)
    for plane in range(4):
        pairs = to_pairs(run_ptx(product.INT4_PLANES[plane], low | high << 16))
        for half, words in enumerate((low, high)):
            assert np.array_equal(pairs[:, half], (words >> 4 * plane & 0xF).astype(float) - 8)
        biased = to_pairs(run_ptx(product.BIASED_PLANES[plane], low | high << 16))
        assert np.array_equal(biased, pairs + 136)
    for plane in range(2):
        pairs = to_pairs(run_ptx(product.FP8_PLANES[plane], low | high << 16))
        for half, words in enumerate((low, high)):
            bytes_ = torch.from_numpy((words >> 8 * plane & 0xFF).astype(np.uint8))
            expected = bytes_.view(torch.float8_e4m3fn).double().numpy()
            is_number = ~np.isnan(expected)
            assert np.array_equal(pairs[is_number, half], expected[is_number])
