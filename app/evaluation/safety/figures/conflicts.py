"""Two documents that agree or contradict each other, in the forms in which records write them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from app.evaluation.safety.figure import Bench, Error, Figure, Rate, alarms, recall
from app.evaluation.safety.figures import lists
from contracts import Passage
from safety.conflicts import ALLERGY, DATE, DOSE, SIDE, find_conflicts

SEED = 11
NUM_PAIRS = 300  # of each kind

_ALLERGENS = ("penicillin", "codeine", "aspirin", "trimethoprim")
_ALLERGIC = (
    "Allergies: {0} (rash), {1} (nausea).",
    "Allergies\n- {0}: rash\n- {1}: nausea",
    "Allergic to {0} and {1}.",
    "Allergen | Reaction\n{0} | rash\n{1} | nausea",
    "Allergy: {0}.",
    "{0} allergy (rash).",
)
_NOT_ALLERGIC = (
    "No known drug allergies.",
    "NKDA",
    "Allergies: none known.",
    "Allergies\nNone known",
    "He has no allergies.",
    "Drug allergies: none",
)
_EVENTS = ("appendicectomy", "hysterectomy", "cholecystectomy", "mastectomy")
_DATED = (
    "Past surgical history: {0} {1}.",
    "{0} in {1}.",
    "{0} ({1})",
    "Past surgical history\n- {0}, {1}\n- hernia repair, 2001",
    "Operation | Year\n{0} | {1}",
    "She had a {0} in {1}.",
    "PSH: {0} {1}, hernia repair 2001.",
    "{1}: {0}",
)
_FINDINGS = ("hip replacement", "pleural effusion", "inguinal hernia", "knee replacement", "hemiparesis")
_SIDED = ("Diagnosis: {0} {1}", "She has a {0} {1}.", "Problems\n- {0} {1}\n- gout", "Known {0}-sided {1}.")

_Case = tuple[str, str, str]  # two documents that agree, and a third that contradicts the first


def run(bench: Bench) -> Sequence[Rate]:
    chooser = random.Random(SEED)
    rates: list[Rate] = []
    for rule, cases in _KINDS.items():
        missed: list[Error] = []
        false: list[Error] = []
        for _ in range(NUM_PAIRS):
            first, same, other = cases(chooser)
            if found := _rules(first, same):
                false.append(Error(f"{first!r} and {same!r}", ", ".join(found)))
            if rule not in _rules(first, other):
                missed.append(Error(f"{first!r} and {other!r}", "not found"))
        kind = rule.partition(".")[2]
        rates.append(recall(f"{kind}: contradictions found", NUM_PAIRS, missed, 0.98))
        rates.append(alarms(f"{kind}: agreeing documents flagged", NUM_PAIRS, false, 0.02))
    return rates


def _rules(*texts: str) -> list[str]:
    passages = [Passage(f"p{n}", f"d{n}", "letter", 1, 0, len(text), text) for n, text in enumerate(texts)]
    return [conflict.rule for conflict in find_conflicts(passages, [""] * len(passages))]


def _doses(chooser: random.Random) -> _Case:
    items = lists.choose_drugs(chooser)
    name, dose, often = items[0]
    amount, unit = dose.split()
    changed = [(name, f"{float(amount) * 2:g} {unit}", often), *items[1:]]
    first, same, other = (lists.write_drugs(chooser, chooser.sample(x, len(x))) for x in (items, items, changed))
    return first, same, other


def _allergies(chooser: random.Random) -> _Case:
    pair = chooser.sample(_ALLERGENS, 2)
    first, same = (chooser.choice(_ALLERGIC).format(pair[0].capitalize(), pair[1]) for _ in range(2))
    return first, same, chooser.choice(_NOT_ALLERGIC)


def _dates(chooser: random.Random) -> _Case:
    event, (year, another) = chooser.choice(_EVENTS), chooser.sample(range(1995, 2024), 2)
    first, same, other = (chooser.choice(_DATED).format(event.capitalize(), y) for y in (year, year, another))
    return first, same, other


def _sides(chooser: random.Random) -> _Case:
    finding, (side, another) = chooser.choice(_FINDINGS), chooser.sample(("left", "right"), 2)
    first, same, other = (chooser.choice(_SIDED).format(s, finding) for s in (side, side, another))
    return first, same, other


_KINDS: dict[str, Callable[[random.Random], _Case]] = {
    DOSE: _doses,
    ALLERGY: _allergies,
    DATE: _dates,
    SIDE: _sides,
}

FIGURE = Figure(
    name="conflicts",
    title="Contradictions between documents",
    data=(
        "Pairs of undated documents, made by chance, that give the same dose, allergy, year of an operation or side, "
        "or two of them, as lists, lines, tables and sentences. Errors were looked at."
    ),
    peer="none published",
    run=run,
)
