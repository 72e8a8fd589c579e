"""What stands behind a finding, in words."""

from __future__ import annotations

from app.ui.text import say
from contracts import Finding


def source_words(finding: Finding) -> str:
    """The guideline of a rule; of a model that it is one, and its card. "" where nothing is named."""
    if not finding.source:
        return ""
    return say("turn.source.model" if finding.is_by_guard else "turn.source", source=finding.source)
