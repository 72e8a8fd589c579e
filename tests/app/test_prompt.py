"""The prompt: what stands in it, and what gives way when it does not fit."""

import re

import pytest

from app.prompt import build, citation_form, describe_patient, render
from contracts import ContextLengthError, Message, Passage, Patient, Role


def passage(number: int, text: str) -> Passage:
    return Passage(f"d:{number}", "d", "Letter.pdf", number, 0, len(text), text)


def count_words(messages: list[Message]) -> int:
    return sum(len(message.text.split()) for message in messages)


def test_passages_stand_numbered_with_document_and_page_before_the_question() -> None:
    user = render("What is the dose?", [passage(1, "Apixaban 5 mg."), passage(3, "Weight 72 kg.")])[-1].text
    assert user.index("[1] Letter.pdf, page 1\nApixaban 5 mg.") < user.index("[2] Letter.pdf, page 3\nWeight 72 kg.")
    assert user.endswith("Question: What is the dose?")


def test_a_follow_up_keeps_the_prefix_of_the_turn_before() -> None:
    first = render("What is the dose?", [passage(1, "Apixaban 5 mg.")])
    second = render("Since when?", [passage(1, "Apixaban 5 mg.")], [("What is the dose?", "5 mg [1].")])
    assert second[: len(first)] == first
    assert [message.role for message in second] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER]


def test_citations_of_earlier_answers_are_dropped() -> None:
    messages = render("Since when?", [], [("What is the dose?", "5 mg [1]. Twice a day [2][3].")])
    assert messages[2].text == "5 mg. Twice a day."


def test_the_patient_is_described_without_the_name() -> None:
    patient = Patient(name="Margaret Ellis", sex="female", age_years=74, egfr_ml_min=38)
    assert describe_patient(patient) == "Patient: female, 74 years, eGFR 38 mL/min."
    assert describe_patient(Patient(name="Margaret Ellis")) == ""


def test_old_turns_give_way_before_passages_and_the_last_passage_before_the_first() -> None:
    passages = [passage(1, "one " * 40), passage(2, "two " * 40)]
    history = [("old question " * 30, "old answer " * 30)]
    limit = count_words(render("Now?", passages)) + 5
    messages, kept = build("Now?", passages, history, None, limit, count_words)
    assert kept == passages
    assert len(messages) == 2
    _, kept = build("Now?", passages, history, None, limit - 20, count_words)
    assert kept == passages[:1]


def test_a_question_that_does_not_fit_alone_is_refused_with_both_counts() -> None:
    with pytest.raises(ContextLengthError, match=r"1,0\d\d tokens.*500"):
        build("word " * 1000, [passage(1, "x")], [], None, 500, count_words)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("Apixaban 5 mg [1]. Twice\na day [12][3].", True),
        ("没有 (see note).", True),
        ("Apixaban 5 mg [13].", False),
        ("Apixaban 5 mg [0].", False),
        ("Apixaban 5 mg [1, 2].", False),
        ("阿哌沙班【1】", False),
        ("[redacted]", False),
        ("Apixaban [1", False),
        ("", False),
    ],
)
def test_brackets_hold_the_numbers_of_passages_only(text: str, fits: bool) -> None:
    assert bool(re.fullmatch(citation_form(12).text, text)) == fits
