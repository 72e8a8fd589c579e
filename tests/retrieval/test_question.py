"""What a question refers back to, wants whole, and when: read off its words."""

from __future__ import annotations

from datetime import date

import pytest

from contracts import SectionKind
from retrieval.question import Period, standalone, understand

TODAY = date(2026, 11, 26)


@pytest.mark.parametrize(
    ("question", "earlier", "searched"),
    [
        ("And since when?", ["Is she on warfarin?"], "Is she on warfarin? And since when?"),
        ("What about the left?", ["Any swelling of the knees?"], "Any swelling of the knees? What about the left?"),
        ("and why?", ["Is he on metoprolol?", "Since when?"], "Is he on metoprolol? Since when? and why?"),
        ("Dose?", ["Is he on metoprolol?"], "Is he on metoprolol? Dose?"),
        ("那剂量呢", ["她用华法林吗"], "她用华法林吗 那剂量呢"),
        ("Why was apixaban stopped?", ["Is she pregnant?"], "Why was apixaban stopped?"),
        ("Which drug lowers potassium?", ["Is she pregnant?"], "Which drug lowers potassium?"),
        ("And since when?", [], "And since when?"),
    ],
)
def test_follow_up_is_searched_with_what_it_refers_to(question: str, earlier: list[str], searched: str) -> None:
    assert standalone(question, earlier) == searched


@pytest.mark.parametrize(
    ("question", "kinds"),
    [
        ("Any allergies?", {SectionKind.ALLERGIES}),
        ("What medications is she taking?", {SectionKind.MEDICATIONS}),
        ("List all diagnoses and operations", {SectionKind.PROBLEMS, SectionKind.PROCEDURES}),
        ("Has she ever had surgery?", {SectionKind.PROCEDURES}),
        ("有哪些过敏", {SectionKind.ALLERGIES}),
        ("What was the diagnosis in the letter?", set()),
        ("What is the potassium?", set()),
        ("All medications since the operation?", {SectionKind.MEDICATIONS}),
        ("Any drug abuse?", set()),
    ],
)
def test_what_enumerates_or_denies_wants_a_whole_type(question: str, kinds: set[SectionKind]) -> None:
    assert set(understand(question, [], TODAY).kinds) == kinds


def test_trend_wants_every_mention() -> None:
    assert understand("Trend of potassium over time?", [], TODAY).series == {"potassium"}
    assert understand("List all creatinine values in 2019", [], TODAY).series == {"creatinin"}
    assert understand("What was the potassium?", [], TODAY).series == frozenset()


@pytest.mark.parametrize(
    ("question", "period", "event"),
    [
        ("Results in 2019?", Period("2019-01-01", "2019-12-31"), ""),
        ("Seizures since 2020?", Period("2020-01-01"), ""),
        ("Weight before March 3, 2020", Period("", "2020-03-03"), ""),
        ("Any falls in the last six months?", Period("2026-05-27"), ""),
        ("Visits last year", Period("2025-11-26"), ""),
        ("2019年的手术", Period("2019-01-01", "2019-12-31"), ""),
        ("Pain since the operation?", Period(), "operation"),
        ("BMI on 2010-11-30", Period(), ""),
    ],
)
def test_stretch_of_time_is_read_off_the_question(question: str, period: Period, event: str) -> None:
    asked = understand(question, [], TODAY)
    assert (asked.period, asked.event) == (period, event)
