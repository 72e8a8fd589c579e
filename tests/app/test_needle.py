"""A dose among many: the prompts are what they say, finding is judged by the dose alone, and the command prints it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from app.evaluation.needle import DEPTHS, describe_needles, find_needles
from contracts import (
    ContextLengthError,
    GenerationEnd,
    GenerationEvent,
    Message,
    ModelInfo,
    SamplingParams,
    TextChunk,
)
from tests.app.test_cli import bedside, last_json


class Reader:
    """Looks the drug up in the prompt's first `sight` characters, as a model that reads no further would."""

    def __init__(self, sight: int, context: int = 4096) -> None:
        self.info = ModelInfo("reader", "f32", "none", context, 0, "")
        self.sight = sight
        self.asked: list[list[Message]] = []

    def count_tokens(self, text: str) -> int:
        return len(text) // 4

    def count_prompt_tokens(self, messages: Sequence[Message]) -> int:
        return sum(self.count_tokens(message.text) for message in messages)

    def stream(
        self, messages: Sequence[Message], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Iterator[GenerationEvent]:
        self.asked.append(list(messages))
        text = messages[-1].text
        drug = text.rsplit("What is the ", 1)[1].removesuffix(" dose?").capitalize()
        line = next((line for line in text[: self.sight].splitlines() if line.startswith(drug)), "Nothing.")
        yield TextChunk(line)
        yield GenerationEnd("stop", 0, 0, 0.0, 0.0)


def test_who_reads_everything_finds_everything() -> None:
    reader = Reader(sight=10**9)
    results = list(find_needles(reader, [300, 900], 3))
    assert [(r.tokens, r.depth, r.found) for r in results] == [(n, d, 3) for n in (300, 900) for d in DEPTHS]
    for messages, length in zip(reader.asked, [300] * 15 + [900] * 15, strict=True):
        assert length - 40 < reader.count_prompt_tokens(messages) <= length


def test_who_reads_the_beginning_alone_finds_what_stands_there() -> None:
    found = {(r.tokens, r.depth): r.found for r in find_needles(Reader(sight=800), [900], 3)}
    assert found[900, 0.0] == 3
    assert found[900, 1.0] == 0
    assert "100%" in describe_needles(list(find_needles(Reader(sight=10**9), [300], 1)))


def test_the_same_call_asks_the_same() -> None:
    first, second = Reader(0), Reader(0)
    list(find_needles(first, [300], 2))
    list(find_needles(second, [300], 2))
    assert first.asked == second.asked
    assert len({messages[-1].text for messages in first.asked}) == len(first.asked)


def test_a_length_beyond_the_context_is_refused_before_any_work() -> None:
    reader = Reader(0, context=512)
    with pytest.raises(ContextLengthError, match="512"):
        next(find_needles(reader, [300, 500], 1))
    assert not reader.asked


def test_the_command_prints_one_object_and_names_what_is_no_number() -> None:
    shown = last_json(bedside("eval", "needle", "--lengths", "150", "--trials", "1", "--json"))
    assert [result["tokens"] for result in shown["results"]] == [150] * len(DEPTHS)  # type: ignore[attr-defined]
    refused = bedside("eval", "needle", "--lengths", "150,many")
    assert refused.returncode == 2
    assert "'many'" in refused.stderr
