"""What a passage stands under goes with it where its own words leave it out, and never over what is not of it."""

from __future__ import annotations

import pytest

from contracts import Page, Passage
from retrieval.context import with_sections
from retrieval.reading.facts import find_facts

PAGE = (
    "ALLERGIES\nPenicillin: rash.\nLatex: hives.\n\nFAMILY HISTORY\nHeart attack at 52.\nStroke at 70.\n\n"
    "PLAN\nReview in May."
)


@pytest.mark.parametrize(
    ("first", "last", "section"),
    [
        ("ALLERGIES", "hives.", ""),  # it holds the title itself
        ("Latex", "hives.", "ALLERGIES"),
        ("Latex", "at 52.", ""),  # it goes on into another section
        ("Stroke", "at 70.", "FAMILY HISTORY"),
        ("Stroke", "in May.", "FAMILY HISTORY"),  # and still is the family's
    ],
)
def test_a_passage_has_the_title_of_the_section_that_it_stands_in(first: str, last: str, section: str) -> None:
    start, end = PAGE.index(first), PAGE.index(last) + len(last)
    passage = Passage("d:0", "d", "Letter.pdf", 1, start, end, PAGE[start:end])
    (titled,) = with_sections([passage], {"d": find_facts([Page(1, PAGE)])})
    assert (titled.section, titled.text, titled.context) == (section, passage.text, "")
