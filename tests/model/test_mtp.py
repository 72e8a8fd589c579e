"""Drafts by the MTP layer: against its definition in torch, and what they may not do to the text."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contracts import SamplingParams
from model.block_pool import BlockPool
from model.checkpoint import load_model, save_checkpoint
from model.cpu_backend import CpuBackend
from model.engine import Engine
from model.kernels.build import load_library
from model.kernels.cpu_decoder import BLOCK_TOKENS, CpuDecoder, Threads
from model.modeling import BailingMoeV2ForCausalLM, DecoderLayer, MTPLayer
from model.mtp import MtpDrafter
from model.prepared import PromptKeeper
from model.prompt_lookup import PromptLookup
from model.quantize.source import QuantizeOptions
from model.quantize.stream import quantize_checkpoint
from tests.model.conftest import make_model
from tests.model.goldens import LOCAL, load_goldens
from tests.model.speculation import (
    GREEDY,
    SAMPLED,
    Watched,
    check_a_crowd_that_cancels,
    check_reuse_changes_no_draft,
    list_variants,
    tokens_of,
)

SHARE = 0.01  # what the layers of a foretelling model add, against its embeddings
VARIANTS = list_variants()


@pytest.fixture(scope="module", params=VARIANTS)
def threads(request: pytest.FixtureRequest) -> Threads:
    return Threads(2, load_library(request.param))


def make_foretelling_model(dtype: torch.dtype = torch.float32, **changes: object) -> BailingMoeV2ForCausalLM:
    """A random model whose next token is mostly a matter of the last one, and whose MTP layer, which sees the next
    token's embedding, is therefore often right."""
    model = make_model(num_nextn_predict_layers=1, **changes)
    with torch.no_grad():
        for layer in model.model.layers:
            assert isinstance(layer, DecoderLayer)
            layer.attention.dense.weight *= SHARE
            for name, weight in layer.mlp.named_parameters():
                if "down_proj" in name:
                    weight *= SHARE
        size = model.config.hidden_size
        join = mtp_layer(model).eh_proj.weight
        join *= SHARE
        join[:, :size] += 0.2 * torch.eye(size)
    return model.to(dtype)


def mtp_layer(model: BailingMoeV2ForCausalLM) -> MTPLayer:
    layer = model.model.layers[model.config.num_hidden_layers]
    assert isinstance(layer, MTPLayer)
    return layer


# --- against the definition -------------------------------------------------------------------------------------


@torch.inference_mode()
def expected_draft(model: BailingMoeV2ForCausalLM, token_ids: Sequence[int], num_draft: int) -> list[int]:
    """The definition: the whole text through the layer anew for each token."""
    layer = mtp_layer(model)
    hidden = model(torch.tensor([token_ids[:-1]])).last_hidden
    next_ids, draft = list(token_ids[1:]), []
    for _ in range(num_draft):
        cos, sin = model.rotary(torch.arange(len(next_ids))[None])
        joined = layer.join(model.model.word_embeddings(torch.tensor([next_ids])), hidden)
        state = layer.final_layernorm(layer(joined, cos, sin, None, None)[0])
        draft.append(int(model.lm_head(state[0, -1]).argmax()))
        next_ids.append(draft[-1])
        hidden = torch.cat((hidden, state[:, -1:]), dim=1)
    return draft


def test_the_drafts_are_those_of_the_reference(threads: Threads) -> None:
    """From every position of the golden case, a token at a time."""
    model, goldens = load_model(LOCAL / "c_mtp", torch.float32), load_goldens(LOCAL / "c_mtp")
    ids, wanted = goldens["input_ids"], goldens["mtp_logits.0"].argmax(-1)
    num_rows, length = ids.shape
    decoder = CpuDecoder(model, threads, num_rows, torch.float32)
    tables = [[block] for block in range(num_rows)]
    hidden = decoder.forward(ids.tolist(), [0] * num_rows, tables, output_hidden=True).hidden
    assert hidden is not None
    for t in range(length - 1):
        rows = [row * length + t for row in range(num_rows)]
        drafts = decoder.draft(ids[:, t + 1 : t + 2].tolist(), [t] * num_rows, tables, hidden, rows, [1] * num_rows)
        assert drafts == wanted[:, t : t + 1].tolist()
    assert len(wanted[:, :-1].unique()) > 10


def test_a_draft_goes_on_from_the_layers_own_state(threads: Threads) -> None:
    """Sequences of several lengths side by side, each with a draft of another length, or none."""
    model = make_model(num_nextn_predict_layers=1)
    texts = [torch.randint(0, 400, (n,)).tolist() for n in (70, 2, 33, 40)]
    numbers = [3, 5, 0, 1]
    tables, blocks = [], iter(torch.randperm(12).tolist())
    for text in texts:
        tables.append([next(blocks) for _ in range(-(-(len(text) + 6) // BLOCK_TOKENS))])
    decoder = CpuDecoder(model, threads, 12, torch.float32)
    hidden = decoder.forward([text[:-1] for text in texts], [0] * 4, tables, output_hidden=True).hidden
    assert hidden is not None
    drafts = decoder.draft([text[1:] for text in texts], [0] * 4, tables, hidden, range(len(hidden)), numbers)
    assert drafts == [expected_draft(model, *part) for part in zip(texts, numbers, strict=True)]


# --- what the engine gets ---------------------------------------------------------------------------------------


def make_prompts(count: int) -> list[list[int]]:
    chance = random.Random(4)
    return [[chance.randrange(400) for _ in range(20 + 9 * number)] for number in range(count)]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_text_is_the_same_with_and_without(threads: Threads, dtype: torch.dtype, params: SamplingParams) -> None:
    """In f32 and bf16, which is the cache's dtype too."""
    backend = CpuBackend(make_foretelling_model(dtype), threads)
    plain = Engine(backend, [])
    drafting = Engine(backend, [], max_draft=6, drafters=[MtpDrafter(backend)])
    for prompt in make_prompts(6):
        plain.forget_prefixes()  # the two share a cache
        expected = tokens_of(plain.stream(prompt, params))
        drafting.forget_prefixes()
        assert tokens_of(drafting.stream(prompt, params)) == expected
    assert drafting.load.num_drafted > drafting.load.num_accepted > 20
    assert drafting.check_integrity() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_text_is_the_same_where_prompt_and_layer_take_turns(threads: Threads, dtype: torch.dtype) -> None:
    backend = CpuBackend(make_foretelling_model(dtype), threads)
    drafting = Engine(backend, [], max_draft=6, drafters=[PromptLookup(), MtpDrafter(backend)])
    for params in (GREEDY, SAMPLED):
        for prompt in make_prompts(3):
            prompt += [token_id for token_id in prompt[5:15] for _ in range(2)]
            expected = tokens_of(Engine(backend, []).stream(prompt, params))
            drafting.forget_prefixes()  # they share a cache
            assert tokens_of(drafting.stream(prompt, params)) == expected
    assert all(draft.num_accepted > 0 for draft in drafting.load.drafts)


def test_an_int4_layer_drafts_nearly_as_its_definition_does(threads: Threads, tmp_path: Path) -> None:
    """The kernels round activations to int8, which may turn a draft but no text."""
    save_checkpoint(make_foretelling_model(), tmp_path / "plain", torch.float32)
    options = QuantizeOptions(group_size=32, attention=True, lm_head=True, mtp_projection=True)
    quantize_checkpoint(tmp_path / "plain", tmp_path / "int4", options)
    model, defined = (load_model(tmp_path / "int4", torch.float32) for _ in range(2))
    backend = CpuBackend(model, threads)
    drafter = watch(backend)
    engine = Engine(backend, [], max_draft=4, drafters=[drafter])
    for prompt in make_prompts(3):
        expected = tokens_of(Engine(backend, []).stream(prompt, GREEDY))
        engine.forget_prefixes()  # they share a cache
        assert tokens_of(engine.stream(prompt, GREEDY)) == expected
    assert engine.load.num_accepted > 0
    agrees = [expected_draft(defined, text, 1) == draft[:1] for text, draft in drafter.drafts]
    assert len(agrees) > 15
    assert sum(agrees) / len(agrees) > 0.8


def watch(backend: CpuBackend) -> Watched:
    return Watched(MtpDrafter(backend), backend.decoder.cache[backend.config.num_hidden_layers])


def test_sampled_pairs_follow_the_models_probabilities() -> None:
    """Two tokens of each seed, the second drafted; chi-square against the exact softmax, 35 degrees, 1 in 10^4."""
    model, prompt, temperature = make_foretelling_model(vocab_size=6), [2, 5, 0, 3], 5.0
    with torch.inference_mode():
        texts = torch.tensor([[*prompt, first] for first in range(6)])
        logits = model(texts).logits / temperature
    expected = 2000 * logits[0, -2].softmax(-1)[:, None] * logits[:, -1].softmax(-1)
    assert expected.min() > 5
    backend = CpuBackend(model, Threads(1))
    engine = Engine(backend, [], max_draft=1, drafters=[MtpDrafter(backend)])
    counts = torch.zeros(6, 6)
    for seed in range(2000):
        params = SamplingParams(temperature=temperature, seed=seed, max_tokens=3)
        first, second, _ = tokens_of(engine.stream(prompt, params))
        counts[first, second] += 1
    assert float(((counts - expected) ** 2 / expected).sum()) < 74.9
    assert engine.load.num_drafted == 2000
    assert 200 < engine.load.num_accepted < 1800


@pytest.fixture(scope="module")
def foretelling() -> CpuBackend:
    return CpuBackend(make_foretelling_model(), Threads(2))


def test_the_drafts_are_the_definitions_whatever_was_accepted_before(foretelling: CpuBackend) -> None:
    """Right and wrong drafts on the way leave the layer's keys and values as a whole pass would."""
    drafter = watch(foretelling)
    engine = Engine(foretelling, [], max_draft=3, drafters=[drafter])
    tokens_of(engine.stream(make_prompts(1)[0], replace(GREEDY, max_tokens=24)))
    model = make_foretelling_model()
    assert [draft for _, draft in drafter.drafts] == [
        expected_draft(model, text, len(draft)) for text, draft in drafter.drafts
    ]
    assert engine.load.num_drafted > engine.load.num_accepted > 0


def test_chunks_and_reused_blocks_change_no_draft(foretelling: CpuBackend) -> None:
    check_reuse_changes_no_draft(foretelling, watch(foretelling), make_prompts(8)[7])


def test_a_block_is_known_by_the_token_after_it_too_where_that_counts() -> None:
    for num_ahead, num_shared in ((0, 1), (1, 0)):
        pool = BlockPool(4, 4, num_ahead)
        hashes: dict[int, list[bytes]] = {5: [], 6: []}
        for follower, into in hashes.items():
            pool.hash_blocks([1, 2, 3, 4, follower], into)
        pool.remember(pool.allocate(), hashes[5], 0, [1, 2, 3, 4, 5][: 4 + num_ahead])
        assert len(pool.take_prefix(hashes[6], 5)) == num_shared
        assert len(pool.take_prefix(hashes[5], 5)) == 1


def test_clients_that_cancel_and_too_few_blocks_leave_books_and_text_in_order() -> None:
    backend = CpuBackend(make_foretelling_model(), Threads(2))
    check_a_crowd_that_cancels(backend, MtpDrafter(backend), make_prompts(4)[1:])


def test_a_wrong_weight_of_the_layer_shows(threads: Threads) -> None:
    model = load_model(LOCAL / "c_mtp", torch.float32)
    ids = load_goldens(LOCAL / "c_mtp")["input_ids"][0].tolist()
    drafts = []
    for _ in range(2):
        decoder = CpuDecoder(model, threads, 1, torch.float32)
        hidden = decoder.forward([ids], [0], [[0]], output_hidden=True).hidden
        assert hidden is not None
        rows = range(len(ids) - 1)
        drafts.append([decoder.draft([[ids[t + 1]]], [t], [[0]], hidden, [t], [1]) for t in rows])
        with torch.no_grad():
            mtp_layer(model).hnorm.weight *= 0.5
    assert drafts[0] != drafts[1]


def test_a_prepared_prompt_brings_the_layers_own_keys_along() -> None:
    prompt = make_prompts(8)[7]
    engines = [make_engine(CpuBackend(make_foretelling_model(), Threads(2))) for _ in range(2)]
    keepers = [PromptKeeper(engine, "foretelling") for engine in engines]
    beginning = keepers[0].trim(prompt)
    assert len(beginning) % BLOCK_TOKENS == 1  # whole blocks, and the token that the layer looks at ahead
    assert keepers[0].compute(beginning, threading.Event())
    pieces = list(keepers[0].export(beginning))
    assert keepers[1].restore(prompt, iter(pieces)) == len(beginning) - 1
    texts = [tokens_of(engine.stream(prompt, GREEDY)) for engine in engines]
    assert texts[0] == texts[1]
    counts = [engine.load.num_accepted for engine in engines]
    assert counts[0] == counts[1] > 5


def make_engine(backend: CpuBackend) -> Engine:
    return Engine(backend, [], max_draft=4, drafters=[MtpDrafter(backend)])
