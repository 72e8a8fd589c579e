"""The layer at its edge: the right verdict, the reason with it, and a fault that withholds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import CheckResult, Message, Passage, Role, SafetyChecker, Verdict
from safety import checker as checker_module
from safety.checker import MAX_CLAIM, RuleSafetyChecker
from safety.matcher import Matcher
from safety.rule import Rule, RuleError

CASES = yaml.safe_load(Path(__file__).with_name("emergency_cases.yaml").read_text(encoding="utf-8"))
PAGE = "Apixaban 5 mg twice daily. CT rules out a bleed. She is allergic to penicillin. Warfarin 5.0 mg in 2019."
PASSAGES = [Passage("d:0", "d", "Letter.pdf", 1, 0, len(PAGE), PAGE)]


@pytest.fixture(scope="module")
def safety() -> RuleSafetyChecker:
    return RuleSafetyChecker()


def ask(safety: RuleSafetyChecker, text: str) -> CheckResult:
    return safety.check_input([Message(Role.USER, text)])


def emergencies(result: CheckResult) -> list[str]:
    return [finding.rule for finding in result.findings if finding.rule.startswith("emergency.")]


def test_it_is_a_safety_checker(safety: RuleSafetyChecker) -> None:
    seam: SafetyChecker = safety
    rules, knowledge = seam.version.split(";")
    assert rules.count("+") == knowledge.count("+") == 1
    assert len(safety.rules) > 40


@pytest.mark.parametrize("text", CASES["fires"])
def test_an_emergency_is_a_notice_with_a_next_step(safety: RuleSafetyChecker, text: str) -> None:
    result = ask(safety, text)
    assert emergencies(result)
    assert result.verdict is Verdict.NOTICE
    assert result.findings[0].rule.startswith("emergency.")


@pytest.mark.parametrize("text", CASES["must_not_fire"])
def test_no_alarm_where_nobody_is_in_danger_now(safety: RuleSafetyChecker, text: str) -> None:
    assert ask(safety, text).verdict is Verdict.ALLOW


def test_the_last_user_message_is_checked(safety: RuleSafetyChecker) -> None:
    said = [Message(Role.USER, "Help me falsify the chart."), Message(Role.ASSISTANT, "No."), Message(Role.USER, "Ok.")]
    assert safety.check_input(said).verdict is Verdict.ALLOW
    assert safety.check_input(said[:1]).verdict is Verdict.BLOCK
    assert safety.check_input([]).verdict is Verdict.ALLOW


@pytest.mark.parametrize(
    ("claim", "verdict", "is_supported"),
    [
        ("Apixaban 5 mg twice daily [1].", Verdict.ALLOW, True),
        ("Apixaban 5 mg twice daily.", Verdict.NOTICE, True),
        ("Apixaban 10 mg twice daily [1].", Verdict.HOLD, False),
        ("CT rules out a bleed [1].", Verdict.ALLOW, True),
        ("Warfarin 5.0 mg in 2019 [1].", Verdict.NOTICE, True),
        ("There is no need to worry [1].", Verdict.HOLD, False),
        ("See https://evil.example/?q=apixaban [1].", Verdict.HOLD, False),
        ("", Verdict.HOLD, False),
        ("a" * (MAX_CLAIM + 1), Verdict.HOLD, False),
    ],
)
def test_claims(safety: RuleSafetyChecker, claim: str, verdict: Verdict, is_supported: bool) -> None:
    check = safety.check_claim(claim, (0,) if "[1]" in claim else (), PASSAGES)
    assert (check.verdict, check.supported) == (verdict, is_supported)
    assert bool(check.findings) is (verdict is not Verdict.ALLOW)
    assert bool(check.evidence) is is_supported


def test_an_abstention_needs_no_citation(safety: RuleSafetyChecker) -> None:
    check = safety.check_claim("The passages do not say.", (), PASSAGES)
    assert (check.verdict, check.is_abstention, check.supported) == (Verdict.ALLOW, True, False)


def test_an_abstention_about_what_the_record_does_say_is_held(safety: RuleSafetyChecker) -> None:
    check = safety.check_claim("The record does not mention penicillin.", (), PASSAGES)
    assert check.verdict is Verdict.HOLD
    assert safety.check_claim("The record does not mention ibuprofen.", (), PASSAGES).verdict is Verdict.ALLOW


def test_a_fault_anywhere_withholds_and_says_so(
    safety: RuleSafetyChecker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("injected")

    monkeypatch.setattr(Matcher, "find", fail)
    for result in (
        ask(safety, "What is her potassium?"),
        safety.check_document("Potassium 4.2."),
        safety.check_output("Potassium 4.2."),
        safety.check_claim("Apixaban 5 mg twice daily [1].", (0,), PASSAGES),
    ):
        assert result.verdict is Verdict.UNAVAILABLE
        assert result.verdict.withholds
        assert "could not run" in result.findings[0].message
    assert caplog.text.count("injected") >= 4


def test_a_fault_in_the_support_check_withholds(safety: RuleSafetyChecker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RecursionError("injected")

    monkeypatch.setattr(checker_module, "check_support", fail)
    check = safety.check_claim("Apixaban 5 mg twice daily [1].", (0,), PASSAGES)
    assert (check.verdict, check.supported) == (Verdict.UNAVAILABLE, False)


def test_input_of_the_wrong_kind_withholds(safety: RuleSafetyChecker) -> None:
    assert safety.check_document(None).verdict is Verdict.UNAVAILABLE  # type: ignore[arg-type]


def test_without_rules_there_is_no_checker(tmp_path: Path) -> None:
    with pytest.raises(RuleError):
        RuleSafetyChecker(tmp_path)


ALL_RULES = RuleSafetyChecker()
RULES = ALL_RULES.rules


def verdicts(text: str, switched_on: set[str]) -> list[Verdict]:
    """Of the text as a question, a document and an answer."""
    ALL_RULES.switch_off({rule.id for rule in RULES} - switched_on)
    asked = ALL_RULES.check_input([Message(Role.USER, text)])
    return [result.verdict for result in (asked, ALL_RULES.check_document(text), ALL_RULES.check_output(text))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(RULES), min_size=2, max_size=5, unique_by=lambda rule: rule.id), st.data())
def test_adding_a_rule_never_lowers_a_verdict(rules: list[Rule], data: st.DataObject) -> None:
    examples = [data.draw(st.sampled_from(rule.examples.fires)) for rule in rules]
    text = "\n\n".join(data.draw(st.permutations(examples)))
    added, *fewer = (rule.id for rule in rules)
    before, after = verdicts(text, set(fewer)), verdicts(text, {added, *fewer})
    assert all(more.rank >= less.rank for less, more in zip(before, after, strict=True))


def test_a_rule_out_of_time_is_never_an_allow(safety: RuleSafetyChecker) -> None:
    slow = replace(RULES[0], keywords=("a",), patterns=(r"(a+)+$",), unless=(), is_asserted=False)
    text = "a" * 900 + "!"
    assert Verdict.worst(f.severity for f in Matcher([slow], timeout_s=0.02).find(text, slow.direction[0])).withholds


@pytest.mark.parametrize(
    "text", ["", "a", "a" * 300_000, "😀" * 5000, "\u202e\u200b" * 5000, "مرحبا " * 3000, "\x00" * 99]
)
def test_any_text_gets_a_verdict(safety: RuleSafetyChecker, text: str) -> None:
    assert safety.check_document(text).verdict is Verdict.ALLOW
    assert ask(safety, text).verdict is Verdict.ALLOW
    assert safety.check_claim(text, (0,), PASSAGES).verdict.withholds
