"""A packed folder whose experts are read from the disk as they are chosen: tokens/s, bytes a token, and what was kept.

    .venv/bin/python -m bench.synthetic antangelmed FOLDER --format packed
    .venv/bin/python -m bench.bench_disk --folder FOLDER [--cache-gb 10] [--tokens 48]

Random tokens through random weights choose their experts nearly evenly, the worst case for keeping those most used:
of a trained model some experts are chosen far more often than others. What the guess of the next layer's choice is
worth depends on how much a layer changes the residual stream, and is another figure in trained weights.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path

from bench.report import peak_rss_mb, print_report
from model.kernels.cpu_decoder import BLOCK_TOKENS, CpuDecoder, Threads
from model.kernels.expert_cache import ExpertCounts
from model.packed.load import load_packed

PROMPT_TOKENS = 128
WARM_TOKENS = 24  # until the room for experts is full


def share(part: int, counts: ExpertCounts, before: ExpertCounts) -> float:
    wanted = sum(getattr(counts, key) - getattr(before, key) for key in ("hits", "prefetched", "misses"))
    return round(part / max(wanted, 1), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cache-gb", type=float, default=0.0, help="room for experts; 0: the memory that is free")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    started = time.perf_counter()
    loaded = load_packed(arguments.folder, None, "auto", "disk", int(arguments.cache_gb * 1e9) or None)
    experts, config = loaded.experts, loaded.model.config
    assert experts is not None
    threads = Threads(arguments.threads)
    num_blocks = -(-(PROMPT_TOKENS + WARM_TOKENS + arguments.tokens) // BLOCK_TOKENS)
    decoder = CpuDecoder(loaded.model, threads, num_blocks, experts=experts)
    load_s = time.perf_counter() - started
    table, draw = [list(range(num_blocks))], random.Random(0)

    def forward(first: int, num: int) -> float:
        begun = time.perf_counter()
        decoder.forward([[draw.randrange(config.vocab_size) for _ in range(num)]], [first], table)
        return time.perf_counter() - begun

    first_s = forward(0, 1)
    prompt_s = forward(0, PROMPT_TOKENS)
    for number in range(WARM_TOKENS):
        forward(PROMPT_TOKENS + number, 1)
    before = experts.counts
    first = PROMPT_TOKENS + WARM_TOKENS
    decode_s = sum(forward(first + number, 1) for number in range(arguments.tokens))
    counts = experts.counts
    num_bytes, guessed = counts.bytes_read - before.bytes_read, counts.guessed - before.guessed
    figures = {
        "folder": arguments.folder.name,
        "layers": config.num_hidden_layers,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "packed_gb": round(loaded.manifest.num_bytes / 1e9, 2),
        "kernels": threads.library.variant,
        "threads": arguments.threads,
        "experts_in_memory": f"{counts.num_slots} of {config.num_experts * len(experts.files)}",
        "load_s": round(load_s, 2),
        "first_token_s": round(first_s, 2),
        "prompt_tok_s": round(PROMPT_TOKENS / prompt_s, 2),
        "decode_tok_s": round(arguments.tokens / decode_s, 2),
        "disk_gb_a_token": round(num_bytes / arguments.tokens / 1e9, 3),
        "disk_gb_s": round(num_bytes / decode_s / 1e9, 2),
        "hits": share(counts.hits - before.hits, counts, before),
        "prefetched": share(counts.prefetched - before.prefetched, counts, before),
        "misses": share(counts.misses - before.misses, counts, before),
        "guesses_right": round((counts.guessed_right - before.guessed_right) / max(guessed, 1), 3),
        "peak_rss_gb": round(peak_rss_mb() * 2**20 / 1e9, 2),
    }
    print_report("disk", figures)


if __name__ == "__main__":
    main()
