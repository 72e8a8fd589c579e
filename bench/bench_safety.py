"""How long the rules take, and the rules with the guard: a question, 2K tokens, 128K tokens, a claim, a sentence. One
JSON line last.

What they find is measured by `bedside eval safety`.

    .venv/bin/python -m bench.bench_safety [--shared ../shared]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from app.evaluation.safety.figure import Bench
from app.evaluation.safety.figures.emergencies import present_messages
from app.safety_layer import build_safety
from bench.report import ROOT, print_report
from contracts import Passage
from safety.checker import RuleSafetyChecker
from safety.sentences import sentence_spans

LIMITS = {
    "ms_question_p95": 150.0,
    "ms_document_2k_tokens": 5.0,
    "ms_output_2k_tokens": 5.0,
    "ms_input_2k_tokens": 5.0,
    "s_document_128k_tokens": 45.0,
    "s_input_128k_tokens": 45.0,
    "ms_per_claim_p95": 40.0,
    "ms_guarded_question_p95": 150.0,
    "ms_guarded_sentence_p95": 40.0,
    "s_guarded_document_128k_tokens": 45.0,
}
TOKENS_TO_CHARACTERS = 4.6  # English clinical text
PASSAGE = 1200  # characters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    bench = Bench(RuleSafetyChecker(), parser.parse_args().shared / "data")
    checker = bench.checker
    text = "\n\n".join(bench.notes)
    short = [text[place : place + _characters(2000)] for place in range(0, 20 * _characters(2000), _characters(2000))]
    long = (text * (1 + _characters(128_000) // len(text)))[: _characters(128_000)]
    questions = [row["question"] for row in bench.rows("medquad/medquad_qa.jsonl.xz")[:300]] + present_messages()
    bench.ask(short[0])  # the phrases are read at first use
    asked = _times(bench.ask, questions)
    passages = [
        Passage("n", "n", "note", 1, 0, PASSAGE, long[place : place + PASSAGE])
        for place in range(0, 20 * PASSAGE, PASSAGE)
    ]
    claims = [" ".join(p.text[a:b].split()) for p in passages for a, b in sentence_spans(p.text)[:5]]
    claimed = _times(lambda claim: checker.check_claim(claim, (0,), passages), claims)
    guarded = build_safety()
    guarded.check_document(short[0])
    sentences = [text[a:b] for a, b in sentence_spans(text)[:: len(sentence_spans(text)) // 300]]
    asked_guarded = _times(Bench(guarded).ask, questions)
    figures: dict[str, Any] = {
        "rules": len(checker.rules),
        "version": checker.version,
        "ms_question_p50": median(asked),
        "ms_question_p95": _p95(asked),
        "ms_input_2k_tokens": median(_times(bench.ask, short)),
        "ms_document_2k_tokens": median(_times(checker.check_document, short)),
        "ms_output_2k_tokens": median(_times(checker.check_output, short)),
        "s_input_128k_tokens": _times(bench.ask, [long])[0] / 1e3,
        "s_document_128k_tokens": _times(checker.check_document, [long])[0] / 1e3,
        "claims": len(claims),
        "ms_per_claim_p50": median(claimed),
        "ms_per_claim_p95": _p95(claimed),
        "ms_guarded_question_p50": median(asked_guarded),
        "ms_guarded_question_p95": _p95(asked_guarded),
        "ms_guarded_sentence_p95": _p95(_times(guarded.check_document, sentences)),
        "s_guarded_document_128k_tokens": _times(guarded.check_document, [long])[0] / 1e3,
        "s_load": _times(lambda _: RuleSafetyChecker(), [""])[0] / 1e3,
    }
    print_report("safety", {k: round(v, 2) if isinstance(v, float) else v for k, v in figures.items()}, LIMITS)


def _characters(tokens: int) -> int:
    return int(tokens * TOKENS_TO_CHARACTERS)


def _times(call: Callable[[str], Any], texts: Iterable[str]) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for text in texts:
        started = perf_counter()
        call(text)
        times.append(1e3 * (perf_counter() - started))
    return times


def _p95(times: list[float]) -> float:
    return sorted(times)[int(0.95 * len(times))]


if __name__ == "__main__":
    main()
