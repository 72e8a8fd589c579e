"""What a passage stands under goes with it where its own words leave it out, and never over what is not of it."""

from __future__ import annotations

import pytest

from contracts import Page, Passage
from retrieval.context import find_contexts, with_sections
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


def test_a_table_goes_on_below_the_header_of_the_next_page() -> None:
    head = "Northmoor General Hospital, page"
    texts = [
        f"{head} 1\n\nDrug | Dose\nAspirin | 75 mg\nRamipril | 5 mg\nSeen by the ward",
        f"{head} 2\n\nBisoprolol | 2.5 mg\nMetformin | 1 g\nSeen by the ward",
    ]
    facts = {"d": find_facts([Page(number, text) for number, text in enumerate(texts, 1)])}
    cut = len(f"{head} 1")
    spans = [(1, 0, cut), (1, cut + 2, len(texts[0])), (2, 0, cut), (2, cut + 2, len(texts[1]))]
    passages = [
        Passage(f"d:{n}", "d", "List.pdf", page, start, end, texts[page - 1][start:end])
        for n, (page, start, end) in enumerate(spans)
    ]
    whole = [passages[1], Passage("d:9", "d", "List.pdf", 2, 0, len(texts[1]), texts[1])]
    for given in (passages, whole):  # the header by itself, and before the rows
        found = find_contexts(given, facts, {passage.id for passage in given})
        assert [found[passage.id] for passage in given][-1] == "columns: Drug | Dose"
