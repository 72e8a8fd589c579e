"""The embedder that ships: English by MiniLM, Chinese by multilingual-e5-small, each in a space of its own.

A passage is read by the one that knows its language, and a question is compared with the passages of its own. Reading
everything by the second alone would double the time of indexing. Passages of the other language are found by words,
among them the synonyms of retrieval/lexicon, which cross languages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from retrieval.analyser import is_mostly_cjk
from retrieval.embedding import MiniLMEmbedder
from retrieval.multilingual.embedder import VECTOR_SIZE, MultilingualEmbedder

FloatArray = npt.NDArray[np.float32]
Span = tuple[int, int]

ENGLISH, CHINESE = "english", "chinese"


class BilingualEmbedder:
    """retrieval.vectors.Embedder. Loads an encoder with the first text of its language."""

    def __init__(self, threads: int | None = None) -> None:
        """Raises FileNotFoundError if a package with weights is not installed."""
        self._embedders = {ENGLISH: MiniLMEmbedder(threads), CHINESE: MultilingualEmbedder(threads)}

    @property
    def identity(self) -> str:
        """What made the vectors: those of another embedder cannot be compared with them."""
        return " + ".join(embedder.identity for embedder in self._embedders.values())

    def space(self, text: str) -> str:
        """By what most letters are: of few words one Chinese one decides as little as one English."""
        return CHINESE if is_mostly_cjk(text) else ENGLISH

    def count_tokens(self, text: str) -> int:
        """By MiniLM's tokenizer, to which a Chinese character is a token: no fewer than the other counts."""
        return self._embedders[ENGLISH].count_tokens(text)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Questions -> float32 [N, 384], each row of length 1."""
        vectors = np.zeros((len(texts), VECTOR_SIZE), dtype=np.float32)
        for space, rows in self._by_space(texts).items():
            vectors[rows] = self._embedders[space].embed([texts[row] for row in rows])
        return vectors

    def embed_parts(self, texts: Sequence[str], parts: Sequence[Sequence[Span]]) -> list[FloatArray]:
        """For each text float32 [its parts, 384]. The parts decide on its language, not the heading before them."""
        vectors = [np.zeros((0, VECTOR_SIZE), dtype=np.float32)] * len(texts)
        bodies = [text[spans[0][0] : spans[-1][1]] if spans else "" for text, spans in zip(texts, parts, strict=True)]
        for space, rows in self._by_space(bodies).items():
            found = self._embedders[space].embed_parts([texts[row] for row in rows], [parts[row] for row in rows])
            for row, vector in zip(rows, found, strict=True):
                vectors[row] = vector
        return vectors

    def _by_space(self, texts: Sequence[str]) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            rows.setdefault(self.space(text), []).append(row)
        return rows
