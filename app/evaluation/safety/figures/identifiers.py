"""Identifiers of persons in synthetic texts, and eponyms and drugs that must not pass for names."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Sequence

from app.evaluation.safety.figure import Bench, Error, Figure, Rate, alarms, recall
from app.evaluation.safety.figures.emergencies import DATA
from safety.guard.names_training import Tagged, read_tagged
from safety.identifiers import find_identifiers
from safety.lexicon import drugs, eponyms

_CODES = {"CREDIT_CARD", "US_SSN", "IBAN_CODE", "US_DRIVER_LICENSE"}
_STRUCTURED = _CODES | {"PHONE_NUMBER", "EMAIL_ADDRESS", "DOMAIN_NAME", "IP_ADDRESS"}
_FRAMES = ("History of {} disease.", "The {} sign was positive.", "Known {} syndrome.")
_DRUG_FRAMES = ("Takes {} daily.", "Started on {} 5 mg.", "{} was stopped.")


def run(bench: Bench) -> Sequence[Rate]:
    path = bench.file("safety/presidio_synth/generated_large.json.xz")
    structured, missed = 0, []
    for number, row in enumerate(json.loads(lzma.decompress(path.read_bytes()))):
        spans = [s for s in row["spans"] if s["entity_type"] in _STRUCTURED]
        found = find_identifiers(row["full_text"]) if spans else []
        for span in spans:
            start, end = span["start_position"], span["end_position"]
            structured += 1
            if not any(f.start <= start + 1 and end - 1 <= f.end for f in found):
                missed.append(Error.of_set("presidio", number, span["entity_type"]))
    assert bench.sets is not None
    tagged = read_tagged(bench.sets)
    return [
        recall("structured found", structured, missed, 0.995),
        *_names("names", [text for text in tagged if text.split == "held"]),
        *_names("names, fresh", [text for text in tagged if text.split == "fresh"]),
        *_names("names, Chinese", _bracketed("names_zh.txt")),
        *_names("names, records", _bracketed("names_records.txt")),
        _mistaken(),
    ]


def _bracketed(file: str) -> list[Tagged]:
    """Sentences in which names stand in brackets."""
    lines = (DATA / file).read_text(encoding="utf-8").splitlines()
    texts = []
    for line in (line for line in lines if not line.startswith("#")):
        places = [(m.start() - 2 * n, m.end() - 2 * n - 2) for n, m in enumerate(re.finditer(r"\[.+?\]", line))]
        text = line.replace("[", "").replace("]", "")
        texts.append(Tagged(text, tuple(("person", *place) for place in places), "held"))
    return texts


def _names(name: str, held: Sequence[Tagged]) -> list[Rate]:
    """Recall over true names, precision over those found; a name counts where the two overlap."""
    total, missed, found_right, wrong = 0, [], 0, []
    for number, tagged in enumerate(held):
        found = [(f.start, f.end) for f in find_identifiers(tagged.text) if f.kind == "name"]
        truth = [(a, b) for kind, a, b in tagged.spans if kind == "person"]
        total += len(truth)
        missed += [Error.of_set("held text", number, "missed") for a, b in truth if not _overlaps(found, a, b)]
        wrong += [Error.of_set("held text", number, "no name") for a, b in found if not _overlaps(truth, a, b)]
        found_right += sum(_overlaps(truth, a, b) for a, b in found)
    precision = Rate(f"{name}: precision", found_right, found_right + len(wrong), 0.95, True, tuple(wrong))
    return [recall(f"{name}: found", total, missed, 0.98), precision]


def _mistaken() -> Rate:
    texts = [frame.format(name.capitalize()) for name in sorted(eponyms()) for frame in _FRAMES]
    texts += [frame.format(name.capitalize()) for name in sorted(drugs()) for frame in _DRUG_FRAMES]
    false = [Error(text, "taken for a name") for text in texts if any(f.kind == "name" for f in find_identifiers(text))]
    return alarms("eponyms and drugs taken for names", len(texts), false, 0.005)


def _overlaps(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    return any(a < end and start < b for a, b in spans)


FIGURE = Figure(
    name="identifiers",
    title="Identifiers of persons",
    data="presidio-research's synthetic texts: patterns over all, names over the fifth held out (templates repeat) and "
    "over our held-out sentences of records, whose misses were read; “fresh”: sentences written after those and before "
    "the tagger was trained, a third of them not looked at; Chinese: written with the pattern they are found by; "
    "“records”: English and Chinese sentences with names of their own, written before the tagger was last trained; "
    "at first sight 91 % were found, then their misses were read; the eponyms and drugs of our lists, which the tagger "
    "knows.",
    peer="Presidio's default: recall 0.60, precision 0.69",
    run=run,
)
