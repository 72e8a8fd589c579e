"""What the check of documents found, for the clinician: each stretch of a record once, and why it was kept."""

from __future__ import annotations

from collections.abc import Sequence

from app.ui.text import say
from contracts import Finding

_MAX_QUOTE = 300  # characters


def shown_once(findings: Sequence[Finding]) -> list[Finding]:
    """Without those whose words a finding at least as severe quotes too; several rules see the same instruction."""
    shown: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: (-finding.severity.rank, -len(finding.evidence))):
        if not any(_tells_of(other, finding) for other in shown):
            shown.append(finding)
    return sorted(shown, key=findings.index)


def describe(finding: Finding) -> str:
    """The finding's message and the words it is about."""
    quote = finding.evidence if len(finding.evidence) <= _MAX_QUOTE else f"{finding.evidence[:_MAX_QUOTE].rstrip()}…"
    return " ".join([finding.message, *([say("turn.quoted", text=" ".join(quote.split()))] if quote else [])])


def _tells_of(other: Finding, finding: Finding) -> bool:
    if not finding.evidence:
        return other.message == finding.message
    return finding.evidence in other.evidence
