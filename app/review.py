"""What the Safety review screen works out: states of the rule sets, what a finding changed, and the export of feedback.

Knows nothing of Streamlit.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from app.store.records import FeedbackRecord, FindingRecord, Judgement
from contracts import Direction
from safety.identifiers import mask
from safety.rule import Rule

STALE_DAYS = 400  # a rule is to be looked at once a year


@dataclass(frozen=True, slots=True)
class RuleSetState:
    """A set is what the rules' ids begin with. state is "loaded", "stale" or "inert"."""

    name: str
    num_rules: int
    num_off: int
    reviewed: date  # the oldest review
    state: str


def rule_set_states(rules: Sequence[Rule], off: Iterable[str], today: date) -> list[RuleSetState]:
    """One state a set, by name. A set that could not be loaded is not among them: it stops the start."""
    switched_off = set(off)
    sets: dict[str, list[Rule]] = defaultdict(list)
    for rule in rules:
        sets[rule.id.partition(".")[0]].append(rule)
    states = []
    for name, members in sorted(sets.items()):
        num_off = sum(rule.id in switched_off for rule in members)
        reviewed = min(rule.reviewed for rule in members)
        is_stale = (today - reviewed).days > STALE_DAYS
        state = "inert" if num_off == len(members) else "stale" if is_stale else "loaded"
        states.append(RuleSetState(name, len(members), num_off, reviewed, state))
    return states


def what_changed(record: FindingRecord) -> str:
    """The key of the sentence that says what the finding did: kept, withheld, held or noted."""
    if not record.finding.severity.withholds:
        return "noted"
    if record.direction is Direction.DOCUMENT:
        return "kept"
    return "held" if record.direction is Direction.INPUT else "withheld"


def export_feedback(records: Sequence[FeedbackRecord]) -> str:
    """Feedback as a test set, one JSON object a line: what `bedside check` reads, and what it should say. Identifiers
    of persons are masked."""
    lines = []
    for number, record in enumerate(records, 1):
        line = {
            "id": f"feedback-{number}",
            "direction": record.direction.value,
            "text": mask(record.text),
            "rule": record.rule,
            "expected": "clear" if record.judgement is Judgement.FALSE_ALARM else "found",
            "judgement": record.judgement.value,
            "note": mask(record.note),
            "at": record.at,
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    return "\n".join([*lines, ""])
