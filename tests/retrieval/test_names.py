"""A patient's name says whose record is meant and is no word to search for."""

from __future__ import annotations

import pytest

from retrieval.names import holds_name, without_name


@pytest.mark.parametrize(
    ("question", "name", "rest"),
    [
        ("What was Ann Lee's BMI on 2010-11-30?", "Ann Lee", "What was BMI on 2010-11-30?"),
        ("Pulse result for patient Ann Lee measured today", "Ann Lee", "Pulse result measured today"),
        ("ann lee: insulin", "Ann Lee", "insulin"),
        ("张伟的血压多少", "张伟", "血压多少"),
        ("Ann Lee", "Ann Lee", "Ann Lee"),
    ],
)
def test_name_is_taken_out_of_a_question(question: str, name: str, rest: str) -> None:
    assert holds_name(question, name)
    assert without_name(question, name) == rest


@pytest.mark.parametrize("name", ["Ann", "", "Ann Leeson", "Bob Roe"])
def test_what_is_not_the_whole_name_stays(name: str) -> None:
    question = "What was Ann Lee's BMI?"
    assert not holds_name(question, name)
    assert without_name(question, name) == question
