"""Claims as people write them about whole records: true ones in other words, and false ones whose every word the record
holds, said of something else there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from app.evaluation.safety.figure import Bench, Error, Figure, Rate, alarms, recall
from contracts import Passage

DATA = Path(__file__).parent.parent / "data"
MIXED, UNREAL = "mixed", "unreal"  # keys of the false claims
FOUND = {MIXED: "what is another thing's found", UNREAL: "what is not so found"}
SETS = {  # (its false claims, whether its errors were read) -> file
    (MIXED, True): "claims_looked_at.yaml",
    (MIXED, False): "claims_unread.yaml",
    (UNREAL, True): "claims_unreal.yaml",
    (UNREAL, False): "claims_unreal_unread.yaml",
}
LANGUAGES = {"en": "English", "zh": "Chinese"}


def run(bench: Bench) -> Sequence[Rate]:
    rates: list[Rate] = []
    for (kind, is_read), file in SETS.items():
        for language, spoken in LANGUAGES.items():
            name = f"{spoken}, {'looked at' if is_read else 'unread'}"
            rates += _rates(bench, name, kind, _records(file, language), is_read)
    return rates


def _records(file: str, language: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = yaml.safe_load((DATA / file).read_text(encoding="utf-8"))
    return [record for record in records if record["language"] == language]


def _rates(bench: Bench, name: str, kind: str, records: Sequence[dict[str, Any]], is_read: bool) -> list[Rate]:
    counts = {"stands": 0, kind: 0}
    errors: dict[str, list[Error]] = {"stands": [], kind: []}
    for record in records:
        text = record["passage"]
        passage = Passage("p", "d", "record", 1, 0, len(text), text)
        for key in counts:
            for claim in record[key]:
                counts[key] += 1
                is_held = bench.checker.check_claim(claim, (0,), [passage]).verdict.withholds
                if is_held == (key == "stands"):
                    why = "withheld" if is_held else "shown"
                    number = counts[key]
                    unread = Error.of_set(f"{name} {key}", number, why)
                    errors[key].append(Error(f"{claim} [{text}]", why) if is_read else unread)
    return [
        recall(f"{name}: {FOUND[kind]}", counts[kind], errors[kind], 0.98),
        alarms(f"{name}: true claims beside {kind} ones withheld", counts["stands"], errors["stands"], 0.02),
    ]


FIGURE = Figure(
    name="claims",
    title="Claims in other words",
    data=(
        "“Mixed”: 154 invented records, prose, notes, lists and tables, by eleven authors who did not know the check; "
        "eight true claims to each in other words, many of two facts, and six that join what is said of two things; "
        "four authors' are unread. “Unreal”: 160 short ones by four authors, with claims that say to be so what is "
        "only planned, refused, stopped, suspected, past or somebody else's; two authors' are unread."
    ),
    peer="none published",
    run=run,
)
