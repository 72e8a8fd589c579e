"""Each operation by itself: held against its definition in float64 on fresh random inputs, then timed in a graph over
inputs that no cache holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.cases import Case, Sizes
from bench.gpu.clock import Clock
from bench.gpu.random_weights import RandomWeights
from model.config import ModelConfig
from model.kernels.cpu_decoder import BLOCK_TOKENS
from model.kernels.gpu import reference
from model.kernels.gpu.buffers import (
    AttentionScratch,
    Routing,
    make_attention_scratch,
    make_cache,
    make_expert_scratch,
    make_keys,
)
from model.kernels.gpu.layout import Weight, pack_fp8_weight
from model.kernels.gpu.weights import MoeWeights, make_rotary

LIMIT = 1e-2  # of the error: bf16 operands lie between 1e-3 and 1e-2
CHECKED_EXPERTS = 16  # the definition unpacks a whole stack in float64
CHECKED_ROWS = 2048  # of a long matrix
Figures = tuple[float, float]  # error, seconds


def measure_error(out: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over norm; infinite where an element was not written."""
    if not bool(out.isfinite().all()):
        return float("inf")
    return float((out.double() - wanted.double()).norm() / wanted.double().norm())


class Operations:
    """Runs the cases of `list_op_cases` by key, with the kernels `ops`."""

    def __init__(self, config: ModelConfig, sizes: Sizes, clock: Clock, ops: Any) -> None:
        self._config, self._sizes, self._clock, self._ops = config, sizes, clock, ops
        self._device = clock.device
        self._draw = RandomWeights(config, clock.device, seed=1)
        short, long = sizes.contexts
        many, tokens = sizes.batches[-1], sizes.tokens
        dims, hidden, vocab = config.head_dim, config.hidden_size, config.vocab_size
        qkv = (config.num_attention_heads + 2 * config.num_key_value_heads) * dims
        self.runners: dict[str, Callable[[Case], Figures]] = {
            "qkv": partial(self._linear, qkv, hidden, 1),
            "qkv_many": partial(self._linear, qkv, hidden, many),
            "qkv_prefill": partial(self._linear, qkv, hidden, tokens),
            "qkv_fp8": partial(self._linear, qkv, hidden, 1, is_fp8=True),
            "head": partial(self._linear, vocab, hidden, 1),
            "head_many": partial(self._linear, vocab, hidden, many),
            "moe": partial(self._moe, 1),
            "moe_many": partial(self._moe, many),
            "moe_prefill": partial(self._moe, tokens),
            "norm_rope": partial(self._norm_rope, tokens),
            "add_norm": partial(self._add_norm, tokens),
            "top": partial(self._top, many),
            "attend": partial(self._attend, 1, short, "bf16"),
            "attend_many": partial(self._attend, many, short, "bf16"),
            "attend_long": partial(self._attend, 1, long, "bf16"),
            "attend_long_fp8": partial(self._attend, 1, long, "fp8"),
            "attend_long_int8": partial(self._attend, 1, long, "int8"),
            "attend_prefill": partial(self._attend_prefill, sizes.prompts[0]),
        }

    def _draw_x(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self._device).to(torch.bfloat16)

    def _poison(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.full(shape, float("nan"), dtype=dtype, device=self._device)

    # --- products -----------------------------------------------------------------------------------------------

    def _linear(self, rows: int, columns: int, num_tokens: int, case: Case, is_fp8: bool = False) -> Figures:
        draw = self._draw_fp8 if is_fp8 else self._draw.draw_int4
        x = self._draw_x(num_tokens, columns)
        checked = draw(min(rows, CHECKED_ROWS), columns)
        out = self._poison(num_tokens, min(rows, CHECKED_ROWS), dtype=torch.float32)
        wanted = torch.empty_like(out, dtype=torch.float64)
        self._ops.linear(x, checked, out)
        reference.linear(x, checked, wanted)
        weights = [draw(rows, columns) for _ in range(self._clock.num_sets(case.num_bytes))]
        result = self._poison(num_tokens, rows)
        calls = [partial(self._ops.linear, x, weight, result) for weight in weights]
        return measure_error(out, wanted), self._clock.time(calls)

    def _draw_fp8(self, rows: int, columns: int) -> Weight:
        scales = torch.rand(-(-rows // 128), -(-columns // 128), device=self._device) + 0.5
        return pack_fp8_weight(torch.randn(rows, columns, device=self._device).to(torch.float8_e4m3fn), scales)

    # --- experts ------------------------------------------------------------------------------------------------

    def _moe(self, num_tokens: int, case: Case) -> Figures:
        """Norm and router, experts, and their sum with the next norm."""
        checked = min(num_tokens, 64)
        error = self._check_moe(checked)
        layers = [self._draw.draw_moe() for _ in range(2)]
        # A token reads nine experts of a layer: other tokens read others, which is what keeps the cache cold.
        sets = self._clock.num_sets(case.num_bytes)
        calls = [self._prepare_moe(layers[number % 2], num_tokens) for number in range(sets)]
        return error, self._clock.time(calls)

    def _prepare_moe(self, moe: MoeWeights, num_tokens: int, ops: Any = None) -> Callable[[], None]:
        ops, config, y = ops or self._ops, self._config, self._draw_x(num_tokens, self._config.hidden_size)
        routing = Routing.from_config(config, moe.num_shared)
        logits, ids, factors, arrivals = self._make_choice(num_tokens, routing)
        out = self._poison(num_tokens, routing.num_slots, config.hidden_size)
        residual, normed, norm = self._draw_x(*y.shape), torch.empty_like(y), torch.ones_like(y[0])
        eps, choice = config.rms_norm_eps, (routing, None, logits, ids, factors, arrivals)
        scratch = self._make_scratch(num_tokens, routing)

        def run() -> None:
            ops.add_norm_route(residual, y, norm, eps, normed, moe.router, moe.bias, *choice)
            ops.experts(normed, ids, moe.gate_up, moe.down, out, scratch)
            ops.add_norm(residual, out, factors, norm, eps, normed)

        return run

    def _make_choice(self, num_tokens: int, routing: Routing) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape = (num_tokens, routing.num_slots)
        return (
            torch.empty(num_tokens, routing.num_experts, device=self._device),
            torch.empty(shape, dtype=torch.int32, device=self._device),
            torch.empty(shape, device=self._device),
            torch.zeros(num_tokens, dtype=torch.int32, device=self._device),
        )

    def _make_scratch(self, num_tokens: int, routing: Routing) -> Any:
        num_experts, width = routing.num_experts + routing.num_shared, self._config.moe_intermediate_size
        return make_expert_scratch(num_tokens, routing.num_slots, num_experts, width, str(self._device))

    def _check_moe(self, num_tokens: int) -> float:
        """Of the choice and of what a few experts compute."""
        config = replace(self._config, num_experts=min(self._config.num_experts, CHECKED_EXPERTS))
        draw = RandomWeights(config, self._device, seed=2)
        moe, residual, y, x = draw.draw_moe(), *self._draw_x(3, num_tokens, config.hidden_size)
        routing = Routing.from_config(config, moe.num_shared)
        logits, ids, factors, arrivals = self._make_choice(num_tokens, routing)
        wide = [torch.empty_like(t, dtype=torch.float64) for t in (logits, factors)]
        wanted_ids = torch.empty_like(ids)
        norm, router, choice = torch.ones_like(x[0]), (moe.router, moe.bias, routing, None), (logits, ids, factors)
        self._ops.add_norm_route(residual, y, norm, config.rms_norm_eps, x, *router, *choice, arrivals)
        reference.route(x, *router, wide[0], wanted_ids, wide[1])
        alike = (ids == wanted_ids).all(-1)  # float32 may turn a near tie; more than a few are a fault
        if alike.double().mean() < 0.95:
            return float("inf")
        out = self._poison(num_tokens, routing.num_slots, config.hidden_size)
        wanted = torch.empty_like(out, dtype=torch.float64)
        self._ops.experts(x, wanted_ids, moe.gate_up, moe.down, out, self._make_scratch(num_tokens, routing))
        reference.experts(x, wanted_ids, moe.gate_up, moe.down, wanted, self._make_scratch(num_tokens, routing))
        return max(measure_error(out, wanted), measure_error(factors[alike], wide[1][alike]))

    # --- what stands between the products ------------------------------------------------------------------------

    def _norm_rope(self, num_tokens: int, case: Case) -> Figures:
        """Checked on fewer tokens: the definition stores them one by one."""
        ours = self._prepare_norm_rope(self._ops, min(num_tokens, 64), torch.bfloat16)
        wanted = self._prepare_norm_rope(reference, min(num_tokens, 64), torch.float64)
        for call, *_ in (ours, wanted):
            call()
        error = max(measure_error(got, right) for got, right in zip(ours[1:], wanted[1:], strict=True))
        sets = self._clock.num_sets(case.num_bytes, at_most=8)
        return error, self._clock.time([self._prepare_norm_rope(self._ops, num_tokens)[0] for _ in range(sets)])

    def _prepare_norm_rope(
        self, ops: Any, num_tokens: int, dtype: torch.dtype = torch.bfloat16
    ) -> tuple[Callable[[], None], Tensor, Tensor]:
        """The call, its queries and its pages; the same numbers each time."""
        config = self._config
        heads, kv_heads, dims = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        torch.manual_seed(4)
        weights = [1 + self._draw_x(dims) / 8 for _ in range(2)]
        qkv = self._draw_x(num_tokens, (heads + 2 * kv_heads) * dims)
        cos, sin = make_rotary(replace(config, max_position_embeddings=num_tokens), self._device)
        positions = torch.arange(num_tokens, dtype=torch.int32, device=self._device)
        num_blocks = -(-num_tokens // BLOCK_TOKENS)
        pages = make_cache(1, num_blocks, kv_heads, dims, "bf16", str(self._device))[0]
        out = self._poison(num_tokens, heads, dims, dtype=dtype)
        arguments = (qkv, *weights, config.rms_norm_eps, cos, sin, positions, positions, pages, out)
        return partial(ops.norm_rope_store, *arguments), out, pages

    def _add_norm(self, num_tokens: int, case: Case) -> Figures:
        config = self._config
        shape = (num_tokens, config.hidden_size)
        y, weight = self._draw_x(num_tokens, 1, config.hidden_size), 1 + self._draw_x(config.hidden_size) / 8
        residual = self._draw_x(*shape)
        wide, out, wanted = residual.double(), self._poison(*shape), self._poison(*shape, dtype=torch.float64)
        self._ops.add_norm(residual, y, None, weight, config.rms_norm_eps, out)
        reference.add_norm(wide, y, None, weight, config.rms_norm_eps, wanted)
        error = max(measure_error(out, wanted), measure_error(residual, wide))
        sets = [self._draw_x(*shape) for _ in range(self._clock.num_sets(case.num_bytes, at_most=8))]
        calls = [partial(self._ops.add_norm, each, y, None, weight, config.rms_norm_eps, out) for each in sets]
        return error, self._clock.time(calls)

    def _top(self, num_rows: int, case: Case) -> Figures:
        """Wrong by 1 where a single candidate is not the definition's."""
        rows = [
            torch.randn(num_rows, self._config.vocab_size, device=self._device)
            for _ in range(self._clock.num_sets(case.num_bytes, at_most=8))
        ]
        found, wanted = self._make_top(num_rows), self._make_top(num_rows)
        self._ops.top_logits(rows[0], *found)
        reference.top_logits(rows[0], *wanted)
        error = float(not all(torch.equal(a, b) for a, b in zip(found[:3], wanted[:3], strict=True)))
        return error, self._clock.time([partial(self._ops.top_logits, each, *found) for each in rows])

    def _make_top(self, num_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with self._device:
            values, ids = torch.zeros(num_rows, 64), torch.zeros(num_rows, 64, dtype=torch.int32)
            is_finite = torch.zeros(num_rows, dtype=torch.bool)
        return values, ids, is_finite, make_keys(num_rows, self._config.vocab_size, 64, str(self._device))

    # --- attention ----------------------------------------------------------------------------------------------

    def _make_pages(self, kind: str, num_blocks: int) -> Tensor:
        """One layer's random keys and values."""
        config = self._config
        pages = make_cache(1, num_blocks, config.num_key_value_heads, config.head_dim, kind, str(self._device))[0]
        if kind == "bf16":
            return pages.normal_()
        values = BLOCK_TOKENS * config.head_dim
        numbers = torch.randint(-120, 121, (*pages.shape[:-1], values), device=self._device).to(torch.int8)
        if kind == "fp8":
            numbers = torch.randn(numbers.shape, device=self._device).to(torch.float8_e4m3fn).view(torch.int8)
        held = pages.view(torch.int8)
        held[..., :values] = numbers
        scales = torch.rand(*pages.shape[:-1], BLOCK_TOKENS, device=self._device) / 50 + 0.01
        held[..., values:] = scales.view(torch.int8)
        return pages

    def _attend(self, batch: int, context: int, kind: str, case: Case) -> Figures:
        width = -(-context // BLOCK_TOKENS)
        sets = self._clock.num_sets(case.num_bytes)
        pages = self._make_pages(kind, sets * batch * width)
        order = torch.randperm(sets * batch * width, device=self._device).to(torch.int32).view(sets, batch, width)
        lengths = torch.full((batch,), context, dtype=torch.int32, device=self._device)
        config = self._config
        scratch = self._make_attention_scratch(batch)
        calls, checked = [], []
        for tables in order:
            q = self._draw_x(batch, config.num_attention_heads, config.head_dim)
            out = self._poison(batch, config.num_attention_heads * config.head_dim)
            calls.append(partial(self._ops.attend_decode, q, pages, tables, lengths, out, scratch))
            checked.append((q, tables, out))
        calls[0]()
        q, tables, out = checked[0]
        wanted = torch.empty_like(out[:1], dtype=torch.float64)
        reference.attend_decode(q[:1], pages, tables[:1], lengths[:1], wanted, scratch)
        return measure_error(out[:1], wanted), self._clock.time(calls)

    def _make_attention_scratch(self, batch: int) -> AttentionScratch:
        config = self._config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        return make_attention_scratch(batch, heads, kv_heads, config.head_dim, str(self._device))

    def _attend_prefill(self, num_tokens: int, case: Case) -> Figures:
        """Checked on the last rows of a shorter prompt, of which the first part was read before."""
        seconds_of = self._prepare_prefill(num_tokens, num_tokens)[0]
        run, q, pages, tables, starts, lengths, out = self._prepare_prefill(num_tokens // 8, num_tokens // 8 * 3 // 5)
        run()
        wanted = torch.empty_like(out, dtype=torch.float64)
        reference.attend_prefill(q, pages, tables, starts, lengths, len(q), wanted)
        return measure_error(out, wanted), self._clock.time([seconds_of], replays=5)

    def _prepare_prefill(self, length: int, num_rows: int) -> tuple[Callable[[], None], Any, Any, Any, Any, Any, Any]:
        config = self._config
        width = -(-length // BLOCK_TOKENS)
        pages = self._make_pages("bf16", width)
        tables = torch.randperm(width, device=self._device).to(torch.int32)[None]
        starts, lengths = (torch.tensor(v, dtype=torch.int32, device=self._device) for v in ([0, num_rows], [length]))
        q = self._draw_x(num_rows, config.num_attention_heads, config.head_dim)
        out = self._poison(num_rows, config.num_attention_heads * config.head_dim)
        run = partial(self._ops.attend_prefill, q, pages, tables, starts, lengths, num_rows, out)
        return run, q, pages, tables, starts, lengths, out
