"""What counts as a contradiction between passages, and what the record explains."""

from __future__ import annotations

import pytest

from contracts import Passage
from safety.conflicts import Conflict, find_conflicts


def find(*texts: str, written: tuple[str, ...] = ()) -> list[Conflict]:
    passages = [
        Passage(f"{number}:0", str(number), f"{number}.pdf", 1, 0, len(text), text) for number, text in enumerate(texts)
    ]
    return find_conflicts(passages, written or [""] * len(texts))


@pytest.mark.parametrize(
    ("rule", "subject", "one", "other"),
    [
        ("dose", "metformin", "Metformin 500 mg twice daily.", "He takes metformin 1000 mg twice daily."),
        ("dose", "metformin", "Metformin 500 mg once daily.", "Metformin 500 mg b.i.d."),
        ("dose", "apixaban", "Apixaban | 5 mg | twice daily", "On apixaban 2.5 mg twice daily for his AF."),
        ("dose", "levothyroxine", "Levothyroxine 100 mcg daily", "- levothyroxine 0.125 mg daily"),
        ("dose", "二甲双胍", "二甲双胍 500 mg 每日两次", "二甲双胍 1000 mg 每日两次"),
        ("allergy", "penicillins", "She is allergic to penicillin.", "No known drug allergies."),
        ("allergy", "penicillins", "Allergies:\n- Penicillin (rash)", "NKDA."),
        ("allergy", "ibuprofen", "Allergic to ibuprofen.", "She is not allergic to ibuprofen."),
        ("allergy", "latex", "Allergic to latex.", "Allergies: none known"),
        ("allergy", "青霉素", "青霉素过敏。", "否认药物过敏史。"),
        ("date", "appendicectomy", "Appendicectomy in 2012.", "He had an appendicectomy in March 2010."),
        ("date", "mastectomy", "1999: Mastectomy", "Mastectomy (1998)"),
        ("date", "mastectomy", "PSH: mastectomy 1999, hernia repair 2001.", "Mastectomy | 1998"),
        ("date", "the diagnosis of diabetes", "Type 2 diabetes diagnosed in 2012.", "Diagnosed with diabetes in 2015."),
        ("side", "fracture", "Fracture of the right hip.", "Admitted with a left hip fracture."),
        ("side", "nephrectomy", "Right nephrectomy in 2015.", "Left nephrectomy in 2015."),
        ("side", "effusion", "Right-sided pleural effusion.", "Large left pleural effusion."),
    ],
)
def test_a_contradiction_is_found_with_both_sentences(rule: str, subject: str, one: str, other: str) -> None:
    (conflict,) = find(f"Seen in clinic.\n{one}", other)
    assert (conflict.rule, conflict.subject) == (f"conflict.{rule}", subject)
    first, second = conflict.places
    assert (first.passage, second.passage) == (0, 1)
    assert f"Seen in clinic.\n{one}"[first.start : first.end] == one.split("\n")[-1]
    assert other[second.start : second.end] == other


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Metformin 1 g once daily.", "Metformin 1000 mg daily."),
        ("Metformin 1 g once daily.", "Metformin 500 mg twice a day."),  # as much a day
        ("Apixaban 2.5 mg twice daily. Apixaban was increased to 5 mg.", "Apixaban 5 mg twice daily."),
        ("Aspirin 300 mg was given in the ED.", "Aspirin 75 mg daily."),
        ("Aspirin 300 mg loading dose.", "Aspirin 75 mg daily."),
        ("Prednisolone 40 mg for 5 days, then 20 mg.", "Prednisolone 20 mg daily."),
        ("Ramipril 5 mg daily.", "Consider ramipril 10 mg daily."),
        ("Paracetamol 500-1000 mg as needed.", "Paracetamol 1000 mg as needed."),
        ("Insulin 10 units at night.", "Insulin 6 units with meals."),
        ("Bisoprolol 2.5 mg daily.", "Ramipril 5 mg daily."),
        ("No known drug allergies.", "Allergic to latex."),
        ("Allergic to penicillin. No other known allergies.", "Penicillin allergy."),
        ("Her mother is allergic to penicillin.", "No known allergies."),
        ("Appendicectomy in 2012.", "Appendicectomy (March 2012)."),
        ("Colonoscopy in 2012.", "Colonoscopy in 2015."),  # happens more than once
        ("Appendicectomy in 2012.", "Reviewed in 2013 after appendicectomy."),
        ("Right pleural effusion.", "Bilateral pleural effusions."),
        ("Right hip fracture.", "Left wrist fracture."),
        ("Right hip fracture.", "No left hip fracture."),
        ("Right knee pain.", "Left knee pain."),
    ],
)
def test_what_the_record_explains_is_no_contradiction(one: str, other: str) -> None:
    assert find(one, other) == []


def test_a_dose_in_notes_of_different_dates_was_changed() -> None:
    one, other = "Metformin 500 mg twice daily.", "Metformin 1000 mg twice daily."
    assert find(one, other, written=("2025-01-07", "2026-02-11")) == []
    assert find(one, other, written=("2026-02-11", "2026-02-11"))


def test_an_allergy_may_be_found_after_a_denial_and_not_before_one() -> None:
    allergic, denied = "Allergic to penicillin.", "No known allergies."
    assert find(denied, allergic, written=("2025-01-07", "2026-02-11")) == []
    assert find(denied, allergic, written=("2026-02-11", "2025-01-07"))


@pytest.mark.parametrize(
    ("allergic", "denied"),
    [
        ("Allergies: codeine (rash), aspirin (nausea).", "Allergies\nNone known"),
        ("Allergen | Reaction\nCodeine | rash\nAspirin | nausea", "NKDA"),
        ("Allergy: codeine.", "Drug allergies: none"),
    ],
)
def test_an_allergy_and_its_denial_are_found_in_lists_and_tables(allergic: str, denied: str) -> None:
    assert ("conflict.allergy", "codeine") in [(found.rule, found.subject) for found in find(allergic, denied)]
