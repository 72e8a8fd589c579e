"""A step of the card's decoder, call by call: a layer, the head, and the space that they work in.

Suffixes: T rows of a step, S slots (a token's experts, shared ones last); else as in modeling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kernels.build import KernelsUnavailableError
from model.kernels.gpu.buffers import (
    STEP_ROWS,
    Routing,
    make_attention_scratch,
    make_expert_scratch,
    make_head_arrivals,
)
from model.kernels.gpu.capture import capture
from model.kernels.gpu.layout import shape_of
from model.kernels.gpu.offload import ColdExperts
from model.kernels.gpu.weights import DecoderWeights, LayerWeights, MlpWeights, MoeWeights

BUCKETS = (1, 2, 4, 8, 16, 32, STEP_ROWS)  # rows of a captured step


@dataclass(frozen=True, slots=True)
class Call:
    """Some launches; or, where is_host, work of the processor's, which no graph can hold."""

    run: Callable[[], object]
    is_host: bool = False


class Space:
    """What steps of up to max_rows rows work in, taken once: what a graph reads never moves. logits and last_hidden are
    for up to STEP_ROWS rows; router_logits, expert_ids and factors of each MoE layer, the MTP layer's last."""

    def __init__(self, weights: DecoderWeights, config: ModelConfig, max_rows: int, device: torch.device) -> None:
        D, C, T = config.hidden_size, config.head_dim, max_rows
        H, G = config.num_attention_heads, config.num_key_value_heads
        mlps = [layer.mlp for layer in (*weights.layers, *([weights.mtp.layer] if weights.mtp else []))]
        moes = [mlp for mlp in mlps if isinstance(mlp, MoeWeights)]
        dense = [mlp for mlp in mlps if isinstance(mlp, MlpWeights)]
        dense += [moe.shared for moe in moes if moe.shared]
        if len({moe.num_shared for moe in moes}) > 1:
            raise KernelsUnavailableError("some layers store their shared experts otherwise than others do")
        S = max((config.num_experts_per_tok + moe.num_shared for moe in moes), default=1)
        bf16, i32 = torch.bfloat16, torch.int32
        with device:
            self.residual, self.normed, self.mixed = torch.zeros(3, T, D, dtype=bf16)
            self.qkv = torch.zeros(T, (H + 2 * G) * C, dtype=bf16)
            self.queries = torch.zeros(T, H, C, dtype=bf16)
            self.attended = torch.zeros(T, H * C, dtype=bf16)
            self.expert_out = torch.zeros(T * S * D, dtype=bf16)
            self.router_logits = torch.zeros(len(moes), T, config.num_experts)
            self.expert_ids = torch.zeros(len(moes), T, S, dtype=i32)
            self.factors = torch.zeros(len(moes), T, S)
            self.arrivals = torch.zeros(T, dtype=i32)
            self.zeros = torch.zeros(T, 1, dtype=i32)  # the one expert of a dense layer
            self.logits = torch.zeros(STEP_ROWS, config.vocab_size)
            self.last_hidden = torch.zeros(STEP_ROWS, D, dtype=bf16)
        name = str(device)
        width = max((shape_of(mlp.down)[1] for mlp in dense), default=16)
        num_experts = config.num_experts + max((moe.num_shared for moe in moes), default=0)
        self.dense_scratch = make_expert_scratch(T, 1, 1, width, name)
        self.moe_scratch = make_expert_scratch(T, S, num_experts, config.moe_intermediate_size, name)
        self.attention = make_attention_scratch(STEP_ROWS, H, G, C, name)
        self.head_arrivals = make_head_arrivals(H + 2 * G, name)


@dataclass(frozen=True, slots=True)
class Step:
    """A step of num_rows rows, the first ones of the space: where they stand, and how they attend."""

    num_rows: int
    positions: Tensor
    slots: Tensor
    attend: Callable[[Tensor], None]  # to a layer's pages, queries -> attended


class Steps:
    """The calls that steps are made of, in a space for max_rows rows. ops, cold: see GpuDecoder."""

    def __init__(
        self, weights: DecoderWeights, config: ModelConfig, max_rows: int, ops: Any, cold: ColdExperts | None
    ) -> None:
        self.weights, self.config, self.ops = weights, config, ops
        self.device = weights.embedding.device
        self.space = Space(weights, config, max_rows, self.device)
        self._cold = cold

    def of_rows(self, number: int, positions: Tensor, slots: Tensor, lengths: Tensor, tables: Tensor) -> Step:
        """A step whose rows attend each for itself. All i32 [rows], tables [rows, M]; see ops.attend_decode."""
        space, ops = self.space, self.ops
        queries, attended = space.queries[:number], space.attended[:number]

        def attend(pages: Tensor) -> None:
            ops.attend_decode(queries, pages, tables, lengths, attended, space.attention)

        return Step(number, positions, slots, attend)

    def layer(self, step: Step, layer: LayerWeights, pages: Tensor, number: int, next_norm: Tensor) -> Iterator[Call]:
        """From the normed residual stream to that before what follows, whose norm is next_norm. number: among the MoE
        layers, if it is one."""
        yield Call(partial(self._attention, step, layer, pages))
        if isinstance(layer.mlp, MlpWeights):
            yield Call(partial(self._dense, step, layer, layer.mlp, next_norm))
        else:
            yield from self._list_moe_calls(step, layer.post_norm, layer.mlp, number, next_norm)

    def head(self, hidden: Tensor, logits: Tensor) -> None:
        self.ops.linear(hidden, self.weights.head, logits)

    def store(self, step: Step, layer: LayerWeights, pages: Tensor) -> None:
        """Queries, and keys and values to where they stay."""
        space, T = self.space, step.num_rows
        self.ops.project(
            space.normed[:T],
            layer.qkv,
            space.qkv[:T],
            space.head_arrivals,
            layer.query_norm,
            layer.key_norm,
            self.config.rms_norm_eps,
            self.weights.cos,
            self.weights.sin,
            step.positions,
            step.slots,
            pages,
            space.queries[:T],
        )

    def _attention(self, step: Step, layer: LayerWeights, pages: Tensor) -> None:
        space, T = self.space, step.num_rows
        self.store(step, layer, pages)
        step.attend(pages)
        self.ops.linear(space.attended[:T], layer.dense, space.mixed[:T])

    def _dense(self, step: Step, layer: LayerWeights, mlp: MlpWeights, next_norm: Tensor) -> None:
        space, T, eps = self.space, step.num_rows, self.config.rms_norm_eps
        out = space.mixed[:T, None]
        self.ops.add_norm(space.residual[:T], out, None, layer.post_norm, eps, space.normed[:T])
        self.ops.experts(space.normed[:T], space.zeros[:T], mlp.gate_up, mlp.down, out, space.dense_scratch)
        self.ops.add_norm(space.residual[:T], out, None, next_norm, eps, space.normed[:T])

    def _route(self, step: Step, norm: Tensor, moe: MoeWeights, logits: Tensor, ids: Tensor, factors: Tensor) -> None:
        space, T = self.space, step.num_rows
        self.ops.add_norm_route(
            space.residual[:T],
            space.mixed[:T],
            norm,
            self.config.rms_norm_eps,
            space.normed[:T],
            moe.router,
            moe.bias,
            Routing.from_config(self.config, moe.num_shared),
            step.slots,
            logits,
            ids,
            factors,
            space.arrivals[:T],
        )

    def _experts(self, step: Step, moe: MoeWeights, ids: Tensor, out: Tensor) -> None:
        space, T = self.space, step.num_rows
        if moe.places is not None:
            ids = moe.places[ids.long() + 1]
        self.ops.experts(space.normed[:T], ids, moe.gate_up, moe.down, out, space.moe_scratch)
        if moe.shared is not None:
            shared = space.mixed[:T, None]
            scratch = space.dense_scratch
            self.ops.experts(space.normed[:T], space.zeros[:T], moe.shared.gate_up, moe.shared.down, shared, scratch)

    def _add_experts(self, step: Step, moe: MoeWeights, out: Tensor, factors: Tensor, next_norm: Tensor) -> None:
        space, T, eps = self.space, step.num_rows, self.config.rms_norm_eps
        residual, normed = space.residual[:T], space.normed[:T]
        if moe.shared is not None:
            self.ops.add_norm(residual, space.mixed[:T, None], None, next_norm, eps, normed)
        self.ops.add_norm(residual, out, factors, next_norm, eps, normed)

    def _list_moe_calls(
        self, step: Step, norm: Tensor, moe: MoeWeights, number: int, next_norm: Tensor
    ) -> Iterator[Call]:
        space, T = self.space, step.num_rows
        S = self.config.num_experts_per_tok + moe.num_shared
        ids, factors = space.expert_ids[number, :T, :S], space.factors[number, :T, :S]
        out = space.expert_out[: T * S * self.config.hidden_size].view(T, S, -1)
        yield Call(partial(self._route, step, norm, moe, space.router_logits[number, :T], ids, factors))
        if moe.places is not None:
            assert self._cold is not None
            yield Call(partial(self._cold.begin, number, space.normed[:T], ids), is_host=True)
        yield Call(partial(self._experts, step, moe, ids, out))
        if moe.places is not None:
            assert self._cold is not None
            yield Call(partial(self._cold.finish, out), is_host=True)
        yield Call(partial(self._add_experts, step, moe, out, factors, next_norm))


def prepare(calls: Iterable[Call], device: torch.device, has_graphs: bool) -> list[Callable[[], object]]:
    """The calls as few: graphs where there can be some, with the processor's work between them."""
    parts: list[Callable[[], object]] = []
    for is_host, group in groupby(calls, key=lambda call: call.is_host):
        runs = [call.run for call in group]
        parts += runs if is_host or not has_graphs else [capture(partial(_run_all, runs), device)]
    return parts


def _run_all(calls: Iterable[Callable[[], object]]) -> None:
    for call in calls:
        call()
