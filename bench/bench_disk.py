"""A packed folder whose experts are read from the disk as they are chosen: tokens/s, bytes a token, and what was kept.

    .venv/bin/python -m bench.synthetic antangelmed FOLDER --format packed
    .venv/bin/python -m bench.bench_disk --folder FOLDER [--cache-gb 10] [--tokens 48]

Through random weights each token that is a text of its own (`alone`) chooses its experts nearly evenly: the worst case
for keeping those most used, and far from any real text. In one text (`text`) the states of random weights grow alike
from layer to layer, and most tokens choose the same experts. A trained model lies between the two.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from bench.report import peak_rss_mb, print_report
from model.kernels.cpu_decoder import BLOCK_TOKENS, CpuDecoder, Threads
from model.kernels.expert_cache import ExpertCounts
from model.packed.load import load_packed
from model.quantized import count_parameters

PROMPT_TOKENS = 128


def share(key: str, counts: ExpertCounts, before: ExpertCounts) -> float:
    """Of the experts wanted since `before`."""
    wanted = {name: getattr(counts, name) - getattr(before, name) for name in ("hits", "prefetched", "misses")}
    return round(wanted[key] / max(sum(wanted.values()), 1), 3)


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
    num_blocks = -(-(PROMPT_TOKENS + arguments.tokens) // BLOCK_TOKENS)
    decoder = CpuDecoder(loaded.model, threads, num_blocks, experts=experts)
    load_s = time.perf_counter() - started
    table, draw = [list(range(num_blocks))], random.Random(0)

    def forward(first: int, num: int) -> float:
        begun = time.perf_counter()
        decoder.forward([[draw.randrange(config.vocab_size) for _ in range(num)]], [first], table)
        return time.perf_counter() - begun

    def measure(positions: Sequence[int]) -> dict[str, float]:
        """Of single tokens at these positions, after as many that warm up."""
        for position in positions:
            forward(position, 1)
        before = experts.counts
        seconds = sum(forward(position, 1) for position in positions)
        counts = experts.counts
        num_bytes, guessed = counts.bytes_read - before.bytes_read, counts.guessed - before.guessed
        return {
            "decode_tok_s": round(len(positions) / seconds, 2),
            "disk_gb_a_token": round(num_bytes / len(positions) / 1e9, 3),
            "disk_gb_s": round(num_bytes / seconds / 1e9, 2),
            "hits": share("hits", counts, before),
            "prefetched": share("prefetched", counts, before),
            "misses": share("misses", counts, before),
            "guesses_right": round((counts.guessed_right - before.guessed_right) / max(guessed, 1), 3),
        }

    first_s = forward(0, 1)
    prompt_s = forward(0, PROMPT_TOKENS)
    in_text = measure(range(PROMPT_TOKENS, PROMPT_TOKENS + arguments.tokens))
    alone = measure([0] * arguments.tokens)
    figures = {
        "folder": arguments.folder.name,
        "layers": config.num_hidden_layers,
        "parameters": count_parameters(loaded.model),
        "packed_gb": round(loaded.manifest.num_bytes / 1e9, 2),
        "kernels": threads.library.variant,
        "threads": arguments.threads,
        "experts_in_memory": f"{experts.counts.num_slots} of {config.num_experts * len(experts.files)}",
        "load_s": round(load_s, 2),
        "first_token_s": round(first_s, 2),
        "prompt_tok_s": round(PROMPT_TOKENS / prompt_s, 2),
        "alone": alone,
        "text": in_text,
        "peak_rss_gb": round(peak_rss_mb() * 2**20 / 1e9, 2),
    }
    print_report("disk", figures)


if __name__ == "__main__":
    main()
