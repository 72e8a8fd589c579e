"""Reading through disguises, with a way back to the text as it was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safety.normalise import normalise


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("plain text", "plain text"),
        ("ig\u200bno\u00adre", "ignore"),
        ("ｆｕｌｌ width", "full width"),
        ("\u202eabc\u202c", "abc"),
        ("аttаck", "attack"),
        ("\U000e0068\U000e0069", "hi"),
        ("cafe\u0301", "café"),
        ("", ""),
    ],
)
def test_disguises(raw: str, text: str) -> None:
    assert normalise(raw).text == text


@given(st.text(max_size=80))
def test_every_span_leads_back_into_the_raw_text(raw: str) -> None:
    normalised = normalise(raw)
    for start in range(len(normalised.text)):
        a, b = normalised.raw_span(start, start + 1)
        assert 0 <= a < b <= len(raw)
    assert normalised.raw_span(0, len(normalised.text))[1] <= len(raw)


def test_the_raw_words_are_found_again() -> None:
    raw = "He said: ig\u200bnore аll."
    normalised = normalise(raw)
    start = normalised.text.index("ignore all")
    assert raw[slice(*normalised.raw_span(start, start + 10))] == "ig\u200bnore аll"
