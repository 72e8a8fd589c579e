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
UNREAD = "unread"
SETS = {"looked at": "claims_looked_at.yaml", UNREAD: "claims_unread.yaml"}
LANGUAGES = {"en": "English", "zh": "Chinese"}


def run(bench: Bench) -> Sequence[Rate]:
    return [
        rate
        for name, file in SETS.items()
        for language, spoken in LANGUAGES.items()
        for rate in _rates(bench, f"{spoken}, {name}", _records(file, language), is_read=name != UNREAD)
    ]


def _records(file: str, language: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = yaml.safe_load((DATA / file).read_text(encoding="utf-8"))
    return [record for record in records if record["language"] == language]


def _rates(bench: Bench, name: str, records: Sequence[dict[str, Any]], is_read: bool) -> list[Rate]:
    counts = {"stands": 0, "mixed": 0}
    errors: dict[str, list[Error]] = {"stands": [], "mixed": []}
    for record in records:
        text = record["passage"]
        passage = Passage("p", "d", "record", 1, 0, len(text), text)
        for kind in counts:
            for claim in record[kind]:
                counts[kind] += 1
                is_held = bench.checker.check_claim(claim, (0,), [passage]).verdict.withholds
                if is_held == (kind == "stands"):
                    why = "withheld" if is_held else "shown"
                    number = counts[kind]
                    error = Error(f"{claim} [{text}]", why) if is_read else Error.of_set(f"{name} {kind}", number, why)
                    errors[kind].append(error)
    return [
        recall(f"{name}: what is another thing's found", counts["mixed"], errors["mixed"], 0.98),
        alarms(f"{name}: alarms on true claims", counts["stands"], errors["stands"], 0.02),
    ]


FIGURE = Figure(
    name="claims",
    title="Claims in other words",
    data=(
        "154 invented records, prose, notes, lists and tables, by eleven authors who did not know the check; eight "
        "true claims to each in other words, many of two facts, and six that join what is said of two things. Four "
        "authors' are unread."
    ),
    peer="none published",
    run=run,
)
