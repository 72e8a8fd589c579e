"""`bedside search` writes one line a query, with spans that stand in the documents."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from retrieval.benchmark import run_search
from retrieval.bilingual import BilingualEmbedder
from tests.retrieval.doubles import WordEmbedder

DOCS = [
    {
        "doc_id": "a",
        "title": "Ann Lee",
        "text": "# Results\nPotassium 5.9 mmol/L on 03/01/2024.\n\n# Plan\nStop it.",
    },
    {"doc_id": "b", "title": "Bob Roe", "text": "# Results\nPotassium 4.1 mmol/L on 03/01/2024.\n\n# Plan\nGo on."},
]
# patient_doc is there to score with; that it is wrong here must not matter to the search.
QUERIES = [
    {"qid": "1", "query": "Potassium of Ann Lee on March 1, 2024", "patient_doc": "b"},
    {"qid": "2", "query": "zzz"},
]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.xz"])
def test_run_has_a_line_for_each_query_with_spans_in_the_text(
    tmp_path: Path, ending: str, embedder: BilingualEmbedder
) -> None:
    docs, queries = write(tmp_path / f"d.{ending}", DOCS), write(tmp_path / f"q.{ending}", QUERIES)
    output = tmp_path / "run.jsonl"
    assert run_search(docs, queries, 2, output, embedder) == 2
    first, second = map(json.loads, output.read_text().splitlines())
    assert (first["qid"], second["qid"]) == ("1", "2")
    best = first["results"][0]
    assert best["doc_id"] == "a"
    assert "5.9 mmol/L" in DOCS[0]["text"][best["start"] : best["end"]]
    assert len(first["results"]) <= 2
    assert [r["score"] for r in first["results"]] == sorted((r["score"] for r in first["results"]), reverse=True)


@pytest.mark.parametrize("row", ["not json", '{"qid": "1"}', '{"qid": 1, "query": "x"}', "[1]"])
def test_bad_line_is_named(tmp_path: Path, row: str) -> None:
    queries = tmp_path / "q.jsonl"
    queries.write_text('{"qid": "0", "query": "x"}\n' + row + "\n")
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2"):
        run_search(write(tmp_path / "d.jsonl", DOCS), queries, 2, tmp_path / "run.jsonl", WordEmbedder())


def test_question_that_names_a_patient_gets_nothing_of_another(tmp_path: Path) -> None:
    charts = [
        {
            "doc_id": name,
            "title": "",
            "text": f"Patient: {name}  DOB: 19440508\n\n# Labs\nPotassium 5.{n}.",
        }
        for n, name in enumerate(["Ann Lee", "Bob Roe", "Cy Poe"])
    ]
    queries = [{"qid": "1", "query": "Potassium of bob roe?"}, {"qid": "2", "query": "Potassium"}]
    output = tmp_path / "run.jsonl"
    run_search(write(tmp_path / "d.jsonl", charts), write(tmp_path / "q.jsonl", queries), 9, output, WordEmbedder())
    named, anyone = ({r["doc_id"] for r in json.loads(line)["results"]} for line in output.read_text().splitlines())
    assert named == {"Bob Roe"}
    assert anyone == {"Ann Lee", "Bob Roe", "Cy Poe"}
