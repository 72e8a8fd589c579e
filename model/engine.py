"""Runs requests on one model, many in one pass: a chunk of a prompt, a token of every answer. Ids only, never text.

There is no thread of its own: whoever waits for an event and finds nobody at work runs the next step for all. So an
idle engine costs nothing, and a client that stops listening holds nobody up. The scheduling is vLLM's and Sarathi's
(arXiv 2309.06180, 2403.02310): answers first, then a bounded chunk of prompts; blocks of the cache as they are needed.

An answer's step may carry a draft of the tokens that follow, by the first drafter that has one (model.drafting). A
token is sampled after each row while the draft foretold what was sampled. For a draft that is certain of itself this is
the acceptance of arXiv 2211.17192: token d stays with probability p(d), and otherwise p without d decides. Each token
is drawn once and from the same numbers as without drafts, so that the text is the same, sampled or greedy, as far as
the backend computes a row alike alone and among others. The C++ kernels do to the bit; torch only to rounding, which
can turn a near tie, so that it is not for drafts. What router health counts includes the rejected tokens: they did pass
the routers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count

from contracts import Constraint, ConstraintError, GenerationError, PrefillProgress, Queued, SamplingParams
from model.backend import Backend, Slice
from model.block_pool import BlockPool, OutOfBlocksError
from model.candidates import LogitRow, Logits
from model.drafting import Drafter, Grown, Pace
from model.kernels.cpu_decoder import BLOCK_TOKENS
from model.prompt_lookup import PromptLookup
from model.request import (
    DraftCount,
    EngineBusyError,
    EngineEvent,
    EngineLoad,
    TokenEvent,
    check_params,
    count_new_tokens,
    find_deadline,
)
from model.sampler import Matcher, Sampler

# On one core a 10 M-parameter model reads a chunk in about 0.1 s: that bounds what Stop and other streams wait for.
PREFILL_CHUNK = 256
MIN_CHUNK = 32  # fewer tokens of a prompt in a step would read all weights for too little
MAX_WAITING = 64


@dataclass(eq=False, slots=True)
class _Request:
    """token_ids: the prompt and what was generated. num_cached of them have their keys and values in `blocks`."""

    token_ids: list[int]
    num_prompt: int
    max_new: int
    sampler: Sampler
    cancel: threading.Event
    deadline: float
    key: int  # as the drafters know it
    paces: list[Pace]  # one for each drafter
    events: deque[EngineEvent | Exception] = field(default_factory=deque)
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)  # of its full blocks, as BlockPool.hash_blocks makes them
    num_cached: int = 0
    draft: list[int] = field(default_factory=list)  # for the next step
    drafter: int = 0  # whose it is
    place: int = 0  # in the queue, as last told
    is_over: bool = False

    @property
    def num_new(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        return len(self.token_ids) - self.num_cached


class Engine:
    """Streams token ids from a model. stop_ids end an answer. All methods are thread-safe.

    constrain: makes the matcher of an answer that must have a form; without it none can be asked for.
    max_draft: how many drafted tokens the answers of a step may carry together, by default none. draft_length: how many
    one of them may, by default as many. drafters: what may draft them, in order of preference: the first that has
    something for an answer; by default its prompt alone.
    """

    def __init__(
        self,
        backend: Backend,
        stop_ids: Sequence[int],
        prefill_chunk: int = PREFILL_CHUNK,
        max_waiting: int = MAX_WAITING,
        max_draft: int = 0,
        constrain: Callable[[Constraint], Matcher] | None = None,
        drafters: Sequence[Drafter] | None = None,
        draft_length: int | None = None,
    ) -> None:
        self._backend = backend
        self._stop_ids = frozenset(stop_ids)
        self._prefill_chunk = prefill_chunk
        self._max_waiting = max_waiting
        self._max_draft = max_draft
        self._draft_length = max_draft if draft_length is None else draft_length
        self._constrain = constrain
        self._drafters = [PromptLookup()] if drafters is None else list(drafters)
        self._num_drafted, self._num_accepted = [0] * len(self._drafters), [0] * len(self._drafters)
        num_ahead = int(any(drafter.uses_blocks for drafter in self._drafters))
        self._pool = BlockPool(backend.num_blocks, BLOCK_TOKENS, num_ahead)
        self._keys = count()
        self._changed = threading.Condition()  # guards all below
        self._is_stepping = False
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []  # oldest first
        self._lent: list[list[int]] = []  # blocks that are being read or filled from outside

    @property
    def context_length(self) -> int:
        return self._backend.config.context_length

    @property
    def num_blocks_in_use(self) -> int:
        """Blocks of the cache that living requests hold."""
        return self._pool.num_blocks - self._pool.num_available

    @property
    def load(self) -> EngineLoad:
        with self._changed:
            return EngineLoad(
                len(self._running),
                len(self._waiting),
                self.num_blocks_in_use,
                self._pool.num_blocks,
                tuple(
                    DraftCount(drafter.name, *counts)
                    for drafter, *counts in zip(self._drafters, self._num_drafted, self._num_accepted, strict=True)
                ),
            )

    def stream(
        self, prompt_ids: Sequence[int], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Generator[EngineEvent, None, None]:
        """Yields Queued while others are before it, PrefillProgress per chunk, then a TokenEvent per token; the last
        carries the finish_reason.

        `cancel` and the deadline are read before every step. Closing the iterator frees the request's blocks. Raises
        ContextLengthError or ValueError (a ConstraintError among them) at the call, before any work, and
        EngineBusyError where too many wait.
        """
        check_params(params)
        deadline = find_deadline(params)
        self._check_ids(prompt_ids)
        max_new = count_new_tokens(len(prompt_ids), params.max_tokens, self.context_length)
        if len(self._waiting) >= self._max_waiting:
            raise EngineBusyError(f"{len(self._waiting)} questions wait already; ask again in a moment.")
        matcher = self._make_matcher(params.constraint)
        sampler = Sampler(params, prompt_ids, self._backend.config.vocab_size, matcher)
        paces = [Pace(self._draft_length) for _ in self._drafters]
        token_ids, cancel, key = list(prompt_ids), cancel or threading.Event(), next(self._keys)
        return self._run(_Request(token_ids, len(token_ids), max_new, sampler, cancel, deadline, key, paces))

    def check_integrity(self) -> list[str]:
        """What is wrong with the books of the cache; empty if all is in order. Waits for the step that runs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_stepping)
            return self._pool.check_integrity([*(request.blocks for request in self._running), *self._lent])

    def forget_prefixes(self) -> None:
        """No later request finds what earlier ones put into the cache."""
        with self._changed:
            self._pool.forget_all()

    # --- what is known of a text, for whoever keeps it elsewhere ------------------------------------------------

    @property
    def cache_layout(self) -> str:
        """What the bytes of a block mean; see model.backend.Backend."""
        return self._backend.cache_layout

    @property
    def block_bytes(self) -> int:
        return self._backend.block_bytes

    @property
    def num_ahead(self) -> int:
        """How many tokens after a block its contents depend on, 0 or 1."""
        return self._pool.num_ahead

    def hash_blocks(self, token_ids: Sequence[int]) -> list[bytes]:
        """The digests of the full blocks of these tokens, each of its tokens and all before it."""
        hashes: list[bytes] = []
        self._pool.hash_blocks(token_ids, hashes)
        return hashes

    def keep_prefix(self, token_ids: Sequence[int]) -> None:
        """Gives up the known blocks that these tokens begin with after those of other texts."""
        hashes = self.hash_blocks(token_ids)
        with self._changed:
            self._pool.keep(hashes)

    @contextmanager
    def hold_prefix(self, token_ids: Sequence[int]) -> Iterator[list[int]]:
        """The known full blocks that these tokens begin with. They may be read, and stay, while the context lasts."""
        hashes = self.hash_blocks(token_ids)
        with self._changed:
            blocks = self._pool.take_prefix(hashes, len(token_ids) + 1)
            self._lent.append(blocks)
        try:
            yield blocks
        finally:
            self._take_back(blocks)

    @contextmanager
    def fill_prefix(self, token_ids: Sequence[int]) -> Iterator[list[int]]:
        """Blocks to be filled, all of them, with the keys and values of these tokens: whole blocks of them, and
        num_ahead more. They are known once the context ends without an error. Raises OutOfBlocksError if there are too
        few beside those that the running answers may need next."""
        hashes = self.hash_blocks(token_ids)
        with self._changed:
            if self._pool.num_available < len(hashes) + len(self._running):
                raise OutOfBlocksError
            blocks = [self._pool.allocate() for _ in hashes]
            self._lent.append(blocks)
        try:
            yield blocks
            with self._changed:
                for number, block in enumerate(blocks):
                    start = number * BLOCK_TOKENS
                    part = token_ids[start : start + BLOCK_TOKENS + self.num_ahead]
                    self._pool.remember(block, hashes, number, part)
        finally:
            self._take_back(blocks)

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        """The bytes of blocks that the caller holds."""
        return self._backend.read_blocks(blocks)

    def write_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        """Fills blocks that the caller was given to fill."""
        self._backend.write_blocks(blocks, data)

    def _take_back(self, blocks: list[int]) -> None:
        with self._changed:
            self._lent.remove(blocks)
            self._pool.free(blocks)

    def _check_ids(self, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids:
            raise ValueError("The prompt is empty; give at least one token.")
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < self._backend.config.vocab_size:
            raise ValueError("The prompt holds a token id outside the model's vocabulary; tokenizer and model differ.")

    def _make_matcher(self, constraint: Constraint | None) -> Matcher | None:
        """Without the lock: it may take seconds."""
        if constraint is None:
            return None
        if self._constrain is None:
            raise ConstraintError("This engine cannot keep the form of an answer: it was made without a vocabulary.")
        return self._constrain(constraint)

    # --- one client ---------------------------------------------------------------------------------------------

    def _run(self, request: _Request) -> Generator[EngineEvent, None, None]:
        with self._changed:
            self._waiting.append(request)
        try:
            is_last = False
            while not is_last:
                event = self._next_event(request)
                if isinstance(event, Exception):
                    raise event
                is_last = isinstance(event, TokenEvent) and event.finish_reason is not None
                yield event
        finally:
            self._drop(request)

    def _next_event(self, request: _Request) -> EngineEvent | Exception:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(request.events) or not self._is_stepping)
                if request.cancel.is_set() and not request.is_over:
                    request.events.clear()  # what was sampled before Stop but not yet told
                self._end_if_due(request)
                if request.events:
                    return request.events.popleft()
                self._is_stepping = True
            try:
                self._step()
            finally:
                with self._changed:
                    self._is_stepping = False
                    self._changed.notify_all()

    def _drop(self, request: _Request) -> None:
        with self._changed:
            request.is_over = True
            if not self._is_stepping:  # otherwise the step may still write to its blocks, and its end lets them go
                self._release_finished()

    # --- one step, for all --------------------------------------------------------------------------------------

    def _step(self) -> None:
        with self._changed:
            batch = self._plan()
        if not batch:
            return
        try:
            logits = self._backend.forward([part for _, part in batch])
            with self._changed:
                grown = self._take_results(batch, logits)
            self._draft(grown)
        except Exception as error:  # noqa: BLE001 - raised again where each of the clients listens
            with self._changed:
                for request, _ in batch:
                    self._finish(request, error)
                self._release_finished()
            return
        with self._changed:
            self._release_finished()

    def _plan(self) -> list[tuple[_Request, Slice]]:
        """Who computes what: every answer its next token, prompts a chunk together, the oldest first."""
        for request in [*self._running, *self._waiting]:
            self._end_if_due(request)
        self._release_finished()
        self._admit()
        # Answers first; what is left of the step is shared among the prompts, so that a short one passes a long record.
        answers = [request for request in self._running if request.num_pending == 1]
        prompts = [request for request in self._running if request.num_pending > 1]
        share = min(self._prefill_chunk, max(MIN_CHUNK, self._prefill_chunk // max(len(prompts), 1)))
        ends = {request: request.num_cached + 1 for request in answers}
        for request in prompts[: max(1, self._prefill_chunk // share)]:
            ends[request] = request.num_cached + min(request.num_pending, share)
        for request, end in ends.items():
            if request in self._running:  # not put off meanwhile
                self._make_room(request, end)
        for request in answers:
            request.draft = request.draft[: self._max_draft // len(answers)]  # there may be more answers by now
        batch = [(request, _slice(request, end)) for request, end in ends.items() if request in self._running]
        assert all(self._pool.is_writable(block) for _, part in batch for block in _list_written(part))
        return batch

    def _admit(self) -> None:
        """Lets in those who wait, while there are blocks for their first chunk; tells the others their place."""
        while self._waiting:
            request = self._waiting[0]
            needed = -(-min(request.num_pending, self._prefill_chunk) // BLOCK_TOKENS)
            if self._running and needed + len(self._running) > self._pool.num_available:
                break
            self._waiting.popleft()
            self._take_known(request)
            self._running.append(request)
        for place, request in enumerate(self._waiting, 1):
            if place != request.place:
                request.place = place
                request.events.append(Queued(place))

    def _take_known(self, request: _Request) -> None:
        """Gives a request what is computed of its tokens: whole blocks as they are, and a copy of the block in which
        it parts from a known text. A key depends on the tokens before it only, so the copy is what it would compute."""
        self._pool.hash_blocks(request.token_ids, request.hashes)
        request.blocks = self._pool.take_prefix(request.hashes, len(request.token_ids))
        request.num_cached = start = len(request.blocks) * BLOCK_TOKENS
        end = min(start + BLOCK_TOKENS, len(request.token_ids) - 1)  # the last token's logits must be computed
        wanted = request.token_ids[start : end + self._pool.num_ahead]
        if fork := self._pool.fork(request.hashes, len(request.blocks), wanted):
            for part in (self._backend, *self._drafters):
                part.copy_block(fork.source, fork.block)
            request.blocks.append(fork.block)
            request.num_cached += fork.num_tokens

    def _make_room(self, request: _Request, num_tokens: int) -> None:
        """Blocks for so many tokens; if there are none, the youngest gives its own up and begins again later."""
        while len(request.blocks) * BLOCK_TOKENS < num_tokens:
            try:
                request.blocks.append(self._pool.allocate())
            except OutOfBlocksError:
                youngest = self._running[-1]
                self._put_off(youngest)
                if youngest is request:
                    return

    def _draft(self, grown: Sequence[tuple[_Request, Grown]]) -> None:
        """What each answer's next step is to try, from the first drafter that has something for it."""
        if not self._max_draft:
            return
        with self._changed:
            answers = [request for request in self._running if request.num_pending == 1 and not request.is_over]
            rooms = {request: self._make_room_to_draft(request, len(answers)) for request in answers}
        for number, drafter in enumerate(self._drafters):
            parts = []
            for request, part in grown:
                limit = 0 if request.draft else request.paces[number].allow(rooms.get(request, 0))
                parts.append(replace(part, limit=limit))
            for (request, _), guess in zip(grown, drafter.draft(parts), strict=True):
                if draft := request.sampler.cut_draft(guess):
                    request.draft, request.drafter = draft, number

    def _make_room_to_draft(self, request: _Request, num_answers: int) -> int:
        """Its share of the drafted tokens, as many as there are blocks for that nobody else needs in this step."""
        limit = min(self._max_draft // num_answers, request.max_new - request.num_new - 1)
        end = len(request.token_ids) + limit
        while len(request.blocks) * BLOCK_TOKENS < end and self._pool.num_available > len(self._running):
            request.blocks.append(self._pool.allocate())
        return max(min(limit, len(request.blocks) * BLOCK_TOKENS - len(request.token_ids)), 0)

    def _put_off(self, request: _Request) -> None:
        self._give_back(request)
        self._waiting.appendleft(request)

    def _take_results(self, batch: Sequence[tuple[_Request, Slice]], logits: Logits) -> list[tuple[_Request, Grown]]:
        grown = []
        row = first_row = 0
        for request, part in batch:
            first_full = request.num_cached // BLOCK_TOKENS
            request.num_cached += len(part.token_ids) - max(part.num_logits - 1, 0)  # without the draft
            if request.num_cached <= request.num_prompt:
                request.events.append(PrefillProgress(request.num_cached, request.num_prompt))
            if part.num_logits:
                self._sample_all(request, logits[row : row + part.num_logits])
                row += part.num_logits
            self._pool.hash_blocks(request.token_ids, request.hashes)
            for number in range(first_full, min(request.num_cached // BLOCK_TOKENS, len(request.hashes))):
                self._remember(request, number)
            num_kept = min(request.num_cached, len(request.token_ids) - 1) - part.first_position
            known = Grown(request.key, request.token_ids, part.first_position, first_row, num_kept, request.blocks, 0)
            grown.append((request, known))
            first_row += len(part.token_ids)
        return grown

    def _sample_all(self, request: _Request, logits: Logits) -> None:
        """A token after each row, as long as it is the one that the next row was computed for."""
        draft, num_before = request.draft, request.num_cached
        request.draft = []
        first, *others = logits
        self._sample(request, first)
        for token_id, row in zip(draft, others, strict=True):
            if request.is_over or request.token_ids[-1] != token_id:
                break
            request.num_cached += 1
            self._sample(request, row)
        if draft:
            num_accepted = request.num_cached - num_before
            request.paces[request.drafter].learn(num_accepted)
            self._num_drafted[request.drafter] += len(draft)
            self._num_accepted[request.drafter] += num_accepted

    def _sample(self, request: _Request, logits: LogitRow) -> None:
        try:
            token_id = request.sampler.sample(logits)
        except GenerationError as error:  # this request's numbers or its form are broken, the others' need not be
            self._finish(request, error)
            return
        request.token_ids.append(token_id)
        score = request.sampler.score(logits, token_id)
        if token_id in self._stop_ids:
            self._finish(request, TokenEvent(token_id, "stop", score))
        elif request.sampler.is_complete:
            request.events.append(TokenEvent(token_id, score=score))
            self._finish(request, TokenEvent(None, "stop"))
        elif request.num_new == request.max_new:
            self._finish(request, TokenEvent(token_id, "length", score))
        else:
            request.events.append(TokenEvent(token_id, score=score))

    def _end_if_due(self, request: _Request) -> None:
        """Ends a request that was cancelled or whose time is over."""
        if request.is_over:
            return
        if request.cancel.is_set():
            self._finish(request, TokenEvent(None, "cancelled"))
        elif time.monotonic() >= request.deadline:
            self._finish(request, TokenEvent(None, "deadline"))

    def _finish(self, request: _Request, last: EngineEvent | Exception) -> None:
        request.events.append(last)
        request.is_over = True

    def _release_finished(self) -> None:
        for request in [request for request in [*self._running, *self._waiting] if request.is_over]:
            for drafter in self._drafters:
                drafter.forget(request.key)
            if request in self._running:
                self._give_back(request)
        self._waiting = deque(request for request in self._waiting if not request.is_over)

    def _give_back(self, request: _Request) -> None:
        """Its blocks; they stay known, also the last one, as far as it was computed."""
        self._running.remove(request)
        if request.num_cached % BLOCK_TOKENS:
            self._remember(request, request.num_cached // BLOCK_TOKENS)
        self._pool.free(request.blocks)
        request.blocks, request.num_cached, request.draft = [], 0, []

    def _remember(self, request: _Request, number: int) -> None:
        start = number * BLOCK_TOKENS
        end = min(start + BLOCK_TOKENS, request.num_cached) + self._pool.num_ahead
        self._pool.remember(request.blocks[number], request.hashes, number, request.token_ids[start:end])


def _slice(request: _Request, end: int) -> Slice:
    new_ids, num_logits = request.token_ids[request.num_cached : end], 0
    if end == len(request.token_ids):
        new_ids, num_logits = [*new_ids, *request.draft], 1 + len(request.draft)
    return Slice(new_ids, request.num_cached, request.blocks, num_logits)


def _list_written(part: Slice) -> Sequence[int]:
    """The blocks that a pass over the slice writes to."""
    end = part.first_position + len(part.token_ids)
    return part.blocks[part.first_position // BLOCK_TOKENS : -(-end // BLOCK_TOKENS)]
