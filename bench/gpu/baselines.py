"""What others do on the same card in the same minute: torch eager, torch's own INT4 product, bitsandbytes' NF4."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear

from bench.gpu.clock import Clock
from model.config import ModelConfig
from model.modeling import MoE
from model.quantized import Nf4Matrix

Timed = Callable[[Clock, int, int, int], float]  # rows, columns and tokens of a product -> seconds


def time_eager_moe(clock: Clock, config: ModelConfig, num_tokens: int) -> float:
    """One MoE layer of model.modeling in bf16: experts in a Python loop, as transformers' eager code has them."""
    with torch.device(clock.device):
        moe = MoE(config).to(torch.bfloat16).requires_grad_(False)
    for parameter in moe.parameters():
        parameter.normal_(std=0.02)
    x = torch.randn(1, num_tokens, config.hidden_size, device=clock.device, dtype=torch.bfloat16)
    return clock.time_eager([lambda: moe(x)])


def time_bf16(clock: Clock, rows: int, columns: int, num_tokens: int) -> float:
    sets = clock.num_sets(rows * columns * 2)
    weights = [torch.randn(rows, columns, device=clock.device, dtype=torch.bfloat16) for _ in range(sets)]
    x = torch.randn(num_tokens, columns, device=clock.device, dtype=torch.bfloat16)
    return clock.time([lambda w=w: linear(x, w) for w in weights])


def time_torch_int4(clock: Clock, rows: int, columns: int, num_tokens: int) -> float:
    """aten::_weight_int4pack_mm with groups of 128."""
    sets = clock.num_sets(rows * columns / 2)
    shape = (columns // 128, rows, 2)
    x = torch.randn(num_tokens, columns, device=clock.device, dtype=torch.bfloat16)
    scales = torch.rand(shape, device=clock.device).to(torch.bfloat16)
    if clock.is_card:
        packed = [
            torch._convert_weight_to_int4pack(
                torch.randint(0, 256, (rows, columns // 2), device=clock.device, dtype=torch.uint8), 8
            )
            for _ in range(sets)
        ]
        return clock.time([lambda w=w: torch._weight_int4pack_mm(x, w, 128, scales) for w in packed])
    values = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
    one = torch._convert_weight_to_int4pack_for_cpu(values, 8)
    return clock.time([lambda: torch._weight_int4pack_mm_for_cpu(x, one, 128, scales)])


def time_bitsandbytes(clock: Clock, rows: int, columns: int, num_tokens: int) -> float:
    """Raises ImportError where it is not installed."""
    import bitsandbytes as bnb
    import bitsandbytes.functional as functional

    sets = clock.num_sets(rows * columns / 2, at_most=8)
    x = torch.randn(num_tokens, columns, device=clock.device, dtype=torch.bfloat16)
    packed = [
        functional.quantize_4bit(
            torch.randn(rows, columns, device=clock.device, dtype=torch.bfloat16), blocksize=64, quant_type="nf4"
        )
        for _ in range(sets)
    ]
    return clock.time_eager([lambda w=w, state=state: bnb.matmul_4bit(x, w.t(), state) for w, state in packed])


def time_own_nf4(clock: Clock, rows: int, columns: int, num_tokens: int) -> float:
    """What the program does with an NF4 checkpoint on a card: it dequantizes in torch for every product."""
    matrix = Nf4Matrix((rows, columns), block=64).to_empty(device=clock.device)
    matrix.packed.random_(0, 256)
    matrix.absmax.uniform_(0.01, 0.02)
    matrix.quant_map.copy_(torch.linspace(-1, 1, 16))
    x = torch.randn(num_tokens, columns, device=clock.device, dtype=torch.bfloat16)
    return clock.time_eager([lambda: matrix(x)])


PRODUCTS: dict[str, tuple[Timed, float]] = {  # name -> how it is timed, bytes a weight
    "torch bf16": (time_bf16, 2.0),
    "torch _weight_int4pack_mm": (time_torch_int4, 0.5 + 4 / 128),
    "bitsandbytes NF4": (time_bitsandbytes, 0.5 + 4 / 64),
    "own NF4 path (torch)": (time_own_nf4, 0.5 + 4 / 64),
}
