"""Concepts: found where a word begins as their phrases do, and none of them can be made to take for ever."""

from __future__ import annotations

import re
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import Direction, Message, Role, Verdict
from safety.beginnings import beginnings
from safety.checker import RuleSafetyChecker
from safety.concepts import _expand, find_concepts, is_alarm, known_concepts
from safety.lexicon import concepts
from safety.matcher import Matcher
from safety.rule import Rule
from safety.rule_files import load_rules
from safety.sentences import sentence_spans

PHRASES = [
    (name, _expand(phrase, concepts()["words"]))
    for name, languages in concepts()["concepts"].items()
    for phrases in languages.values()
    for phrase in phrases
]
RULES = load_rules().rules


def found(text: str) -> set[str]:
    return {hit.concept for hit in find_concepts(text, sentence_spans(text), 5.0) if is_alarm(text, hit)}


@pytest.mark.parametrize(
    ("text", "concept", "is_found"),
    [
        ("he has chest pain", "chest-pain", True),
        ("he denies chest pain", "chest-pain", False),
        ("there is pressure across his chest", "chest-pain", True),
        ("she can't breathe", "breathless", True),
        ("bp 74/40", "low-bp", True),
        ("bp 124/80", "low-bp", False),
        ("spo2 82%", "low-sats", True),
        ("a seizure in 2015", "seizure", False),
        ("his father had a stroke", "stroke", False),
        ("not making sense, sugar 2.1", "hypoglycaemia", True),
        ("患者突发胸痛", "chest-pain", True),
        ("否认胸痛", "chest-pain", False),
        ("胸口不疼", "chest-pain", False),
        ("胸口很疼", "chest-pain", True),
    ],
)
def test_a_concept_is_found_where_it_is_so(text: str, concept: str, is_found: bool) -> None:
    assert (concept in found(text)) is is_found


def test_no_phrase_begins_with_anything_or_repeats_a_repetition() -> None:
    for _, pattern in PHRASES:
        assert beginnings(pattern)


@pytest.mark.parametrize(
    ("pattern", "says"), [(r"(?:a+)+b", "repeats a repetition"), (r"\w+ pain", "may begin with anything")]
)
def test_a_phrase_that_could_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        beginnings(pattern)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PHRASES), st.integers(2, 300))
def test_beginnings_hold_for_whatever_a_phrase_matches(phrase: tuple[str, str], count: int) -> None:
    _, pattern = phrase
    text = " ".join(re.findall(r"[a-z]+", pattern) * count)[:900]
    started = perf_counter()
    for match in re.finditer(r"[a-z0-9]+|[\u3400-\u9fff]", text):
        if re.compile(pattern).match(text, match.start()):
            word = match.group()
            assert any(word.startswith(key) or f"{word} " == key for key in beginnings(pattern))
    assert perf_counter() - started < 60  # a bound on a hang, not a time


def test_a_text_that_takes_too_long_is_a_finding_that_withholds() -> None:
    rules = [rule for rule in RULES if rule.when]
    (finding,) = Matcher(rules, timeout_s=0.0).find("He has chest pain. He is grey.", Direction.INPUT)
    assert finding.severity is Verdict.UNAVAILABLE


def test_a_condition_on_a_concept_that_is_not_there_is_named() -> None:
    names = {name for rule in RULES for condition in rule.conditions for name in condition}
    assert names <= known_concepts()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.when], ids=lambda rule: rule.id)
def test_an_examination_question_is_no_emergency(rule: Rule) -> None:
    for example in rule.examples.fires:
        assert not Matcher([rule]).find(f"Which of the following is true? {example}", Direction.INPUT)


def test_one_that_is_named_stands_for_the_vague_one() -> None:
    found = RuleSafetyChecker().check_input([Message(Role.USER, "Sudden crushing chest pain, pale and sweating.")])
    assert found.findings[0].rule == "emergency.acute-coronary"
    assert "emergency.possible" not in {finding.rule for finding in found.findings}
