"""Two writings of one fact are one term, and different words of one meaning share a term."""

from __future__ import annotations

import pytest

from retrieval.analyser import analyse, is_mostly_cjk
from retrieval.lexicon import Synonyms, read_groups


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("November 30, 2010", "2010-11-30"),
        ("11/30/2010", "2010-11-30"),
        ("30.11.2010", "2010-11-30"),
        ("30 Nov 2010", "11-30-2010"),
        ("20101130120000", "2010/11/30"),
        ("2010年11月30日", "2010-11-30"),
        ("500mg", "500 mg"),
        ("5.0 µg", "5 mcg"),
        ("1,200 mL", "1200 ml"),
        ("120 mm[Hg]", "120 mmHg"),
        ("diagnoses", "diagnosis"),
        ("Allergies", "allergy"),
        ("measured", "measure"),
        ("Café", "café"),
        ("ＨｂＡ１ｃ", "HbA1c"),
        ("oedema", "edema"),
        ("tumour", "tumor"),
        ("catheterised", "catheterized"),
        ("an M R I", "an MRI"),
        ("twenty six years", "26 years"),
        ("nineteen ninety three", "1993"),
        ("two thousand nine", "2009"),
        ("two hundred and fifty mg", "250 mg"),
    ],
)
def test_two_writings_are_one(one: str, other: str) -> None:
    assert analyse(one) == analyse(other) != []


@pytest.mark.parametrize(("one", "other"), [("2.5 mg", "25 mg"), ("0.5", "5"), ("no fever", "fever"), ("1.25", "125")])
def test_different_facts_stay_different(one: str, other: str) -> None:
    assert analyse(one) != analyse(other)


def test_hyphenated_word_is_found_whole_and_in_parts() -> None:
    assert {"follow", "up", "followup"} <= set(analyse("follow-up"))


def test_chinese_is_indexed_by_characters_and_pairs_without_grammar() -> None:
    assert analyse("患者胸口") == ["患者", "者胸", "胸口", "患", "者", "胸", "口"]
    assert analyse("没有的") == ["没有", "有的", "没", "有"]
    assert analyse("是的吗") == []
    assert is_mostly_cjk("患者 BP 高吗")
    assert not is_mostly_cjk("What is 患者?")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HTN", "high blood pressure"),
        ("denies fever", "febrile"),
        ("her dad", "father"),
        ("高血压", "hypertension"),
        ("对青霉素过敏", "allergic to penicillin"),
    ],
)
def test_one_meaning_in_different_words_is_a_shared_term(one: str, other: str) -> None:
    shared = set(analyse(one)) & set(analyse(other))
    assert any(term.startswith("=") for term in shared)


def test_longest_phrase_gives_the_meaning() -> None:
    assert "=chronic kidney disease" not in analyse("kidney stones")
    assert [term for term in analyse("low blood sugar") if term.startswith("=")] == ["=hypoglycemia"]


def test_phrase_of_two_meanings_is_refused() -> None:
    with pytest.raises(ValueError, match="'ms' two meanings"):
        Synonyms([["multiple sclerosis", "ms"], ["mitral stenosis", "ms"]], str.split)


def test_file_of_synonyms_is_sound() -> None:
    groups = read_groups()
    assert len(groups) > 150
    assert all(len(group) > 1 and all(group) for group in groups)
