"""Where the microseconds of a decode step go: each phase of a layer, by the C++ kernels built with clocks in them.

    .venv/bin/python -m bench.phases [--streams 1] [--context 100] [--layers 6]

Random INT4 weights of Ling-mini-2.0's shapes. A line gives medians over layers and steps: the time from the first
thread's start to the last one's end, the part of it that a thread waits at the barrier, and for the products the GB/s
at which weights were read, beside what these threads read when they do nothing else.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.bench_cpu import Arena, RandomDecoder, arena_bytes
from bench.report import print_report
from bench.synthetic import GROUP, PRESETS
from bench.table_own import make_pinned_threads
from model.config import ModelConfig
from model.kernels.build import Library, best_variant, compile_to
from model.kernels.cpu_decoder import BLOCK_TOKENS, Threads, read_bytes

STEPS, WARM_STEPS, MAX_PHASES = 50, 5, 4096
BEFORE, BEHIND = 11, 2  # phases before the first MoE layer (embedding, dense layer) and behind the last (norm, head)
ROOM = 64  # tokens behind the context


def build_with_clocks(folder: Path) -> Library:
    variant, output = best_variant(), folder / "kernels.so"
    compile_to(output, variant, "-DBEDSIDE_TIMES")
    return Library(ctypes.CDLL(str(output)), variant, "clocks")


def name_phases(streams: int) -> list[str]:
    """Of a MoE layer, as Decoder::attention_phases and mlp_phases walk through them."""
    gather = ["gather"] if streams > 1 else []
    attention = ["norm", "qkv", "rope", "attention", "round", "dense"]
    return [*attention, "norm", "router + shared", "route", "sort", *gather, "gate + up", "round", "down"]


def read_times(threads: Threads) -> np.ndarray:
    """[thread, phase, 3] ns of the last job: started, had no task left, left the barrier."""
    out = np.zeros((threads.num_threads, MAX_PHASES, 3), dtype=np.int64)
    read = threads.library.handle.bedside_pool_times
    num = 0
    for thread in range(threads.num_threads):
        num = read(threads.pointer, thread, out[thread].ctypes.data_as(ctypes.c_void_p))
    return out[:, :num]


def measure_reading(arena: Arena, threads: Threads) -> float:
    """GB/s, the median over pieces that no cache holds and other programs seldom come between."""
    piece, took = 2**26, []
    for begin in range(0, len(arena.bytes) - piece, piece):
        read_bytes(arena.bytes[begin : begin + piece], threads)
        phase = read_times(threads)[:, 0]
        took.append(phase[:, 2].max() - phase[:, 0].min())
    return piece / float(np.median(took))


def phase_bytes(config: ModelConfig, experts: float) -> dict[str, float]:
    """Weights that a phase reads."""
    hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    matrix = hidden * config.moe_intermediate_size
    int4 = {
        "qkv": (heads + 2 * kv_heads) * config.head_dim * hidden,
        "dense": heads * config.head_dim * hidden,
        "router + shared": 2 * matrix * config.num_shared_experts,
        "gate + up": 2 * matrix * experts,
        "down": matrix * (experts + config.num_shared_experts),
    }
    found = {name: weights * (0.5 + 2 / GROUP) for name, weights in int4.items()}
    found["router + shared"] += 2 * config.num_experts * hidden
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--context", type=int, default=100)
    parser.add_argument("--layers", type=int, default=6)
    arguments = parser.parse_args()
    streams, context = arguments.streams, arguments.context
    config = replace(PRESETS["ling-mini-2.0"], num_hidden_layers=arguments.layers)
    with tempfile.TemporaryDirectory() as folder:
        threads = make_pinned_threads(2, build_with_clocks(Path(folder)))
    arena = Arena(arena_bytes(config))
    length = -(-(context + ROOM) // BLOCK_TOKENS)
    decoder = RandomDecoder(config, threads, streams * length, arena)
    tables = [list(range(n * length, (n + 1) * length)) for n in range(streams)]
    tokens = torch.randint(config.vocab_size, (STEPS + WARM_STEPS, streams)).tolist()
    for table in tables:
        for start in range(0, context, 512):
            decoder.forward([[7] * min(512, context - start)], [start], [table])
    read_gb_s = measure_reading(arena, threads)
    steps, experts = [], []
    for step in tokens:
        done = decoder.forward([[token] for token in step], [context] * streams, tables)
        steps.append(read_times(threads))
        experts += [len(chosen.unique()) for chosen in done.topk_ids[config.first_k_dense_replace :]]
    times = np.stack(steps[WARM_STEPS:])
    names = name_phases(streams)
    num_layers = config.num_hidden_layers - config.first_k_dense_replace
    assert times.shape[2] == BEFORE + num_layers * len(names) + BEHIND, "decoder.cpp has other phases than name_phases"
    layers = times[:, :, BEFORE:-BEHIND].reshape(len(times), threads.num_threads, -1, len(names), 3)
    started, done_ns, left = layers[..., 0].min(1), layers[..., 1], layers[..., 2].max(1)
    took = np.median(left - started, axis=(0, 1)) / 1e3
    waited = np.median(left[:, None] - done_ns, axis=(0, 2)).mean(0) / 1e3
    read = phase_bytes(config, float(np.mean(experts)))
    print(f"{streams} streams at {context} tokens; reading alone {read_gb_s:.1f} GB/s")
    for name, us, wait in zip(names, took, waited, strict=True):
        speed = f"{read[name] / us / 1e3:8.1f} GB/s" if name in read else ""
        print(f"{name:16}{us:9.1f} us{wait:8.1f} waited{speed}")
    print_report("phases", {"streams": streams, "context": context, "layer_us": round(float(took.sum()), 1)})


if __name__ == "__main__":
    main()
