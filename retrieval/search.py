"""A question -> the patient's passages, best first: by words and by meaning (retrieval.ranking).

A question is compared with the vectors of its own language (retrieval.bilingual); without any, words alone rank.
If the vectors cannot be asked, words alone answer, and the log says so; where they are still being made, what is there
counts. The scope is one patient, always: passages come from that patient's rows only.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import numpy.typing as npt

from contracts import DocumentStore, Gathered, Passage, ScoredPassage
from retrieval.completeness import is_outside, name_required, period_of, required
from retrieval.errors import IndexFailure
from retrieval.index import VectorIndex
from retrieval.lexical import LexicalIndex
from retrieval.packing import with_neighbours, without_repeats
from retrieval.question import Period, understand
from retrieval.ranking import PassageVectors, order, rank, vector_rows
from retrieval.vectors import Embedder

FloatArray = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)

_MAX_CACHED = 8


@dataclass(slots=True)
class _Prepared:
    """What is kept of a selection of passages between two questions."""

    words: LexicalIndex
    vectors: dict[str, PassageVectors] = field(default_factory=dict)  # by the embedder's space
    revision: int = -1  # of the vectors


class HybridRetriever:
    """contracts.Retriever over the store's passages and the vector index."""

    def __init__(
        self, store: DocumentStore, index: VectorIndex, embedder: Embedder, today: Callable[[], date] = date.today
    ) -> None:
        self._today = today
        self._store = store
        self._index = index
        self._embedder = embedder
        self._lock = threading.Lock()
        self._prepared: OrderedDict[tuple[str, ...], _Prepared] = OrderedDict()

    def search(
        self, query: str, patient_id: str, document_ids: Sequence[str] | None = None, limit: int = 20
    ) -> list[ScoredPassage]:
        """Passages of this patient's searchable documents, best first. None means every document."""
        return self._rank(query, patient_id, self._store.list_passages(patient_id, document_ids), limit)

    def gather(
        self,
        question: str,
        earlier: Sequence[str],
        patient_id: str,
        document_ids: Sequence[str] | None = None,
        limit: int = 20,
    ) -> Gathered:
        """As contracts.Retriever.gather. Passages surely of another time than the one asked about are left out of the
        ranking and of what is wanted whole; a passage without a date is kept."""
        asked = understand(question, earlier, self._today())
        passages = self._store.list_passages(patient_id, document_ids)
        needs_facts = asked.kinds or asked.series or asked.event or asked.period != Period()
        documents = {passage.document_id for passage in passages} if needs_facts else ()
        facts = {document_id: self._store.get_page_facts(document_id) for document_id in documents}
        period = period_of(asked, passages, facts)
        timely = [passage for passage in passages if not is_outside(passage, period, facts)]
        whole = required(asked, timely, facts)
        ranked = [item.passage for item in self._rank(asked.text, patient_id, passages, len(passages))]
        kept = {passage.id for passage in timely}
        best = with_neighbours([passage for passage in ranked if passage.id in kept], timely, limit)
        wanted = name_required(asked, whole, facts)
        return Gathered(without_repeats(whole, best), len(whole), wanted, start=period.start, end=period.end)

    def forget(self) -> None:
        """Drops the passages kept in memory, after a deletion."""
        with self._lock:
            self._prepared.clear()

    def _rank(self, query: str, patient_id: str, passages: list[Passage], limit: int) -> list[ScoredPassage]:
        if not passages or not query.strip():
            return []
        prepared = self._prepare(patient_id, passages)
        scores = rank(prepared.words, query, *self._meaning(query, patient_id, prepared))
        return [ScoredPassage(passages[row], float(scores[row])) for row in order(scores, limit)]

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

    def _meaning(
        self, query: str, patient_id: str, prepared: _Prepared
    ) -> tuple[PassageVectors, FloatArray] | tuple[None, None]:
        """The passages' vectors and the question's, of one space; None if meaning cannot be asked."""
        try:
            revision = self._index.revision(patient_id)
            if prepared.revision != revision:
                prepared.vectors = vector_rows(
                    prepared.words.passages, *self._index.vectors(patient_id), self._embedder.space
                )
                prepared.revision = revision
            vectors = prepared.vectors.get(self._embedder.space(query))
            return (vectors, self._embedder.embed([query])[0]) if vectors else (None, None)
        except (IndexFailure, OSError) as error:
            logger.warning("Search by words alone, the vectors cannot be asked: %s", error)
            return None, None
