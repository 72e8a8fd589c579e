"""Our side of bench.bench_table: a process that measures on request.

    .venv/bin/python -m bench.table_own PRESET --layers 20    random INT4 weights in memory; answers JSON lines
    .venv/bin/python -m bench.table_own FOLDER --first-token  loads a checkpoint, gives one token, and ends

A request is a JSON object on a line of standard input, and so is the answer on standard output. Each compute thread has
a core of its own: two that share one read memory at half the speed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.bench_cpu import READ_BYTES, Arena, RandomDecoder, arena_bytes, measure_gemv, time_median
from bench.report import rss_gb
from bench.synthetic import PRESETS
from model.config import ModelConfig
from model.kernels.build import Library
from model.kernels.cpu_decoder import BLOCK_TOKENS, Threads, read_bytes

CACHES = {"bf16": torch.bfloat16, "int8": torch.int8}
MAX_STREAMS = 32
NUM_BLOCKS = 560  # prompts of 100 and 2,048 and 32 streams, twice, and a prompt of 512
SPARE_TOKENS = 64  # room behind the depth for the steps that are timed
PREFILL_CHUNK = 512
THREADS = 2


class Own:
    """Models of several numbers of layers over the same random weights. Prompts are read once and kept in the cache, so
    that a round begins where the last one did."""

    def __init__(self, config: ModelConfig, layers: list[int], threads: Threads) -> None:
        self._config, self._threads = config, threads
        self._arena = Arena(arena_bytes(replace(config, num_hidden_layers=max(layers))))
        self._decoders = {
            (number, cache): self._make_decoder(number, dtype) for number in layers for cache, dtype in CACHES.items()
        }
        self._tables: dict[tuple[int, int, int, str], list[list[int]]] = {}
        self._num_used_blocks = 0
        self._draw = random.Random(0)
        self._logits = torch.empty(MAX_STREAMS, config.vocab_size)  # kept, as the engine's backend keeps them

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of each repetition, or GB/s."""
        do = request.pop("do")
        if do == "decode":
            return self.decode(**request)
        if do == "prefill":
            return self.prefill(**request)
        if do == "gemv":
            return {"gb_s": measure_gemv(self._arena, self._threads)}
        return {"gb_s": self.read_bandwidth()}

    def read_bandwidth(self) -> float:
        """GB/s at which the same threads read the same pages and do nothing else."""
        return READ_BYTES / time_median(lambda: read_bytes(self._arena.bytes[:READ_BYTES], self._threads), 5) / 1e9

    def decode(self, layers: int, depth: int, streams: int, steps: int, cache: str = "bf16") -> dict[str, Any]:
        """Steps that give each stream one token more; `experts`: how many a layer took in a step, at the mean."""
        tables = self._open_streams(layers, depth, streams, cache=cache)
        decoder, first_moe = self._decoders[layers, cache], self._config.first_k_dense_replace
        seconds, experts = [], []
        for step in range(min(steps, SPARE_TOKENS)):
            tokens = [self._draw_tokens(1) for _ in tables]
            started = time.perf_counter()
            done = decoder.forward(tokens, [depth + step] * streams, tables, logits_NV=self._logits[:streams])
            seconds.append(time.perf_counter() - started)
            experts += [len(chosen.unique()) for chosen in done.topk_ids[first_moe:]]
        return {"seconds": seconds, "experts": sum(experts) / max(len(experts), 1)}

    def prefill(self, layers: int, tokens: int, repeats: int) -> dict[str, Any]:
        """Reads a prompt in one pass."""
        tables = self._open_streams(layers, 0, 1, tokens)
        seconds = []
        for _ in range(repeats):
            prompt = self._draw_tokens(tokens)
            started = time.perf_counter()
            self._decoders[layers, "bf16"].forward([prompt], [0], tables)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def _make_decoder(self, layers: int, cache_dtype: torch.dtype) -> RandomDecoder:
        self._arena.used = 0
        config = replace(self._config, num_hidden_layers=layers)
        return RandomDecoder(config, self._threads, NUM_BLOCKS, self._arena, cache_dtype)

    def _open_streams(
        self, layers: int, depth: int, streams: int, room: int = SPARE_TOKENS, cache: str = "bf16"
    ) -> list[list[int]]:
        """Blocks of streams that each hold a prompt of `depth` tokens."""
        key = layers, depth, streams, cache
        if key not in self._tables:
            length = -(-(depth + room) // BLOCK_TOKENS)
            first = self._num_used_blocks
            self._num_used_blocks += length * streams
            assert self._num_used_blocks <= NUM_BLOCKS
            tables = [list(range(first + n * length, first + (n + 1) * length)) for n in range(streams)]
            for table in tables:
                for start in range(0, depth, PREFILL_CHUNK):
                    prompt = self._draw_tokens(min(PREFILL_CHUNK, depth - start))
                    self._decoders[layers, cache].forward([prompt], [start], [table])
            self._tables[key] = tables
        return self._tables[key]

    def _draw_tokens(self, number: int) -> list[int]:
        return [self._draw.randrange(self._config.vocab_size) for _ in range(number)]


def make_pinned_threads(number: int, library: Library | None = None) -> Threads:
    """Compute threads on cores of their own, the caller's among them."""
    before = _list_threads()
    threads = Threads(number, library)
    cores = sorted(os.sched_getaffinity(0))
    for thread, core in zip([0, *sorted(_list_threads() - before)], cores, strict=False):
        os.sched_setaffinity(thread, {core})
    return threads


def _list_threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def give_first_token(folder: Path) -> float:
    """Loads a checkpoint as the program does and answers with one token; the GB that the process then holds."""
    from contracts import Message, Role, SamplingParams
    from model.generator import LocalGenerator

    generator = LocalGenerator.load(folder, threads=THREADS, weights="map")
    list(generator.stream([Message(Role.USER, "?")], SamplingParams(max_tokens=1)))
    return rss_gb()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", help=f"a folder, or one of {', '.join(PRESETS)}")
    parser.add_argument("--layers", type=int, nargs="+", default=[20])
    parser.add_argument("--first-token", action="store_true")
    arguments = parser.parse_args()
    if arguments.first_token:
        print(json.dumps({"rss_gb": give_first_token(Path(arguments.what))}), flush=True)
        return
    torch.set_num_threads(1)
    threads = make_pinned_threads(THREADS)
    own = Own(PRESETS[arguments.what], arguments.layers, threads)
    print(json.dumps({"version": threads.library.variant, "rss_gb": rss_gb()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(own.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
