"""Runs requests on one model: chunked prefill, then a token a step. Ids only, never text.

Several threads may stream at once; a fair lock held for one step at a time interleaves them, so that a long prefill
delays another stream by one chunk at most.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch

from contracts import PrefillProgress, SamplingParams
from model.kv_cache import KVCache
from model.modeling import BailingMoeV2ForCausalLM
from model.request import EngineEvent, TokenEvent, check_params, count_new_tokens
from model.sampler import Sampler

# On one core a 10 M-parameter model reads a chunk in about 0.2 s: that bounds what Stop and other streams wait for.
PREFILL_CHUNK = 256


class Engine:
    """Streams token ids from a model. stop_ids end an answer."""

    def __init__(
        self, model: BailingMoeV2ForCausalLM, stop_ids: Sequence[int], prefill_chunk: int = PREFILL_CHUNK
    ) -> None:
        self._model = model
        self._stop_ids = frozenset(stop_ids)
        self._prefill_chunk = prefill_chunk
        self._turns = FairLock()

    @property
    def context_length(self) -> int:
        return self._model.config.context_length

    def stream(
        self, prompt_ids: Sequence[int], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Generator[EngineEvent, None, None]:
        """Yields PrefillProgress per chunk, then a TokenEvent per token; the last carries the finish_reason.

        `cancel` is read before every chunk and every step. Closing the iterator frees the request's cache. Raises
        ContextLengthError or ValueError at the call, before any work.
        """
        check_params(params)
        self._check_ids(prompt_ids)
        max_new = count_new_tokens(len(prompt_ids), params.max_tokens, self.context_length)
        return self._run(list(prompt_ids), params, max_new, cancel or threading.Event())

    def _check_ids(self, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids:
            raise ValueError("The prompt is empty; give at least one token.")
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < self._model.config.vocab_size:
            raise ValueError("The prompt holds a token id outside the model's vocabulary; tokenizer and model differ.")

    def _run(
        self, prompt_ids: list[int], params: SamplingParams, max_new: int, cancel: threading.Event
    ) -> Generator[EngineEvent, None, None]:
        config = self._model.config
        num_prompt = len(prompt_ids)
        sampler = Sampler(params, prompt_ids, config.vocab_size)
        capacity = num_prompt + min(max_new, 256)
        cache = KVCache(config, capacity=capacity, dtype=self._model.dtype, device=self._model.device)
        try:
            # 1. prefill
            logits_V = None
            for start in range(0, num_prompt, self._prefill_chunk):
                if cancel.is_set():
                    yield TokenEvent(None, "cancelled")
                    return
                logits_V = self._step(prompt_ids[start : start + self._prefill_chunk], cache)
                yield PrefillProgress(cache.num_cached_tokens, num_prompt)
            assert logits_V is not None
            # 2. decode
            for num_new in range(1, max_new + 1):
                if cancel.is_set():
                    yield TokenEvent(None, "cancelled")
                    return
                token_id = sampler.sample(logits_V)
                if token_id in self._stop_ids:
                    yield TokenEvent(token_id, "stop")
                    return
                yield TokenEvent(token_id, "length" if num_new == max_new else None)
                if num_new < max_new:
                    logits_V = self._step([token_id], cache)
        finally:
            cache.free()

    def _step(self, token_ids: list[int], cache: KVCache) -> torch.Tensor:
        """Feeds tokens; returns the logits [V] after the last. inference_mode is per thread and ends before a yield."""
        with self._turns.take(), torch.inference_mode():
            ids_BS = torch.tensor([token_ids], device=self._model.device)
            return self._model(ids_BS, cache=cache, logits_to_keep=1).logits[0, -1]


class FairLock:
    """A lock that is given in the order it was asked for; threading.Lock may let one thread take it forever."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._is_taken = False

    @contextmanager
    def take(self) -> Iterator[None]:
        self._acquire()
        try:
            yield
        finally:
            self._release()

    def _acquire(self) -> None:
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return
            my_turn = threading.Lock()
            my_turn.acquire()
            self._waiting.append(my_turn)
        my_turn.acquire()  # until the holder before us hands over

    def _release(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False
