"""A whole small model at 128K positions: the C++ kernels against float64, with each kind of cache.

    .venv/bin/python -m bench.long_context [--length 131072]

Two layers with random weights, the second a mixture of experts, YaRN 32K to 128K. Compared are the logits of the last
eight tokens, which depend on every position before them through both layers; the error is a part of their spread, over
the tokens whose experts are the same.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from bench.report import print_report
from model.config import ModelConfig, YarnScaling
from model.kernels.cpu_decoder import BLOCK_TOKENS, CpuDecoder, Threads
from model.kv_cache import KVCache
from model.modeling import BailingMoeV2ForCausalLM

NUM_COMPARED = 8
CHUNK = 1024
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.int8: 0.1}


def make_model(length: int) -> BailingMoeV2ForCausalLM:
    config = ModelConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        partial_rotary_factor=0.5,
        rope_theta=600000.0,
        max_position_embeddings=length,
        rope_scaling=YarnScaling(factor=4.0, original_max_position_embeddings=length // 4),
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return BailingMoeV2ForCausalLM(config).eval()


def answer_by_definition(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and chosen experts of the last tokens, in float64."""
    model = make_model(len(ids)).double()
    cache = KVCache(model.config, capacity=len(ids), dtype=torch.float64)
    ends = [*range(CHUNK, len(ids) - CHUNK + 1, CHUNK), len(ids) - NUM_COMPARED, len(ids)]
    start = 0
    with torch.inference_mode():
        for end in ends:
            out = model(ids[None, start:end], cache=cache, output_router=True, logits_to_keep=NUM_COMPARED)
            start = end
    assert out.router is not None
    return out.logits[0], out.router[1].topk_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=131072)
    arguments = parser.parse_args()
    ids = torch.randint(0, 400, (arguments.length,), generator=torch.Generator().manual_seed(0))
    wanted, experts = answer_by_definition(ids)
    threads = Threads(torch.get_num_threads())
    table = torch.randperm(-(-len(ids) // BLOCK_TOKENS)).tolist()
    first = len(ids) - NUM_COMPARED
    errors, figures = {}, {}
    for dtype in LIMITS:
        decoder = CpuDecoder(make_model(len(ids)), threads, len(table), dtype)
        started = time.perf_counter()
        for start in range(0, first, CHUNK):
            decoder.forward([ids[start : min(start + CHUNK, first)].tolist()], [start], [table], [])
        out = decoder.forward([ids[first:].tolist()], [first], [table], list(range(NUM_COMPARED)))
        agrees = (out.topk_ids[1].long().sort(-1).values == experts.sort(-1).values).all(-1)
        name = str(dtype).removeprefix("torch.")
        errors[f"error_{name}"] = float((out.logits - wanted)[agrees].abs().max() / wanted.std())
        figures[f"tokens_same_experts_{name}"] = int(agrees.sum())
        figures[f"seconds_{name}"] = round(time.perf_counter() - started, 1)
    limits = {f"error_{str(dtype).removeprefix('torch.')}": limit for dtype, limit in LIMITS.items()}
    shown = {name: float(f"{error:.2g}") for name, error in errors.items()}
    print_report("long_context", {"length": len(ids), "compared": NUM_COMPARED, **shown, **figures}, limits)


if __name__ == "__main__":
    main()
