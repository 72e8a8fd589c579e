"""Passages <-> rows of the vector index: which texts are embedded, and under which ids.

Each part of a passage (a sentence or a few short lines) has a row "<passage id>#<number>", so that a question finds the
sentence, and search returns the passage that it stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from contracts import Passage
from retrieval.chunking import part_spans
from retrieval.headings import contexts

FloatArray = npt.NDArray[np.float32]
Span = tuple[int, int]


class Embedder(Protocol):
    """Texts -> normalised vectors, float32."""

    @property
    def identity(self) -> str:
        """What made the vectors: those of another embedder cannot be compared with them."""
        ...

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Questions -> [N, D]."""
        ...

    def embed_parts(self, texts: Sequence[str], parts: Sequence[Sequence[Span]]) -> list[FloatArray]:
        """For each passage [its parts, D]."""
        ...

    def space(self, text: str) -> str:
        """Which of its vector spaces a text lies in: a question is compared with the passages of its own."""
        ...

    def count_tokens(self, text: str) -> int: ...


@dataclass(frozen=True, slots=True)
class IndexedPassage:
    """What is embedded of a passage: `text` is its document's name, heading and words; `parts` are spans in it."""

    ids: tuple[str, ...]
    text: str
    parts: tuple[Span, ...]


def indexed_passages(passages: Sequence[Passage]) -> list[IndexedPassage]:
    """In the order given, which must be that of reading: a heading holds until the next one."""
    return [_indexed(passage, context) for passage, context in zip(passages, contexts(passages), strict=True)]


def row_ids(passages: Sequence[Passage]) -> set[str]:
    """The ids of all rows that an index over these passages holds."""
    return {f"{passage.id}#{number}" for passage in passages for number, _ in enumerate(part_spans(passage.text))}


def embed_passages(embedder: Embedder, items: Sequence[IndexedPassage]) -> tuple[list[str], FloatArray]:
    """(ids, float32 [rows, D])."""
    vectors = embedder.embed_parts([item.text for item in items], [item.parts for item in items])
    return [row for item in items for row in item.ids], np.concatenate(vectors)


def _indexed(passage: Passage, context: str) -> IndexedPassage:
    spans = part_spans(passage.text)
    shift = len(context) + 1
    ids = tuple(f"{passage.id}#{number}" for number, _ in enumerate(spans))
    parts = tuple((start + shift, end + shift) for start, end in spans)
    return IndexedPassage(ids, f"{context}\n{passage.text}", parts)
