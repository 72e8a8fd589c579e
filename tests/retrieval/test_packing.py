"""What is packed fits; what is quoted stands in the record and answers the question."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contracts import Passage, ScoredPassage
from retrieval.packing import count_all, edges_first, label, pack, quotes, with_neighbours, without_repeats

NOTE = (
    "CHIEF COMPLAINT\nLeft-sided back pain.\n\nMEDICATIONS\nNorvasc 2.5 mg daily, and metformin 500 mg daily.\n\n"
    "ALLERGIES\nNone known.\n\nREVIEW OF SYSTEMS\nGastrointestinal: Reports nausea. Denies abdominal pain.\n\n"
    "RESULTS\nPrevious hemoglobin A1c is reviewed at 7.3."
)
PLAN = "ASSESSMENT AND PLAN\nKidney stone. Oxycodone 5 mg every 6 to 8 hours as needed for pain was provided today."


def passage(text: str, number: int = 0, name: str = "note.pdf", start: int = 0) -> Passage:
    return Passage(f"d:{number:05d}", "d", name, 1, start, start + len(text), text)


def quoted(query: str, *texts: str, limit: int = 2) -> list[str]:
    """Of passages that follow each other on a page, two characters apart."""
    passages = [
        passage(text, number, start=sum(len(before) + 2 for before in texts[:number]))
        for number, text in enumerate(texts)
    ]
    return [texts[index][start:end] for index, start, end in quotes(query, passages, limit)]


def count_words(text: str) -> int:
    return len(text.split())


def test_packs_the_best_that_fit_with_their_headers() -> None:
    ranked = [ScoredPassage(passage("word " * size, n), 1.0 - n / 10) for n, size in enumerate((10, 100, 10))]
    packed = pack(ranked, 40, count_words)
    assert [item.id for item in packed] == ["d:00000", "d:00002"]  # the long one is passed over
    used = sum(count_words(f"[{n}] {p.document_name}, page {p.page}\n{p.text}") for n, p in enumerate(packed, 1))
    assert used <= 40
    assert pack(ranked, 13, count_words) == []  # ten words and a header of four do not fit
    assert len(pack(ranked, 14, count_words)) == 1


def test_what_stands_over_a_passage_is_counted_and_shown() -> None:
    bare = passage("word " * 10)
    under = replace(bare, context="MEDICATIONS, 2026-03-04")
    assert label(under, 3) == "[3] note.pdf, page 1, MEDICATIONS, 2026-03-04"
    assert pack([bare], 14, count_words) == [bare]
    assert pack([under], 15, count_words) == []
    assert pack([under], 16, count_words) == [under]
    assert count_all([bare, under], count_words) == 30


def test_a_row_is_quoted_by_the_column_headings_over_it() -> None:
    row = replace(passage("27 April | 4.7 | 117", start=900), context="columns: Day | Potassium | Creatinine")
    assert quotes("potassium?", [row], 1) == [(0, 0, len(row.text))]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("What was the hemoglobin A1c?", "Previous hemoglobin A1c is reviewed at 7.3."),
        ("What medications does the patient take?", "metformin 500 mg daily"),
        ("How much oxycodone was prescribed?", "Oxycodone 5 mg every 6 to 8 hours"),
        ("Is there any nausea?", "Reports nausea."),
        ("What is the metformin dose?", "metformin 500 mg daily"),
        ("What is the dose of oxycodone?", "Oxycodone 5 mg every 6 to 8 hours"),
    ],
)
def test_best_quote_answers(query: str, expected: str) -> None:
    assert expected in quoted(query, NOTE, PLAN)[0]


def test_what_a_pain_feels_like_is_quoted_in_the_words_of_the_record() -> None:
    told = "He describes a tight pressure behind the breastbone."
    history = f"He has had chest pain for weeks.\n{told}\nHe takes ibuprofen for knee pain.\nNo back pain.\nHe drives."
    assert quoted("What does the chest pain feel like?", history, limit=3) == [history.split("\n")[0], told]


def test_short_line_is_quoted_with_its_heading() -> None:
    assert quoted("Any known allergies?", NOTE, PLAN)[0] == "ALLERGIES\nNone known."


def test_a_plain_title_is_not_the_answer_but_what_stands_below_it() -> None:
    sentence = "Mrs Ellis was admitted with five days of worsening breathlessness."
    letter = f"Why she was admitted\n{sentence}\nAllergies\nPenicillin"
    assert quoted("Why was she admitted?", letter) == [sentence]


def test_a_value_is_quoted_where_a_value_is_asked_for_and_a_date_where_a_time_is() -> None:
    letter = "Check potassium at the surgery on 17 March 2026. Potassium was 4.4 mmol/L on admission."
    assert quoted("What was the potassium?", letter)[0] == "Potassium was 4.4 mmol/L on admission."
    assert quoted("When is the potassium due?", letter)[0] == "Check potassium at the surgery on 17 March 2026."


def test_heading_holds_into_the_next_passage_only() -> None:
    section, following = "Walks alone.\n\nPHYSIOTHERAPY", "Stairs with one rail."
    assert quoted("physiotherapy?", section, following) == [following]
    passages = [passage(section, 0), passage(following, 5, start=500)]
    assert quotes("physiotherapy?", passages, 2) == []


def test_heading_alone_is_never_quoted() -> None:
    for query in ("medications", "review of systems", "assessment and plan", "results"):
        assert all(any(c.islower() for c in text) for text in quoted(query, NOTE, PLAN, limit=5))


@pytest.mark.parametrize("query", ["Who won the football game?", "What is the warfarin dose?", "???", "", "the of and"])
def test_nothing_is_quoted_when_nothing_is_relevant(query: str) -> None:
    assert quoted(query, NOTE, PLAN) == []


def test_excluded_and_repeated_sentences_are_skipped() -> None:
    passages = [passage(NOTE, 0), passage(NOTE, 1), passage(PLAN, 2)]
    first = quotes("hemoglobin A1c", passages, 3)
    assert len(first) == 1  # the copied-forward sentence is said once
    assert quotes("hemoglobin A1c", passages, 3, exclude=first) == []


def test_chinese_quote() -> None:
    text = "患者因胸痛两天入院。既往有高血压病史十年。对青霉素过敏。"
    assert quoted("患者有高血压吗？", text)[0] == "既往有高血压病史十年。"
    assert quoted("对青霉素过敏吗", text)[0] == "对青霉素过敏。"


def test_neighbours_follow_the_best_and_nothing_comes_twice() -> None:
    page = [passage(f"Line {n}.", n, start=10 * n) for n in range(6)]
    found = with_neighbours([page[3], page[0], page[5]], page, 2)
    assert [item.id[-1] for item in found] == ["3", "0", "2", "4", "1"]


def test_what_was_copied_forward_is_said_once_but_another_dose_is_not_a_copy() -> None:
    texts = ("Metoprolol 50 mg.", "metoprolol  50 mg.", "Metoprolol 25 mg.")
    best = [passage(text, number, start=100 * number) for number, text in enumerate(texts)]
    assert [item.text for item in without_repeats([], best)] == [texts[0], texts[2]]
    assert without_repeats(best[:2], best) == (best[0], best[1], best[2])


def test_best_passages_stand_at_the_ends_and_neighbours_together() -> None:
    ranked = [passage(f"Passage {n}.", n, start=1000 * n) for n in range(5)]
    after_second = passage("Goes on.", 9, start=ranked[1].end + 1)
    laid_out = edges_first([*ranked, after_second])
    assert laid_out[0] == ranked[0]
    assert laid_out[-2:] == [ranked[1], after_second]
    assert sorted(item.id for item in laid_out) == sorted(item.id for item in [*ranked, after_second])
