"""Nothing reaches the page without a verdict: with the check taken away the model's words are gone, not let through."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.grounding import Grounding
from contracts import Claim, ClaimCheck, ClaimKind, Finding, Passage, Patient, Verdict
from safety.checker import RuleSafetyChecker

PAGE = "Apixaban 5 mg twice daily. Potassium was 4.2 mmol/L. She has chest pain."
PASSAGES = [Passage("d:0", "d", "Letter.pdf", 1, 0, len(PAGE), PAGE)]
ANSWER = "Apixaban 5 mg twice daily [1]. Potassium was 4.2 mmol/L [1]. Apixaban 50 mg twice daily [1]. "


class Recorder(RuleSafetyChecker):
    """The product's checker, which writes down what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.checked: list[str] = []

    def check_claim(
        self, claim: str, cited: Sequence[int], passages: Sequence[Passage], patient: Patient | None = None
    ) -> ClaimCheck:
        self.checked.append(claim)
        return super().check_claim(claim, cited, passages, patient)


class Absent(Recorder):
    """A check that is not there: every claim comes back `unavailable`."""

    def check_claim(
        self, claim: str, cited: Sequence[int], passages: Sequence[Passage], patient: Patient | None = None
    ) -> ClaimCheck:
        fault = Finding("checker.fault", Verdict.UNAVAILABLE, 0, len(claim), "The check could not run.")
        return ClaimCheck(Verdict.UNAVAILABLE, supported=False, findings=(fault,))


def stream(checker: Recorder, size: int) -> list[Claim]:
    grounding = Grounding("What is the dose of apixaban?", PASSAGES, checker)
    pieces = [ANSWER[place : place + size] for place in range(0, len(ANSWER), size)]
    claims = [claim for piece in pieces for claim in grounding.feed(piece)]
    return claims + grounding.finish("stop")


def words(claims: list[Claim]) -> list[str]:
    """What is drawn of the model's own words."""
    return [claim.text for claim in claims if claim.kind in (ClaimKind.ANSWER, ClaimKind.ABSTENTION)]


@pytest.mark.parametrize("size", [1, 3, 17, 1000])
def test_every_word_of_the_model_that_is_drawn_was_checked(size: int) -> None:
    checker = Recorder()
    shown = words(stream(checker, size))
    assert shown == ["Apixaban 5 mg twice daily.", "Potassium was 4.2 mmol/L."]
    assert all(any(text.rstrip(".") in claim for claim in checker.checked) for text in shown)


@pytest.mark.parametrize("size", [1, 17, 1000])
def test_without_the_check_nothing_of_the_model_is_drawn(size: int) -> None:
    claims = stream(Absent(), size)
    assert [text for text in words(claims) if text in ANSWER] == []
    assert any(claim.kind is ClaimKind.WITHHELD for claim in claims)
    assert all(claim.citations and claim.text in PAGE for claim in claims if claim.kind is ClaimKind.QUOTE)
