"""What the check of documents found, for the clinician: each stretch of a record once, and why it was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from app.ui.text import say
from contracts import Finding

SHOWN = 3  # so many are open; the others are a press away, so that a hundred do not bury the page
_MAX_QUOTE = 300  # characters


def shown_once(findings: Sequence[Finding]) -> list[Finding]:
    """One for all that a finding at least as severe quotes, as several rules see the same instruction: with the widest
    quote, and a rule's reason rather than the guard's. Those of the guard alone come last."""
    groups: list[list[Finding]] = []
    for finding in sorted(findings, key=lambda finding: (-finding.severity.rank, -len(finding.evidence))):
        group = next((group for group in groups if _tells_of(group[0], finding)), None)
        if group is None:
            groups.append([finding])
        else:
            group.append(finding)
    groups.sort(key=lambda group: min(map(findings.index, group)))
    shown = [replace(min(g, key=by_model), evidence=g[0].evidence, severity=g[0].severity) for g in groups]
    return sorted(shown, key=by_model)


def by_model(finding: Finding) -> bool:
    """Whether the guard found it, not a rule."""
    return finding.rule.startswith("model.")


def describe(finding: Finding) -> str:
    """The finding's message and the words it is about."""
    quote = finding.evidence if len(finding.evidence) <= _MAX_QUOTE else f"{finding.evidence[:_MAX_QUOTE].rstrip()}…"
    return " ".join([finding.message, *([say("turn.quoted", text=" ".join(quote.split()))] if quote else [])])


def _tells_of(other: Finding, finding: Finding) -> bool:
    if not finding.evidence:
        return other.message == finding.message
    return finding.evidence in other.evidence
