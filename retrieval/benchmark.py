"""Ranks the passages of a benchmark folder, for `bedside search`: cut, analysed, embedded and ranked as a record's are.

In: docs {doc_id, title, text} and queries {qid, query}, JSON lines, .xz or plain. Out: one JSON line a query. Other
fields of a query (who the patient is, what the answer is) are never looked at. What a ward keeps apart by patient lies
in one folder here: a question that names a patient is answered from that patient's documents, as their first page
says whose they are.
"""

from __future__ import annotations

import json
import lzma
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contracts import FactKind, Page, Passage
from retrieval.chunking import make_passages
from retrieval.lexical import LexicalIndex
from retrieval.names import holds_name, without_name
from retrieval.ranking import NOT_FOUND, PassageVectors, order, rank, vector_rows
from retrieval.reading.facts import find_facts
from retrieval.vectors import Embedder, embed_passages, indexed_passages

_HEAD_CHARS = 1_000  # of a document, where it says whose it is


def run_search(
    docs_path: Path, queries_path: Path, k: int, output_path: Path, embedder: Embedder, has_vectors: bool = True
) -> int:
    """Writes {qid, results: [{doc_id, start, end, score}]} for each query, offsets into the document's text.

    has_vectors: False ranks by words alone. Returns the number of queries. Raises ValueError, naming file and line, for
    input that is not as described.
    """
    documents = list(_read_jsonl(docs_path, ("doc_id", "title", "text")))
    queries = list(_read_jsonl(queries_path, ("qid", "query")))
    collection = Collection(documents, embedder, has_vectors)
    with output_path.open("w", encoding="utf-8") as output:
        for query in queries:
            results = [_result(passage, score) for passage, score in collection.search(query["query"], k)]
            output.write(json.dumps({"qid": query["qid"], "results": results}, ensure_ascii=False) + "\n")
    return len(queries)


class Collection:
    """The documents of a folder, ready to be searched."""

    def __init__(self, documents: Sequence[Mapping[str, str]], embedder: Embedder, has_vectors: bool) -> None:
        self._embedder = embedder
        self._passages: list[Passage] = []
        self._documents_of: dict[str, set[str]] = defaultdict(set)  # by the patient's name
        for document in documents:
            page = Page(1, document["text"])
            document_id, title = document["doc_id"], document["title"]
            self._passages += make_passages(document_id, title, [page], embedder.count_tokens)
            for fact in find_facts([Page(1, page.text[:_HEAD_CHARS])])[1].facts:
                if fact.kind is FactKind.PATIENT_NAME:
                    self._documents_of[fact.value].add(document_id)
        self._words = LexicalIndex(self._passages)
        self._vectors: dict[str, PassageVectors] = {}
        if has_vectors:
            rows = embed_passages(embedder, indexed_passages(self._passages))
            self._vectors = vector_rows(self._passages, *rows, embedder.space)

    def search(self, query: str, k: int) -> list[tuple[Passage, float]]:
        """The k best passages with their scores."""
        named = [name for name in self._documents_of if holds_name(query, name)]
        for name in named:
            query = without_name(query, name)
        vectors = self._vectors.get(self._embedder.space(query))
        scores = rank(self._words, query, vectors, self._embedder.embed([query])[0] if vectors else None)
        if named:
            own = set().union(*(self._documents_of[name] for name in named))
            scores = np.where([passage.document_id in own for passage in self._passages], scores, NOT_FOUND)
        return [(self._passages[row], float(scores[row])) for row in order(scores, k)]


def _result(passage: Passage, score: float) -> dict[str, Any]:
    return {"doc_id": passage.document_id, "start": passage.start, "end": passage.end, "score": round(score, 6)}


def _read_jsonl(path: Path, fields: tuple[str, ...]) -> Iterator[dict[str, str]]:
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg}).") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: not a JSON object.")
            missing = [name for name in fields if not isinstance(row.get(name), str)]
            if missing:
                raise ValueError(f"{path}, line {number}: the field {missing[0]!r} must be a text.")
            yield {name: row[name] for name in fields}
