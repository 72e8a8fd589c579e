"""A question -> the patient's passages, best first: by words and by meaning (retrieval.ranking).

A question that the embedder does not read (Chinese, for the embedded one) is ranked by words alone. If the vectors
cannot be asked, words alone answer, and the log says so; where they are still being made, what is there counts. The
scope is one patient, always: passages come from that patient's rows only.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contracts import DocumentStore, Passage, ScoredPassage
from retrieval.errors import IndexFailure
from retrieval.index import VectorIndex
from retrieval.lexical import LexicalIndex
from retrieval.ranking import PassageVectors, order, rank, vector_rows
from retrieval.vectors import Embedder

FloatArray = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)

_MAX_CACHED = 8


@dataclass(slots=True)
class _Prepared:
    """What is kept of a selection of passages between two questions."""

    words: LexicalIndex
    vectors: PassageVectors | None = None
    revision: int = -1  # of the vectors


class HybridRetriever:
    """contracts.Retriever over the store's passages and the vector index."""

    def __init__(self, store: DocumentStore, index: VectorIndex, embedder: Embedder) -> None:
        self._store = store
        self._index = index
        self._embedder = embedder
        self._lock = threading.Lock()
        self._prepared: OrderedDict[tuple[str, ...], _Prepared] = OrderedDict()

    def search(
        self, query: str, patient_id: str, document_ids: Sequence[str] | None = None, limit: int = 20
    ) -> list[ScoredPassage]:
        """Passages of this patient's searchable documents, best first. None means every document."""
        passages = self._store.list_passages(patient_id, document_ids)
        if not passages or not query.strip():
            return []
        prepared = self._prepare(patient_id, passages)
        vector = self._query_vector(query, patient_id, prepared)
        scores = rank(prepared.words, query, prepared.vectors, vector)
        return [ScoredPassage(passages[row], float(scores[row])) for row in order(scores, limit)]

    def forget(self) -> None:
        """Drops the passages kept in memory, after a deletion."""
        with self._lock:
            self._prepared.clear()

    def _prepare(self, patient_id: str, passages: list[Passage]) -> _Prepared:
        key = (patient_id, *dict.fromkeys(passage.document_id for passage in passages))
        with self._lock:
            prepared = self._prepared.get(key)
            # Compared in full: a document read again keeps its ids, and stale text must never be searched.
            if prepared is None or prepared.words.passages != tuple(passages):
                prepared = _Prepared(LexicalIndex(passages))
            self._prepared[key] = prepared
            self._prepared.move_to_end(key)
            while len(self._prepared) > _MAX_CACHED:
                self._prepared.popitem(last=False)
        return prepared

    def _query_vector(self, query: str, patient_id: str, prepared: _Prepared) -> FloatArray | None:
        """The question's vector, with the passages' ready beside it; None if meaning cannot be asked."""
        if not self._embedder.reads(query):
            return None
        try:
            revision = self._index.revision(patient_id)
            if prepared.revision != revision:
                prepared.vectors = vector_rows(prepared.words.passages, *self._index.vectors(patient_id))
                prepared.revision = revision
            return self._embedder.embed([query])[0]
        except (IndexFailure, OSError) as error:
            logger.warning("Search by words alone, the vectors cannot be asked: %s", error)
            return None
