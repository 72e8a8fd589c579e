"""Products with one token by torch's INT4 and by bitsandbytes' NF4, on uncached weights: what bench.bench_table puts
beside ours.

    .venv/bin/python -m bench.gemv_peers    answers each line with a JSON object of GB/s, by name and shape
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import bitsandbytes
import torch
from torch import nn

from bench.bench_cpu import GEMV_SHAPES, time_median
from bench.synthetic import GROUP
from bench.table_own import THREADS

WALK_BYTES = 2**27  # more than a processor caches
NF4_WALK_BYTES = 2**25  # which it needs a second for
REPEATS = 5


def measure_int4pack(rows: int, columns: int) -> float:
    """GB/s of torch's _weight_int4pack_mm_for_cpu, with a scale and a zero a group."""
    num_bytes = rows * columns // 2 + rows * columns // GROUP * 4
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        torch.randint(0, 16, (rows, columns), dtype=torch.int32), 1
    )
    scales = torch.rand(columns // GROUP, rows, 2).bfloat16()
    weights = [(packed.clone(), scales.clone()) for _ in range(WALK_BYTES // num_bytes)]
    x = torch.randn(1, columns, dtype=torch.bfloat16)
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return _rate(lambda: [multiply(x, weight, GROUP, scale) for weight, scale in weights], len(weights) * num_bytes)


def measure_nf4(rows: int, columns: int) -> float:
    """GB/s of bitsandbytes' Linear4bit."""
    num_bytes = rows * columns // 2 + rows * columns // 64 * 4
    layers = [_make_nf4(rows, columns) for _ in range(NF4_WALK_BYTES // num_bytes)]
    x = torch.randn(1, columns, dtype=torch.bfloat16)
    with torch.inference_mode():
        return _rate(lambda: [layer(x) for layer in layers], len(layers) * num_bytes)


def _make_nf4(rows: int, columns: int) -> nn.Module:
    layer = bitsandbytes.nn.Linear4bit(
        columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="cpu"
    )
    weight = torch.randn(rows, columns, dtype=torch.bfloat16)
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    module: nn.Module = layer.to("cpu")
    return module


def _rate(work: Callable[[], object], num_bytes: int) -> float:
    return num_bytes / time_median(work, REPEATS) / 1e9


def main() -> None:
    torch.set_num_threads(THREADS)
    print("{}", flush=True)
    for _ in sys.stdin:
        rates = {
            name: {f"{rows}x{columns}": measure(rows, columns) for rows, columns in GEMV_SHAPES}
            for name, measure in MEASURES.items()
        }
        print(json.dumps(rates), flush=True)


MEASURES = {"torch int4pack": measure_int4pack, "bitsandbytes NF4": measure_nf4}

if __name__ == "__main__":
    main()
