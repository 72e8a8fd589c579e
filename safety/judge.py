"""A question of yes or no, put to a model: how sure it is, rather than what it says.

Knows the model by contracts.Generator only, so that it may be the one in this process or one on a server.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log

from contracts import (
    Constraint,
    ConstraintKind,
    GenerationError,
    Generator,
    Message,
    SamplingParams,
    TextChunk,
    TokenLogprob,
)

# Greedy; 20 alternatives are the most that any server tells.
_PARAMS = SamplingParams(max_tokens=8, logprobs=20, constraint=Constraint(ConstraintKind.REGEX, "[Yy]es|[Nn]o"))


@dataclass(frozen=True, slots=True)
class YesNo:
    """p_yes: how probable yes is, if it is one of the two. mass: how probable it was to the model, before it was held
    to them, that it would begin with either; where that is little, it had something else to say, and p_yes is worth
    little."""

    p_yes: float
    mass: float


def ask_yes_no(generator: Generator, messages: Sequence[Message], cancel: threading.Event | None = None) -> YesNo:
    """The probabilities of the answer's first token and of the 20 likeliest in its place; one that is beyond them
    counts as 0. Where a vocabulary has the word in pieces, its beginning counts.

    Raises what Generator.stream does, and GenerationError where it was cancelled or no log-probabilities came."""
    events = generator.stream(messages, _PARAMS, cancel)
    tokens = [token for event in events if isinstance(event, TextChunk) for token in event.tokens]
    if not tokens:
        raise GenerationError("The model told no log-probabilities, or was stopped before: there is no verdict.")
    place = {token.data: token for token in (*tokens[0].alternatives, tokens[0])}
    yes, no = (_log_sum([t.logprob for t in place.values() if _begins(t, word)]) for word in ("yes", "no"))
    either = _log_sum([yes, no])
    if either == -inf:
        raise GenerationError("The model answers neither yes nor no; the server may not keep answers to a form.")
    return YesNo(exp(yes - either), exp(either))


def _begins(token: TokenLogprob, word: str) -> bool:
    text = token.text.strip().casefold()
    return bool(text) and word.startswith(text)


def _log_sum(values: Sequence[float]) -> float:
    """ln of the sum of e^x."""
    largest = max(values, default=-inf)
    return largest if largest == -inf else largest + log(sum(exp(value - largest) for value in values))
