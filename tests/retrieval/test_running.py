"""Running headers and footers are marked; what a page says never is, however often it stands there."""

from __future__ import annotations

import pytest

from contracts import FactKind, Page, Passage
from retrieval.letterhead import running_lines
from retrieval.reading.facts import find_facts

HEAD = "Northmoor General Hospital · Rapid access chest pain clinic"
ADVICE = "Rest for a week.\nReview in May."
NEWS = "Drink more.\nThe wound is clean."


def marked(*texts: str) -> dict[int, list[str]]:
    """Page number -> its running lines."""
    pages = [Page(number, text) for number, text in enumerate(texts, 1)]
    return {
        number: [pages[number - 1].text[f.start : f.end] for f in noticed.facts if f.kind is FactKind.REPEATED]
        for number, noticed in find_facts(pages).items()
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (HEAD, HEAD),
        ("Discharge letter, page 1 of 2", "Discharge letter, page 2 of 2"),
        ("- 1/2 -", "- 2/2 -"),
        ("Patient: Daniel Okafor, printed at noon", "Patient: Daniel Okafor, printed at noon"),
        ("患者：李薇 第1页 共2页", "患者：李薇 第2页 共2页"),
    ],
)
def test_what_names_a_place_a_page_or_the_patient_runs_over_two_pages(one: str, other: str) -> None:
    assert marked(f"{one}\n\n{ADVICE}", f"{other}\n\n{NEWS}") == {1: [one], 2: [other]}
    assert marked(f"{ADVICE}\n\n{one}", f"{NEWS}\n\n{other}") == {1: [one], 2: [other]}


def test_a_line_that_names_nothing_must_stand_on_three_pages() -> None:
    pages = [f"Sample agreement\n\n{text}" for text in (ADVICE, NEWS, "Swim daily.\nThe scar itches.")]
    assert marked(*pages[:2]) == {1: [], 2: []}
    assert marked(*pages) == {number: ["Sample agreement"] for number in (1, 2, 3)}


@pytest.mark.parametrize(
    "line",
    [
        "Allergies: penicillin",
        "Okafor, Daniel | MRN: A-4711 | Allergy: penicillin",
        "Aspirin 75 mg once daily on the ward",
        "Blood pressure 152/94 on the ward",
        "She was seen on the ward.",
    ],
)
def test_content_at_the_edge_of_both_pages_is_no_running_line(line: str) -> None:
    assert marked(f"{line}\n\n{ADVICE}", f"{line}\n\n{NEWS}") == {1: [], 2: []}


def test_nothing_below_the_first_content_is_a_running_line() -> None:
    head = f"{HEAD}\nMedications\nAspirin, from the clinic"
    assert marked(*(f"{head}\n\n{text}\nSeen by Dr Nair" for text in (ADVICE, NEWS))) == {1: [HEAD], 2: [HEAD]}


def test_a_page_that_was_scanned_twice_proves_nothing() -> None:
    page = f"{HEAD}\n\n{ADVICE}"
    assert marked(page, page) == {1: [], 2: []}


def test_dates_in_a_header_are_no_values() -> None:
    head = "Patient: Daniel Okafor DOB: 19/07/1979"
    assert marked(f"{head}\n\n{ADVICE}", f"{head}\n\n{NEWS}") == {1: [head], 2: [head]}


@pytest.mark.parametrize(
    ("question", "is_asked"),
    [
        ("What does the chest pain feel like?", False),
        ("When is the clinic?", False),
        ("Why was she sent to hospital?", False),
        ("Which hospital was he seen in?", True),
        ("Where was he treated?", True),
        ("What is his date of birth?", True),
        ("她的病历号是什么？", True),
    ],
)
def test_a_letterhead_answers_only_who_asks_for_it(question: str, is_asked: bool) -> None:
    texts = [f"{HEAD}\n\n{ADVICE}", f"{HEAD}\n\n{NEWS}"]
    facts = {"d": find_facts([Page(number, text) for number, text in enumerate(texts, 1)])}
    start = 10  # the second passage begins in the midst of the header
    passages = [
        Passage("d:0", "d", "Letter.pdf", 1, 0, len(texts[0]), texts[0]),
        Passage("d:1", "d", "Letter.pdf", 2, start, len(texts[1]), texts[1][start:]),
    ]
    found = running_lines(question, passages, facts)
    assert found == ([] if is_asked else [(0, 0, len(HEAD)), (1, 0, len(HEAD) - start)])
