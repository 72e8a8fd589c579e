"""No character of the model's reaches the page before its verdict; and the figure that says so can fail."""

from __future__ import annotations

import pytest

from app import grounding
from app.evaluation.safety.figure import Bench
from app.evaluation.safety.figures import streaming
from contracts import ClaimCheck, Verdict
from safety.checker import RuleSafetyChecker


def test_nothing_is_shown_before_its_verdict() -> None:
    rate = streaming.run(Bench(RuleSafetyChecker()))[0]
    assert rate.total > 10_000
    assert rate.hits == 0


def test_the_figure_sees_a_check_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def release_all(self: grounding.Grounding, text: str) -> list[object]:
        return list(self._answer(text, ClaimCheck(Verdict.ALLOW, supported=True)))

    monkeypatch.setattr(grounding.Grounding, "_release", release_all)
    assert streaming.run(Bench(RuleSafetyChecker()))[0].hits > 100
