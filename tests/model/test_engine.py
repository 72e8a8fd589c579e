from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from contracts import ContextLengthError, PrefillProgress, Queued, SamplingParams
from model.backend import Backend, Slice
from model.block_pool import BlockPool
from model.cpu_backend import CpuBackend
from model.engine import Engine
from model.kernels.build import best_variant, load_library
from model.kernels.cpu_decoder import BLOCK_TOKENS as PAGE
from model.kernels.cpu_decoder import Threads
from model.kv_cache import BLOCK_TOKENS, KVCache
from model.request import EngineBusyError, EngineEvent, TokenEvent
from model.sampler import Sampler, SamplerError
from model.torch_backend import TorchBackend
from tests.model.conftest import make_model

MODEL = make_model()
BACKENDS = {"torch": TorchBackend(MODEL), "kernels": CpuBackend(MODEL, Threads(2, load_library(best_variant())))}
PROMPT = list(range(20, 60))
GREEDY = SamplingParams(max_tokens=20)


def tokens_of(events: Iterator[EngineEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenEvent) and event.token_id is not None]


@torch.inference_mode()
def expected_greedy(num_tokens: int) -> list[int]:
    """The same tokens without cache or chunks."""
    ids = list(PROMPT)
    for _ in range(num_tokens):
        ids.append(int(MODEL(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.mark.parametrize("chunk", [1, 7, 40, 256])
def test_greedy_tokens_equal_the_plain_model(backend: Backend, chunk: int) -> None:
    assert tokens_of(Engine(backend, [], chunk).stream(PROMPT, GREEDY)) == expected_greedy(20)


def test_progress_counts_the_prompt_in_chunks_then_tokens_follow() -> None:
    events = list(Engine(BACKENDS["torch"], [], 16).stream(PROMPT, replace(GREEDY, max_tokens=2)))
    assert events[:3] == [PrefillProgress(16, 40), PrefillProgress(32, 40), PrefillProgress(40, 40)]
    assert [event.finish_reason for event in events[3:] if isinstance(event, TokenEvent)] == [None, "length"]


def test_every_stop_id_ends_the_answer() -> None:
    plain = expected_greedy(20)
    stop = plain[5]
    events = list(Engine(BACKENDS["torch"], [399, stop]).stream(PROMPT, GREEDY))
    assert events[-1] == TokenEvent(stop, "stop")
    assert tokens_of(iter(events)) == plain[: plain.index(stop) + 1]


def test_answer_ends_where_the_context_does() -> None:
    model = make_model(max_position_embeddings=48)
    events = list(Engine(TorchBackend(model), []).stream(PROMPT, GREEDY))
    assert len(tokens_of(iter(events))) == 8
    assert events[-1].finish_reason == "length"


def test_prompt_that_does_not_fit_is_refused_before_any_work() -> None:
    model = make_model(max_position_embeddings=40)
    with pytest.raises(ContextLengthError, match=r"40 tokens.*40"):
        Engine(TorchBackend(model), []).stream(PROMPT, GREEDY)
    assert tokens_of(Engine(TorchBackend(model), []).stream(PROMPT[:-1], GREEDY))


@pytest.mark.parametrize(
    ("prompt", "params", "says"),
    [
        ([], {}, "prompt is empty"),
        ([400], {}, "outside the model's vocabulary"),
        ([-1], {}, "outside the model's vocabulary"),
        ([1], {"temperature": -1.0}, "temperature"),
        ([1], {"temperature": float("nan")}, "temperature"),
        ([1], {"top_p": 0.0}, "top_p"),
        ([1], {"top_k": -1}, "top_k"),
        ([1], {"repetition_penalty": 0.0}, "repetition_penalty"),
        ([1], {"max_tokens": 0}, "max_tokens"),
        ([1], {"max_seconds": -1.0}, "max_seconds"),
        ([1], {"max_seconds": float("nan")}, "max_seconds"),
    ],
)
def test_bad_requests_are_refused_at_the_call(prompt: list[int], params: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Engine(BACKENDS["torch"], []).stream(prompt, SamplingParams(**params))


def test_stop_is_heard_during_prefill() -> None:
    cancel = threading.Event()
    events = Engine(BACKENDS["torch"], [], prefill_chunk=4).stream(PROMPT, GREEDY, cancel)
    assert next(events) == PrefillProgress(4, 40)
    cancel.set()
    assert list(events) == [TokenEvent(None, "cancelled")]


def test_stop_is_heard_between_tokens() -> None:
    cancel = threading.Event()
    events = Engine(BACKENDS["torch"], []).stream(PROMPT, GREEDY, cancel)
    next(events)
    first = next(events)
    cancel.set()
    assert isinstance(first, TokenEvent)
    assert list(events) == [TokenEvent(None, "cancelled")]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The engine's time: a list of one, for the test to set."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_an_answer_ends_at_its_deadline_and_keeps_what_was_said(clock: list[float]) -> None:
    engine = Engine(BACKENDS["torch"], [])
    events = engine.stream(PROMPT, replace(GREEDY, max_seconds=5))
    told = [next(events) for _ in range(4)]
    clock[0] += 4.9
    told.append(next(events))
    clock[0] += 0.2
    assert list(events) == [TokenEvent(None, "deadline")]
    assert tokens_of(iter(told)) == expected_greedy(4)
    assert engine.num_blocks_in_use == 0


def test_the_deadline_is_heard_between_two_chunks_of_a_prompt(clock: list[float]) -> None:
    events = Engine(BACKENDS["torch"], [], prefill_chunk=4).stream(PROMPT, replace(GREEDY, max_seconds=5))
    assert next(events) == PrefillProgress(4, 40)
    clock[0] += 5
    assert list(events) == [TokenEvent(None, "deadline")]


def test_waiting_counts_and_who_waits_in_vain_leaves_the_queue(clock: list[float]) -> None:
    engine = Engine(Recording(num_blocks=2), [])
    prompt = list(range(PAGE + 4))
    first = engine.stream(prompt, GREEDY)
    next(first)
    second = engine.stream(prompt, replace(GREEDY, max_seconds=5))
    assert next(second) == Queued(1)
    clock[0] += 5
    assert len(tokens_of(first)) > 10  # whoever runs the steps ends it for the one that waits
    assert engine.load.num_waiting == 0
    assert list(second) == [TokenEvent(None, "deadline")]
    assert engine.check_integrity() == []


def test_closing_early_gives_the_blocks_back(backend: Backend) -> None:
    engine = Engine(backend, [])
    events = engine.stream(PROMPT, GREEDY)
    next(events)
    assert engine.num_blocks_in_use > 0
    events.close()
    assert engine.num_blocks_in_use == 0
    assert engine.check_integrity() == []


def test_consumer_keeps_its_gradients() -> None:
    events = Engine(BACKENDS["torch"], []).stream(PROMPT, GREEDY)
    next(events)
    assert not torch.is_inference_mode_enabled()


def test_same_seed_same_answer_other_seed_other_answer() -> None:
    params = SamplingParams(temperature=1.0, max_tokens=20, seed=7)
    engine = Engine(BACKENDS["torch"], [])
    first = tokens_of(engine.stream(PROMPT, params))
    assert tokens_of(engine.stream(PROMPT, params)) == first
    assert tokens_of(engine.stream(PROMPT, replace(params, seed=8))) != first
    assert tokens_of(engine.stream(PROMPT, replace(params, seed=None))) != first


def test_streams_in_threads_do_not_mix() -> None:
    engine = Engine(BACKENDS["torch"], [], prefill_chunk=8)
    prompts = [PROMPT[start : start + 20] for start in range(4)]
    alone = [tokens_of(engine.stream(prompt, GREEDY)) for prompt in prompts]
    together: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda i=i, p=p: together.update({i: tokens_of(engine.stream(p, GREEDY))}))
        for i, p in enumerate(prompts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(4)] == alone


class Recording:
    """A backend that notes what it was asked, has as many blocks as told, and may spoil logits."""

    def __init__(self, num_blocks: int = 0, spoil: int | None = None, inner: Backend = BACKENDS["torch"]) -> None:
        self.inner, self.config, self.name = inner, MODEL.config, "recording"
        self.cache_layout, self.block_bytes = inner.cache_layout, inner.block_bytes
        self.read_blocks, self.write_blocks = inner.read_blocks, inner.write_blocks
        self.num_blocks = num_blocks or self.inner.num_blocks
        self.batches: list[list[Slice]] = []
        self.spoil = spoil

    def forward(self, batch: Sequence[Slice]) -> torch.Tensor:
        self.batches.append(list(batch))
        logits = self.inner.forward(batch)
        if self.spoil is not None:
            asked = [
                (part, token_id)
                for part in batch
                for token_id in part.token_ids[len(part.token_ids) - part.num_logits :]
            ]
            for row, (part, token_id) in zip(logits, asked, strict=True):
                if part.first_position and token_id == self.spoil:
                    row[:] = float("nan")
        return logits

    def copy_block(self, source: int, target: int) -> None:
        self.inner.copy_block(source, target)


def test_a_prompt_that_begins_like_an_earlier_one_is_not_read_again() -> None:
    backend = Recording()
    engine = Engine(backend, [])
    prompt = [7 * i % 400 for i in range(3 * PAGE)]
    first = tokens_of(engine.stream(prompt, GREEDY))
    backend.batches.clear()
    events = list(engine.stream(prompt, GREEDY))
    assert events[0] == PrefillProgress(3 * PAGE, 3 * PAGE)
    assert backend.batches[0][0].first_position == 3 * PAGE - 1  # the last token's logits are always computed
    assert tokens_of(iter(events)) == first
    backend.batches.clear()
    follow_up = [*prompt, *first, 5, 6]
    expected = tokens_of(Engine(BACKENDS["torch"], []).stream(follow_up, GREEDY))
    assert tokens_of(engine.stream(follow_up, GREEDY)) == expected
    assert backend.batches[0][0].first_position == 3 * PAGE + len(first) - 1  # all but what was sampled last
    engine.forget_prefixes()
    backend.batches.clear()
    list(engine.stream(prompt, GREEDY))
    assert backend.batches[0][0].first_position == 0
    assert engine.check_integrity() == []


@pytest.mark.parametrize("common", [1, 31, 32, 33, 70, 95])
def test_a_prompt_that_parts_from_a_known_one_computes_only_what_differs(backend: Backend, common: int) -> None:
    watched = Recording(inner=backend)
    engine = Engine(watched, [])
    known = [7 * i % 400 for i in range(3 * PAGE)]
    first = tokens_of(engine.stream(known, GREEDY))
    other = [*known[:common], *[399 - i for i in range(40)]]
    watched.batches.clear()
    said = tokens_of(engine.stream(other, GREEDY))
    assert watched.batches[0][0].first_position == common
    assert tokens_of(engine.stream(known, GREEDY)) == first  # the known block was copied, not written to
    engine.forget_prefixes()
    assert tokens_of(engine.stream(other, GREEDY)) == said
    assert engine.check_integrity() == []


def test_a_copied_beginning_gives_the_same_numbers_to_the_bit() -> None:
    kernels = BACKENDS["kernels"]
    text = [7 * i % 400 for i in range(2 * PAGE)]
    kernels.forward([Slice(text, 0, [0, 1], 0)])
    other = [*text[:45], *range(300, 320)]
    kernels.copy_block(1, 2)
    copied = kernels.forward([Slice(other[45:], 45, [0, 2, 3], 20)])
    computed = kernels.forward([Slice(other, 0, [4, 5, 6], 20)])
    assert torch.equal(copied, computed)


def test_writing_to_a_block_that_others_may_read_stops_the_step() -> None:
    engine = Engine(BACKENDS["torch"], [])
    events = engine.stream(PROMPT, GREEDY)
    next(events)
    (request,) = engine._running
    engine._pool.remember(request.blocks[-1], request.hashes, 1, PROMPT[PAGE:])
    with pytest.raises(AssertionError):
        list(events)


def test_texts_that_fork_in_turn_do_not_disturb_each_other(backend: Backend) -> None:
    prompts = [[*PROMPT, *range(100, 100 + n), 7, n] for n in range(1, 30, 7)]
    alone = []
    for prompt in prompts:
        engine = Engine(backend, [])
        alone.append(tokens_of(engine.stream(prompt, GREEDY)))
    engine = Engine(backend, [], prefill_chunk=8)
    list(engine.stream(prompts[-1], GREEDY))
    assert run_together(engine, prompts, GREEDY) == alone
    assert engine.check_integrity() == []
    assert engine.num_blocks_in_use == 0


def run_together(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    """Each prompt's tokens, all streams open at once and read in turn by one thread."""
    streams = [engine.stream(prompt, params) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    open_ones = set(range(len(prompts)))
    while open_ones:
        for number in sorted(open_ones):
            event = next(streams[number], None)
            if event is None:
                open_ones.discard(number)
            elif isinstance(event, TokenEvent) and event.token_id is not None:
                answers[number].append(event.token_id)
    return answers


def test_answers_do_not_depend_on_who_else_is_answered(backend: Backend) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=12)
    prompts = [[(11 * i + n) % 400 for i in range(10 + 17 * n)] for n in range(5)]
    alone = [tokens_of(Engine(backend, []).stream(prompt, params)) for prompt in prompts]
    assert run_together(Engine(backend, [], prefill_chunk=24), prompts, params) == alone


def test_with_too_few_blocks_the_youngest_waits_and_its_answer_is_the_same() -> None:
    prompts = [[(13 * i + n) % 400 for i in range(PAGE - 4)] for n in range(3)]
    params = replace(GREEDY, max_tokens=50)
    alone = [tokens_of(Engine(BACKENDS["torch"], []).stream(prompt, params)) for prompt in prompts]
    backend = Recording(num_blocks=4)  # each answer grows to 3
    engine = Engine(backend, [])
    assert run_together(engine, prompts, params) == alone
    assert sum(len(part.token_ids) > 1 for batch in backend.batches for part in batch) > 3  # one was read again
    assert engine.check_integrity() == []
    assert engine.num_blocks_in_use == 0


def test_drafts_change_no_text_in_a_mixed_batch_that_runs_out_of_blocks(backend: Backend) -> None:
    params = SamplingParams(temperature=0.3, seed=3, max_tokens=50)
    prompts = [[20 + (i + n) % 5 for i in range(PAGE - 4 + n)] for n in range(4)]
    alone = [tokens_of(Engine(backend, [], max_draft=0).stream(prompt, params)) for prompt in prompts]
    limited = Recording(num_blocks=6, inner=backend)  # each answer grows to 3
    engine = Engine(limited, [], prefill_chunk=8, max_draft=12)
    assert run_together(engine, prompts, params) == alone
    assert sum(not part.first_position for batch in limited.batches for part in batch) > 4  # one was read again
    widths = [[part.num_logits for part in batch] for batch in limited.batches]
    assert any(max(width) > 1 and min(width) == 0 for width in widths)  # a draft beside a chunk of a prompt
    assert any(sum(number > 1 for number in width) > 1 for width in widths)  # two drafts at once
    assert engine.load.num_drafted > engine.load.num_accepted > 0
    assert engine.check_integrity() == []
    assert engine.num_blocks_in_use == 0


def test_who_waits_is_told_its_place_and_too_many_are_refused() -> None:
    engine = Engine(Recording(num_blocks=2), [], max_waiting=2)
    prompt = list(range(PAGE + 4))
    first = engine.stream(prompt, GREEDY)
    next(first)
    second, third = engine.stream(prompt, GREEDY), engine.stream(prompt, GREEDY)
    assert next(second) == Queued(1)
    assert next(third) == Queued(2)
    with pytest.raises(EngineBusyError, match="2 questions wait"):
        engine.stream(prompt, GREEDY)
    first.close()
    assert tokens_of(second) == tokens_of(third)


def test_a_short_question_passes_a_long_record() -> None:
    backend = Recording()
    engine = Engine(backend, [], prefill_chunk=64)
    long = engine.stream([3] * 400, GREEDY)
    next(long)
    short = engine.stream([5] * 20, replace(GREEDY, max_tokens=3))
    assert len(tokens_of(short)) == 3
    assert sum(len(part.token_ids) for batch in backend.batches for part in batch if part.token_ids[0] == 3) < 400
    assert all(sum(len(part.token_ids) for part in batch) <= 64 + 2 for batch in backend.batches)
    long.close()
    assert engine.check_integrity() == []


def test_one_request_with_broken_numbers_does_not_take_the_others_with_it() -> None:
    plain = tokens_of(Engine(BACKENDS["torch"], []).stream(PROMPT, GREEDY))
    engine = Engine(Recording(spoil=plain[2]), [])
    broken = engine.stream(PROMPT, GREEDY)
    other = engine.stream([9] * 30, GREEDY)
    next(other)
    with pytest.raises(SamplerError, match="not finite"):
        list(broken)
    assert tokens_of(other) == tokens_of(Engine(BACKENDS["torch"], []).stream([9] * 30, GREEDY))
    assert engine.check_integrity() == []


def test_a_failing_pass_ends_its_requests_and_the_engine_goes_on() -> None:
    class Failing(Recording):
        def forward(self, batch: Sequence[Slice]) -> torch.Tensor:
            if len(self.batches) == 2:
                self.batches.clear()
                raise MemoryError("no room")
            return super().forward(batch)

    engine = Engine(Failing(), [])
    with pytest.raises(MemoryError, match="no room"):
        list(engine.stream(PROMPT, GREEDY))
    assert engine.check_integrity() == []
    assert len(tokens_of(engine.stream(PROMPT, replace(GREEDY, max_tokens=1)))) == 1


def test_many_clients_that_come_go_and_cancel_leave_the_books_in_order() -> None:
    engine = Engine(Recording(num_blocks=20), [], prefill_chunk=32)
    problems: list[BaseException] = []

    def client(number: int) -> None:
        chance = random.Random(number)
        try:
            for _ in range(4):
                cancel = threading.Event()
                prompt = [chance.randrange(400) for _ in range(chance.choice([5, 40, 150, 300]))]
                events = engine.stream(prompt, replace(GREEDY, max_tokens=8), cancel)
                for count, _ in enumerate(events):
                    if count == chance.choice([1, 5, 100]):
                        events.close() if chance.random() < 0.5 else cancel.set()
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            problems.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert engine.check_integrity() == []
    assert engine.num_blocks_in_use == 0


def test_the_books_notice_what_is_wrong() -> None:
    pool = BlockPool(4, 8)
    table = [pool.allocate(), pool.allocate()]
    assert pool.check_integrity([table]) == []
    assert pool.check_integrity([]) != []
    pool.free(table[:1])
    assert pool.check_integrity([table]) != []


def test_cache_grows_and_keeps_what_it_holds() -> None:
    cache = KVCache(MODEL.config, capacity=1)
    before = cache.num_bytes
    chunks = [torch.randn(1, 2, 100, 16) for _ in range(9)]
    for chunk in chunks:
        for layer in range(MODEL.config.num_layers):
            keys, values = cache.append(layer, chunk, chunk + 1)
        cache.advance(100)
    whole = torch.cat(chunks, 2)
    assert torch.equal(keys, whole)
    assert torch.equal(values, whole + 1)
    assert before < cache.num_bytes <= before * (900 // BLOCK_TOKENS + 2) * 1.5


# --- sampler ----------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.0])


def draw(params: SamplingParams, prompt: tuple[int, ...] = (), count: int = 300) -> set[int]:
    sampler = Sampler(replace(params, seed=1), list(prompt), 5)
    return {sampler.sample(LOGITS) for _ in range(count)}


def test_temperature_zero_is_greedy() -> None:
    assert draw(SamplingParams(temperature=0.0, top_k=5, top_p=0.1)) == {1}


def test_top_k_keeps_the_k_likeliest() -> None:
    assert draw(SamplingParams(temperature=5.0, top_k=2)) == {1, 2}
    assert draw(SamplingParams(temperature=5.0, top_k=99)) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    # probabilities: 1 -> .62, 2 -> .23, 0 -> .08, 4 -> .03, 3 -> .01
    assert draw(SamplingParams(temperature=1.0, top_p=0.6)) == {1}
    assert draw(SamplingParams(temperature=1.0, top_p=0.7)) == {1, 2}
    assert draw(SamplingParams(temperature=1.0, top_p=1e-6)) == {1}


def test_penalty_reaches_prompt_and_output() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=4.0), [1], 5)
    assert [sampler.sample(LOGITS) for _ in range(3)] == [2, 0, 1]
    negative = Sampler(SamplingParams(repetition_penalty=2.0), [0], 2)
    assert negative.sample(torch.tensor([-1.0, -1.5])) == 1


def test_frequencies_follow_the_probabilities() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3), [], 5)
    drawn = torch.bincount(torch.tensor([sampler.sample(LOGITS) for _ in range(3000)]), minlength=5) / 3000
    torch.testing.assert_close(drawn, LOGITS.softmax(-1), atol=0.04, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_arithmetic_chooses_nothing(value: float) -> None:
    with pytest.raises(SamplerError, match="not finite"):
        Sampler(SamplingParams(), [], 2).sample(torch.tensor([0.0, value]))
