"""Runs a checkpoint over text the way the product does, to see how its routers choose: for `bedside eval router`.

Each prompt has the product's own form, and a short answer is written to it, since that is the mixture of tokens that
a live model is held against.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

from app import prompt
from app.demo import load_demo_patients
from contracts import Generator, Message, Page, Passage, ReadMethod, SamplingParams
from retrieval.chunking import make_passages
from retrieval.parsers import parse

PASSAGES_PER_PROMPT = 3  # as many as the embedded model is asked about at once
ANSWER = SamplingParams(max_tokens=32)
QUESTION = "What does the record say?"


def route_messages(generator: Generator, prompts: Sequence[Sequence[Message]]) -> None:
    """Reads each prompt and writes a short answer, with nothing kept but what the routers' monitor saw."""
    for messages in prompts:
        for _ in generator.stream(messages, ANSWER):
            pass


def demo_prompts(generator: Generator) -> list[list[Message]]:
    """The demo patients' questions, in turn, over every page of their records that is text: the same on any machine,
    with OCR or without."""
    prompts = []
    for demo in load_demo_patients():
        questions = cycle(demo.questions)
        for file in demo.files:
            pages = [page for page in parse(file.read_bytes(), file.name).pages if page.method is ReadMethod.TEXT]
            groups = _groups(generator, file.name, pages)
            prompts += [prompt.render(next(questions), group, (), demo.patient) for group in groups]
    return prompts


def text_prompts(generator: Generator, name: str, text: str) -> list[list[Message]]:
    """One general question over each stretch of a text."""
    return [prompt.render(QUESTION, group) for group in _groups(generator, name, [Page(1, text)])]


def _groups(generator: Generator, name: str, pages: Sequence[Page]) -> Iterator[list[Passage]]:
    passages = make_passages(name, name, pages, generator.count_tokens)
    for start in range(0, len(passages), PASSAGES_PER_PROMPT):
        yield passages[start : start + PASSAGES_PER_PROMPT]
