"""Text of a document that a reader cannot see, as findings: kept from the model and shown to the clinician.

It is looked for where the file is read, in a process of its own (retrieval.reading.hidden_text).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from contracts import Finding, Page, Verdict

RULE = "document.hidden-text"
SOURCE = "OWASP Top 10 for LLM Applications 2025, LLM01 Prompt Injection"
MIN_LETTERS = 8  # a page number in white is no message


@dataclass(frozen=True, slots=True)
class Stretch:
    """Words that cannot be seen, and why. page counts from 1; 0: on any page."""

    page: int
    why: str
    text: str


def hidden_findings(stretches: Iterable[Stretch], page: Page) -> list[Finding]:
    """Findings on those stretches that stand in this page's text; spans are in it."""
    found = []
    for stretch in stretches:
        if stretch.page not in (0, page.number) or sum(map(str.isalpha, stretch.text)) < MIN_LETTERS:
            continue
        if span := _locate(stretch.text, page.text):
            found.append(_finding(stretch, page, span))
    return found


def _finding(stretch: Stretch, page: Page, span: tuple[int, int]) -> Finding:
    message = (
        f"Text that a reader cannot see ({stretch.why}). It is kept from the model; look at where the file comes from."
    )
    return Finding(RULE, Verdict.HOLD, *span, message, SOURCE, page.text[slice(*span)])


def _locate(stretch: str, text: str) -> tuple[int, int] | None:
    """Where a stretch stands in a text, white space aside."""
    wanted = "".join(stretch.split())
    places = [place for place, character in enumerate(text) if not character.isspace()]
    start = "".join(text[place] for place in places).find(wanted)
    return None if start < 0 else (places[start], places[start + len(wanted) - 1] + 1)
