"""One fact in a long record: how often a model finds it, by the length of the prompt and by where the fact stands.

The record is a medication history of invented drugs, so that nothing can be known beforehand and every other line is of
the needle's own kind: a model that takes any dose it sees is wrong. Judged is what the model says itself, before any
check: the dose must be in it. After "needle in a haystack" (Kamradt, 2023) and the many needles of RULER
(arXiv 2404.06654).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from app.prompt import render
from contracts import ContextLengthError, Generator, Message, Passage, SamplingParams, TextChunk

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PASSAGE_LINES = 6
_MAX_TOKENS = 48
_STARTS = ("ba", "cor", "del", "fen", "gal", "lo", "mer", "nor", "pra", "sel", "tor", "vel", "zi")
_MIDDLES = ("ba", "di", "lo", "me", "ni", "pro", "ra", "su", "ta", "vi")
_ENDS = ("pril", "olol", "statin", "xaban", "mycin", "azole", "idine", "tine")
_WAYS = ("once daily", "twice daily", "three times daily", "at night", "every morning")


@dataclass(frozen=True, slots=True)
class NeedleResult:
    """Of `trials` prompts of some `tokens`, with the fact at `depth` (0 is the beginning), in how many it was found."""

    tokens: int
    depth: float
    trials: int
    found: int


def find_needles(
    generator: Generator,
    lengths: Sequence[int],
    trials: int,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Iterator[NeedleResult]:
    """Results for each length, in tokens of the whole prompt, and each of DEPTHS. The same call gives the same prompts.

    Raises ContextLengthError for a length that leaves the answer no room, before any is asked.
    """
    context = generator.info.context_length
    longest = max(lengths)
    if longest + _MAX_TOKENS > context:
        raise ContextLengthError(
            f"A prompt of {longest:,} tokens and an answer of {_MAX_TOKENS} do not fit the model's context of "
            f"{context:,}; give shorter lengths."
        )
    total, done = len(lengths) * len(DEPTHS) * trials, 0
    for length in lengths:
        for depth in DEPTHS:
            found = 0
            for trial in range(trials):
                messages, dose = _make_prompt(generator, random.Random(f"{length}/{depth}/{trial}"), length, depth)
                events = generator.stream(messages, SamplingParams(max_tokens=_MAX_TOKENS))
                said = "".join(event.text for event in events if isinstance(event, TextChunk))
                found += dose in said
                done += 1
                on_progress("prompts", done, total)
            yield NeedleResult(length, depth, trials, found)


def describe_needles(results: Sequence[NeedleResult]) -> str:
    """A line for each length, a column for each depth."""
    lines = ["tokens   " + "  ".join(f"{depth:>5.0%}" for depth in DEPTHS)]
    for length in sorted({result.tokens for result in results}):
        row = [result for result in results if result.tokens == length]
        lines.append(f"{length:>7,}  " + "  ".join(f"{result.found / result.trials:>5.0%}" for result in row))
    return "\n".join(lines)


def _make_prompt(generator: Generator, rng: random.Random, length: int, depth: float) -> tuple[list[Message], str]:
    """The longest prompt of at most so many tokens, and the dose that it asks for."""
    names = _invent_names(rng)
    needle_name, *others = next(names), *(next(names) for _ in range(length // 8 + PASSAGE_LINES))
    dose = f"{rng.randrange(11, 990)} mg"
    others_lines = [_write_line(name, f"{rng.randrange(11, 990)} mg", rng) for name in others]
    needle = _write_line(needle_name, dose, rng)
    question = f"What is the {needle_name} dose?"

    def write(num_lines: int) -> list[Message]:
        lines = [line for line in others_lines[:num_lines] if dose not in line]
        lines.insert(round(depth * len(lines)), needle)
        return render(question, _as_passages(lines))

    low, high = 0, len(others_lines)
    while low < high:  # the most lines that fit
        middle = (low + high + 1) // 2
        if generator.count_prompt_tokens(write(middle)) <= length:
            low = middle
        else:
            high = middle - 1
    return write(low), dose


def _invent_names(rng: random.Random) -> Iterator[str]:
    """Names that no pharmacy knows, each once."""
    seen: set[str] = set()
    while True:
        middle = "".join(rng.choice(_MIDDLES) for _ in range(rng.choice((1, 1, 2, 3))))
        name = rng.choice(_STARTS) + middle + rng.choice(_ENDS)
        if name not in seen:
            seen.add(name)
            yield name


def _write_line(name: str, dose: str, rng: random.Random) -> str:
    return f"{name.capitalize()} {dose} {rng.choice(_WAYS)}."


def _as_passages(lines: Sequence[str]) -> list[Passage]:
    pages = [lines[start : start + PASSAGE_LINES] for start in range(0, len(lines), PASSAGE_LINES)]
    texts = ["\n".join(page) for page in pages]
    return [
        Passage(str(number), "history", "Medication history", number, 0, len(text), text)
        for number, text in enumerate(texts, 1)
    ]
