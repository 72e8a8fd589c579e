"""A quote is found in a text read in another way, exactly, and never where something else stands."""

from __future__ import annotations

import pytest

from retrieval.alignment import locate

PAGE = (
    "Seen on 3 March. Stop ibuprofen; apixaban 2.5 mg twice daily, potassium 4.9 mmol/L. No fibrillation in 10² beats."
)


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        ("atrial fibrillation", "known atrial \ufb01brillation since"),
        ("atrial fibrillation", "known atrial fibril-\nlation since"),
        ("atrial fibrillation", "known atrial fibril\u00adlation since"),
        ("atrial fibrillation", "known atrial\n  fibrillation since"),
        ("a non-steroidal drug", "for a non-\nsteroidal drug"),
        ("10 mg daily", "takes lO mg daily"),
        ("Il mg", "takes 11 mg"),
        ("the modern form", "in the rnodem form"),
        ("“well” – today", 'felt "well" - today'),
        ("阿司匹林100 mg", "予阿司匹林１００ mg每日"),
    ],
)
def test_a_quote_is_found_however_it_was_read(quote: str, text: str) -> None:
    span = locate(quote, text)
    assert span is not None
    start, end = span
    assert not text[start].isspace()
    assert not text[end - 1].isspace()
    assert text[:start].endswith((" ", "予"))  # and not a character more than the quote
    assert text[end:] == "" or text[end] in " 每"


@pytest.mark.parametrize(
    "quote",
    [
        "apixaban 5 mg twice daily",  # ends as 2.5 mg does
        "5 mg twice daily",
        "apixaban 2.5 mcg twice daily",
        "apixaban 25 mg twice daily",
        "apixaban 2.5 mg once daily",
        "rivaroxaban 2.5 mg twice daily",
        "potassium 4",
        "profen",
        "Start ibuprofen",
        "in 102 beats",
        "...",
        "",
    ],
)
def test_what_is_not_there_is_not_found(quote: str) -> None:
    assert locate(quote, PAGE) is None


def test_of_two_places_the_nearer_one_is_taken() -> None:
    text = "Aspirin 81 mg. Aspirin 81 mg."
    assert locate("Aspirin 81 mg.", text, near=0) == (0, 14)
    assert locate("Aspirin 81 mg.", text, near=14) == (15, 29)


def test_a_litre_is_not_a_figure() -> None:
    assert locate("gave 5 l", "gave 51 ml") is None
