"""Speed and memory of what is set up here, for `bedside bench`: the real model, engine and retrieval.

Each function returns the figures by name; the name ends in the unit.
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch

from app.config import EMBEDDED_CHECKPOINT, Settings
from app.errors import InputError, StorageError
from app.services import Services, build_services
from app.synthetic_record import make_pdf
from contracts import DocumentStatus, Patient, SamplingParams
from model.backend import Backend
from model.engine import Engine
from model.generator import LocalGenerator
from model.huge_pages import prefer_huge_pages
from model.kernels.build import KernelsUnavailableError
from model.kernels.cpu_decoder import Threads, read_bytes
from model.request import TokenEvent
from model.weights import ProgressCallback

REPEATS = 3
_READ_BYTES = 2**28
_NUM_QUERIES = 60
_QUESTION = "Which dose of apixaban was given in ward 7?"


class ModelBench:
    """A loaded checkpoint to measure: the program's own engine over it, but no token ends an answer and none is
    drafted, so that every step is one token of each stream."""

    def __init__(self, generator: LocalGenerator) -> None:
        assert generator.backend is not None
        self._backend: Backend = generator.backend
        self._info = generator.info
        self._engine = Engine(self._backend, stop_ids=())
        self._draw = random.Random(0)

    @classmethod
    def load(cls, settings: Settings, on_progress: ProgressCallback | None = None) -> ModelBench:
        """The checkpoint of the settings. Raises InputError where a server answers in its place."""
        if settings.server_url:
            raise InputError("The model of a server cannot be measured from here; unset BEDSIDE_SERVER_URL.")
        return cls(LocalGenerator.load(settings.checkpoint, **settings.load_options, on_progress=on_progress))

    def decode(self, context: int, num_tokens: int) -> dict[str, Any]:
        """One stream behind a prompt of `context` tokens: tokens/s, and what of the bandwidth it uses."""
        runs = [self.time_steps(context, num_tokens) for _ in range(REPEATS)]
        rates = [num_tokens / sum(steps) for steps in runs]
        step_s = statistics.median(chain.from_iterable(runs))
        figures = self._describe(
            {
                "context": context,
                "tokens": num_tokens,
                "tokens_per_s": round(statistics.median(rates), 1),
                "step_ms": round(step_s * 1e3, 3),
            }
        )
        return figures | self._describe_traffic(step_s)  # last: it takes memory of its own

    def time_steps(self, context: int, num_tokens: int) -> list[float]:
        """Seconds of each step behind a prompt of `context` tokens."""
        return [
            after - before for before, after in pairwise(self._time_tokens(self._draw_prompt(context), num_tokens + 1))
        ]

    def prefill(self, num_tokens: int) -> dict[str, Any]:
        """A new prompt: tokens/s, and milliseconds to the first token of the answer."""
        seconds = []
        for _ in range(REPEATS):
            prompt = self._draw_prompt(num_tokens)
            started = time.perf_counter()
            (first,) = self._time_tokens(prompt, 1)
            seconds.append(first - started)
        middle = statistics.median(seconds)
        figures = {"tokens": num_tokens, "tokens_per_s": round(num_tokens / middle, 1)}
        return self._describe(figures | {"first_token_ms": round(middle * 1e3, 1)})

    def throughput(self, num_streams: int, context: int, num_tokens: int) -> dict[str, Any]:
        """Answers at once, from the first request to the last token: tokens/s of all answers together."""
        prompts = [self._draw_prompt(context) for _ in range(num_streams)]
        with ThreadPoolExecutor(num_streams) as clients:
            started = time.perf_counter()
            ends = clients.map(lambda prompt: list(self._time_tokens(prompt, num_tokens))[-1], prompts)
            seconds = max(ends) - started
        return self._describe(
            {
                "streams": num_streams,
                "context": context,
                "tokens": num_tokens,
                "tokens_per_s": round(num_streams * num_tokens / seconds, 1),
                "seconds": round(seconds, 3),
            }
        )

    def _time_tokens(self, prompt: Sequence[int], num_tokens: int) -> Iterator[float]:
        """When each token came, in seconds of time.perf_counter()."""
        for event in self._engine.stream(prompt, SamplingParams(temperature=0, max_tokens=num_tokens)):
            if isinstance(event, TokenEvent):
                yield time.perf_counter()

    def _draw_prompt(self, num_tokens: int) -> list[int]:
        """Random tokens, new ones each time: nothing of them is in the cache."""
        return [self._draw.randrange(self._backend.config.vocab_size) for _ in range(num_tokens)]

    def _describe(self, figures: dict[str, Any]) -> dict[str, Any]:
        info = self._info
        model = {"model": info.name, "precision": info.precision, "kernels": info.kernels}
        return model | figures | {"peak_rss_mb": peak_rss_mb()}

    def _describe_traffic(self, step_s: float) -> dict[str, Any]:
        """Weights read in a second, and their share of what this machine's threads read at the most; above 1 where a
        small model stays in the processor's cache."""
        rate = self._backend.bytes_a_token / step_s / 1e9
        figures = {
            "weights_mb_a_token": round(self._backend.bytes_a_token / 1e6, 1),
            "weights_gb_per_s": round(rate, 2),
        }
        bandwidth = read_bandwidth()
        if bandwidth is None:
            return figures
        return figures | {"bandwidth_gb_per_s": round(bandwidth, 1), "bandwidth_share": round(rate / bandwidth, 3)}


def read_bandwidth() -> float | None:
    """The most of several readings of memory by a thread a core, in GB/s; None where there are no kernels for it."""
    try:
        threads = Threads(os.cpu_count() or 1)
    except KernelsUnavailableError:
        return None
    memory = torch.empty(_READ_BYTES, dtype=torch.uint8)
    prefer_huge_pages([memory])
    memory.fill_(1)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        read_bytes(memory, threads)
        seconds.append(time.perf_counter() - started)
    return _READ_BYTES / min(seconds) / 1e9


def measure_index(settings: Settings, num_pages: int) -> dict[str, Any]:
    """Reading and indexing a generated record in the whole program over a folder that is removed afterwards, and the
    first search in it. The embedded model is loaded beside it: no answer is given."""
    data = make_pdf(num_pages, seed=1)
    with tempfile.TemporaryDirectory(prefix="bedside-") as folder:
        own = replace(
            settings,
            data_dir=Path(folder),
            database_url="",
            demo=False,
            server_url="",
            checkpoint=EMBEDDED_CHECKPOINT,
            precision="auto",
        )
        services = build_services(own)
        try:
            return _measure_index(services, data, num_pages)
        finally:
            services.close()


def _measure_index(services: Services, data: bytes, num_pages: int) -> dict[str, Any]:
    patient = services.store.add_patient(Patient(name="Margaret Ellis"))
    rss_before_mb = peak_rss_mb()
    started = time.perf_counter()
    services.embedder.embed([_QUESTION])
    embedder_load_s = time.perf_counter() - started  # once a process, and no part of reading a document
    started, cpu_before = time.perf_counter(), time.process_time()
    words_s: list[float] = []

    def search_first(step: str, done: int, total: int) -> None:
        """The first search, by words, as soon as one finds anything: the vectors are still being made."""
        if step == "checking" and not words_s and services.retriever.search(_QUESTION, patient.id):
            words_s.append(time.perf_counter() - started)

    document = services.library.ingest(services.library.add(patient.id, "record.pdf", data).id, search_first)
    ready_s, ready_cpu_s = time.perf_counter() - started, time.process_time() - cpu_before
    if document is None or document.status is not DocumentStatus.READY:
        raise StorageError(f"The generated record was not read: {document.error if document else 'it is gone'}.")
    passages = services.store.list_passages(patient.id)
    queries_ms = sorted(_time_searches(services, patient.id))
    return {
        "pages": num_pages,
        "passages": len(passages),
        "tokens": sum(services.embedder.count_tokens(passage.text) for passage in passages),
        "embedder_load_s": round(embedder_load_s, 2),
        "words_searchable_s": round(words_s[0], 2),
        "ready_s": round(ready_s, 2),
        "ready_cpu_s": round(ready_cpu_s, 2),
        "pages_per_s": round(num_pages / ready_s, 1),
        "query_p50_ms": round(statistics.median(queries_ms), 1),
        "query_p95_ms": round(queries_ms[int(0.95 * len(queries_ms))], 1),
        "rss_before_mb": rss_before_mb,
        "peak_rss_mb": peak_rss_mb(),
    }


def _time_searches(services: Services, patient_id: str) -> Iterator[float]:
    """Milliseconds of each search, its own question embedded, after one that prepares the passages."""
    services.retriever.search(_QUESTION, patient_id)
    for number in range(_NUM_QUERIES):
        started = time.perf_counter()
        services.retriever.search(f"{_QUESTION} Or in room {number}?", patient_id)
        yield (time.perf_counter() - started) * 1e3


def peak_rss_mb() -> float:
    """The most memory this process ever held, in MiB."""
    # ru_maxrss counts bytes on macOS, kibibytes elsewhere.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
