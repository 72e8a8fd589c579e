"""Where a citation's words stand now: a page may have been read anew since the answer was given."""

from __future__ import annotations

from collections.abc import Sequence

from contracts import Citation, Page
from retrieval.alignment import locate


def place_of(citation: Citation, pages: Sequence[Page]) -> tuple[int, int] | None:
    """(start, end) in the text of the cited page; None if the words no longer stand there."""
    text = next((page.text for page in pages if page.number == citation.page), "")
    if _is_same(citation.quote, text[citation.start : citation.end]):
        return citation.start, citation.end
    return locate(citation.quote, text, near=citation.start)


def _is_same(quote: str, stretch: str) -> bool:
    """Sentences kept from the model are blanks in the quote."""
    return len(quote) == len(stretch) and all(a in (b, " ") for a, b in zip(quote, stretch, strict=True))
