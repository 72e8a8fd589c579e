"""Positions up to 128K: YaRN, block tables of thousands of blocks, sums over a hundred thousand keys.

One layer, whose keys and values depend on the tokens alone, so that the reference in float64 need not attend from each
of them. Two layers at full length are a command: `python -m bench.long_context`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.config import YarnScaling
from model.kernels.build import load_library
from model.kernels.cpu_decoder import BLOCK_TOKENS, CpuDecoder, Threads
from model.kv_cache import KVCache
from model.modeling import BailingMoeV2ForCausalLM
from tests.model.conftest import make_model

LENGTH = 131072
NUM_COMPARED = 8


class _ByChunks(KVCache):
    """Remembers everything and shows nothing but the chunk itself: its attention is not asked for."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        super().append(layer, keys, values)
        return keys, values


def answer_by_definition(model: BailingMoeV2ForCausalLM, ids: Tensor) -> Tensor:
    """Logits of the last tokens, in float64."""
    model = model.double()
    remembered = _ByChunks(model.config, capacity=len(ids), dtype=torch.float64)
    first = len(ids) - NUM_COMPARED
    with torch.inference_mode():
        for start in range(0, first, 1024):
            end = min(start + 1024, first)
            layer, embedded = model.model.layers[0], model.model.word_embeddings(ids[None, start:end])
            cos, sin = (table.double() for table in model.rotary(torch.arange(start, end)[None]))
            layer(embedded, cos, sin, None, remembered)
            remembered.advance(end - start)
        remembered.__class__ = KVCache
        return model(ids[None, first:], cache=remembered).logits[0]


def make_long_model() -> BailingMoeV2ForCausalLM:
    return make_model(
        num_hidden_layers=1,
        first_k_dense_replace=1,  # no router, whose choice a rounding may turn
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_theta=600000.0,
        max_position_embeddings=LENGTH,
        rope_scaling=YarnScaling(factor=4.0, original_max_position_embeddings=32768),
    )


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 400, (LENGTH,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def wanted(ids: Tensor) -> Tensor:
    return answer_by_definition(make_long_model(), ids)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.int8, 5e-2)], ids=str
)
def test_the_last_of_128k_tokens(ids: Tensor, wanted: Tensor, dtype: torch.dtype, bound: float) -> None:
    table = torch.randperm(LENGTH // BLOCK_TOKENS).tolist()
    decoder = CpuDecoder(make_long_model(), Threads(2, load_library()), len(table), dtype)
    first = LENGTH - NUM_COMPARED
    for start in range(0, first, 4096):
        chunk = ids[start : min(start + 4096, first)].tolist()
        decoder.forward([chunk], [start], [table], [])
    out = decoder.forward([ids[first:].tolist()], [first], [table], list(range(NUM_COMPARED)))
    assert (out.logits - wanted).abs().max() / wanted.std() < bound


def test_the_far_half_counts(ids: Tensor, wanted: Tensor) -> None:
    half = answer_by_definition(make_long_model(), ids[LENGTH // 2 :])
    assert (half - wanted).abs().max() / wanted.std() > 10 * 1e-4
