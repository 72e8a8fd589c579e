"""Which claims deny something of everything, and which sentences say so outright."""

from __future__ import annotations

import pytest

from safety.denials import is_general_denial, is_said_outright


@pytest.mark.parametrize(
    ("claim", "evidence"),
    [
        ("She has no known allergies.", "Allergies\nNone known"),
        ("No known allergies.", "Allergies: NKDA"),
        ("She has no history of stroke.", "There is no history of stroke."),
        ("He never smoked.", "Never smoker."),
        ("She takes no regular medication.", "Takes no regular medication."),
        ("She has no allergies to penicillin.", "No allergies to penicillin."),
        ("患者无药物过敏史。", "否认药物过敏史。"),
    ],
)
def test_a_passage_that_says_so_is_enough(claim: str, evidence: str) -> None:
    assert is_general_denial(claim)
    assert is_said_outright(claim, [evidence])


@pytest.mark.parametrize(
    ("claim", "evidence"),
    [
        ("She has no allergies.", "Allergies reviewed at the desk. No chest pain."),
        ("She has no allergies.", "No allergies to penicillin."),
        ("She has no history of stroke.", "CT head: no acute stroke."),
        ("There is no history of diabetes.", "No history of hypertension. Diabetes is not mentioned."),
    ],
)
def test_a_narrower_denial_is_not(claim: str, evidence: str) -> None:
    assert is_general_denial(claim)
    assert not is_said_outright(claim, [evidence])


@pytest.mark.parametrize(
    "claim", ["She denies chest pain.", "Apixaban was not given.", "She is allergic to penicillin."]
)
def test_a_denial_of_one_moment_is_no_general_one(claim: str) -> None:
    assert not is_general_denial(claim)
