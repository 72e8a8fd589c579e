"""Interactions: the high-priority ones withhold, those that need not interrupt do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import yaml

from app.evaluation.safety.figure import Bench, Error, Figure, Rate, alarms, recall
from app.evaluation.safety.figures.emergencies import DATA
from contracts import Patient

FRAMES = (
    "Start {new} today.",
    "I recommend adding {new} to the current treatment.",
    "{New} can be prescribed for this.",
    "The next step is {new}, taken by mouth.",
)


def run(bench: Bench) -> Sequence[Rate]:
    data: dict[str, Any] = yaml.safe_load((DATA / "interactions.yaml").read_text(encoding="utf-8"))
    high, low = list(_cases(data["high"])), list(_cases(data["low"]))
    missed = [Error(text, f"with {taken}") for text, taken in high if not _interrupts(bench, text, taken)]
    false = [Error(text, f"with {taken}") for text, taken in low if _interrupts(bench, text, taken)]
    warned = [text for text in data["warnings"] if bench.checker.check_output(text).verdict.withholds]
    return [
        recall("high-priority interrupting", len(high), missed, 1.0),
        alarms("non-interruptive interrupting", len(low), false, 0.03),
        alarms(
            "warnings against a pair interrupted", len(data["warnings"]), [Error(t, "warning") for t in warned], 0.03
        ),
    ]


def _cases(groups: Sequence[Sequence[Sequence[str]]]) -> Iterator[tuple[str, str]]:
    """Each pair both ways round, then both in one sentence with nothing known of the patient."""
    number = 0
    for firsts, seconds in groups:
        for one, other in product(firsts, seconds):
            for new, taken in ((one, other), (other, one)):
                frame = FRAMES[number % len(FRAMES)]
                yield frame.format(new=new, New=new.capitalize()), taken
                number += 1
            yield f"Give {one} together with {other}.", ""


def _interrupts(bench: Bench, text: str, taken: str) -> bool:
    patient = Patient(medications=(f"{taken} once daily",)) if taken else None
    return bench.checker.check_output(text, patient).verdict.withholds


FIGURE = Figure(
    name="interactions",
    title="Drug interactions",
    data="Pairs of the published high-priority list, and common pairs that need none, in authored sentences, by "
    "whoever wrote the table of interactions.",
    peer="90 % of alerts are overridden in practice (HL7 PDDI-CDS)",
    run=run,
)
