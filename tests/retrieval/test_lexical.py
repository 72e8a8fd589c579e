"""Rare words count, a passage is found by its heading and document, and a record's own abbreviations are known."""

from __future__ import annotations

import pytest

from contracts import Passage
from retrieval.lexical import Bm25, LexicalIndex


def make(*texts: str, document: str = "d") -> list[Passage]:
    return [Passage(f"{document}:{n:05d}", document, "note.txt", 1, 0, len(t), t) for n, t in enumerate(texts)]


def test_rare_word_outweighs_a_common_one() -> None:
    bm25 = Bm25([["patient", "warfarin"], ["patient", "patient"], ["patient"]])
    assert bm25.rarity("warfarin") > bm25.rarity("patient") > 0
    scores = bm25.scores({term: bm25.rarity(term) for term in ("patient", "warfarin")})
    assert scores.argmax() == 0
    assert Bm25([]).scores({"x": 1.0}).size == 0


def test_heading_and_document_name_are_searched() -> None:
    texts = ["ALLERGIES\nSee list.", "Penicillin: rash.", "MEDICATIONS\nAspirin."]
    passages = [Passage(f"d:{n}", "d", "Cardiology 2024.pdf", 1, 0, len(t), t) for n, t in enumerate(texts)]
    index = LexicalIndex(passages)
    found = index.scores("allergies").passages
    assert found[1] > 0
    assert found[2] == 0
    assert (index.scores("cardiology").passages > 0).all()


def test_score_does_not_depend_on_the_length_of_the_question() -> None:
    index = LexicalIndex(make("Metoprolol 50 mg daily.", "Review in six weeks.", "Chest X-ray normal."))
    once, twice = index.scores("metoprolol").passages, index.scores("metoprolol metoprolol").passages
    assert once[0] == pytest.approx(twice[0])
    assert 0.5 < once[0] < 2.5


def test_words_of_the_whole_document_count_for_its_passages() -> None:
    passages = [*make("Amoxicillin was given.", "She went home.", document="a"), *make("He went home.", document="b")]
    found = LexicalIndex(passages).scores("amoxicillin")
    assert found.passages[1] == 0
    assert found.documents[1] > found.documents[2] == 0


def test_sentence_that_marks_a_term_defines_it() -> None:
    passages = make(
        "A **seizure** is a burst of electrical activity in the brain.", "Electrical activity in the brain."
    )
    found = LexicalIndex(passages).scores("burst of electrical activity").definitions
    assert found[0] > 0
    assert found[1] == 0


def test_abbreviation_that_the_record_defines_finds_what_is_written_out_and_the_other_way_round() -> None:
    passages = make(
        "Double balloon enteroscopy (DBE) was planned.", "DBE showed no bleeding.", "The enteroscopy suite."
    )
    index = LexicalIndex(passages)
    assert index.scores("double-balloon enteroscopy").passages[1] > 0
    assert "balloon" in index.terms("DBE result")
    assert LexicalIndex(make("It went well (OK).")).terms("OK") == ["ok"]
