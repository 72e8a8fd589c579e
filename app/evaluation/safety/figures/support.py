"""Claims against their passage: true ones stand, one edit each falls."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from app.evaluation.safety.figure import Bench, Error, Figure, Rate, alarms, recall
from contracts import Passage
from safety.lexicon import drugs
from safety.sentences import sentence_spans

SEED = 23
SENTENCES_PER_NOTE = 4
WIDTH = 4  # sentences on each side of a claim in its passage
_SWAPS = {"left": "right", "right": "left", "bilateral": "left"}
_OTHER_WORDS = (
    ("unit", "mg", "mcg"),
    ("unit", "mcg", "mg"),
    ("unit", "mL", "L"),
    ("unit", "years", "months"),
    ("unit", "cm", "mm"),
    ("frequency", "once daily", "twice daily"),
    ("frequency", "twice daily", "three times daily"),
    ("frequency", "daily", "weekly"),
    ("route", "oral", "intravenous"),
    ("route", "intravenous", "oral"),
    ("route", "subcutaneous", "intramuscular"),
)
_OTHER_DRUGS = ("tacrolimus", "vigabatrin", "metformin", "amlodipine")


def run(bench: Bench) -> Sequence[Rate]:
    chooser = random.Random(SEED)
    false: list[Error] = []
    missed: list[Error] = []
    num_true = num_edits = 0
    for number, (claim, passage) in enumerate(_claims(bench, chooser)):
        num_true += 1
        check = bench.checker.check_claim(claim, (0,), [passage])
        if check.verdict.withholds:
            false.append(Error.of_set("claim", number, check.findings[0].rule))
            continue
        for kind, wrong in edits(claim, passage.text, chooser):
            num_edits += 1
            if not bench.checker.check_claim(wrong, (0,), [passage]).verdict.withholds:
                missed.append(Error.of_set("claim", number, kind))
    return [
        recall("one edit found", num_edits, missed, 0.98),
        alarms("alarms on true claims", num_true, false, 0.02),
    ]


def _claims(bench: Bench, chooser: random.Random) -> Iterator[tuple[str, Passage]]:
    """Sentences of notes and textbooks with the few sentences around them."""
    texts = [*bench.notes, *(row["text"] for row in bench.rows("openstax/pharmacology_modules.jsonl.xz")[:60])]
    for text in chooser.sample(texts, min(400, len(texts))):
        spans = sentence_spans(text)
        for index in chooser.sample(range(len(spans)), min(SENTENCES_PER_NOTE, len(spans))):
            claim = " ".join(text[slice(*spans[index])].split())
            if 4 <= len(claim.split()) <= 60 and not claim.endswith(("?", ":")):
                start = spans[max(0, index - WIDTH)][0]
                end = spans[min(len(spans) - 1, index + WIDTH)][1]
                yield claim, Passage("p", "d", "note", 1, 0, end - start, text[start:end])


def edits(claim: str, passage: str, chooser: random.Random) -> Iterator[tuple[str, str]]:
    """One error each: a number, a drug, a side, a negation. What the passage says as well is no error and left out."""
    said = " ".join(passage.lower().split())
    kinds = (
        _numbers(claim, passage, chooser),
        _words(claim, said),
        _drugs(claim, said),
        _sides(claim),
        _negations(claim),
    )
    for kind, wrong in (edit for found in kinds for edit in found):
        if wrong.lower() not in said:
            yield kind, wrong


def _numbers(claim: str, passage: str, chooser: random.Random) -> Iterator[tuple[str, str]]:
    found = list(re.finditer(r"(?<![\w.,/:-])\d+(?:\.\d+)?(?![\w/:-]|\.\d|,\d|[.)] [A-Z])", claim))
    if found:
        match = chooser.choice(found)
        value = float(match.group())
        wrong = f"{chooser.choice([value * 10 or 7, value + 1, value + 3]):g}"
        if not re.search(rf"(?<![\d.]){wrong}(?![\d.])", passage):
            yield "number", claim[: match.start()] + wrong + claim[match.end() :]


def _words(claim: str, said: str) -> Iterator[tuple[str, str]]:
    """A unit, how often, or the way it is given."""
    for kind, word, wrong in _OTHER_WORDS:
        edited, number = re.subn(rf"\b{word}\b", wrong, claim, count=1)
        if number and not re.search(rf"\b{wrong}\b", said):
            yield kind, edited


def _drugs(claim: str, said: str) -> Iterator[tuple[str, str]]:
    match = next((m for m in re.finditer(r"[A-Za-z]+", claim) if m.group().lower() in drugs()), None)
    other = next((drug for drug in _OTHER_DRUGS if drug not in said), None)
    if match and other:
        yield "drug", claim[: match.start()] + other + claim[match.end() :]


def _sides(claim: str) -> Iterator[tuple[str, str]]:
    found = list(re.finditer(r"\b(?:left|right|bilateral)\b(?! (?:now|away|before|after|ventricular))", claim, re.I))
    if len(found) == 1:
        match = found[0]
        yield "side", claim[: match.start()] + _SWAPS[match.group().lower()] + claim[match.end() :]


def _negations(claim: str) -> Iterator[tuple[str, str]]:
    for pattern, wrong in (
        (r"\b[Dd]enies (?:any )?", "has "),
        (r"\b[Dd]enied (?:any )?", "had "),
        (r"\b[Nn]o (?=[a-z])(?!longer|other|more)", ""),
        (r"\b(is|was|are|were|does|did|has|have|had) not\b", r"\1"),
        (r"\bwithout\b", "with"),
    ):
        edited, number = re.subn(pattern, wrong, claim, count=1)
        if number and len(re.findall(r"\b(?:no|not|without|denies|denied|none|negative)\b", claim, re.I)) == 1:
            yield "negation removed", edited
            return
    if not re.search(r"\b(?:no|not|without|denies|denied|none|negative|never|if|normal)\b", claim, re.IGNORECASE):
        edited, number = re.subn(
            r"\b(is|was|are|were|has been|had been|should be)\b(?! not)", r"\1 not", claim, count=1
        )
        if number:
            yield "negation added", edited


FIGURE = Figure(
    name="support",
    title="Claims against their passage",
    data=(
        "Sentences of ACI-BENCH, MTS-Dialog and C-CDA notes and of a pharmacology textbook, against the nine sentences "
        "around them, as they stand and with one edit. Errors were looked at."
    ),
    peer="digits alone match 33 % of true numbers, with number words 88 %",
    run=run,
)
