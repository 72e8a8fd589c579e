"""How fast steps of the embedded model are with one thread a core, half as many, or as the program itself chooses
(model.thread_choice), alone and beside programs that each keep a core busy.

    .venv/bin/python -m bench.bench_threads [--seconds 1]

Ours and the busy ones have a session each, as the app and a browser have, all of the same priority; where root allows
it that priority is raised, so that what else runs on the machine counts little. Steps per second over the whole time:
what a reader sees.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.report import print_report
from bench.side import RAISED, set_priority
from model.backend import Slice
from model.checkpoint import load_model
from model.cpu_backend import CpuBackend
from model.generator import EMBEDDED
from model.kernels.cpu_decoder import BLOCK_TOKENS, Threads

SPIN = "while True: pass"
CONTEXT, CHUNK = 100, 256  # tokens
ROUNDS = 3


@contextmanager
def busy_programs(number: int) -> Iterator[None]:
    """So many programs that each want a whole core."""
    programs = [subprocess.Popen([sys.executable, "-c", SPIN], start_new_session=True) for _ in range(number)]
    try:
        for program in programs:
            set_priority(program.pid, RAISED)
        time.sleep(0.3)
        yield
    finally:
        for program in programs:
            program.send_signal(signal.SIGKILL)
            program.wait()


def make_backends() -> dict[str, CpuBackend]:
    cores = os.cpu_count() or 1
    few, many = max(cores // 2, 1), cores
    choices = {str(few): (Threads(few), None), str(many): (Threads(many), None), "auto": (Threads(many), Threads(few))}
    return {name: CpuBackend(load_model(EMBEDDED, "f32"), *threads) for name, threads in choices.items()}


def measure(backend: CpuBackend, num_tokens: int, seconds: float) -> float:
    """Steps a second of so many tokens behind a context."""
    blocks = range(-(-(CONTEXT + num_tokens) // BLOCK_TOKENS))
    tokens = random.Random(0).choices(range(backend.config.vocab_size), k=CONTEXT + num_tokens)
    backend.forward([Slice(tokens[:CONTEXT], 0, blocks, 0)])
    started, num_steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        backend.forward([Slice(tokens[CONTEXT:], CONTEXT, blocks, 1)])
        num_steps += 1
    return num_steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement; there are some fifty")
    seconds = parser.parse_args().seconds
    if os.getsid(0) != os.getpid():  # a session of our own, to have a priority of our own
        os.execvp("setsid", ["setsid", "-w", sys.executable, "-m", "bench.bench_threads", "--seconds", str(seconds)])
    backends = make_backends()
    has_priority = set_priority(os.getpid(), RAISED)
    figures: dict[str, dict[str, float]] = {}
    for num_busy in range(3):
        with busy_programs(num_busy):
            for what, num_tokens in (("decode", 1), (f"prefill {CHUNK}", CHUNK)):
                rates: dict[str, list[float]] = {name: [] for name in backends}
                for _ in range(ROUNDS):
                    for name, backend in backends.items():
                        rates[name].append(measure(backend, num_tokens, seconds))
                steps = {name: round(statistics.median(found), 1) for name, found in rates.items()}
                figures[f"{what}, {num_busy} busy"] = steps
    print_report("threads", {"steps_per_s": figures, "has_priority": has_priority})


if __name__ == "__main__":
    main()
