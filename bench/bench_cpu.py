"""The C++ kernels on shapes of real models with random INT4 weights, beside the bandwidth measured in the same minute.

    .venv/bin/python -m bench.bench_cpu [--preset ling-mini-2.0] [--layers N] [--threads 2]

`share` is the bytes of weights a step reads, by its time, as a part of the bandwidth. Figures of fewer layers than the
preset has are of that slice: a step's time is then split into layers and head.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.report import print_report
from bench.synthetic import GROUP, PRESETS
from model.config import ModelConfig
from model.kernels.cpu_decoder import (
    BLOCK_TOKENS,
    CpuDecoder,
    Int4Tiles,
    Threads,
    Tiles,
    linear_many,
    read_bytes,
    token_bytes,
)
from model.modeling import BailingMoeV2ForCausalLM
from model.quantization import pack_int4

READ_BYTES = 2**29
GEMV_SHAPES = ((512, 2048), (2048, 512), (1024, 4096), (4096, 1024))
DECODE_STEPS = 40
ROUTER_SPREAD = 0.02


class RandomDecoder(CpuDecoder):
    """A decoder whose INT4 weights are cut from one block of random bytes on huge pages."""

    def __init__(
        self,
        config: ModelConfig,
        threads: Threads,
        num_blocks: int,
        arena: Arena,
        cache_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self._arena = arena
        with torch.device("meta"):
            model = BailingMoeV2ForCausalLM(config)
        super().__init__(model, threads, num_blocks, cache_dtype)

    def _matrix(self, weight: Tensor | nn.Module | Int4Tiles) -> Any:
        # Tokens must choose different experts, as in a real model: so the embedding outweighs what the layers add, and
        # the router's logits stay off the flat ends of the sigmoid.
        if isinstance(weight, Tiles):  # the router
            return super()._matrix(Tiles(torch.randn(weight.rows, weight.cols).mul_(ROUTER_SPREAD).bfloat16()))
        tensor = weight.weight if isinstance(weight, nn.Linear) else weight
        assert isinstance(tensor, Tensor)
        rows, columns = tensor.shape
        if not isinstance(weight, nn.Linear) and rows == self.config.vocab_size:
            return super()._matrix(self._arena.take_embedding(rows, columns))
        return super()._matrix(self._arena.take(rows, columns))

    def _floats(self, tensor: Tensor) -> ctypes.c_void_p:
        return super()._floats(torch.ones(tensor.shape) if tensor.is_meta else tensor)


class Arena:
    """Random bytes on 2 MiB pages, and INT4 matrices that lie in them one after the other."""

    def __init__(self, num_bytes: int) -> None:
        # Private: a shared map's pages stay at 4 KiB whatever is asked for.
        self._map = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        block = _random_tiles()
        for start in range(0, num_bytes, len(block)):
            part = self.bytes[start : start + len(block)]
            part.copy_(block[: len(part)])
        self.used = 0
        self._embedding: Tensor | None = None

    def take_embedding(self, rows: int, columns: int) -> Tensor:
        """In bf16, the same for every decoder."""
        if self._embedding is None:
            self._embedding = torch.randn(rows, columns, dtype=torch.bfloat16)
        return self._embedding

    def take(self, rows: int, columns: int) -> Int4Tiles:
        begin, self.used = self.used, self.used + rows * columns // 2
        assert self.used <= len(self.bytes)
        scales = torch.full((rows // 16, columns // GROUP, 16), 0.001, dtype=torch.bfloat16)
        return Int4Tiles.from_parts((rows, columns), GROUP, self.bytes[begin : self.used], scales)


def _random_tiles() -> Tensor:
    """Bytes of packed weights from -7 to 7. With -8 they would not be 0 at the mean, and such a shift grows from layer
    to layer until all tokens look alike to the router."""
    weights = torch.randint(-7, 8, (4096, 8192), dtype=torch.int8)
    return Int4Tiles(pack_int4(weights), torch.ones(4096, 8192 // GROUP), 8192, Threads(1)).tiles.flatten()


def time_median(work: Callable[[], object], repeats: int) -> float:
    """Median seconds, after one call that warms up."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure_gemv(arena: Arena, threads: Threads) -> dict[str, float]:
    """GB/s of products with one token, walking through weights that no cache holds."""
    speeds = {}
    for rows, columns in GEMV_SHAPES:
        arena.used = 0
        matrices = [arena.take(rows, columns) for _ in range(2**28 // (rows * columns // 2))]
        x = torch.randn(1, columns)
        seconds = time_median(lambda ms=matrices, x=x: linear_many(ms, x, threads), 5)
        num_bytes = sum(matrix.tiles.nbytes + matrix.scales.nbytes for matrix in matrices)
        speeds[f"{rows}x{columns}"] = num_bytes / seconds / 1e9
    arena.used = 0
    return speeds


def arena_bytes(config: ModelConfig) -> int:
    """Room for all INT4 weights of such a model."""
    experts = 3 * config.hidden_size * config.moe_intermediate_size * (config.num_experts + 1) // 2
    return (experts + 30 * 2**20) * config.num_hidden_layers + config.vocab_size * config.hidden_size


def bytes_a_token(config: ModelConfig) -> int:
    """Weights read for one token."""
    return weight_bytes(config, config.num_experts_per_tok)


def cache_bytes(config: ModelConfig, num_tokens: int, dtype: torch.dtype = torch.bfloat16) -> int:
    """Keys and values of so many tokens."""
    return 2 * config.num_hidden_layers * token_bytes(config, dtype) * num_tokens


def weight_bytes(config: ModelConfig, experts_a_layer: float) -> int:
    """Weights read in a step that takes so many routed experts a layer: INT4 and its scales, the router in bf16."""
    hidden = config.hidden_size
    attention = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim * hidden
    attention += config.num_attention_heads * config.head_dim * hidden
    expert = 3 * hidden * config.moe_intermediate_size * (experts_a_layer + config.num_shared_experts)
    dense = 3 * hidden * config.intermediate_size
    num_moe = config.num_hidden_layers - config.first_k_dense_replace
    weights = attention * config.num_hidden_layers + expert * num_moe + dense * config.first_k_dense_replace
    weights += config.vocab_size * hidden
    return int(weights * (0.5 + 2 / GROUP)) + 2 * config.num_experts * hidden * num_moe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("ling-mini-2.0", "antangelmed"), default="ling-mini-2.0")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    config = replace(preset, num_hidden_layers=arguments.layers or preset.num_hidden_layers)
    threads = Threads(arguments.threads)
    arena = Arena(arena_bytes(config))
    # On the same huge pages as the weights, and with the same prefetching: the most that they could be read with.
    read_gb_s = READ_BYTES / time_median(lambda: read_bytes(arena.bytes[:READ_BYTES], threads), 9) / 1e9
    gemv = measure_gemv(arena, threads)
    num_blocks = 2304 // BLOCK_TOKENS + 1
    decoder = RandomDecoder(config, threads, 32 * 8 + num_blocks, arena)
    table = list(range(num_blocks))
    draw = random.Random(0)

    def prompt(n: int) -> list[int]:
        return [draw.randrange(config.vocab_size) for _ in range(n)]

    def decode(position: int) -> float:
        return time_median(lambda: decoder.forward([prompt(1)], [position], [table]), DECODE_STEPS)

    short_s, long_s = decode(100), decode(2048)
    prefill_s = time_median(lambda: decoder.forward([prompt(512)], [0], [table]), 3)
    many = [list(range(8 * n, 8 * n + 8)) for n in range(32)]
    batch_s = time_median(lambda: decoder.forward([prompt(1) for _ in many], [100] * 32, many), 8)
    num_bytes = bytes_a_token(config)
    figures = {
        "preset": arguments.preset,
        "layers": config.num_hidden_layers,
        "kernels": threads.library.variant,
        "threads": arguments.threads,
        "read_gb_s": round(read_gb_s, 1),
        "gemv_share": {shape: round(speed / read_gb_s, 2) for shape, speed in gemv.items()},
        "gb_a_token": round(num_bytes / 1e9, 3),
        "decode_tok_s": round(1 / short_s, 1),
        "decode_share": round(num_bytes / short_s / 1e9 / read_gb_s, 2),
        "decode_2048_tok_s": round(1 / long_s, 1),
        "prefill_512_tok_s": round(512 / prefill_s, 1),
        "batch_32_tok_s": round(32 / batch_s, 1),
    }
    print_report("cpu", figures)


if __name__ == "__main__":
    main()
