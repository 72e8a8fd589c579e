"""Runs a model over text the way the product does, to see how its routers choose.

For `bedside eval router`, and for the self-test that tells a broken router from an odd text.

Each prompt has the product's own form, and a short answer is written to it, since that is the mixture of tokens that
a live model is held against.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from secrets import token_hex

from app import prompt
from app.demo import load_demo_patients
from contracts import Generator, Message, Page, Passage, ReadMethod, SamplingParams
from model.router_health import HasRouterHealth, RouterSnapshot
from retrieval.chunking import make_passages
from retrieval.parsers import parse

PASSAGES_PER_PROMPT = 3  # as many as the embedded model is asked about at once
ANSWER_TOKENS = 32
QUESTION = "What does the record say?"


def run_self_test(generator: HasRouterHealth) -> RouterSnapshot:
    """How the routers choose on the first of the demo records, over twice the tokens that a verdict needs: ordinary
    clinical text, whatever was asked before. Tokens of answers given meanwhile are mixed in."""
    needed = 2 * generator.router_health().min_tokens
    generator.restart_router_window()
    for messages in demo_prompts(generator):
        # A prefix of its own, or the engine would take the prompt from its cache and no router would see it.
        first = replace(messages[0], text=f"Self-test {token_hex(8)}. {messages[0].text}")
        route_messages(generator, [[first, *messages[1:]]], max_tokens=1)
        needed -= generator.count_prompt_tokens(messages)
        if needed <= 0:
            break
    return generator.router_health()


def route_messages(generator: Generator, prompts: Iterable[Sequence[Message]], max_tokens: int = ANSWER_TOKENS) -> None:
    """Reads each prompt and writes a short answer, with nothing kept but what the routers' monitor saw."""
    for messages in prompts:
        for _ in generator.stream(messages, SamplingParams(max_tokens=max_tokens)):
            pass


def demo_prompts(generator: Generator) -> Iterator[list[Message]]:
    """The demo patients' questions, in turn, over every page of their records that is text: the same on any machine,
    with OCR or without."""
    for demo in load_demo_patients():
        questions = cycle(demo.questions)
        for file in demo.files:
            pages = [page for page in parse(file.read_bytes(), file.name).pages if page.method is ReadMethod.TEXT]
            for group in _groups(generator, file.name, pages):
                yield prompt.render(next(questions), group, (), demo.patient)


def text_prompts(generator: Generator, name: str, text: str) -> Iterator[list[Message]]:
    """One general question over each stretch of a text."""
    for group in _groups(generator, name, [Page(1, text)]):
        yield prompt.render(QUESTION, group)


def _groups(generator: Generator, name: str, pages: Sequence[Page]) -> Iterator[list[Passage]]:
    passages = make_passages(name, name, pages, generator.count_tokens)
    for start in range(0, len(passages), PASSAGES_PER_PROMPT):
        yield passages[start : start + PASSAGES_PER_PROMPT]
