"""A question -> the patient's passages, best first: by words and by meaning, fused.

Both rankings are scaled to 0..1 and mixed (convex fusion beat reciprocal ranks on 7 of 8 of our tasks). A question
that is mostly Chinese is ranked by words alone: the embedder knows no Chinese. If the vectors cannot be asked, words
alone answer, and the log says so. The scope is one patient, always: passages come from that patient's rows only.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from contracts import DocumentStore, Passage, ScoredPassage
from retrieval.errors import IndexFailure
from retrieval.index import VectorIndex
from retrieval.lexical import LexicalIndex, is_mostly_cjk

FloatArray = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)

DENSE_WEIGHT = 0.4
DENSE_CANDIDATES = 200
_MAX_CACHED = 8


class Embedder(Protocol):
    """Texts -> normalised vectors, float32 [N, D]."""

    def embed(self, texts: Sequence[str]) -> FloatArray: ...

    def count_tokens(self, text: str) -> int: ...


class HybridRetriever:
    """contracts.Retriever over the store's passages and the vector index."""

    def __init__(self, store: DocumentStore, index: VectorIndex, embedder: Embedder) -> None:
        self._store = store
        self._index = index
        self._embedder = embedder
        self._lock = threading.Lock()
        self._lexical: OrderedDict[tuple[str, ...], LexicalIndex] = OrderedDict()

    def search(
        self, query: str, patient_id: str, document_ids: Sequence[str] | None = None, limit: int = 20
    ) -> list[ScoredPassage]:
        """Passages of this patient's ready documents, best first, none without a score. None means every document."""
        passages = self._store.list_passages(patient_id, document_ids)
        if not passages or not query.strip():
            return []
        lexical = self._lexical_index(patient_id, passages).scores(query)
        scores = fuse(lexical, self._dense(query, patient_id, passages))
        order = np.argsort(-scores, kind="stable")[:limit]
        return [ScoredPassage(passages[row], float(scores[row])) for row in order if scores[row] > 0]

    def forget(self) -> None:
        """Drops the passages kept in memory, after a deletion."""
        with self._lock:
            self._lexical.clear()

    def _lexical_index(self, patient_id: str, passages: list[Passage]) -> LexicalIndex:
        key = (patient_id, *dict.fromkeys(passage.document_id for passage in passages))
        with self._lock:
            cached = self._lexical.get(key)
            # Compared in full: a document read again keeps its ids, and stale text must never be searched.
            if cached is None or cached.passages != tuple(passages):
                cached = LexicalIndex(passages)
            self._lexical[key] = cached
            self._lexical.move_to_end(key)
            while len(self._lexical) > _MAX_CACHED:
                self._lexical.popitem(last=False)
        return cached

    def _dense(self, query: str, patient_id: str, passages: Sequence[Passage]) -> FloatArray | None:
        """Cosine similarities [len(passages)], NaN where unknown; None if meaning cannot be asked."""
        if is_mostly_cjk(query):
            return None
        try:
            vector = self._embedder.embed([query])[0]
            found = self._index.query(patient_id, vector, DENSE_CANDIDATES, [passage.id for passage in passages])
        except (IndexFailure, OSError) as error:
            logger.warning("Search by words alone, the vectors cannot be asked: %s", error)
            return None
        return np.array([found.get(passage.id, np.nan) for passage in passages], dtype=np.float32)


def fuse(lexical: FloatArray, dense: FloatArray | None, dense_weight: float = DENSE_WEIGHT) -> FloatArray:
    """Mixes word scores (0 or more) and similarities (NaN where unknown), each scaled to 0..1; float32 [N]."""
    scaled_lexical = lexical / max(float(lexical.max(initial=0.0)), 1e-6)
    if dense is None or np.isnan(dense).all():
        return scaled_lexical
    low, high = float(np.nanmin(dense)), float(np.nanmax(dense))
    scaled_dense = np.nan_to_num((dense - low) / max(high - low, 1e-6), nan=0.0)
    return ((1 - dense_weight) * scaled_lexical + dense_weight * scaled_dense).astype(np.float32)
