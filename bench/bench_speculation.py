"""What drafting gains: the demo questions' prompts answered with and without, in turn.

    .venv/bin/python -m bench.bench_speculation [--checkpoint FOLDER] [--draft-head FOLDER]

Each prompt of the demo patients' suggested questions, as the app sends it, is answered greedily, by default by the
embedded model, without drafts and with drafts of each size, one after the other, so that the machine's moods meet all
alike; the order turns from prompt to prompt. Drafts come from the prompt, and where it has none from the head or the
checkpoint's MTP layer, if there is one; each source is counted by itself. `gain` is the median over prompts of tokens a
second with drafts against without, after the first token. The answers must be the same.
"""

from __future__ import annotations

import argparse
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
from model.backend_choice import make_backend
from model.checkpoint import default_dtype, load_model
from model.eagle3 import load_head
from model.engine import Engine
from model.generator import EMBEDDED, LocalGenerator, make_drafters
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


def collect_prompts(checkpoint: Path) -> list[list[int]]:
    """The prompt ids of every suggested question of every demo patient."""
    recorder = Recorder.load(checkpoint)
    recorder.prompts = []
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(read_settings(), data_dir=Path(folder), database_url="", demo=True)
        services = build_services(settings, recorder)
        services.wait_until_ready()
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, default=EMBEDDED)
    parser.add_argument("--draft-head", type=Path)
    arguments = parser.parse_args()
    checkpoint: Path = arguments.checkpoint
    prompts = collect_prompts(checkpoint)
    model = load_model(checkpoint, default_dtype(checkpoint))
    head = load_head(arguments.draft_head, model.config) if arguments.draft_head else None
    backend = make_backend(model, torch.get_num_threads())
    stop_ids = Tokenizer.load(checkpoint).stop_ids
    engines = {
        size: Engine(backend, stop_ids, max_draft=size, drafters=make_drafters(backend, model, head))
        for size in (0, *SIZES)
    }
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
        "model": checkpoint.name,
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
                "by_source": [
                    {
                        "source": draft.source,
                        "drafted": draft.num_drafted,
                        "accepted": draft.num_accepted,
                        "acceptance": round(draft.acceptance, 3),
                    }
                    for draft in engines[size].load.drafts
                ],
            }
            for size in SIZES
        ],
    }
    print_report("speculation", figures, {"different_answers": 0})


if __name__ == "__main__":
    main()
