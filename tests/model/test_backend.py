"""What the engine computes with: each kind of cache, and what cannot be had."""

from __future__ import annotations

import threading

import pytest
import torch

from contracts import SamplingParams
from model.backend import CACHES, Slice
from model.backend_choice import choose_device, make_backend
from model.cpu_backend import CpuBackend
from model.drafting import MAX_DRAFT
from model.engine import Engine
from model.kernels.cpu_decoder import token_bytes
from model.prepared import PromptKeeper
from model.request import TokenEvent
from tests.model.conftest import make_config, make_model

PROMPT = torch.randint(0, 400, (75,), generator=torch.Generator().manual_seed(3)).tolist() * 2
GREEDY = SamplingParams(max_tokens=40)


def answer(engine: Engine, prompt_ids: list[int]) -> list[int]:
    events = engine.stream(prompt_ids, GREEDY)
    return [event.token_id for event in events if isinstance(event, TokenEvent) and event.token_id is not None]


@pytest.mark.parametrize("cache", CACHES)
def test_the_text_is_the_same_alone_among_others_and_with_drafts(cache: str) -> None:
    backend = make_backend(make_model(), 2, cache=cache)
    assert isinstance(backend, CpuBackend)
    alone = answer(Engine(backend, ()), PROMPT)
    assert len(alone) == 40
    drafting = Engine(backend, (), max_draft=MAX_DRAFT)
    others = [drafting.stream(PROMPT[start:], GREEDY) for start in (10, 20, 30)]
    for other in others:
        next(other)
    assert answer(drafting, PROMPT) == alone
    assert drafting.load.num_drafted > 0


def test_a_smaller_cache_takes_less_and_errs_a_little() -> None:
    part = [Slice(PROMPT, 0, list(range(5)), 1)]
    sizes, logits = {}, {}
    for cache in ("f32", "bf16", "int8"):
        backend = make_backend(make_model(first_k_dense_replace=3), 1, cache=cache)
        sizes[cache], logits[cache] = backend.block_bytes, backend.forward(part).clone()
    assert sizes["f32"] > 1.9 * sizes["bf16"] > 1.5 * sizes["int8"]
    spread = logits["f32"].std()
    for cache, bound in (("bf16", 0.02), ("int8", 0.05)):
        error = (logits[cache] - logits["f32"]).abs().max() / spread
        assert 0 < error < bound


def test_a_prepared_prompt_of_another_cache_is_refused() -> None:
    keepers = [PromptKeeper(Engine(make_backend(make_model(), 1, cache=c), ()), "m") for c in ("int8", "bf16", "int8")]
    beginning = keepers[0].trim(PROMPT)
    keepers[0].compute(beginning, threading.Event())
    pieces = list(keepers[0].export(beginning))
    with pytest.raises(ValueError, match="another text, model or kernel"):
        keepers[1].restore(PROMPT, iter(pieces))
    assert keepers[2].restore(PROMPT, iter(pieces)) == len(beginning)


def test_logits_are_good_until_the_next_pass_and_then_overwritten() -> None:
    backend = make_backend(make_model(), 1)
    first = backend.forward([Slice([5, 6, 7], 0, [0], 1)])
    kept = first.clone()
    backend.forward([Slice([9, 8], 0, [1], 1)])
    assert torch.equal(backend.forward([Slice([5, 6, 7], 0, [0], 1)]), kept)


@pytest.mark.parametrize(("kernels", "cache", "words"), [("auto", "int4", "int8"), ("reference", "int8", "C\\+\\+")])
def test_a_cache_that_cannot_be_had_is_named(kernels: str, cache: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_backend(make_model(), 1, kernels, cache=cache)


def test_half_precision_is_served_by_torch_which_says_why() -> None:
    model = make_model()
    expected = make_backend(model, 1, "reference").forward([Slice(PROMPT, 0, list(range(5)), 1)])
    backend = make_backend(model.half(), 1)
    assert "no kernels yet for float16" in backend.name
    logits = backend.forward([Slice(PROMPT, 0, list(range(5)), 1)])
    assert (logits - expected).abs().max() < 0.05 * expected.std()


def test_what_a_token_of_antangelmed_takes() -> None:
    config = make_config(num_hidden_layers=32, num_key_value_heads=4, head_dim=128)
    sizes = {cache: 2 * config.num_layers * token_bytes(config, dtype) for cache, dtype in CACHES.items() if dtype}
    assert sizes["bf16"] == 64 * 1024
    assert sizes["f32"] == 2 * sizes["bf16"]
    assert 0.5 < sizes["int8"] / sizes["bf16"] < 0.52  # a scale for each head beside the bytes


def test_a_card_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    for wanted, words in (("cuda", "no CUDA card"), ("tpu", "auto, cpu, cuda")):
        with pytest.raises(ValueError, match=words):
            choose_device(wanted)
