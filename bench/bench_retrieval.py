"""Every retrieval figure in one command: `bedside search` over the tasks of shared/bench, scored by their evaluate.py.

    python -m bench.bench_retrieval [--task chartqa ...] [--words-only] [--write]

Prints one line a task: ours on all questions and on each half of them (nothing was fitted on the second), the peers'
figures as published with the benchmark, and what ours must reach. --write keeps them in bench/results/retrieval.json.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

from bench.report import RESULTS, ROOT, with_origin
from retrieval.benchmark import run_search
from retrieval.bilingual import BilingualEmbedder

BENCH = ROOT.parent / "shared" / "bench"
K = 100  # results a question; evaluate.py looks at no more
# What ours must reach, and in the same order what the peers do: the tutorial stack (1,000-character chunks, Chroma,
# MiniLM), BM25 of the same chunks, and the best simple hybrid tried. The peers' figures came with the benchmark.
GOALS: dict[str, dict[str, float]] = {
    "chartqa": {"r@5": 0.995, "wrong_patient@5": 0.02},
    "note2dialogue": {"r@1": 0.95, "ndcg@10": 0.975},
    "medquad": {"ndcg@10": 0.76, "r@4000ch": 0.97},
    "textbook": {"ndcg@10": 0.63, "r@4000ch": 0.74},
    "pubmedqa": {"r@1": 0.985},
    "zh_qa": {"r@10": 0.60},
}
PEERS: dict[str, dict[str, list[float]]] = {
    "chartqa": {"tutorial": [0.19, 0.96], "bm25": [0.52, 0.77], "best_simple": [1.00, 0.32]},
    "note2dialogue": {"tutorial": [0.86, 0.92], "bm25": [0.85, 0.90], "best_simple": [0.94, 0.97]},
    "medquad": {"tutorial": [0.65, 0.88], "bm25": [0.56, 0.77], "best_simple": [0.73, 0.96]},
    "textbook": {"tutorial": [0.49, 0.58], "bm25": [0.55, 0.62], "best_simple": [0.59, 0.69]},
    "pubmedqa": {"tutorial": [0.98], "bm25": [0.96], "best_simple": [0.984]},
    "zh_qa": {"tutorial": [0.06], "bm25": [0.02], "best_simple": [0.46]},
}
_AT_MOST = "wrong_patient@5"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", nargs="*", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--words-only", action="store_true", help="rank without vectors")
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/results/retrieval.json")
    options = parser.parse_args()
    evaluate = _load_scorer()
    embedder = BilingualEmbedder()
    tasks = {name: _measure(evaluate, name, embedder, not options.words_only) for name in options.task}
    report = with_origin({"what": "retrieval", "tasks": tasks})
    if options.write:
        path = RESULTS / "retrieval.json"
        path.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, ensure_ascii=False))


def _measure(evaluate: ModuleType, name: str, embedder: BilingualEmbedder, has_vectors: bool) -> dict[str, Any]:
    task = BENCH / name
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bedside-") as folder:
        run = Path(folder) / "run.jsonl"
        run_search(task / "docs.jsonl.xz", task / "queries.jsonl.xz", K, run, embedder, has_vectors)
        scores = _score(evaluate, task, run)
    figures: dict[str, Any] = {"goal": GOALS[name], "peers": PEERS[name]}
    for part, is_in in (
        ("all", lambda half: True),
        ("half_0", lambda half: half == 0),
        ("half_1", lambda half: half == 1),
    ):
        figures[part] = {
            measure: round(mean(row[measure] for qid, row in scores.items() if is_in(_half(qid)) and measure in row), 4)
            for measure in next(iter(scores.values()))
        }
    figures["reached"] = all(
        figures["all"][measure] <= goal if measure == _AT_MOST else figures["all"][measure] >= goal
        for measure, goal in GOALS[name].items()
    )
    figures["seconds"] = round(time.perf_counter() - started, 1)
    ours = ", ".join(
        f"{measure} {figures['all'][measure]:.3f} (goal {goal:g})" for measure, goal in GOALS[name].items()
    )
    print(f"{name:14} {'reached' if figures['reached'] else 'MISSED '} {ours}; peers {PEERS[name]}", flush=True)
    return figures


def _score(evaluate: ModuleType, task: Path, run_path: Path) -> dict[str, dict[str, float]]:
    """Question -> its scores, as evaluate.main takes their means."""
    evidence = defaultdict(list)
    for line in (task / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        qid, doc_id, start, end, grade = line.split("\t")
        evidence[qid].append((doc_id, int(start), int(end), int(grade)))
    has_spans = any(end >= 0 for rows in evidence.values() for _, _, end, _ in rows)
    run = {row["qid"]: row["results"] for row in evaluate.read_jsonl(run_path)}
    scores = {}
    for query in evaluate.read_jsonl(task / "queries.jsonl.xz"):
        qid, results = query["qid"], run.get(query["qid"], [])
        scores[qid] = (evaluate.score_spans if has_spans else evaluate.score_documents)(results, evidence[qid])
        if query.get("patient_doc"):
            top = results[:5]
            wrong = sum(result["doc_id"] != query["patient_doc"] for result in top)
            scores[qid][_AT_MOST] = wrong / len(top) if top else 1.0
    return scores


def _half(qid: str) -> int:
    return int(hashlib.md5(qid.encode()).hexdigest(), 16) & 1


def _load_scorer() -> ModuleType:
    path = BENCH / "evaluate.py"
    if not path.exists():
        raise SystemExit(f"{path} is not there: the benchmark's folder is needed beside the checkout.")
    spec = importlib.util.spec_from_file_location("evaluate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
