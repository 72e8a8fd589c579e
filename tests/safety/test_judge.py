from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from math import log

import pytest

from contracts import GenerationEnd, GenerationError, GenerationEvent, Message, Role, SamplingParams, TextChunk
from contracts import TokenLogprob as T
from model.fake import FakeGenerator
from model.generator import EMBEDDED, LocalGenerator
from safety.judge import YesNo, ask_yes_no

QUESTION = [Message(Role.USER, "Does the record name an allergy? Answer yes or no.")]


class Scripted(FakeGenerator):
    """Says the tokens it is given, with their probabilities."""

    def __init__(self, *tokens: T) -> None:
        super().__init__([""])
        self._tokens = tokens

    def stream(
        self, messages: Sequence[Message], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Iterator[GenerationEvent]:
        yield from (TextChunk(token.text, (token,)) for token in self._tokens)
        yield GenerationEnd("stop", 1, len(self._tokens), 0.0, 0.0)


def token(text: str, probability: float, **others: float) -> T:
    alternatives = tuple(T(t.replace("_", " "), t.replace("_", " ").encode(), log(p)) for t, p in others.items())
    return T(text, text.encode(), log(probability), alternatives)


def test_every_spelling_counts_and_the_chosen_one_once() -> None:
    verdict = ask_yes_no(Scripted(token("Yes", 0.4, Yes=0.4, no=0.15, yes=0.1, _NO=0.05, The=0.2)), QUESTION)
    assert verdict.p_yes == pytest.approx(0.5 / 0.7)
    assert verdict.mass == pytest.approx(0.7)


def test_a_word_in_pieces_counts_by_its_beginning_and_no_other_word_does() -> None:
    verdict = ask_yes_no(Scripted(token("n", 0.3, y=0.1, not_=0.2, yesterday=0.2), token("o", 0.9)), QUESTION)
    assert verdict.p_yes == pytest.approx(0.25)


def test_a_choice_beyond_the_likeliest_shows_in_the_mass() -> None:
    verdict = ask_yes_no(Scripted(T("No", b"No", -900.0, (T("The", b"The", log(0.9)),))), QUESTION)
    assert verdict == YesNo(0.0, 0.0)


def test_what_tells_no_probabilities_gives_no_verdict() -> None:
    with pytest.raises(GenerationError, match="no verdict"):
        ask_yes_no(Scripted(), QUESTION)
    with pytest.raises(GenerationError, match="neither yes nor no"):
        ask_yes_no(Scripted(token("The", 0.9, It=0.05)), QUESTION)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(GenerationError, match="stopped"):
        ask_yes_no(FakeGenerator(["yes"]), QUESTION, cancel)


def test_a_real_model_gives_one_that_can_be_repeated() -> None:
    generator = LocalGenerator.load(EMBEDDED, threads=1)
    verdict = ask_yes_no(generator, QUESTION)
    assert 0 <= verdict.p_yes <= 1
    assert 0 <= verdict.mass <= 1
    assert ask_yes_no(generator, QUESTION) == verdict
    assert ask_yes_no(FakeGenerator(["Yes"]), QUESTION) == YesNo(1.0, 1.0)
