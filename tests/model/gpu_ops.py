"""Each Triton kernel against its definition in float64: on a card, with `pytest tests/model/gpu_ops.py`, or else in
Triton's interpreter, by test_gpu_interpreter.py, in a process of its own: what a kernel is, is decided at import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import YarnScaling
from model.kernels.cpu_decoder import BLOCK_TOKENS
from model.kernels.gpu import buffers, layout, ops, product, reference
from model.kernels.gpu.arithmetic import INTERPRETED
from model.modeling import Rotary, Router
from model.quantization import pack_int4
from tests.model.conftest import make_config

BF16_ERROR, F32_ERROR = 0.008, 2e-5  # a bf16 alone is off by up to 2 ** -9
PRECISIONS = ["int4", "int4 group 64", "fp8", "bf16"]
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED.value else "cpu"


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.device(DEVICE):
        yield


def measure_error(out: Tensor, expected: Tensor) -> float:
    """The largest error, as a share of the value and its row's root mean square together."""
    size = expected.double().abs() + expected.double().square().mean(-1, keepdim=True).sqrt()
    return float(((out.double() - expected).abs() / size.clamp(min=1e-9)).max())


def make_weight(precision: str, *shape: int, size: float = 1.0) -> layout.Weight:
    *lead, rows, columns = shape
    if precision == "bf16":
        return (torch.randn(shape) * size).bfloat16()
    if precision == "fp8":
        blocks = (torch.rand(*lead, -(-rows // 128), -(-columns // 128)) + 0.5) * size
        return layout.pack_fp8_weight(torch.randn(shape).to(torch.float8_e4m3fn), blocks)
    group = 64 if precision.endswith("64") else 128
    packed = pack_int4(torch.randint(-8, 8, shape, dtype=torch.int8))
    scales = (torch.rand(*lead, rows, -(-columns // group)) + 0.1) * size / 4
    return layout.pack_int4_weight(packed, scales, columns, group)


def perturb(weight: layout.Weight) -> layout.Weight:
    """The same but for one value, in the middle."""
    words = (weight if isinstance(weight, Tensor) else weight.words).clone()
    flat = words.view(torch.int16).flatten()
    flat[flat.numel() // 2 + 5] ^= 0x0808
    return words if isinstance(weight, Tensor) else replace(weight, words=words)


def make_x(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("T", "O", "I"),
    [(1, 40, 256), (1, 33, 200), (3, 64, 640), (9, 48, 300), (20, 40, 256), (40, 80, 200), (70, 140, 384)],
)
def test_linear(precision: str, T: int, O: int, I: int) -> None:  # noqa: E741
    x, weight = make_x(T, I), make_weight(precision, O, I)
    out, expected = torch.full((T, O), torch.nan), torch.empty(T, O, dtype=torch.float64)
    ops.linear(x, weight, out)
    reference.linear(x, weight, expected)
    is_rounded = precision.startswith("int4") and T > buffers.STEP_ROWS  # many tokens: when it is scaled
    limit = BF16_ERROR if is_rounded else F32_ERROR
    assert measure_error(out, expected) < limit
    reference.linear(x, perturb(weight), expected)
    assert measure_error(out, expected) > limit


def test_linear_reads_rows_at_a_distance_and_writes_bf16() -> None:
    x, weight = make_x(3, 512)[:, :256], make_weight("int4", 48, 256)
    out = torch.full((3, 100), torch.nan).bfloat16()
    expected = torch.empty(3, 48, dtype=torch.float64)
    ops.linear(x, weight, out[:, :48])
    reference.linear(x, weight, expected)
    assert measure_error(out[:, :48], expected) < BF16_ERROR
    assert out[:, 48:].isnan().all()


def test_no_tokens_are_nothing_to_do() -> None:
    out = torch.empty(0, 48)
    ops.linear(make_x(0, 256), make_weight("int4", 48, 256), out)
    ops.rms_norm(make_x(0, 64), make_x(64), 1e-6, make_x(0, 64))
    ops.add_norm(make_x(0, 64), make_x(0, 2, 64), None, make_x(64), 1e-6, make_x(0, 64))


# --- a row among others -----------------------------------------------------------------------------------------------
# The interpreter's own products differ in the last bit by their shapes; what a row's sums are made of must not.

SAME = 2e-6


@pytest.mark.parametrize("precision", ["int4", "fp8", "bf16"])
def test_a_row_of_a_product_is_the_same_among_others(precision: str) -> None:
    x, weight = make_x(buffers.STEP_ROWS + 6, 640), make_weight(precision, 48, 640)
    alone = torch.empty(1, 48)
    ops.linear(x[:1], weight, alone)
    for T in (8, 16, 17, 33, buffers.STEP_ROWS):
        out = torch.empty(T, 48)
        ops.linear(x[:T], weight, out)
        assert measure_error(out[:1], alone.double()) < SAME
    if precision == "int4":  # a chunk of a prompt is another matter
        out = torch.empty(len(x), 48)
        ops.linear(x, weight, out)
        assert measure_error(out[:1], alone.double()) > 100 * SAME


def test_the_columns_are_shared_out_alike_in_every_step_of_answers() -> None:
    for weight in (make_weight("int4", 64, 256), make_weight("fp8", 64, 256), make_weight("bf16", 64, 256)):
        w = product.as_operand(weight).layout
        tiles = [product.choose_tile(T, w)[0] for T in range(1, buffers.STEP_ROWS + 2)]
        assert [tile.split for tile in tiles] == [product.SPLIT] * buffers.STEP_ROWS + [0]


@pytest.mark.parametrize("num_experts", [2, 12])
def test_a_row_of_the_experts_is_the_same_among_others(num_experts: int) -> None:
    T, D, F = buffers.STEP_ROWS, 72, 32
    x, ids = make_x(T, D), torch.stack([torch.randperm(num_experts)[:2] for _ in range(T)]).int()
    gate_up, down = make_weight("int4", num_experts, 2 * F, D, size=1 / 16), make_weight("int4", num_experts, D, F)
    scratch, results = buffers.make_expert_scratch(T, 2, num_experts, F, DEVICE), []
    for rows in (1, T):
        out = torch.empty(rows, 2, D)
        ops.experts(x[:rows], ids[:rows], gate_up, down, out, scratch)
        results.append(out[0])
    # Between gate-up and down values are rounded to bf16, which may turn one of them. On the card the rest is the same
    # to the bit.
    apart = (results[1] - results[0]).abs()
    assert (apart <= (0.0 if DEVICE == "cuda" else SAME)).double().mean() > 0.9


def test_a_row_attends_alike_among_others() -> None:
    """To the bit: a program is a row's alone. Rows of one sequence share its blocks, each with its own length."""
    H, G, C, length = 4, 2, 16, 64 * 5 + 7
    pages, table, q = make_pages("bf16", 11, G, C), torch.randperm(11).int(), make_x(3, H, C)
    scratch, results = buffers.make_attention_scratch(3, H, G, C, DEVICE), []
    for rows in (1, 3):
        lengths, out = torch.arange(length, length + rows).int(), torch.full((rows, H * C), torch.nan).bfloat16()
        ops.attend_decode(q[:rows], pages, table.expand(rows, -1), lengths, out, scratch)
        results.append(out[0])
    assert torch.equal(*results)
    assert not torch.equal(out[1], out[0])


# --- experts ----------------------------------------------------------------------------------------------------------


def check_experts(ids: Tensor, precision: str, num_experts: int = 6, D: int = 72, F: int = 32) -> None:
    T, S = ids.shape
    x = make_x(T, D)
    gate_up = make_weight(precision, num_experts, 2 * F, D, size=1 / 16)
    down = make_weight(precision, num_experts, D, F)
    scratch = buffers.make_expert_scratch(T, S, num_experts, F, DEVICE)
    out = torch.full((T, S, D), torch.nan).bfloat16()
    expected = torch.full((T, S, D), torch.nan, dtype=torch.float64)
    ops.experts(x, ids, gate_up, down, out, scratch)
    reference.experts(x, ids, gate_up, down, expected, scratch)
    assert torch.equal(out.isnan(), expected.isnan())
    chosen = ids >= 0
    assert measure_error(out[chosen], expected[chosen]) < 3 * BF16_ERROR  # the values between gate-up and down are bf16
    reference.experts(x, ids.roll(1, 1), gate_up, down, expected, scratch)
    if S > 1 and not bool((ids == ids[:, :1]).all()):
        assert measure_error(out[chosen], expected[chosen]) > 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_experts_of_one_token(precision: str) -> None:
    check_experts(torch.tensor([[4, 0, 5]], dtype=torch.int32), precision)


@pytest.mark.parametrize("precision", ["int4", "fp8", "bf16"])
def test_experts_of_several_tokens(precision: str) -> None:
    ids = torch.stack([torch.randperm(5)[:3] for _ in range(7)]).int()
    check_experts(torch.cat((ids, torch.full((7, 1), 5, dtype=torch.int32)), 1), precision)  # 5: a shared expert


def test_one_expert_gets_all() -> None:
    check_experts(torch.full((21, 2), 3, dtype=torch.int32), "int4")


def test_rows_that_are_only_filling_take_no_expert() -> None:
    check_experts(torch.tensor([[1, 2], [-1, -1], [2, 0], [-1, -1]], dtype=torch.int32), "int4")


@pytest.mark.parametrize("T", [70, 150])
def test_experts_of_many_tokens(T: int) -> None:
    ids = torch.stack([torch.randperm(3)[:2] for _ in range(T)]).int()
    check_experts(ids, "int4", num_experts=3)


def test_a_plain_mlp_is_one_expert() -> None:
    check_experts(torch.zeros(3, 1, dtype=torch.int32), "int4", num_experts=1)


# --- the router -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 5, 70])  # the norm in the router's own programs, ahead of them, and of a prompt
@pytest.mark.parametrize(("groups", "kept", "k"), [(4, 2, 3), (1, 1, 4), (16, 5, 5), (4, 2, 1)])
def test_router(T: int, groups: int, kept: int, k: int) -> None:
    config = make_config(num_experts=16, n_group=groups, topk_group=kept, num_experts_per_tok=k, hidden_size=96)
    routing = buffers.Routing.from_config(config, num_shared=1)
    weight, bias, norm = make_x(16, 96) / 8, torch.randn(16) / 4, make_x(96)
    before, y = make_x(2, T, 96)
    ids, factors, arrivals = torch.empty(T, k + 1, dtype=torch.int32), torch.empty(T, k + 1), torch.zeros(T).int()
    true_ids, true_factors = torch.empty_like(ids), torch.empty_like(factors)
    logits, true_logits = torch.empty(2, T, 16)
    residual, x = before.clone(), torch.full((T, 96), torch.nan).bfloat16()
    true_residual, true_x = before.double(), torch.empty(T, 96, dtype=torch.float64)
    ops.add_norm_route(residual, y, norm, 1e-6, x, weight, bias, routing, None, logits, ids, factors, arrivals)
    assert not arrivals.any()
    reference.add_norm(true_residual, y[:, None], None, norm, 1e-6, true_x)
    assert measure_error(residual, true_residual) < BF16_ERROR
    assert measure_error(x, true_x) < BF16_ERROR * 2
    definition = (bias, routing, None, true_logits, true_ids, true_factors)
    reference.route(x, weight, *definition)  # of the kernels' own norm: another rounding may choose other experts
    assert measure_error(logits, true_logits) < F32_ERROR
    assert torch.equal(ids, true_ids)
    torch.testing.assert_close(factors, true_factors, rtol=1e-5, atol=1e-6)
    model_router = Router(config)
    model_router.weight.data, model_router.expert_bias = weight.float(), bias
    assert torch.equal(model_router(x).topk_ids.int(), ids[:, :k])
    bias[int(ids[-1, 0])] -= 4  # the last row's first choice is one no more
    reference.route(x, weight, *definition)
    assert not torch.equal(ids[-1], true_ids[-1])
    weight[3, 5] += 1
    reference.route(x, weight, *definition)
    assert measure_error(logits, true_logits) > 100 * F32_ERROR


def test_the_router_skips_rows_that_are_only_filling() -> None:
    config = make_config(num_experts=8, hidden_size=64)
    ids, factors = torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 2)
    slots = torch.tensor([7, -1, 9], dtype=torch.int32)
    x, routing = make_x(3, 64), buffers.Routing.from_config(config, 0)
    ops.add_norm_route(
        x, make_x(3, 64), make_x(64), 1e-6, x.clone(), make_x(8, 64), torch.zeros(8), routing, slots,
        torch.empty(3, 8), ids, factors, torch.zeros(3, dtype=torch.int32),
    )  # fmt: skip
    assert ids[1].tolist() == [-1, -1]
    assert factors[1].tolist() == [0, 0]
    assert (ids[[0, 2]] >= 0).all()


def test_the_router_refuses_what_it_cannot_sort() -> None:
    routing, x, outputs = buffers.Routing(6, 1, 1, 2, 1.0, 0), make_x(1, 64), [torch.empty(1, 6)] * 4
    with pytest.raises(ValueError, match="power of two"):
        ops.add_norm_route(x, x, x[0], 1e-6, x, make_x(6, 64), torch.zeros(6), routing, None, *outputs)


# --- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [64, 200, 1024])
def test_rms_norm(D: int) -> None:
    x, weight, rows = make_x(5, D), make_x(D), torch.tensor([4, 0, 4])
    for chosen in (None, rows):
        out = torch.full((5 if chosen is None else 3, 2 * D), torch.nan).bfloat16()
        expected = torch.empty(len(out), D, dtype=torch.float64)
        ops.rms_norm(x, weight, 1e-6, out[:, D:], chosen)
        reference.rms_norm(x, weight, 1e-6, expected, chosen)
        assert measure_error(out[:, D:], expected) < BF16_ERROR * 2
        assert out[:, :D].isnan().all()
    reference.rms_norm(x, weight.roll(1), 1e-6, expected, rows)
    assert measure_error(out[:, D:], expected) > 0.1


@pytest.mark.parametrize("slots", [1, 3])
def test_add_norm(slots: int) -> None:
    T, D = 4, 200
    residual, y, weight = make_x(T, D), make_x(T, slots, D), make_x(D)
    factors = torch.rand(T, slots) + 0.5 if slots > 1 else None
    if factors is not None:
        factors[1, 2], y[1, 2] = 0, torch.nan  # nothing was written there
    out, expected = torch.full((T, D), torch.nan).bfloat16(), torch.empty(T, D, dtype=torch.float64)
    before, true_residual = residual.clone(), residual.double()
    ops.add_norm(residual, y, factors, weight, 1e-6, out)
    reference.add_norm(true_residual, y, factors, weight, 1e-6, expected)
    assert measure_error(residual, true_residual) < BF16_ERROR
    assert measure_error(out, expected) < BF16_ERROR * 2
    true_residual, y[2, 0, 77] = before.double(), y[2, 0, 77] + 1  # one element of what is added
    reference.add_norm(true_residual, y, factors, weight, 1e-6, expected)
    assert measure_error(residual, true_residual) > 0.1
    assert measure_error(out, expected) > 0.1


# --- the cache and attention ------------------------------------------------------------------------------------------


def make_pages(kind: str, num_blocks: int, G: int, C: int) -> Tensor:
    """Blocks full of keys and values, written by the reference's own hand."""
    pages = buffers.make_cache(1, num_blocks, G, C, kind, DEVICE)[0]
    for which in (0, 1):
        for block in range(num_blocks):
            for place in range(BLOCK_TOKENS):
                reference._store(pages[which, block], place, torch.randn(G, C))
    return pages


@pytest.mark.parametrize(
    ("kind", "H", "G", "C", "R"),
    [("bf16", 4, 2, 16, 8), ("bf16", 8, 1, 128, 64), ("int8", 3, 3, 32, 32), ("fp8", 4, 2, 24, 12)],
)
def test_norm_rope_store(kind: str, H: int, G: int, C: int, R: int) -> None:
    T, scaling = 5, YarnScaling(4.0, 64)
    config = make_config(head_dim=C, partial_rotary_factor=R / C, rope_scaling=scaling)
    cos, sin = (table[0, 0].bfloat16() for table in Rotary(config)(torch.arange(300)[None]))
    qkv, q_weight, k_weight = make_x(T, (H + 2 * G) * C), make_x(C), make_x(C)
    positions = torch.tensor([0, 1, 299, 63, 64], dtype=torch.int32)
    slots = torch.tensor([0, 31, 95, -1, 32], dtype=torch.int32)
    results = []
    for op, dtype in ((ops, torch.bfloat16), (reference, torch.float64)):
        q, pages = torch.full((T, H, C), torch.nan, dtype=dtype), buffers.make_cache(1, 3, G, C, kind, DEVICE)[0]
        op.norm_rope_store(qkv, q_weight, k_weight, 1e-6, cos, sin, positions, slots, pages, q)
        results.append((q, pages))
    (q, pages), (true_q, true_pages) = results
    assert measure_error(q, true_q) < BF16_ERROR
    tables = torch.arange(3, dtype=torch.int32)
    for which in (0, 1):
        stored, true = (reference._gather(each[which], tables, 96, C) for each in (pages, true_pages))
        # A value at the edge between two steps may fall to either side of it.
        step = {"bf16": BF16_ERROR, "int8": 0.06, "fp8": 0.3}[kind]
        assert measure_error(stored, true) < step
        assert torch.equal(stored.abs().sum(-1) > 0, true.abs().sum(-1) > 0)
        different = stored != true
        assert different.double().mean() < 0.01
    qkv[1, H * C + C // 2] += 4  # one value of a key, one of a value vector, and where a third is stored
    qkv[4, -1] += 4
    slots[2] -= 1
    true_pages.zero_()
    reference.norm_rope_store(qkv, q_weight, k_weight, 1e-6, cos, sin, positions, slots, true_pages, true_q)
    for which, places in ((0, (31, 94, 95)), (1, (32, 94, 95))):
        stored, true = (reference._gather(each[which], tables, 96, C) for each in (pages, true_pages))
        for place in places:
            assert measure_error(stored[..., place, :], true[..., place, :]) > step


@pytest.mark.parametrize("T", [1, 40])
@pytest.mark.parametrize(("precision", "kind", "C"), [("int4", "bf16", 32), ("fp8", "int8", 128), ("int4", "fp8", 24)])
def test_projection(precision: str, kind: str, C: int, T: int) -> None:
    """To the bit what the product and norm_rope_store give one after the other, which are held above. 24 is no
    multiple of a tile."""
    H, G, D = 3, 2, 256
    x, weight, norms = make_x(T, D), make_weight(precision, (H + 2 * G) * C, D), make_x(2, C)
    cos, sin, positions = make_x(50, C // 4), make_x(50, C // 4), torch.randint(50, (T,)).int()
    slots, results = torch.randperm(2 * BLOCK_TOKENS)[:T].int(), []
    slots[-1] = -1 if T > 1 else 5
    arrivals = buffers.make_head_arrivals(H + 2 * G, DEVICE)
    for is_one in (True, False):
        qkv, q = torch.full((T, (H + 2 * G) * C), torch.nan).bfloat16(), torch.full((T, H, C), torch.nan).bfloat16()
        pages = buffers.make_cache(1, 2, G, C, kind, DEVICE)[0]
        heads = (*norms, 1e-6, cos, sin, positions, slots, pages, q)
        if is_one:
            ops.project(x, weight, qkv, arrivals, *heads)
        else:
            ops.linear(x, weight, qkv)
            ops.norm_rope_store(qkv, *heads)
        results.append((q, pages.view(torch.uint8)))
    assert not arrivals.any()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert results[0][1].any()


@pytest.mark.parametrize(
    ("kind", "H", "G", "C"), [("bf16", 4, 4, 16), ("bf16", 32, 1, 16), ("int8", 6, 2, 128), ("fp8", 8, 2, 24)]
)
def test_decode_attention(kind: str, H: int, G: int, C: int) -> None:
    lengths = torch.tensor([1, 0, 33, 64 * 5 + 7], dtype=torch.int32)
    T, pages = len(lengths), make_pages(kind, 11, G, C)
    tables = torch.stack([torch.randperm(11) for _ in range(T)]).int()
    q, out = make_x(T, H, C), torch.full((T, H * C), torch.nan).bfloat16()
    expected = torch.empty(T, H * C, dtype=torch.float64)
    scratch = buffers.make_attention_scratch(T, H, G, C, DEVICE)
    ops.attend_decode(q, pages, tables, lengths, out, scratch)
    reference.attend_decode(q, pages, tables, lengths, expected, scratch)
    assert measure_error(out, expected) < BF16_ERROR
    assert not scratch.arrivals.any()
    reference.attend_decode(q, pages, tables, lengths - (lengths > 30).int(), expected, scratch)
    assert measure_error(out, expected) > BF16_ERROR


@pytest.mark.parametrize(("kind", "H", "G", "C"), [("bf16", 4, 2, 24), ("int8", 3, 1, 128), ("fp8", 2, 2, 32)])
def test_prefill_attention(kind: str, H: int, G: int, C: int) -> None:
    rows, cached = torch.tensor([1, 40, 70]), torch.tensor([50, 0, 150])
    lengths = (rows + cached).int()
    starts = torch.cat((torch.zeros(1), rows.cumsum(0))).int()
    pages, T = make_pages(kind, 9, G, C), int(rows.sum())
    tables = torch.stack([torch.randperm(9) for _ in rows]).int()
    q, out = make_x(T, H, C), torch.full((T, H * C), torch.nan).bfloat16()
    expected = torch.empty(T, H * C, dtype=torch.float64)
    ops.attend_prefill(q, pages, tables, starts, lengths, int(rows.max()), out)
    reference.attend_prefill(q, pages, tables, starts, lengths, int(rows.max()), expected)
    assert measure_error(out, expected) < BF16_ERROR
    tables[:, 0] = tables[:, 1]
    reference.attend_prefill(q, pages, tables, starts, lengths, int(rows.max()), expected)
    assert measure_error(out, expected) > 0.1


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("V", "k"), [(50, 1), (2048, 1), (2100, 4), (40_000, 64)])
def test_top_logits(V: int, k: int) -> None:
    logits = torch.randn(3, V)
    logits[1, V // 2] = logits[1, 3] = 9.0  # equals: the lower id first
    logits[2] = -logits[2].abs()
    found = []
    for op in (ops, reference):
        values, ids = torch.empty(3, k), torch.empty(3, k, dtype=torch.int32)
        is_finite = torch.zeros(3, dtype=torch.bool)
        op.top_logits(logits, values, ids, is_finite, buffers.make_keys(3, V, k, DEVICE))
        found.append((values, ids, is_finite))
    for ours, true in zip(*found, strict=True):
        assert torch.equal(ours, true)
    assert found[0][1][1, 0] == 3
    logits[0, int(ids[0, -1])] -= 100  # the last of the first row's is one no more
    reference.top_logits(logits, values, ids, is_finite, buffers.make_keys(3, V, k, DEVICE))
    assert not torch.equal(found[0][1], ids)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_logit_that_is_no_number_is_seen(bad: float) -> None:
    logits = torch.randn(2, 60)
    logits[1, 55] = bad
    is_finite = torch.zeros(2, dtype=torch.bool)
    values, ids = torch.empty(2, 1), torch.empty(2, 1, dtype=torch.int32)
    ops.top_logits(logits, values, ids, is_finite, buffers.make_keys(2, 60, 1, DEVICE))
    assert is_finite.tolist() == [True, False]


def test_penalty() -> None:
    logits, is_seen, penalty = torch.randn(2, 3000), torch.rand(2, 3000) < 0.3, torch.tensor([1.05, 1.3])
    before, expected = logits.clone(), logits.clone()
    ops.penalize(logits, is_seen, penalty)
    reference.penalize(expected, is_seen, penalty)
    torch.testing.assert_close(logits, expected)
    changed, is_seen[1, 2047] = before.clone(), ~is_seen[1, 2047]  # one token more, or fewer, that was seen
    reference.penalize(changed, is_seen, penalty)
    assert (changed != logits).nonzero().tolist() == [[1, 2047]]
