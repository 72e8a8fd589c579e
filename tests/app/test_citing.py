"""A citation is marked where its words stand, also after its page was read anew, and nowhere else."""

from __future__ import annotations

from app.citing import place_of
from contracts import Citation, Page

CITATION = Citation(1, "d", "scan.pdf", 2, 6, 26, "apixaban 5 mg daily.")


def place(text: str) -> tuple[int, int] | None:
    return place_of(CITATION, [Page(1, "apixaban 5 mg daily."), Page(2, text)])


def test_words_where_they_were_are_marked_there() -> None:
    assert place("Takes apixaban 5 mg daily. Later apixaban 5 mg daily.") == (6, 26)


def test_words_that_moved_are_marked_where_they_are() -> None:
    text = "She now takes\napix-\naban 5 mg daily."
    span = place(text)
    assert span is not None
    assert text[slice(*span)] == "apix-\naban 5 mg daily."


def test_words_that_are_gone_are_not_marked() -> None:
    assert place("Takes apixaban 2.5 mg daily. Stop at 5 mg daily.") is None
    assert place("") is None


def test_a_blanked_sentence_within_a_quote_keeps_its_place() -> None:
    blanked = Citation(1, "d", "scan.pdf", 1, 0, 17, "BP fine.       Hb")
    assert place_of(blanked, [Page(1, "BP fine. Obey! Hb 13")]) == (0, 17)
