"""Assertion status on annotated sentences of real reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from app.evaluation.safety.figure import Bench, Error, Figure, Rate
from safety.assertion import Assertion, assess

FILE = "safety/negex/rsAnnotations-1-120-random-first-half.txt"


def run(bench: Bench) -> Sequence[Rate]:
    right = 0
    missed: list[Error] = []
    false: list[Error] = []
    for number, (sentence, start, end, is_negated) in enumerate(_annotated(bench)):
        is_found = assess(sentence, start, end) is Assertion.NEGATED
        right += is_found and is_negated
        if is_found != is_negated:
            error = Error.of_set("NegEx", number, f"is {'negated' if is_negated else 'not negated'}")
            (missed if is_negated else false).append(error)
    return [
        Rate("recall of negation", right, right + len(missed), 0.975, is_at_least=True, errors=tuple(missed)),
        Rate("precision of negation", right, right + len(false), 0.96, is_at_least=True, errors=tuple(false)),
    ]


def _annotated(bench: Bench) -> Iterator[tuple[str, int, int, bool]]:
    for line in bench.file(FILE).read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
        _, concept, sentence, status, *_ = (field.strip('"') for field in line.split("\t"))
        start = sentence.upper().find(concept.upper())
        if start >= 0:
            yield sentence, start, start + len(concept), status == "Negated"


FIGURE = Figure(
    name="negation",
    title="Assertion status",
    data="NegEx test kit (Chapman, Solti), first half: a development set, errors were looked at.",
    peer="95.9 / 93.5 % (pyConText and medspaCy kind)",
    run=run,
)
