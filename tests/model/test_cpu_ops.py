"""Each C++ kernel against its definition in float64, on every variant this processor runs; each test can fail."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.kernels import build
from model.kernels.build import Library, best_variant, load_library
from model.kernels.cpu_decoder import BLOCK_TOKENS, CpuDecoder, Threads, Tiles, linear, linear_many
from model.kernels.cpu_ops import PagedAttention, rms_norm, rotate, route
from model.modeling import MoE, Router, keep_best_groups
from model.modeling import rotate as rotate_by_definition
from tests.model.conftest import make_config, make_model

VARIANTS = list(build.VARIANTS)[list(build.VARIANTS).index(best_variant()) :]


@pytest.fixture(params=VARIANTS)
def library(request: pytest.FixtureRequest) -> Library:
    return load_library(request.param)


# --- norms and positions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 15, 16, 17, 64, 128, 2048])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e4])
def test_rms_norm(library: Library, size: int, spread: float) -> None:
    x, weight = torch.randn(3, size) * spread, torch.randn(size)
    x[1] = 0  # eps alone stands under the root
    got = rms_norm(x, weight, 1e-6, library).double()
    wide = x.double()
    wanted = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert torch.allclose(got, wanted, rtol=2e-6, atol=1e-30)
    weight[0] *= 1.01
    assert not torch.allclose(rms_norm(x, weight, 1e-6, library).double(), wanted, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize(("size", "half"), [(16, 4), (16, 8), (128, 32), (48, 24)])
def test_rotary_positions(library: Library, size: int, half: int) -> None:
    angle = torch.rand(5, half) * 6
    x = torch.randn(5, size)
    got = rotate(x, angle.cos(), angle.sin(), library)
    wanted = rotate_by_definition(x.double(), angle.cos().double(), angle.sin().double())
    assert torch.allclose(got.double(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(got[:, 2 * half :], x[:, 2 * half :])
    assert not torch.allclose(rotate(x, angle.sin(), angle.cos(), library).double(), wanted, rtol=1e-3, atol=1e-3)


# --- the router -------------------------------------------------------------------------------------------------

ROUTERS = [  # experts, groups, top groups, top k
    (16, 4, 2, 4),
    (256, 8, 4, 8),
    (8, 1, 1, 1),
    (8, 8, 8, 8),
    (12, 4, 3, 2),
    (8, 8, 2, 2),
]


@pytest.mark.parametrize(("experts", "groups", "top_groups", "top_k"), ROUTERS)
@pytest.mark.parametrize("bias_mean", [0.0, -2.0])  # with negative scores a group shut out by 0 would win
def test_router(library: Library, experts: int, groups: int, top_groups: int, top_k: int, bias_mean: float) -> None:
    config = replace(
        make_config(), num_experts=experts, n_group=groups, topk_group=top_groups, num_experts_per_tok=top_k
    )
    logits, bias = torch.randn(40, experts) * 3, torch.randn(experts) * 0.3 + bias_mean
    ids, weights = route(logits, bias, config, library)
    scores = logits.double().sigmoid()
    choice = keep_best_groups(scores + bias.double(), config)
    wanted = choice.topk(top_k).indices
    assert torch.equal(ids.long().sort(-1).values, wanted.sort(-1).values)
    chosen = scores.gather(1, ids.long())
    total = chosen.sum(-1, keepdim=True) if top_k > 1 else torch.ones(1)
    assert torch.allclose(weights.double(), chosen / total * config.routed_scaling_factor, rtol=1e-5)
    if top_k < experts:
        logits.scatter_(1, ids[:, :1].long(), -30.0)
        assert not torch.equal(route(logits, bias, config, library)[0], ids)


# --- attention --------------------------------------------------------------------------------------------------

# Of the cache's own rounding alone: bf16 has 8 bits, int8 half a step of 1/127 of a head's largest.
CACHES = [(torch.float32, 1e-6), (torch.bfloat16, 2**-9), (torch.int8, 1 / 127 / 2)]
LENGTHS = [1, 2, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 100, 512, 513, 1100]


def attend_by_definition(queries: Tensor, keys: Tensor, values: Tensor, first_position: int) -> Tensor:
    """queries [T,H,C] over keys and values [S,G,C]."""
    q, k, v = queries.double(), keys.double(), values.double()
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    scores = torch.einsum("thc,shc->hts", q, k) / math.sqrt(q.shape[-1])
    positions = torch.arange(first_position, first_position + len(q))[:, None]
    scores = scores.masked_fill(torch.arange(len(k)) > positions, float("-inf"))
    return torch.einsum("hts,shc->thc", scores.softmax(-1), v)


def fill_cache(
    config: ModelConfig, length: int, dtype: torch.dtype, library: Library
) -> tuple[PagedAttention, Tensor, Tensor]:
    num_blocks = -(-length // BLOCK_TOKENS)
    attention = PagedAttention(config, torch.randperm(num_blocks).tolist(), dtype, library)
    # What an earlier request left behind a text's end may be anything, and must not be seen.
    garbage = torch.full((num_blocks * BLOCK_TOKENS, config.num_key_value_heads, config.head_dim), float("nan"))
    attention.write(0, garbage, garbage)
    keys, values = torch.randn(2, length, config.num_key_value_heads, config.head_dim)
    attention.write(0, keys, values)
    return attention, keys, values


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 16), (4, 1, 48), (16, 2, 128), (3, 3, 32)])
@pytest.mark.parametrize(("dtype", "rounding"), CACHES)
def test_attention(
    library: Library, length: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, rounding: float
) -> None:
    config = replace(make_config(), num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim)
    attention, keys, values = fill_cache(config, length, dtype, library)
    num_queries = min(length, 3)
    first = length - num_queries
    queries = torch.randn(num_queries, heads, head_dim)
    got = attention.attend(first, queries).double()
    wanted = attend_by_definition(queries, keys, values, first)
    # A key off by r moves a score by |q| |r| / sqrt(C) at most, hence its weight; a value off by r moves the sum by r.
    largest = max(float(keys.abs().max()), float(values.abs().max()))
    in_score = rounding * largest * float(queries.norm(dim=-1).max())
    bound = largest * (math.exp(2 * in_score) - 1) + rounding * largest + 1e-5
    error = float((got - wanted).abs().max())
    assert error <= bound
    if dtype == torch.float32:
        assert error < 2e-5
    values[0] += 5
    attention.write(0, keys, values)
    assert float((attention.attend(first, queries).double() - wanted).abs().max()) > error


def test_int8_keys_are_nearer_than_a_wrong_scale_would_be(library: Library) -> None:
    config = replace(make_config(), num_attention_heads=8, num_key_value_heads=2, head_dim=64)
    attention, keys, values = fill_cache(config, 300, torch.int8, library)
    queries = torch.randn(1, 8, 64)
    wanted = attend_by_definition(queries, keys, values, 299)
    error = (attention.attend(299, queries).double() - wanted).abs().max() / wanted.std()
    assert error < 0.1
    keys[150] *= 20  # one outlier costs its own position alone
    attention.write(0, keys, values)
    wanted = attend_by_definition(queries, keys, values, 299)
    assert (attention.attend(299, queries).double() - wanted).abs().max() / wanted.std() < 0.15


def test_numbers_that_are_none_are_passed_on(library: Library) -> None:
    config = replace(make_config(), num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    for dtype, _ in CACHES:
        attention, keys, values = fill_cache(config, 40, dtype, library)
        values[7, 0, 3] = float("nan")
        attention.write(0, keys, values)
        out = attention.attend(39, torch.randn(1, 4, 16))
        assert bool(out[0, :2].isnan().any()), dtype
        assert bool(out[0, 2:].isfinite().all()), dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_many_threads_share_one_long_row_to_the_bit(library: Library, dtype: torch.dtype) -> None:
    model = make_model()
    ids = torch.randint(0, 400, (1200,)).tolist()
    table = list(range(-(-len(ids) // BLOCK_TOKENS)))
    rows = []
    for num_threads in (1, 5):  # 5: more threads than kv heads, so that segments are shared out
        decoder = CpuDecoder(model, Threads(num_threads, library), len(table), dtype)
        decoder.forward([ids[:-1]], [0], [table])
        rows.append(decoder.forward([ids[-1:]], [len(ids) - 1], [table]).logits)
    assert torch.equal(*rows)


# --- products ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "cols"), [(16, 64), (17, 33), (1, 1), (3, 3), (256, 130)])
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 8, 19])
def test_tiled_plain_weights_are_exact(
    library: Library, rows: int, cols: int, num_tokens: int, dtype: torch.dtype
) -> None:
    weight, x = torch.randn(rows, cols).to(dtype), torch.randn(num_tokens, cols)
    threads = Threads(2, library)
    got = linear(Tiles(weight), x, threads)
    assert torch.allclose(got.double(), x.double() @ weight.double().T, atol=1e-5, rtol=1e-5)
    alone = torch.cat([linear(Tiles(weight), row[None], threads) for row in x])
    assert torch.equal(got, alone)  # to the bit, whoever stands beside it
    weight[0, 0] += 1
    assert not torch.allclose(linear(Tiles(weight), x, threads), got, atol=1e-5, rtol=1e-5)


def test_many_products_are_each_its_own(library: Library) -> None:
    threads, x = Threads(2, library), torch.randn(3, 40)
    weights = [torch.randn(20, 40) for _ in range(5)]
    got = linear_many(weights, x, threads)
    assert got.shape == (5, 3, 20)
    for weight, y in zip(weights, got, strict=True):
        assert torch.allclose(y, x @ weight.T, atol=1e-5)


# --- the mixture of experts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 2, 31, 70])
@pytest.mark.parametrize("num_shared", [0, 1, 2])
@pytest.mark.parametrize("is_crowded", [False, True])
def test_the_mixture_of_experts(library: Library, num_tokens: int, num_shared: int, is_crowded: bool) -> None:
    """Of a layer whose attention adds nothing. Crowded: every token goes to the same experts, all others stay empty."""
    model = make_model(num_hidden_layers=1, first_k_dense_replace=0, num_shared_experts=num_shared)
    layer = model.model.layers[0]
    assert isinstance(layer.mlp, MoE)
    router: Router = layer.mlp.gate
    with torch.no_grad():
        layer.attention.dense.weight.zero_()
        if is_crowded:
            router.expert_bias[: model.config.num_experts_per_tok] += 10
            router.expert_bias[-1] -= 10
    ids = torch.randint(0, 400, (1, num_tokens))
    table = list(range(-(-num_tokens // BLOCK_TOKENS)))
    decoder = CpuDecoder(model, Threads(2, library), len(table), torch.float32)
    got = decoder.forward(ids.tolist(), [0], [table], output_hidden=True)
    with torch.inference_mode():
        wanted = model.double()(ids).last_hidden[0]
    assert got.hidden is not None
    assert torch.allclose(got.hidden.double(), wanted, atol=2e-5, rtol=1e-4)
    if is_crowded:
        assert len(got.topk_ids[0].unique()) == model.config.num_experts_per_tok
