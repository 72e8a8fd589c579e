"""What a prepared record saves: the time to the first token of a follow-up, and of tomorrow's first question.

    .venv/bin/python -m bench.bench_prepared

The embedded model, with a record that fills most of its context, put before it whole as app.prompt does. A follow-up
finds the record in the cache, tomorrow's question in its encrypted file, which the system is told to forget before.
Each is measured with and without, in turn, from the call to the first text; the texts must be the same.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from app import prompt
from app.prepared_records import PreparedRecords
from app.store.encryption import KEY_BYTES, Cipher
from bench.report import ROOT, print_report
from contracts import Message, Passage, SamplingParams, TextChunk
from model.generator import EMBEDDED, LocalGenerator

ROUNDS = 25
ANSWER = SamplingParams(max_tokens=24)
PATIENT = "bench"
SPARE_TOKENS = 200  # of the context: the turn before and the questions
FIRST, SECOND = "What is the apixaban dose?", "When was her potassium last measured?"


def make_record(generator: LocalGenerator) -> list[Passage]:
    """Visits until the context is as good as full."""
    room = generator.info.context_length - SPARE_TOKENS - ANSWER.max_tokens
    passages: list[Passage] = []
    while generator.count_prompt_tokens(prompt.render(SECOND, passages)) < room:
        n = len(passages)
        text = (
            f"Visit {n}: apixaban 5 mg twice daily. Potassium {3.5 + n % 15 / 10:.1f} mmol/L, weight {70 + n % 9} kg."
        )
        passages.append(Passage(str(n), "record", "record.txt", 1 + n // 10, 0, len(text), text))
    return passages[:-1]


class Bench:
    """One generator, and the prepared records of one folder."""

    def __init__(self, generator: LocalGenerator, folder: Path) -> None:
        keeper = generator.prompt_keeper
        assert keeper
        self.generator, self.keeper, self.folder = generator, keeper, folder
        self.records = PreparedRecords(folder, Cipher(os.urandom(KEY_BYTES)), keeper, generator.encode_prompt, 2**30)
        passages = make_record(generator)
        self.first, self.other = (prompt.render(question, passages) for question in (FIRST, SECOND))
        self.follow_up = prompt.render(SECOND, passages, [(FIRST, "Apixaban 5 mg twice daily.")])
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.num_different = 0

    def measure(self, name: str, messages: Sequence[Message], load: bool = False) -> str:
        """The text; notes the seconds to the first of it."""
        started, text, first = time.perf_counter(), "", 0.0
        if load and not self.records.load(PATIENT, messages):
            raise SystemExit("the prepared record was not found")
        for event in self.generator.stream(messages, ANSWER):
            if isinstance(event, TextChunk):
                first = first or time.perf_counter() - started
                text += event.text
        self.seconds[name].append(first)
        return text

    def compare(self, run_plain: Callable[[], str], run_prepared: Callable[[], str], is_turned: bool) -> None:
        runs = (run_prepared, run_plain) if is_turned else (run_plain, run_prepared)
        self.num_different += len({run() for run in runs}) - 1

    def follow_up_plain(self) -> str:
        self.keeper.forget()
        return self.measure("follow_up_without", self.follow_up)

    def follow_up_prepared(self) -> str:
        self.keeper.forget()
        self.measure("first_question", self.first)
        return self.measure("follow_up_with", self.follow_up)

    def tomorrow_plain(self) -> str:
        self.keeper.forget()
        return self.measure("tomorrow_without", self.other)

    def tomorrow_prepared(self) -> str:
        self.keeper.forget()
        drop_from_memory(self.folder / f"{PATIENT}.kv")
        return self.measure("tomorrow_with", self.other, load=True)

    def prepare(self) -> None:
        self.keeper.forget()
        started = time.perf_counter()
        if not self.records.refresh(PATIENT, lambda: (self.first, self.other), threading.Event()):
            raise SystemExit("the record could not be prepared")
        self.seconds["prepare"].append(time.perf_counter() - started)


def drop_from_memory(path: Path) -> None:
    """Lets the next reader read the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def main() -> None:
    generator = LocalGenerator.load(EMBEDDED)
    with tempfile.TemporaryDirectory(dir=ROOT) as name:  # a disk: /tmp may be memory
        bench = Bench(generator, Path(name))
        bench.prepare()
        size = (Path(name) / f"{PATIENT}.kv").stat().st_size
        for number in range(ROUNDS):
            bench.compare(bench.follow_up_plain, bench.follow_up_prepared, number % 2 == 1)
            bench.compare(bench.tomorrow_plain, bench.tomorrow_prepared, number % 2 == 1)
    medians = {f"{name}_s": round(statistics.median(values), 4) for name, values in bench.seconds.items()}
    figures = {
        "model": generator.info.name,
        "kernels": generator.info.kernels,
        "rounds": ROUNDS,
        "context": generator.info.context_length,
        "prompt_tokens": generator.count_prompt_tokens(bench.other),
        "follow_up_tokens": generator.count_prompt_tokens(bench.follow_up),
        "file_mb": round(size / 2**20, 1),
        "different_answers": bench.num_different,
        **medians,
        "follow_up_gain": round(medians["follow_up_without_s"] / medians["follow_up_with_s"], 1),
        "tomorrow_gain": round(medians["tomorrow_without_s"] / medians["tomorrow_with_s"], 1),
    }
    print_report("prepared", figures, {"different_answers": 0})


if __name__ == "__main__":
    main()
