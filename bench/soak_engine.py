"""Many clients at once for a long time: they ask, cancel, leave, run out of time and ask too much; the books must be in
order.

    .venv/bin/python -m bench.soak_engine --minutes 30 --clients 32

The embedded model answers, with drafts. Some prompts are beginnings of others, so that blocks are shared and copied.
Checked: `check_integrity()` every few seconds, no block held at the end, resident memory flat after the first tenth,
every greedy answer of a repeated prompt the same as the first.
"""

from __future__ import annotations

import argparse
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import torch

from bench.report import print_report, read_commit
from contracts import ContextLengthError, SamplingParams
from model.backend_choice import make_backend
from model.checkpoint import load_model
from model.engine import Engine
from model.generator import EMBEDDED
from model.request import EngineBusyError, TokenEvent

MAX_GROWTH_MB = 100.0
NUM_PROMPTS = 40


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Soak:
    """Clients that share an engine until the time is over."""

    def __init__(self, engine: Engine, vocab_size: int, until: float) -> None:
        self.engine, self.vocab_size, self.until = engine, vocab_size, until
        self.outcomes: Counter[str] = Counter()
        self.first_answers: dict[tuple[int, int], list[int]] = {}
        self.problems: list[str] = []
        self._lock = threading.Lock()

    def run_client(self, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < self.until:
            outcome = self._ask(chance)
            with self._lock:
                self.outcomes[outcome] += 1

    def _ask(self, chance: random.Random) -> str:
        number = chance.randrange(NUM_PROMPTS)
        words = random.Random(number)
        prompt = [words.randrange(5, self.vocab_size) for _ in range(words.choice((20, 100, 400, 1200)))]
        length = len(prompt)
        prompt = prompt[: chance.choice((length, length, length - 1, length // 2, length // 3))]
        fate = chance.choices(("listens", "cancels", "leaves", "runs out of time", "asks too much"), (6, 2, 2, 1, 1))[0]
        if fate == "asks too much":
            prompt = prompt * (self.engine.context_length // len(prompt) + 1)
        cancel = threading.Event()
        try:
            limit_s = chance.uniform(0.05, 1) if fate == "runs out of time" else 0
            events = self.engine.stream(prompt, SamplingParams(max_tokens=24, max_seconds=limit_s), cancel)
        except ContextLengthError:
            return "too long, refused"
        except EngineBusyError:
            time.sleep(0.05)
            return "busy, refused"
        tokens = []
        stop_after = chance.randrange(1, 30)
        for count, event in enumerate(events):
            if isinstance(event, TokenEvent) and event.token_id is not None:
                tokens.append(event.token_id)
            if isinstance(event, TokenEvent) and event.finish_reason == "deadline":
                return "out of time"
            if count == stop_after and fate == "cancels":
                cancel.set()
            if count == stop_after and fate == "leaves":
                events.close()
                return "left"
        if cancel.is_set():
            return "cancelled"
        self._compare((number, len(prompt)), tokens)
        return "answered"

    def _compare(self, prompt: tuple[int, int], tokens: list[int]) -> None:
        """prompt: its number and how much of it was asked."""
        with self._lock:
            if self.first_answers.setdefault(prompt, tokens) != tokens:
                self.problems.append(f"prompt {prompt} was answered in two ways")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    commit = read_commit()  # what runs, whatever is committed meanwhile
    model = load_model(EMBEDDED, torch.float32)
    backend = make_backend(model, arguments.threads)
    engine = Engine(backend, (), max_waiting=arguments.clients // 2, max_draft=2 * arguments.clients)
    seconds = arguments.minutes * 60
    soak = Soak(engine, model.config.vocab_size, time.monotonic() + seconds)
    clients = [threading.Thread(target=soak.run_client, args=(seed,)) for seed in range(arguments.clients)]
    for client in clients:
        client.start()
    memory = []
    while any(client.is_alive() for client in clients):
        time.sleep(min(10.0, seconds / 20))
        memory.append(resident_mb())
        soak.problems += engine.check_integrity()
    settled = memory[len(memory) // 10 :]
    if engine.num_blocks_in_use:
        soak.problems.append(f"{engine.num_blocks_in_use} blocks are held by nobody")
    figures = {
        "commit_at_start": commit,
        "minutes": arguments.minutes,
        "clients": arguments.clients,
        "kernels": backend.name,
        "requests": sum(soak.outcomes.values()),
        "outcomes": dict(sorted(soak.outcomes.items())),
        "problems": len(soak.problems),
        "first_problems": sorted(set(soak.problems))[:5],
        "drafted": engine.load.num_drafted,
        "accepted": engine.load.num_accepted,
        "rss_mb_settled": round(settled[0], 1),
        "rss_mb_end": round(settled[-1], 1),
        "rss_growth_mb": round(settled[-1] - settled[0], 1),
    }
    print_report("soak_engine", figures, {"problems": 0, "rss_growth_mb": MAX_GROWTH_MB})


if __name__ == "__main__":
    main()
