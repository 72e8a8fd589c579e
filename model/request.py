"""What the engine is asked and what it answers, in token ids. Standard library only."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Protocol, runtime_checkable

from contracts import ContextLengthError, GenerationError, PrefillProgress, Queued, SamplingParams
from model.kernels.expert_cache import ExpertCounts

MAX_LOGPROBS = 20  # as with OpenAI


@dataclass(frozen=True, slots=True)
class TokenScore:
    """Natural logarithms of the probabilities that the model gave a chosen token, and the likeliest ones of its place
    as (token id, logprob), best first: before constraint, penalty, temperature and filters."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One sampled token, with its score where SamplingParams.logprobs asks for it. The last event of a stream carries
    `finish_reason`: "stop" (its token is an end token, or None where the text is complete under its constraint),
    "length", "cancelled" or "deadline" (its token_id is then None)."""

    token_id: int | None
    finish_reason: str | None = None
    score: TokenScore | None = None


@dataclass(frozen=True, slots=True)
class DraftCount:
    """How many tokens a source of drafts has guessed since the start, and how many of them stayed."""

    source: str
    num_drafted: int
    num_accepted: int

    @property
    def acceptance(self) -> float:
        """The share that stayed; 0 before anything was guessed."""
        return self.num_accepted / max(self.num_drafted, 1)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine has to do at one moment, in requests and in blocks of its KV cache; and what its drafts came to,
    source by source, in order of preference. experts: where they are read from the disk as they are chosen."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks_used: int = 0
    num_blocks: int = 0
    drafts: tuple[DraftCount, ...] = ()
    experts: ExpertCounts | None = None

    @property
    def num_drafted(self) -> int:
        return sum(part.num_drafted for part in self.drafts)

    @property
    def num_accepted(self) -> int:
        return sum(part.num_accepted for part in self.drafts)


@runtime_checkable
class HasEngineLoad(Protocol):
    """A generator whose engine is in this process; a remote server's load is not known."""

    @property
    def engine_load(self) -> EngineLoad: ...


class EngineBusyError(GenerationError):
    """Too many requests wait already; the message says so to the user."""


EngineEvent = TokenEvent | PrefillProgress | Queued


class TokenStreamer(Protocol):
    """The engine's surface, as LocalGenerator needs it."""

    @property
    def context_length(self) -> int: ...

    @property
    def load(self) -> EngineLoad: ...

    def stream(
        self, prompt_ids: Sequence[int], params: SamplingParams, cancel: Event | None = None
    ) -> Generator[EngineEvent, None, None]: ...


def check_params(params: SamplingParams) -> None:
    """Raises ValueError naming the first sampling parameter outside its range."""
    if not params.temperature >= 0:
        raise ValueError(f"temperature is {params.temperature}; it must be 0 (greedy) or above.")
    if not 0 < params.top_p <= 1:
        raise ValueError(f"top_p is {params.top_p}; it must lie above 0 and not above 1.")
    if params.top_k < 0:
        raise ValueError(f"top_k is {params.top_k}; it must be 0 (off) or above.")
    if not params.repetition_penalty > 0:
        raise ValueError(f"repetition_penalty is {params.repetition_penalty}; it must be above 0.")
    if params.max_tokens < 1:
        raise ValueError(f"max_tokens is {params.max_tokens}; it must be at least 1.")
    if params.logprobs is not None and not 0 <= params.logprobs <= MAX_LOGPROBS:
        raise ValueError(f"logprobs is {params.logprobs}; it must lie between 0 and {MAX_LOGPROBS}.")
    if not params.max_seconds >= 0:
        raise ValueError(f"max_seconds is {params.max_seconds}; it must be 0 (no limit) or above.")


def find_deadline(params: SamplingParams) -> float:
    """The time.monotonic() at which an answer asked for now must end; infinity if it may take as long as it takes."""
    return time.monotonic() + params.max_seconds if params.max_seconds else math.inf


def count_new_tokens(num_prompt_tokens: int, max_tokens: int, context_length: int) -> int:
    """How many tokens may follow the prompt; raises ContextLengthError if not even one fits."""
    if num_prompt_tokens >= context_length:
        raise ContextLengthError(
            f"The prompt has {num_prompt_tokens:,} tokens, but the model's context holds {context_length:,} with the "
            "answer; select fewer documents or ask a shorter question."
        )
    return min(max_tokens, context_length - num_prompt_tokens)
