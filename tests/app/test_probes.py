"""The clinical probe set holds what the regression report relies on, and its loader refuses anything odd."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from app.evaluation.probes import CATEGORIES, HELD_TEXT, Probe, load_held_text, load_probes, probes_version

ENGLISH = tuple(probe for probe in load_probes() if probe.language == "en")
NUMBER = re.compile(
    r"(?<![A-Za-z\d.])\d+(?:\.\d+)?"
)  # a number in its own right: not the 133 of NG133, not the 12 of B12
# The answers that are reckoned from what is given. Every number of any other answer is quoted.
CALCULATED = frozenset(
    [f"en-dose-{n:03}" for n in (4, 7, 8, 9, 11, 15, 16, 17, 19, 21, *range(24, 32), 33, 34, 35)]
    + [f"en-lab-{n:03}" for n in (9, 11, 16, 22, 29, 30, 34, 37)]
)
GOOD = """
- id: en-dose-001
  category: doses_units
  passage: Apixaban 5 mg twice daily.
  question: Which dose?
  answer: 5 mg twice daily.
  source: SPC apixaban, section 4.2
"""
SECOND = GOOD.replace("en-dose-001", "en-dose-002").replace("Which dose?", "How often?")


def numbers(text: str) -> set[float]:
    return {float(number) for number in NUMBER.findall(text)}


def unfounded_numbers(probe: Probe) -> set[float]:
    """Numbers of the answer that nothing given states and, in a calculated answer, no step of arithmetic makes.

    What one step makes may found the next (mg per mL, then mg); a factor of 1000 is a change of unit.
    """
    founded = numbers(probe.passage) | numbers(probe.question)
    left = numbers(probe.answer) - founded - numbers(probe.source)
    while probe.id in CALCULATED and (made := {number for number in left if is_made(number, founded)}):
        founded |= made
        left -= made
    return left


def is_made(number: float, founded: set[float]) -> bool:
    for a, b in product(founded, founded | {1000.0}):
        if any(abs(result - number) < 1e-6 for result in (a + b, a - b, a * b)):
            return True
        if b and abs(a / b - number) <= 0.01 * number:  # a quotient may be written rounded
            return True
    return False


def read(folder: Path, text: str) -> tuple[Probe, ...]:
    (folder / "en_doses_units.yaml").write_text(text, encoding="utf-8")
    return load_probes(folder)


def test_english_probes_are_many_and_spread_over_every_category() -> None:
    counts = Counter(probe.category for probe in ENGLISH)
    assert set(counts) == set(CATEGORIES)
    assert min(counts.values()) >= 25
    assert counts.total() >= 200


@pytest.mark.parametrize("probe", ENGLISH, ids=lambda probe: probe.id)
def test_every_number_of_an_answer_is_given_or_follows_from_what_is_given(probe: Probe) -> None:
    assert not unfounded_numbers(probe)


def test_a_ten_fold_error_in_an_answer_would_be_found() -> None:
    found = []
    for probe in ENGLISH:
        for match in NUMBER.finditer(probe.answer) if probe.id not in CALCULATED else ():
            wrong = f"{probe.answer[: match.start()]}{float(match[0]) * 10:g}{probe.answer[match.end() :]}"
            found.append(bool(unfounded_numbers(replace(probe, answer=wrong))))
    assert len(found) > 100
    assert sum(found) > 0.97 * len(found)  # not all: ten times one number may be another of the same note


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_model_that_always_says_no_would_not_pass(category: str) -> None:
    answers = [probe.answer for probe in ENGLISH if probe.category == category]
    assert sum(answer.startswith("No") for answer in answers) < 0.67 * len(answers)


def test_no_two_english_probes_share_a_passage_or_an_answer() -> None:
    for key in ("passage", "answer"):
        [(text, times)] = Counter(getattr(probe, key) for probe in ENGLISH).most_common(1)
        assert times == 1, text


def test_a_good_file_is_read_with_the_language_of_its_ids(tmp_path: Path) -> None:
    first, second = read(tmp_path, GOOD + SECOND)
    assert (first.id, first.language, first.answer) == ("en-dose-001", "en", "5 mg twice daily.")
    assert second.question == "How often?"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD + "  unit: mg\n", "probe en-dose-001: unknown key 'unit'"),
        (GOOD + "  question: Again?\n", "the key 'question' is given twice"),
        (GOOD.replace("  source: SPC apixaban, section 4.2\n", ""), "probe en-dose-001: source must be a text"),
        (GOOD.replace("SPC apixaban, section 4.2", "'  '"), "probe en-dose-001: source must be a text"),
        (GOOD.replace("5 mg twice daily.\n  source", "No\n  source"), "probe en-dose-001: answer must be a text"),
        (GOOD.replace("doses_units", "doses"), "probe en-dose-001: unknown category 'doses'"),
        (GOOD.replace("en-dose-001", "de-dose-001"), "probe de-dose-001: the id must read like"),
        (GOOD + GOOD.replace("Which", "What"), "probe en-dose-001: the id is used twice"),
        (GOOD + GOOD.replace("001", "002"), "probe en-dose-002: asks the same of the same passage as en-dose-001"),
        ("- just words", "probe number 1: must be a mapping"),
        ("id: en-dose-001", "must hold a list"),
        ("- id: [", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_probe(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"en_doses_units\.yaml") as refusal:
        read(tmp_path, text)
    assert complaint in str(refusal.value)


def test_a_folder_without_probes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no file"):
        load_probes(tmp_path)


def test_held_text_is_needed_in_every_language(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("A letter.\n")
    (tmp_path / "zh.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"zh\.txt is missing or empty"):
        load_held_text(tmp_path)
    (tmp_path / "zh.txt").write_text("门诊记录。\n", encoding="utf-8")
    assert load_held_text(tmp_path) == {"en": "A letter.", "zh": "门诊记录。"}


def test_english_held_text_is_long_enough_for_perplexity_and_is_not_in_the_probes() -> None:
    text = (HELD_TEXT / "en.txt").read_text(encoding="utf-8")
    assert len(text.split()) >= 1500
    assert not [probe.id for probe in ENGLISH if probe.passage in text]


def test_the_version_changes_with_any_file(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("A letter.\n")
    read(tmp_path, GOOD)
    first = probes_version(tmp_path, tmp_path)
    (tmp_path / "en.txt").write_text("Another letter.\n")
    second = probes_version(tmp_path, tmp_path)
    read(tmp_path, GOOD.replace("5 mg", "2.5 mg"))
    assert len({first, second, probes_version(tmp_path, tmp_path)}) == 3
    assert re.fullmatch("[0-9a-f]{12}", first)
