"""Two writings of one fact are one term, and rare words count."""

from __future__ import annotations

import pytest

from contracts import Passage
from retrieval.lexical import Bm25, LexicalIndex, analyse, is_mostly_cjk


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
    assert analyse("患者胸痛") == ["患者", "者胸", "胸痛", "患", "者", "胸", "痛"]
    assert analyse("没有的") == ["没有", "有的", "没", "有"]
    assert analyse("是的吗") == []
    assert is_mostly_cjk("患者 BP 高吗")
    assert not is_mostly_cjk("What is 患者?")


def test_rare_word_outweighs_a_common_one() -> None:
    scores = Bm25([["patient", "warfarin"], ["patient", "patient"], ["patient"]]).scores(["patient", "warfarin"])
    assert scores.argmax() == 0
    assert Bm25([]).scores(["x"]).size == 0


def test_heading_and_document_name_are_searched() -> None:
    texts = ["ALLERGIES\nSee list.", "Penicillin: rash.", "MEDICATIONS\nAspirin."]
    passages = [Passage(f"d:{n}", "d", "Cardiology 2024.pdf", 1, 0, len(t), t) for n, t in enumerate(texts)]
    index = LexicalIndex(passages)
    assert index.scores("allergies")[1] > 0
    assert index.scores("allergies")[2] == 0
    assert (index.scores("cardiology") > 0).all()
