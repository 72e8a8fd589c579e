"""Ranks the passages of a benchmark folder, for `bedside search`: the same cutting, analysing and fusing as a record's.

In: docs {doc_id, title, text} and queries {qid, query}, JSON lines, .xz or plain. Out: one JSON line a query. Other
fields of a query (who the patient is, what the answer is) are never looked at.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from contracts import Page, Passage
from retrieval.chunking import make_passages
from retrieval.embedding import MiniLMEmbedder
from retrieval.headings import indexed_texts
from retrieval.lexical import LexicalIndex, is_mostly_cjk
from retrieval.search import fuse


def run_search(docs_path: Path, queries_path: Path, k: int, output_path: Path) -> int:
    """Writes {qid, results: [{doc_id, start, end, score}]} for each query, offsets into the document's text.

    Returns the number of queries. Raises ValueError, naming file and line, for input that is not as described.
    """
    embedder = MiniLMEmbedder()
    passages: list[Passage] = []
    for document in _read_jsonl(docs_path, ("doc_id", "title", "text")):
        page = Page(1, document["text"])
        passages += make_passages(document["doc_id"], document["title"], [page], embedder.count_tokens)
    queries = list(_read_jsonl(queries_path, ("qid", "query")))
    lexical = LexicalIndex(passages)
    vectors = (
        None if all(is_mostly_cjk(query["query"]) for query in queries) else embedder.embed(indexed_texts(passages))
    )
    with output_path.open("w", encoding="utf-8") as output:
        for query in queries:
            text = query["query"]
            use_vectors = vectors is not None and not is_mostly_cjk(text)
            dense = vectors @ embedder.embed([text])[0] if use_vectors and vectors is not None else None
            scores = fuse(lexical.scores(text), dense)
            rows = np.argsort(-scores, kind="stable")[:k]
            results = [_result(passages[row], float(scores[row])) for row in rows if scores[row] > 0]
            output.write(json.dumps({"qid": query["qid"], "results": results}, ensure_ascii=False) + "\n")
    return len(queries)


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
