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
    quote, and a rule's reason rather than the guard's. In the order found."""
    groups: list[list[Finding]] = []
    for finding in sorted(findings, key=lambda finding: (-finding.severity.rank, -len(finding.evidence))):
        group = next((group for group in groups if _tells_of(group[0], finding)), None)
        if group is None:
            groups.append([finding])
        else:
            group.append(finding)
    groups.sort(key=lambda group: min(map(findings.index, group)))
    return [_in_one(group) for group in groups]


def describe(finding: Finding) -> str:
    """The finding's message and the words it is about."""
    quote = finding.evidence if len(finding.evidence) <= _MAX_QUOTE else f"{finding.evidence[:_MAX_QUOTE].rstrip()}…"
    return " ".join([finding.message, *([say("turn.quoted", text=" ".join(quote.split()))] if quote else [])])


def _in_one(group: Sequence[Finding]) -> Finding:
    """The first that is a rule's, with the words of the widest, which leads the group."""
    reason = next((finding for finding in group if not finding.is_by_guard), group[0])
    return replace(reason, evidence=group[0].evidence, severity=group[0].severity)


def _tells_of(other: Finding, finding: Finding) -> bool:
    if not finding.evidence:
        return other.message == finding.message
    return finding.evidence in other.evidence
