"""The formats' own arithmetic, each against a loop that follows its definition."""

from __future__ import annotations

import pytest
import torch

from model.quantization import dequantize_fp8, dequantize_int4, pack_int4, unpack_int4


@pytest.mark.parametrize("num_columns", [8, 32, 33, 5])
def test_packing_is_undone_by_unpacking(num_columns: int) -> None:
    q = torch.randint(-8, 8, (2, 3, num_columns), dtype=torch.int8)
    packed = pack_int4(q)
    assert packed.dtype == torch.int32
    assert packed.shape == (2, 3, -(-num_columns // 8))
    assert torch.equal(unpack_int4(packed, num_columns), q)
    nibble = (int(packed[1, 2, 0]) >> 4 * 3) & 0xF
    assert nibble - 8 == q[1, 2, 3]


@pytest.mark.parametrize("act_order", [False, True])
def test_int4_follows_its_definition(act_order: bool) -> None:
    rows, columns, group = 3, 16, 4
    q = torch.randint(-8, 8, (rows, columns), dtype=torch.int8)
    scales, zeros = torch.rand(rows, columns // group), torch.randint(-8, 8, (rows, columns // group), dtype=torch.int8)
    groups = torch.randperm(columns) // group if act_order else torch.arange(columns) // group
    got = dequantize_int4(pack_int4(q), scales, columns, groups.int() if act_order else None, zeros)
    for o in range(rows):
        for i in range(columns):
            g = int(groups[i])
            assert got[o, i] == (float(q[o, i]) - float(zeros[o, g])) * scales[o, g]


def test_fp8_with_ragged_edges_follows_its_definition() -> None:
    weight, scale = torch.randn(5, 7).to(torch.float8_e4m3fn), torch.rand(3, 2)
    got = dequantize_fp8(weight, scale, (2, 4))
    for o in range(5):
        for i in range(7):
            assert got[o, i] == weight.float()[o, i] * scale[o // 2, i // 4]
