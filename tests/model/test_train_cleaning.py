"""What may be trained on: clean, once, and in no evaluation set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.train.cleaning import Contamination, clean_sentence, clean_text, drop_near_duplicates, prepare, words
from model.train.corpora import Text
from model.train.prefetch import prefetch

LONG = (
    "The renal clinic reviewed her on Tuesday and lowered the dose of the water tablet because her ankles had settled "
    "and the potassium in the blood was on the low side of the range, which she had been told might happen in summer."
)


def make_text(*sentences: str, question: str = "", num_answers: int = 0) -> Text:
    return Text("x", "1", sentences, question, "", num_answers)


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("He\u200b smokes.\x07", "He smokes."),
        ("Cafe\u0301  is\u00a0closed.", "Café is closed."),
        ("Really!!!!!!", "Really!"),
        ("Visit www.cheap-pills.com now.", ""),
        ("咨询电话 010-12345678。", ""),
        ("12 34 | 56 78 | 90 12", ""),
        ("Sodium 131 mmol/L", "Sodium 131 mmol/L"),
    ],
)
def test_a_sentence_is_cleaned_or_dropped(dirty: str, clean: str) -> None:
    assert clean_sentence(dirty) == clean


def test_a_text_whose_answer_was_unclean_goes_as_a_whole() -> None:
    text = make_text("Buy at www.pills.com today.", "It is a tablet.", question="What is it?", num_answers=1)
    assert clean_text(text) is None
    kept = clean_text(replace(text, sentences=text.sentences[::-1]))
    assert kept is not None
    assert kept.sentences == ("It is a tablet.",)


def test_of_near_duplicates_the_first_is_kept() -> None:
    one, near = make_text(LONG), make_text(LONG.replace("might happen in summer", "might happen in winter"))
    other = make_text("Quite another text about the heart and what it does when nobody is looking at it at all.")
    assert drop_near_duplicates([one, near, other, one]) == [one, other]


def test_thirteen_words_of_an_evaluation_text_are_enough_to_be_left_out_and_twelve_are_not() -> None:
    contamination = Contamination([LONG])
    found = words(LONG)
    assert contamination.holds(["so", *found[3:16], "then"])
    assert not contamination.holds(["so", *found[3:15], "then"])
    assert not contamination.holds(words("New words about nothing that the evaluation text has ever said or will say."))


def test_a_short_evaluation_text_counts_as_a_whole_but_a_common_phrase_does_not() -> None:
    contamination = Contamination(["What did the dentist say about her two upper molars?", "Any allergies?"])
    assert contamination.holds(words("She asked: what did the dentist say about her two upper molars? Nobody knew."))
    assert not contamination.holds(words("Any allergies? None were known to anybody in the family or to the practice."))


def test_chinese_is_counted_by_characters() -> None:
    contamination = Contamination(["患者因胸骨后压榨样疼痛两小时入院治疗"])
    assert contamination.holds(words("病史：患者因胸骨后压榨样疼痛两小时入院治疗，现好转。"))
    assert not contamination.holds(words("病史：患者因胸骨后压榨样疼痛，现好转。"))


def test_what_is_left_out_is_counted_by_reason() -> None:
    held = "A sentence of the evaluation about the spleen, which nobody but the surgeon has ever seen."
    sentences = (LONG, LONG, "Call 010-12345678 at once.", "He has a cat at home.", held)
    cleaned = prepare({"x": [make_text(sentence) for sentence in sentences]}, [held])
    assert [text.sentences[0] for text in cleaned.texts["x"]] == [LONG, "He has a cat at home."]
    assert cleaned.dropped == {"unclean": 1, "duplicate": 1, "evaluation": 1}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pools_made_ahead_come_in_order(num_workers: int) -> None:
    made = prefetch(lambda pool: [pool, pool * pool], range(3, 9), num_workers)
    assert list(made) == [[pool, pool * pool] for pool in range(3, 9)]


def test_a_pool_may_be_made_with_operations_that_torch_shares_among_threads() -> None:
    """Large enough to be shared: a child that inherited the threads of its parent would wait for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert (torch.zeros(100_000) + 1).sum() == 100_000
        assert list(prefetch(lambda pool: [float((torch.zeros(100_000) + pool).sum())], range(2), 1)) == [[0.0], [1e5]]
    finally:
        torch.set_num_threads(threads)
