"""Scores of a fixed list of passages for a question, by words and by meaning. Serves the product and the benchmark.

A plain weighted sum. Word scores are shares of the question's weight (retrieval.lexical), similarities are cosines:
both mean the same for any question and any number of passages, so that nothing is rescaled by the best of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contracts import Passage
from retrieval.lexical import LexicalIndex

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each view of a passage counts. Fitted on one half of the benchmark's questions (listwise softmax over
    the four English tasks without patients), rounded, and judged by the other half: both agree within 0.1."""

    passage_words: float = 0.3
    document_words: float = 0.5
    definition_words: float = 0.6
    best_part: float = 1.0
    whole_passage: float = 0.3


WEIGHTS = Weights()
NOT_FOUND = -np.inf  # the score of a passage that is no answer


class PassageVectors:
    """Vectors of the parts of passages, as far as they are there yet."""

    def __init__(self, num_passages: int, rows: IntArray, vectors: FloatArray) -> None:
        """rows int64 [R]: which passage each part is of, ascending. vectors float32 [R, D], each of length 1."""
        self._num_passages = num_passages
        self._vectors = vectors
        self._passages, self._starts = np.unique(rows, return_index=True)
        means = np.add.reduceat(vectors, self._starts, axis=0) if len(rows) else vectors
        self._means = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)

    def similarities(self, query: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Cosines [num_passages] of the best part and of the whole of each passage. A passage without vectors gets the
        middle of the others, so that it is neither hidden nor preferred."""
        best, whole = np.full((2, self._num_passages), np.nan, dtype=np.float32)
        if len(self._passages):
            best[self._passages] = np.maximum.reduceat(self._vectors @ query, self._starts)
            whole[self._passages] = self._means @ query
            for values in (best, whole):
                values[np.isnan(values)] = np.nanmedian(values)
        return np.nan_to_num(best), np.nan_to_num(whole)


def rank(
    words: LexicalIndex, query: str, vectors: PassageVectors | None, query_vector: FloatArray | None
) -> FloatArray:
    """float32 [passages], higher is better, below 0 where meaning is far off. Without vectors words alone decide; a
    passage that holds none is NOT_FOUND."""
    scores = words.scores(query)
    total = (
        WEIGHTS.passage_words * scores.passages
        + WEIGHTS.document_words * scores.documents
        + WEIGHTS.definition_words * scores.definitions
    )
    if vectors is None or query_vector is None:
        return np.where(scores.passages > 0, total, NOT_FOUND).astype(np.float32)
    best, whole = vectors.similarities(query_vector)
    return np.asarray(total + WEIGHTS.best_part * best + WEIGHTS.whole_passage * whole, dtype=np.float32)


def order(scores: FloatArray, limit: int) -> list[int]:
    """The rows of the best scores, best first, equal ones in the order of reading; none that is NOT_FOUND."""
    return [int(row) for row in np.argsort(-scores, kind="stable")[:limit] if scores[row] != NOT_FOUND]


def vector_rows(
    passages: Sequence[Passage], ids: Sequence[str], vectors: FloatArray, space: Callable[[str], str]
) -> dict[str, PassageVectors]:
    """Vectors by row id (retrieval.vectors), in any order, as those of passages, apart for each space that passages lie
    in; ids of other passages are left out."""
    row_of = {passage.id: row for row, passage in enumerate(passages)}
    rows = np.array([row_of.get(row_id.rpartition("#")[0], -1) for row_id in ids], dtype=np.int64)
    kept = np.argsort(rows, kind="stable")
    kept = kept[rows[kept] >= 0]
    spaces = np.array([space(passage.text) for passage in passages])
    found = {}
    for name in np.unique(spaces):
        own = kept[spaces[rows[kept]] == name]
        found[str(name)] = PassageVectors(len(passages), rows[own], vectors[own])
    return found
