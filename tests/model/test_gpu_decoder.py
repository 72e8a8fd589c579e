"""The card's decoder without a card, against modeling.py: by the kernels' definitions, and by Triton's interpreter."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts import SamplingParams
from model.backend import Slice
from model.engine import Engine
from model.gpu_backend import GpuBackend, choose_hot
from model.kernels.build import KernelsUnavailableError
from model.kernels.cpu_decoder import BLOCK_TOKENS
from model.kernels.gpu import reference
from model.kernels.gpu.decoder import BUCKETS, GpuDecoder
from model.kernels.gpu.inputs import fill_chunks, list_runs
from model.kernels.gpu.weights import MoeWeights, take_weights
from model.modeling import BailingMoeV2ForCausalLM, Experts, ModelOutput
from model.offload_plan import CARD_RESERVE
from model.quantization import dequantize_fp8, pack_int4
from model.quantized import Fp8Matrix, Int4Matrix, Nf4Matrix, QuantizedExperts
from model.request import TokenEvent
from model.roofline import kv_bytes
from tests.model.conftest import make_model

CPU = torch.device("cpu")
SHAPES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
PROMPT = torch.randint(0, 400, (70,), generator=torch.Generator().manual_seed(1)).tolist()


def make_plain(**changes: Any) -> BailingMoeV2ForCausalLM:
    return make_model(**(SHAPES | changes)).bfloat16()


def make_int4(**changes: Any) -> BailingMoeV2ForCausalLM:
    """All matrices but router and embedding in INT4, head included."""
    return _quantize(make_plain(**changes), _to_int4)


def make_fp8(**changes: Any) -> BailingMoeV2ForCausalLM:
    return _quantize(make_plain(moe_intermediate_size=128, intermediate_size=256, **changes), _to_fp8)


MODELS = {"bf16": make_plain, "int4": make_int4, "fp8": make_fp8}


def _quantize(model: BailingMoeV2ForCausalLM, encode: Any) -> BailingMoeV2ForCausalLM:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, encode(module.weight.detach()))
        elif isinstance(module, Experts):
            gate, up = module.gate_up_proj.detach().chunk(2, 1)
            model.set_submodule(name, QuantizedExperts(*map(encode, (gate, up, module.down_proj.detach()))))
    return model


def _to_int4(weight: Tensor) -> Int4Matrix:
    group = 128 if weight.shape[-1] % 128 == 0 else 64
    matrix = Int4Matrix(tuple(weight.shape), group, torch.bfloat16, False, False).to_empty(device="cpu")
    grouped = weight.float().unflatten(-1, (-1, group))
    scales = (grouped.abs().amax(-1) / 7).bfloat16()
    values = (grouped / scales.float()[..., None]).round().clamp(-8, 7).to(torch.int8)
    matrix.packed.copy_(pack_int4(values.flatten(-2)))
    matrix.scales.copy_(scales)
    return matrix


def _to_fp8(weight: Tensor) -> Fp8Matrix:
    matrix = Fp8Matrix(tuple(weight.shape), (128, 128)).to_empty(device="cpu")
    matrix.scale_inv.copy_(torch.rand_like(matrix.scale_inv) / 200 + 1e-3)
    ones = torch.ones(weight.shape, dtype=torch.float8_e4m3fn)
    matrix.weight.copy_((weight.float() / dequantize_fp8(ones, matrix.scale_inv, (128, 128))).to(torch.float8_e4m3fn))
    return matrix


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


def make_pair(
    kind: str, ops: Any = reference, chunk: int = 64, **changes: Any
) -> tuple[GpuDecoder, BailingMoeV2ForCausalLM]:
    """A decoder of 24 blocks, and the same weights in modeling.py, which then computes in f32."""
    model = MODELS[kind](**changes)
    wanted = copy.deepcopy(model).float()
    return GpuDecoder(take_weights(model, CPU), model.config, 24, "bf16", ops, chunk=chunk), wanted


@torch.inference_mode()
def define(model: BailingMoeV2ForCausalLM, ids: list[int]) -> ModelOutput:
    return model(torch.tensor([ids]), output_router=True, output_hidden=True)


def rows_routed_alike(topk_ids: Tensor, wanted: ModelOutput, rows: slice = slice(None)) -> Tensor:
    """Of these rows of the definition, whether the experts are the same in every layer. bf16 turns near ties, and what
    follows is another computation: such rows, and those that look back at them, say nothing of a kernel."""
    assert wanted.router is not None
    alike = torch.ones(topk_ids.shape[1], dtype=torch.bool)
    for ids, router in zip(topk_ids, wanted.router.values(), strict=True):
        alike &= (ids.long().sort(-1).values == router.topk_ids[rows].sort(-1).values).all(-1)
    return alike


@pytest.mark.parametrize("kind", MODELS)
def test_prompts_in_chunks_then_tokens_of_mixed_lengths(kind: str) -> None:
    decoder, model = make_pair(kind, chunk=64)
    texts = [PROMPT[:], PROMPT[5:25], PROMPT[3:36]]
    tables = [[7, 2, 11], [5], [1, 9]]
    num_alike = 0
    # 1. 123 tokens: two chunks, the cut inside a sequence
    out = decoder.forward(texts, [0, 0, 0], tables, list(range(123)), True, (0, 2, 3))
    first = 0
    for text in texts:
        wanted = define(model, text)
        rows = slice(first, first + len(text))
        alike = rows_routed_alike(out.topk_ids[:, rows], wanted)
        num_alike += int(alike.sum())
        assert out.hidden is not None
        for got, reference_ in (
            (out.logits[rows], wanted.logits[0]),
            (out.hidden[rows], wanted.last_hidden[0]),
            *((out.taps[place, rows], wanted.hidden[tap][0]) for place, tap in enumerate((0, 2, 3))),
        ):
            assert error(got[alike], reference_[alike]) < 0.05
        first += len(text)
    assert num_alike > 100
    assert decoder.forward(texts[:2], [0, 0], tables[:2], output_router=False).topk_ids.shape == (2, 0, 2)
    # 2. tokens one by one, three sequences in a bucket of four
    for step in range(3):
        for text in texts:
            text.append(7 + step)
        positions = [len(text) - 1 for text in texts]
        out = decoder.forward([text[-1:] for text in texts], positions, tables)
        errors = [
            error(logits, define(model, text).logits[0, -1]) for logits, text in zip(out.logits, texts, strict=True)
        ]
        assert sorted(errors)[1] < 0.05, errors  # of three, one may have been routed otherwise
    # 3. a prompt beside an answer, and no logits of the prompt's
    out = decoder.forward([PROMPT[:9], [3]], [0, len(texts[1])], [[20], tables[1]], [9])
    assert error(out.logits[0], define(model, [*texts[1], 3]).logits[0, -1]) < 0.05


def test_a_wrong_weight_shows() -> None:
    decoder, model = make_pair("int4")
    wanted = define(model, PROMPT[:8]).logits[0]

    def median() -> float:
        logits = decoder.forward([PROMPT[:8]], [0], [[0]], list(range(8))).logits
        return sorted(map(error, logits, wanted))[4]

    before = median()
    words = decoder.weights.layers[1].dense.words  # type: ignore[union-attr]
    words[0, 0, :1024] ^= 0x7777  # 16 of 128 rows
    assert before < 0.05
    assert median() > 2 * before


def test_a_row_is_the_same_in_any_bucket_and_fillers_write_nothing() -> None:
    decoder, _ = make_pair("int4")
    decoder.forward([PROMPT[:40]], [0], [[3, 4]])
    alone = decoder.forward([[9]], [40], [[3, 4]]).logits.clone()
    kept = decoder.cache.clone()
    crowd = decoder.forward([[9], [1], [2]], [40, 0, 0], [[3, 4], [5], [6]])
    assert torch.equal(crowd.logits[0], alone[0])
    changed = (decoder.cache != kept).flatten(3).any(-1).any(0).any(0).nonzero().flatten().tolist()
    assert changed == [5, 6]
    assert set(BUCKETS) >= {len(decoder.forward([[1]] * n, [0] * n, [[n]] * n).logits) for n in (1, 2)}


def test_experts_of_the_processor_change_nothing() -> None:
    wanted, _ = make_pair("int4")
    model = make_int4()
    hot = [[0, 3, 5]] * 3
    backend = GpuBackend.take(model, CPU, num_blocks=8, hot=hot, ops=reference)
    assert "3 of 8 experts" in backend.name
    moe = backend.decoder.weights.layers[1].mlp
    assert isinstance(moe, MoeWeights)
    assert len(moe.gate_up.words) == 3 + 1  # type: ignore[union-attr]
    backend.decoder.forward([PROMPT[:33]], [0], [[1, 2]])
    wanted.forward([PROMPT[:33]], [0], [[1, 2]])
    errors = []
    for token in range(5):
        got, right = (each.forward([[token]], [33], [[1, 2]]) for each in (backend.decoder, wanted))
        if torch.equal(got.topk_ids, right.topk_ids):  # the processor rounds activations to int8
            errors.append(error(got.logits, right.logits))
    assert len(errors) >= 2
    assert max(errors) < 0.05


def test_a_card_takes_the_most_chosen_experts_that_it_has_room_for() -> None:
    model = make_int4()
    stack_bytes = [
        sum(tensor.nbytes for name, tensor in model.named_buffers() if f"layers.{layer}.mlp.experts" in name)
        for layer in (1, 2)
    ]
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    whole = held - model.model.norm.weight.nbytes + kv_bytes(model.config, model.config.context_length) + CARD_RESERVE
    one_expert = sum(stack_bytes) / 8
    loads = {1: [0.1, 0.0, 0.4, 0.1, 0.1, 0.2, 0.1, 0.0], 2: [0.125] * 8}
    assert choose_hot(model, whole) is None
    hot = choose_hot(model, whole - 5.5 * one_expert, loads)
    assert hot is not None
    assert hot[1:] == [[2, 5], [0, 1]]
    with pytest.raises(KernelsUnavailableError, match="no room"):
        choose_hot(model, whole - 8 * one_expert)


@pytest.mark.parametrize("kind", ["bf16", "int4"])
def test_the_engine_answers_and_reuses_blocks(kind: str) -> None:
    backend = GpuBackend.take(MODELS[kind](), CPU, ops=reference)
    engine = Engine(backend, (), prefill_chunk=64)

    def answer() -> list[int]:
        events = engine.stream(PROMPT, SamplingParams(max_tokens=6))
        return [event.token_id for event in events if isinstance(event, TokenEvent) and event.token_id is not None]

    first = answer()
    assert len(first) == 6
    assert answer() == first  # the second from the blocks of the first
    assert not engine.check_integrity()


@pytest.mark.parametrize("cache", ["bf16", "int8"])
def test_blocks_go_out_and_come_back(cache: str) -> None:
    backend = GpuBackend.take(make_int4(), CPU, cache, num_blocks=6, ops=reference)
    before = backend.forward([Slice(PROMPT[:40], 0, [0, 1], 1)]).read().clone()
    data = backend.read_blocks([0, 1])
    assert len(data) == 2 * backend.block_bytes
    backend.write_blocks([4, 3], data)
    backend.copy_block(3, 5)
    next_one = [backend.forward([Slice([8], 40, blocks, 1)]).read().clone() for blocks in ([0, 1], [4, 5])]
    assert torch.equal(*next_one)
    assert not torch.equal(before, next_one[0])


def test_candidates_are_the_largest_logits_of_any_number_of_rows() -> None:
    backend = GpuBackend.take(make_int4(), CPU, num_blocks=6, ops=reference)
    assert len(backend.forward([Slice(PROMPT[:3], 0, [0], 0)])) == 0
    found = backend.forward([Slice(PROMPT, 0, [0, 1, 2], len(PROMPT))])
    logits = found.read()
    assert len(found) == len(logits) == 70
    for row, wanted in zip(found, logits, strict=True):
        assert row.is_finite
        assert torch.equal(row.values_k, wanted.topk(64).values)
        assert torch.equal(wanted[row.ids_k], row.values_k)
        assert torch.equal(row.read(), wanted)


def test_the_routers_are_watched() -> None:
    model = make_int4()
    backend = GpuBackend.take(model, CPU, num_blocks=6, ops=reference)
    seen: list[tuple[Tensor, Tensor, int]] = []
    model.router_observer = lambda ids, logits, n: seen.append((ids, logits, n))  # type: ignore[arg-type,assignment]
    backend.forward([Slice(PROMPT[:5], 0, [0], 1)])
    backend.forward([Slice([3], 5, [0], 1)])
    assert [(tuple(ids.shape), tuple(logits.shape), n) for ids, logits, n in seen] == [
        ((2, 5, 2), (2, 5, 8), 5),
        ((2, 1, 2), (2, 1, 8), 1),
    ]
    scores = seen[0][1].sigmoid()
    assert bool((scores.gather(-1, seen[0][0].long()) > 0).all())


def test_what_the_kernels_cannot_do_is_named_and_the_model_left_whole() -> None:
    with pytest.raises(KernelsUnavailableError, match="compute in bf16"):
        GpuBackend.take(make_model(**SHAPES), CPU, ops=reference)
    model = make_plain()
    model.set_submodule("model.layers.1.attention.dense", Nf4Matrix((128, 128), 64))
    with pytest.raises(KernelsUnavailableError, match="nf4"):
        GpuBackend.take(model, CPU, ops=reference)
    assert model.lm_head.weight.numel()
    with pytest.raises(ValueError, match="not as f32"):
        GpuBackend.take(make_plain(), CPU, "f32", ops=reference)


def test_long_prompts_are_cut_and_nothing_of_them_lost() -> None:
    runs = list_runs([[1] * 70, [2], [3] * 5], [0, 4, 9], [[0], [1], [2]], [69, 70, 71, 75])
    chunks = fill_chunks(runs, 32)
    assert [sum(len(run.token_ids) for run in chunk) for chunk in chunks] == [32, 32, 12]
    assert [row for chunk in chunks for run in chunk for row in run.rows] == list(range(76))
    assert [place for chunk in chunks for run in chunk for _, place in run.wanted] == [0, 1, 2, 3]
    assert chunks[1][0].first_position == 32
    assert BLOCK_TOKENS == 32


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
