"""Drafts on the card without a card, by the kernels' definitions: the MTP layer, and what they may not do to a text."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from contracts import SamplingParams
from model.drafting import Drafter
from model.engine import Engine
from model.generator import make_drafters
from model.gpu_backend import GpuBackend
from model.kernels.gpu import reference
from model.kernels.gpu.decoder import GpuDecoder
from model.kernels.gpu.weights import take_weights
from model.modeling import BailingMoeV2ForCausalLM
from model.mtp import MtpDrafter
from model.prompt_lookup import PromptLookup
from tests.model.speculation import GREEDY, SAMPLED, tokens_of
from tests.model.test_gpu_decoder import CPU, PROMPT, SHAPES
from tests.model.test_mtp import expected_draft, make_foretelling_model

TABLES = [[7, 2, 11], [5], [1, 9]]


def make_model(**changes: Any) -> BailingMoeV2ForCausalLM:
    return make_foretelling_model(torch.bfloat16, **(SHAPES | changes))


def make_decoder(model: BailingMoeV2ForCausalLM, ops: Any = reference) -> GpuDecoder:
    """It takes a copy's weights."""
    taken = copy.deepcopy(model)
    return GpuDecoder(take_weights(taken, CPU, has_mtp=True), taken.config, 24, "bf16", ops, chunk=64)


def make_backend(model: BailingMoeV2ForCausalLM | None = None) -> GpuBackend:
    return GpuBackend.take(model or make_model(), CPU, num_blocks=24, ops=reference, has_mtp=True)


def draft(decoder: GpuDecoder, texts: Sequence[list[int]], numbers: Sequence[int]) -> list[list[int]]:
    """Of whole texts, of which nothing was computed before."""
    hidden = decoder.forward([text[:-1] for text in texts], [0] * 3, TABLES, output_hidden=True).hidden
    assert hidden is not None
    return decoder.draft([text[1:] for text in texts], [0] * 3, TABLES, hidden, range(len(hidden)), numbers)


def test_drafts_go_on_from_the_layers_own_state() -> None:
    """Sequences of several lengths side by side, each with a draft of another length, or none; the definition computes
    in float32, so that bf16 may turn a near tie."""
    model = make_model()
    wanted, decoder, alike = copy.deepcopy(model).float(), make_decoder(model), []
    for shift in range(6):
        texts = [PROMPT[shift:70], PROMPT[shift : 5 + shift], PROMPT[shift : 40 + shift]]
        drafts = draft(decoder, texts, [2, 4, 0])
        assert [len(each) for each in drafts] == [2, 4, 0]
        for text, got in zip(texts[:2], drafts, strict=False):
            alike += [a == b for a, b in zip(got, expected_draft(wanted, text, len(got)), strict=True)]
    assert sum(alike) >= 0.85 * len(alike), alike


def test_a_wrong_weight_of_the_layer_shows() -> None:
    model, drafts = make_model(), []
    for _ in range(2):
        drafts.append([draft(make_decoder(model), [PROMPT[n:45], PROMPT[:5], PROMPT[:9]], [4, 4, 4]) for n in (0, 1)])
        with torch.no_grad():
            model.model.layers[-1].eh_proj.weight.mul_(-1)  # type: ignore[union-attr]
    assert drafts[0] != drafts[1]


def test_rows_that_were_computed_together_are_those_computed_one_by_one() -> None:
    """A draft of three tokens beside a draft of one and an answer without: also what later passes read of them."""
    one, together = make_decoder(make_model()), make_decoder(make_model())
    starts, parts = [40, 3, 9], [[8, 1, 2, 3], [4, 6], [5]]
    for decoder in (one, together):
        decoder.forward([PROMPT[:start] for start in starts], [0] * 3, TABLES)
    wanted = [
        one.forward([[token]], [start + place], [table]).logits[0].clone()
        for part, start, table in zip(parts, starts, TABLES, strict=True)
        for place, token in enumerate(part)
    ]
    got = together.forward(parts, starts, TABLES, list(range(7))).logits
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.cache[:-1], one.cache[:-1])
    assert not torch.allclose(got[1], together.forward([[1]], [40], TABLES[:1]).logits[0], atol=1e-3)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_text_is_the_same_with_and_without(params: SamplingParams) -> None:
    backend = make_backend()
    plain = Engine(backend, [], prefill_chunk=64)
    sources: list[list[Drafter]] = [[MtpDrafter(backend)], [PromptLookup()]]
    for drafters in sources:
        drafting = Engine(backend, [], 64, max_draft=12, drafters=drafters, draft_length=4)
        prompts = [[*PROMPT[n : n + 30], *PROMPT[n + 5 : n + 20]] for n in (0, 7)]
        expected = []
        for prompt in prompts:
            plain.forget_prefixes()  # they share a cache
            expected.append(tokens_of(plain.stream(prompt, params)))
        drafting.forget_prefixes()
        streams = [drafting.stream(prompt, params) for prompt in prompts]
        assert [tokens_of(stream) for stream in streams] == expected
        assert drafting.load.num_drafted >= drafting.load.num_accepted > 0
        assert drafting.check_integrity() == []


def test_a_card_drafts_only_where_that_is_wanted() -> None:
    model = make_model()
    backend = make_backend(model)
    assert [type(d) for d in make_drafters(backend, model, None)] == [PromptLookup, MtpDrafter]
    assert make_drafters(backend, model, None, card_drafts=False) == []
    without = GpuBackend.take(make_model(), CPU, num_blocks=8, ops=reference)
    assert not without.has_mtp
    assert len(backend.decoder.cache) == len(without.decoder.cache) + 1
    assert backend.decoder.weights.nbytes > without.decoder.weights.nbytes


@pytest.mark.parametrize(("draft_length", "most"), [(1, 1), (2, 2), (None, 4)])
def test_an_answer_drafts_no_more_than_it_may(draft_length: int | None, most: int) -> None:
    backend = make_backend()
    rows: list[int] = []
    forward = backend.forward

    def watch(batch: Any) -> Any:
        rows.extend(part.num_logits for part in batch)
        return forward(batch)

    backend.forward = watch  # type: ignore[method-assign]
    engine = Engine(backend, [], 64, max_draft=12, drafters=[MtpDrafter(backend)], draft_length=draft_length)
    for first in range(0, 40, 8):
        tokens_of(engine.stream(PROMPT[first : first + 20], GREEDY))
    assert max(rows) == 1 + most


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
