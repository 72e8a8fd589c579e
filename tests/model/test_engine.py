from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from contracts import ContextLengthError, PrefillProgress, SamplingParams
from model.engine import Engine, FairLock
from model.kv_cache import BLOCK_TOKENS, KVCache
from model.request import EngineEvent, TokenEvent
from model.sampler import Sampler, SamplerError
from tests.model.conftest import make_model

MODEL = make_model()
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


@pytest.mark.parametrize("chunk", [1, 7, 40, 256])
def test_greedy_tokens_equal_the_plain_model(chunk: int) -> None:
    assert tokens_of(Engine(MODEL, [], chunk).stream(PROMPT, GREEDY)) == expected_greedy(20)


def test_progress_counts_the_prompt_in_chunks_then_tokens_follow() -> None:
    events = list(Engine(MODEL, [], 16).stream(PROMPT, replace(GREEDY, max_tokens=2)))
    assert events[:3] == [PrefillProgress(16, 40), PrefillProgress(32, 40), PrefillProgress(40, 40)]
    assert [event.finish_reason for event in events[3:] if isinstance(event, TokenEvent)] == [None, "length"]


def test_every_stop_id_ends_the_answer() -> None:
    plain = expected_greedy(20)
    stop = plain[5]
    events = list(Engine(MODEL, [399, stop]).stream(PROMPT, GREEDY))
    assert events[-1] == TokenEvent(stop, "stop")
    assert tokens_of(iter(events)) == plain[: plain.index(stop) + 1]


def test_answer_ends_where_the_context_does() -> None:
    model = make_model(max_position_embeddings=48)
    events = list(Engine(model, []).stream(PROMPT, GREEDY))
    assert len(tokens_of(iter(events))) == 8
    assert events[-1].finish_reason == "length"


def test_prompt_that_does_not_fit_is_refused_before_any_work() -> None:
    model = make_model(max_position_embeddings=40)
    with pytest.raises(ContextLengthError, match=r"40 tokens.*40"):
        Engine(model, []).stream(PROMPT, GREEDY)
    assert tokens_of(Engine(model, []).stream(PROMPT[:-1], GREEDY))


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
    ],
)
def test_bad_requests_are_refused_at_the_call(prompt: list[int], params: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Engine(MODEL, []).stream(prompt, SamplingParams(**params))


def test_stop_is_heard_during_prefill() -> None:
    cancel = threading.Event()
    events = Engine(MODEL, [], prefill_chunk=4).stream(PROMPT, GREEDY, cancel)
    assert next(events) == PrefillProgress(4, 40)
    cancel.set()
    assert list(events) == [TokenEvent(None, "cancelled")]


def test_stop_is_heard_between_tokens() -> None:
    cancel = threading.Event()
    events = Engine(MODEL, []).stream(PROMPT, GREEDY, cancel)
    next(events)
    first = next(events)
    cancel.set()
    assert isinstance(first, TokenEvent)
    assert list(events) == [TokenEvent(None, "cancelled")]


def test_closing_early_frees_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    freed = []
    free = KVCache.free
    monkeypatch.setattr(KVCache, "free", lambda cache: (freed.append(cache), free(cache)))
    events = Engine(MODEL, []).stream(PROMPT, GREEDY)
    next(events)
    events.close()
    assert len(freed) == 1
    assert freed[0].num_bytes == 0


def test_consumer_keeps_its_gradients() -> None:
    events = Engine(MODEL, []).stream(PROMPT, GREEDY)
    next(events)
    assert not torch.is_inference_mode_enabled()


def test_same_seed_same_answer_other_seed_other_answer() -> None:
    params = SamplingParams(temperature=1.0, max_tokens=20, seed=7)
    engine = Engine(MODEL, [])
    first = tokens_of(engine.stream(PROMPT, params))
    assert tokens_of(engine.stream(PROMPT, params)) == first
    assert tokens_of(engine.stream(PROMPT, replace(params, seed=8))) != first
    assert tokens_of(engine.stream(PROMPT, replace(params, seed=None))) != first


def test_streams_in_threads_do_not_mix() -> None:
    engine = Engine(MODEL, [], prefill_chunk=8)
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


def test_fair_lock_serves_in_order() -> None:
    lock, order = FairLock(), []

    def work(name: int) -> None:
        with lock.take():
            order.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(5)]
    with lock.take():
        for number, thread in enumerate(threads, 1):
            thread.start()
            while len(lock._waiting) < number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_lock_is_given_back_after_an_error() -> None:
    lock = FairLock()
    with pytest.raises(KeyError), lock.take():
        raise KeyError
    with lock.take():
        pass


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
