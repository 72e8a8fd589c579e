"""The safety layer as the product runs it: rules, and models beside them. For services and commands."""

from __future__ import annotations

import os
from typing import Any

from contracts import Generator
from retrieval.embedding import find_weights
from safety.checker import RuleSafetyChecker
from safety.document_scan import DocumentScan
from safety.guard.check import build_guard
from safety.guard.encoder import Base, open_folder
from safety.guard.english import find_english
from safety.guard.judge import Judge


class JudgeSeat:
    """Where the language model sits as judge once it is loaded; the embedded one knows no medicine and gets no seat."""

    def __init__(self) -> None:
        self._generator: Generator | None = None

    def take(self, generator: Generator) -> None:
        self._generator = None if generator.info.is_embedded else generator

    def get(self) -> Generator | None:
        return self._generator


def _open_minilm() -> tuple[Any, Any]:
    return open_folder(find_weights())


def _open_multilingual() -> tuple[Any, Any]:
    from retrieval.multilingual.embedder import open_tokenizer
    from retrieval.multilingual.encoder import load_encoder
    from retrieval.multilingual.packed import find_file, open_packed

    file = find_file()
    return open_tokenizer(file), load_encoder(open_packed(file))


def _open_english() -> tuple[Any, Any]:
    return open_folder(find_english())


GUARD_BASES = {  # what the guard's weights adapt; the cheapest first, each counts twice the one before
    "minilm": Base(_open_minilm),
    "e5": Base(_open_multilingual, weight=2),
    "mpnet": Base(_open_english, reads_chinese=False, weight=4),
}


def build_safety(judge: JudgeSeat | None = None, threads: int = 0) -> RuleSafetyChecker:
    """Rules, the scan of documents and the guard. threads: of the guard; 0 is one per core.

    Raises RuleError, or safety.guard.encoder.WeightsError if the guard's weights are missing."""
    guard = build_guard(
        GUARD_BASES,
        Judge(judge.get) if judge else None,
        threads or os.cpu_count() or 1,
    )
    return RuleSafetyChecker(models=[DocumentScan(), guard])
