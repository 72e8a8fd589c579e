"""What drafting from the prompt gains: the demo questions' prompts answered with and without, in turn.

    .venv/bin/python -m bench.bench_speculation

Each prompt of the demo patients' suggested questions, as the app sends it, is answered greedily by the embedded model
without drafts and with drafts of each size, one after the other, so that the machine's moods meet all alike; the order
turns from prompt to prompt. `gain` is the median over prompts of tokens a second with drafts against without, after the
first token. The answers must be the same.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from app.config import read_settings
from app.demo import suggest_questions
from app.services import build_services
from bench.bench_answer import ask
from bench.report import print_report
from contracts import GenerationEvent, Message, SamplingParams
from model.backend import make_backend
from model.checkpoint import load_model
from model.engine import Engine
from model.generator import EMBEDDED, LocalGenerator
from model.request import TokenEvent
from model.tokenizer import Tokenizer

SIZES = (2, 4, 8)
ROUNDS = 3
GREEDY = SamplingParams(max_tokens=512)


class Recorder(LocalGenerator):
    """Keeps what it is asked."""

    prompts: list[list[int]]

    def stream(
        self, messages: Sequence[Message], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Iterator[GenerationEvent]:
        self.prompts.append(self._template.encode(messages))
        return super().stream(messages, params, cancel)


def collect_prompts() -> list[list[int]]:
    """The prompt ids of every suggested question of every demo patient."""
    recorder = Recorder.load(EMBEDDED)
    recorder.prompts = []
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(read_settings(), data_dir=Path(folder), database_url="", demo=True)
        services = build_services(settings, recorder)
        ready = threading.Event()
        services.jobs.run_in_background(ready.set)  # behind the demo records
        ready.wait()
        for record in services.store.list_patients():
            for question in suggest_questions(record.patient.name):
                ask(services, record.id, question)
        services.close()
    return recorder.prompts


def answer(engine: Engine, prompt_ids: list[int]) -> tuple[list[int], float]:
    """The answer's token ids, and tokens a second after the first."""
    engine.forget_prefixes()  # engines share the backend's cache
    token_ids, started = [], 0.0
    for event in engine.stream(prompt_ids, GREEDY):
        if isinstance(event, TokenEvent) and event.token_id is not None:
            started = started or time.perf_counter()
            token_ids.append(event.token_id)
    return token_ids, (len(token_ids) - 1) / (time.perf_counter() - started)


def main() -> None:
    prompts = collect_prompts()
    backend = make_backend(load_model(EMBEDDED).float(), torch.get_num_threads())
    stop_ids = Tokenizer.load(EMBEDDED).stop_ids
    engines = {size: Engine(backend, stop_ids, max_draft=size) for size in (0, *SIZES)}
    speeds: dict[int, list[float]] = defaultdict(list)
    num_tokens, num_different = [], 0
    for number in range(ROUNDS * len(prompts)):
        results = {}
        for size in engines if number % 2 else reversed(engines):
            results[size] = answer(engines[size], prompts[number % len(prompts)])
        for size, (_, speed) in results.items():
            speeds[size].append(speed)
        num_tokens.append(len(results[0][0]))
        num_different += sum(token_ids != results[0][0] for token_ids, _ in results.values())
    figures = {
        "model": EMBEDDED.name,
        "kernels": backend.name,
        "prompts": len(prompts),
        "rounds": ROUNDS,
        "prompt_tokens_median": statistics.median(map(len, prompts)),
        "answer_tokens_median": statistics.median(num_tokens),
        "different_answers": num_different,
        "tokens_per_s": round(statistics.median(speeds[0]), 1),
        "by_max_draft": [
            {
                "max_draft": size,
                "tokens_per_s": round(statistics.median(speeds[size]), 1),
                "gain": round(statistics.median(map(lambda a, b: a / b, speeds[size], speeds[0])), 3),
                "drafted": engines[size].load.num_drafted,
                "accepted": engines[size].load.num_accepted,
                "acceptance": round(engines[size].load.num_accepted / max(engines[size].load.num_drafted, 1), 3),
            }
            for size in SIZES
        ],
    }
    print_report("speculation", figures, {"different_answers": 0})


if __name__ == "__main__":
    main()
