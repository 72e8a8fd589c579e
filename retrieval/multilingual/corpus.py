"""Questions and answers in Chinese to tune the encoder on, kept clear of what it is judged by.

Two public sets (MODEL_CARD.md): patients' questions with a doctor's answer, and questions written from a graph of
knowledge. Their answers share whole sentences with one another, also with those of the benchmark, so that sentences
are dropped and not only texts: nothing that is left has 13 characters in a row with a question or passage judged by.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

SHARED_CHARS = 13
_WRITTEN_STEP = 3  # of the questions that were written by a machine every third: they are much alike
MIN_QUESTION_CHARS, MIN_ANSWER_CHARS = 4, 12
_SENTENCE = re.compile(r"[^。！？!?；;\n]+[。！？!?；;\n]*")


@dataclass(frozen=True, slots=True)
class Pair:
    """One answer with the questions that it answers. Pairs of one topic make a batch: they are hard to tell apart."""

    questions: tuple[str, ...]
    answer: str
    topic: str
    is_asked: bool  # by a patient, not written for the answer

    @property
    def is_held(self) -> bool:
        """Whether it is kept from training, to measure by: one in eight."""
        return hashlib.sha256(self.answer.encode()).digest()[0] % 8 == 0


class Screen:
    """Drops the sentences that share characters with texts kept for judging. White space does not count."""

    def __init__(self, kept: Iterable[str]) -> None:
        self._kept = {run for text in kept for run in _runs(text)}

    def clean(self, text: str) -> str:
        """The text without such sentences; "" if what is left still shares characters where they stood."""
        rest = "".join(sentence for sentence in _SENTENCE.findall(text) if self._is_clear(sentence))
        return rest if self._is_clear(rest) else ""

    def _is_clear(self, text: str) -> bool:
        return self._kept.isdisjoint(_runs(text))


def read_pairs(data: Path, screen: Screen) -> list[Pair]:
    """Pairs of which a question and an answer are left. Raises OSError if a set is missing."""
    pairs = []
    for questions, answer, topic, is_asked in _read(data):
        cleaned = tuple(q for q in map(screen.clean, questions) if len(q) >= MIN_QUESTION_CHARS)
        answer = screen.clean(answer)
        if cleaned and len(answer) >= MIN_ANSWER_CHARS:
            pairs.append(Pair(cleaned, answer, topic, is_asked))
    return pairs


def read_judged(task: Path) -> list[str]:
    """Every question and passage of a benchmark's task."""
    return [row["query"] for row in _lines(task / "queries.jsonl.xz")] + [
        row["text"] for row in _lines(task / "docs.jsonl.xz")
    ]


def _read(data: Path) -> Iterator[tuple[list[str], str, str, bool]]:
    for row in _lines(data / "toyhom_zh" / "internal_medicine_qa.jsonl.xz"):
        yield [row["ask"], row["title"]], row["answer"], row["department"], True
    for row in islice(_lines(data / "bentsao_zh" / "qa.jsonl.xz"), 0, None, _WRITTEN_STEP):
        yield [row["question"]], row["answer"], "bentsao", False
    for row in islice(_lines(data / "bentsao_zh" / "liver_cancer_multiturn.jsonl.xz"), 0, None, _WRITTEN_STEP):
        for said, replied in pairwise(row["turns"]):
            if (said["role"], replied["role"]) == ("user", "assistant"):
                yield [said["text"]], replied["text"], "liver cancer", False


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _runs(text: str) -> set[str]:
    text = "".join(text.split())
    return {text[first : first + SHARED_CHARS] for first in range(len(text) - SHARED_CHARS + 1)}
