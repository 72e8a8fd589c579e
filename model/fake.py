"""Stand-ins with the surface of the engine and of the generator, scripted; for tests of the other layers only.

The demo never runs these: it runs the embedded model.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence

from contracts import (
    GenerationEnd,
    GenerationEvent,
    Message,
    ModelInfo,
    PrefillProgress,
    SamplingParams,
    TextChunk,
    TokenLogprob,
)
from model.request import (
    EngineEvent,
    EngineLoad,
    TokenEvent,
    TokenScore,
    check_params,
    count_new_tokens,
    find_deadline,
)

_WORD = re.compile(r"\s*\S+|\s+$")
TURN_TOKENS = 4  # what a fake turn costs beside its words


class FakeGenerator:
    """A contracts.Generator that says what it is told to, and is sure of it; a token is a word with the white space
    before it. A constraint is the script's to keep.

    answers: one text per call, the last repeating; or a function of the messages. prompts keeps what was sent.
    """

    def __init__(
        self,
        answers: Sequence[str] | Callable[[Sequence[Message]], str],
        context_length: int = 4096,
        delay_s: float = 0.0,
        prefill_steps: int = 1,
    ) -> None:
        self._answers = answers
        self._delay_s = delay_s
        self._prefill_steps = prefill_steps
        self._lock = threading.Lock()
        self.prompts: list[list[Message]] = []
        self.info = ModelInfo(
            name="fake",
            precision="none",
            kernels="none",
            context_length=context_length,
            num_parameters=0,
            weights_sha256="0" * 64,
        )

    def count_tokens(self, text: str) -> int:
        return len(_WORD.findall(text))

    def count_prompt_tokens(self, messages: Sequence[Message]) -> int:
        return sum(self.count_tokens(message.text) + TURN_TOKENS for message in messages)

    def stream(
        self, messages: Sequence[Message], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Iterator[GenerationEvent]:
        """Yields prefill steps, the answer word by word, and the end; waits `delay_s` before each event."""
        check_params(params)
        num_prompt = self.count_prompt_tokens(messages)
        max_new = count_new_tokens(num_prompt, params.max_tokens, self.info.context_length)
        deadline, cancel = find_deadline(params), cancel or threading.Event()
        words = [self._say(word, params) for word in _WORD.findall(self._next_answer(messages))]
        return self._run(words, num_prompt, max_new, cancel, deadline)

    def _say(self, word: str, params: SamplingParams) -> TextChunk:
        told = () if params.logprobs is None else (TokenLogprob(word, word.encode(), 0.0),)
        return TextChunk(word, told)

    def _next_answer(self, messages: Sequence[Message]) -> str:
        with self._lock:
            self.prompts.append(list(messages))
            if callable(self._answers):
                return self._answers(messages)
            return self._answers[min(len(self.prompts), len(self._answers)) - 1]

    def _run(
        self, words: Sequence[TextChunk], num_prompt: int, max_new: int, cancel: threading.Event, deadline: float
    ) -> Iterator[GenerationEvent]:
        reason = "stop" if len(words) < max_new else "length"
        num_said = 0
        steps = self._prefill_steps
        events: list[PrefillProgress | TextChunk] = [
            PrefillProgress(num_prompt * step // steps, num_prompt) for step in range(1, steps + 1)
        ]
        events += words[:max_new]
        for event in events:
            # Waiting on the event itself: Stop takes effect at once, whatever the delay.
            if cancel.wait(self._delay_s) if self._delay_s else cancel.is_set():
                reason = "cancelled"
                break
            if time.monotonic() >= deadline:
                reason = "deadline"
                break
            num_said += isinstance(event, TextChunk)
            yield event
        yield GenerationEnd(reason, num_prompt, num_said, ttft_s=self._delay_s, tokens_per_s=0.0)


class FakeEngine:
    """The engine's surface over a fixed list of token ids; ends with "stop" at the first of `stop_ids`."""

    def __init__(
        self, token_ids: Sequence[int], stop_ids: Sequence[int] = (), context_length: int = 4096, delay_s: float = 0.0
    ) -> None:
        self._token_ids = list(token_ids)
        self._stop_ids = frozenset(stop_ids)
        self._delay_s = delay_s
        self.context_length = context_length

    @property
    def load(self) -> EngineLoad:
        return EngineLoad()

    def stream(
        self, prompt_ids: Sequence[int], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Generator[EngineEvent, None, None]:
        check_params(params)
        max_new = count_new_tokens(len(prompt_ids), params.max_tokens, self.context_length)
        score = None if params.logprobs is None else TokenScore(0.0)
        return self._run(len(prompt_ids), max_new, cancel or threading.Event(), score)

    def _run(
        self, num_prompt: int, max_new: int, cancel: threading.Event, score: TokenScore | None
    ) -> Generator[EngineEvent, None, None]:
        yield PrefillProgress(num_prompt, num_prompt)
        limit = min(max_new, len(self._token_ids))
        for number, token_id in enumerate(self._token_ids[:limit], 1):
            time.sleep(self._delay_s)
            if cancel.is_set():
                yield TokenEvent(None, "cancelled")
                return
            if token_id in self._stop_ids:
                yield TokenEvent(token_id, "stop", score)
                return
            yield TokenEvent(token_id, "length" if number == limit else None, score)
