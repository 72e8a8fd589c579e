"""The decoder on a card by the Triton kernels: passes over a batch of sequences, with a paged cache of their keys.

A decode step is one CUDA graph for each size of batch: it reads its inputs from places that stay the same, allocates
nothing and waits for nobody. Chunks of prompts run as they come. Both are the same list of calls, and where there is no
card they run uncaptured, through Triton's interpreter or the definitions in model.kernels.gpu.reference. The
mathematics are model.modeling's, in bf16 with sums in f32; tests hold it against that. There is no MTP layer here.

Suffixes: T rows of a step, S slots (a token's experts, shared ones last), N rows asked for; else as in modeling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kernels.build import KernelsUnavailableError
from model.kernels.cpu_decoder import BLOCK_TOKENS, Pass
from model.kernels.gpu.buffers import Routing, make_attention_scratch, make_cache, make_expert_scratch
from model.kernels.gpu.capture import capture
from model.kernels.gpu.inputs import ChunkInputs, DecodeInputs, Run, fill_chunks, list_runs
from model.kernels.gpu.layout import shape_of
from model.kernels.gpu.offload import ColdExperts
from model.kernels.gpu.weights import DecoderWeights, LayerWeights, MlpWeights, MoeWeights

BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # rows of a captured step
MAX_ROWS = BUCKETS[-1]
CHUNK = 4096  # rows of prompts that are computed together


@dataclass(frozen=True, slots=True)
class _Call:
    """Some launches; or, where is_host, work of the processor's, which no graph can hold."""

    run: Callable[[], object]
    is_host: bool = False


@dataclass(frozen=True, slots=True)
class _Wants:
    """What is asked of a pass beside logits."""

    hidden: bool
    taps: tuple[int, ...]
    router: bool


class _Space:
    """What steps of up to max_rows rows work in, taken once: what a graph reads never moves. logits and last_hidden are
    for up to MAX_ROWS rows."""

    def __init__(self, weights: DecoderWeights, config: ModelConfig, max_rows: int, device: torch.device) -> None:
        D, C, T = config.hidden_size, config.head_dim, max_rows
        H, G = config.num_attention_heads, config.num_key_value_heads
        moes = [layer.mlp for layer in weights.layers if isinstance(layer.mlp, MoeWeights)]
        dense = [layer.mlp for layer in weights.layers if isinstance(layer.mlp, MlpWeights)]
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
            # Of each MoE layer, also for whoever watches the routers.
            self.router_logits = torch.zeros(len(moes), T, config.num_experts)
            self.expert_ids = torch.zeros(len(moes), T, S, dtype=i32)
            self.factors = torch.zeros(len(moes), T, S)
            self.arrivals = torch.zeros(T, dtype=i32)
            self.zeros = torch.zeros(T, 1, dtype=i32)  # the one expert of a dense layer
            self.logits = torch.zeros(MAX_ROWS, config.vocab_size)
            self.last_hidden = torch.zeros(MAX_ROWS, D, dtype=bf16)
        name = str(device)
        width = max((shape_of(mlp.down)[1] for mlp in dense), default=16)
        num_experts = config.num_experts + max((moe.num_shared for moe in moes), default=0)
        self.dense_scratch = make_expert_scratch(T, 1, 1, width, name)
        self.moe_scratch = make_expert_scratch(T, S, num_experts, config.moe_intermediate_size, name)
        self.attention = make_attention_scratch(MAX_ROWS, H, G, C, name)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of num_rows rows: what it reads, how it attends, and the first rows of the space."""

    num_rows: int
    ids: Tensor
    positions: Tensor
    slots: Tensor
    attend: Callable[[Tensor], None]  # to a layer's pages, queries -> attended
    taps: Tensor  # [taps asked for, T, D]


class GpuDecoder:
    """Layers on a device, with a cache of num_blocks blocks. ops: model.kernels.gpu.ops, or its definitions in
    reference. cold: computes the routed experts that are not on the device. has_graphs: whether steps are captured
    where that can be done."""

    def __init__(
        self,
        weights: DecoderWeights,
        config: ModelConfig,
        num_blocks: int,
        cache_kind: str,
        ops: Any,
        cold: ColdExperts | None = None,
        chunk: int = CHUNK,
        has_graphs: bool = True,
    ) -> None:
        self.config, self.weights, self.chunk = config, weights, max(chunk, MAX_ROWS)
        self.device = weights.embedding.device
        G, C = config.num_key_value_heads, config.head_dim
        self.cache = make_cache(config.num_hidden_layers, num_blocks, G, C, cache_kind, str(self.device))
        self.ops, self._cold, self._has_graphs = ops, cold, has_graphs
        self._space = _Space(weights, config, self.chunk, self.device)
        self._inputs = DecodeInputs(MAX_ROWS, -(-config.context_length // BLOCK_TOKENS), self.device)
        self._graphs: dict[tuple[int, tuple[int, ...]], tuple[_Step, list[Callable[[], object]]]] = {}

    @torch.no_grad()  # not inference_mode: a graph's own tensors would then belong to it, and captures elsewhere fail
    def forward(
        self,
        input_ids: Sequence[Sequence[int]],
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        logit_rows: Sequence[int] | None = None,
        output_hidden: bool = False,
        tap_layers: Sequence[int] = (),
        output_router: bool = True,
    ) -> Pass:
        """As CpuDecoder.forward, with results on the device, good until the next call; of the routers those of the MoE
        layers alone; logit_rows ascending. Sequences with one new token go through a graph, the others in chunks."""
        runs = list_runs(input_ids, first_positions, block_tables, logit_rows)
        wants = _Wants(output_hidden, tuple(tap_layers), output_router)
        singles = [run for run in runs if len(run.token_ids) == 1]
        others = [run for run in runs if len(run.token_ids) > 1]
        steps = [(self._decode, singles[first : first + MAX_ROWS]) for first in range(0, len(singles), MAX_ROWS)]
        steps += [(self._read, chunk) for chunk in fill_chunks(others, self.chunk)]
        if len(steps) == 1:
            run_step, all_runs = steps[0]
            return run_step(all_runs, wants)
        return self._join(steps, runs, wants)

    # --- the two kinds of step ----------------------------------------------------------------------------------

    def _decode(self, runs: Sequence[Run], wants: _Wants) -> Pass:
        """One token of each sequence, through the graph of the smallest bucket that has room."""
        bucket = next(size for size in BUCKETS if size >= len(runs))
        step, graph = self._graphs.get((bucket, wants.taps)) or self._capture(bucket, wants)
        self._inputs.fill(runs)
        for part in graph:
            part()
        logits = self._space.logits[: len(runs)]
        if any(not run.wanted for run in runs):
            logits = logits[[row for row, run in enumerate(runs) if run.wanted]]
        return self._describe(step, len(runs), logits, wants)

    def _capture(self, bucket: int, wants: _Wants) -> tuple[_Step, list[Callable[[], object]]]:
        space, ops = self._space, self.ops
        ids, positions, slots, lengths, tables = self._inputs.rows(bucket)
        queries, attended = space.queries[:bucket], space.attended[:bucket]

        def attend(pages: Tensor) -> None:
            ops.attend_decode(queries, pages, tables, lengths, attended, space.attention)

        taps = torch.zeros(len(wants.taps), bucket, self.config.hidden_size, dtype=torch.bfloat16, device=self.device)
        step = _Step(bucket, ids, positions, slots, attend, taps)
        calls = [
            *self._list_calls(step, wants),
            _Call(partial(self._head, space.normed[:bucket], space.logits[:bucket])),
        ]
        self._inputs.fill([])  # rows that only fill up: the runs before a capture write no keys
        graph: list[Callable[[], object]] = []
        for is_host, group in groupby(calls, key=lambda call: call.is_host):
            runs = [call.run for call in group]
            if not is_host and self._has_graphs:
                runs = [capture(partial(_run_all, runs), self.device)]
            graph += runs
        self._graphs[bucket, wants.taps] = step, graph
        return step, graph

    def _read(self, runs: Sequence[Run], wants: _Wants) -> Pass:
        """A chunk of prompts."""
        given, space = ChunkInputs.of(runs, self.device), self._space
        T = len(given.ids)
        queries, attended = space.queries[:T], space.attended[:T]

        def attend(pages: Tensor) -> None:
            self.ops.attend_prefill(queries, pages, given.tables, given.starts, given.lengths, given.longest, attended)

        taps = torch.zeros(len(wants.taps), T, self.config.hidden_size, dtype=torch.bfloat16, device=self.device)
        step = _Step(T, given.ids, given.positions, given.slots, attend, taps)
        for call in self._list_calls(step, wants):
            call.run()
        return self._describe(step, T, self._read_logits(runs), wants)

    def _read_logits(self, runs: Sequence[Run]) -> Tensor:
        """Logits [N,V] of the rows that runs want, in their order."""
        rows, start = [], 0
        for run in runs:
            rows += [start + token for token, _ in run.wanted]
            start += len(run.token_ids)
        logits_NV = torch.empty(len(rows), self.config.vocab_size, device=self.device)
        for first in range(0, len(rows), MAX_ROWS):
            part = torch.tensor(rows[first : first + MAX_ROWS], device=self.device)
            hidden = self._space.last_hidden[: len(part)]
            torch.index_select(self._space.normed, 0, part, out=hidden)
            self._head(hidden, logits_NV[first : first + MAX_ROWS])
        return logits_NV

    # --- a step, call by call -----------------------------------------------------------------------------------

    def _list_calls(self, step: _Step, wants: _Wants) -> Iterator[_Call]:
        yield _Call(partial(self._embed, step))
        num_moe = 0
        for index, layer in enumerate(self.weights.layers):
            yield from self._list_taps(step, wants, index)
            yield _Call(partial(self._attention, step, layer, self.cache[index]))
            next_norm = self._norm_before(index + 1)
            if isinstance(layer.mlp, MlpWeights):
                yield _Call(partial(self._dense, step, layer.mlp, next_norm))
                continue
            yield from self._list_moe_calls(step, layer.mlp, num_moe, next_norm)
            num_moe += 1
        yield from self._list_taps(step, wants, len(self.weights.layers))

    def _list_taps(self, step: _Step, wants: _Wants, index: int) -> Iterator[_Call]:
        for place, tap in enumerate(wants.taps):
            if tap == index:
                yield _Call(partial(step.taps[place].copy_, self._space.residual[: step.num_rows]))

    def _list_moe_calls(self, step: _Step, moe: MoeWeights, number: int, next_norm: Tensor) -> Iterator[_Call]:
        space, T = self._space, step.num_rows
        S = self.config.num_experts_per_tok + moe.num_shared
        ids, factors = space.expert_ids[number, :T, :S], space.factors[number, :T, :S]
        out = space.expert_out[: T * S * self.config.hidden_size].view(T, S, -1)
        yield _Call(partial(self._route, step, moe, space.router_logits[number, :T], ids, factors))
        if moe.places is not None:
            assert self._cold is not None
            yield _Call(partial(self._cold.begin, number, space.normed[:T], ids), is_host=True)
        yield _Call(partial(self._experts, step, moe, ids, out))
        if moe.places is not None:
            assert self._cold is not None
            yield _Call(partial(self._cold.finish, out), is_host=True)
        yield _Call(partial(self._add_experts, step, moe, out, factors, next_norm))

    def _norm_before(self, index: int) -> Tensor:
        """Of what follows in the residual stream: the next layer, or the head."""
        layers = self.weights.layers
        return layers[index].input_norm if index < len(layers) else self.weights.norm

    def _embed(self, step: _Step) -> None:
        residual, normed = self._space.residual[: step.num_rows], self._space.normed[: step.num_rows]
        torch.index_select(self.weights.embedding, 0, step.ids, out=residual)
        self.ops.rms_norm(residual, self._norm_before(0), self.config.rms_norm_eps, normed)

    def _attention(self, step: _Step, layer: LayerWeights, pages: Tensor) -> None:
        ops, space, T, eps = self.ops, self._space, step.num_rows, self.config.rms_norm_eps
        qkv, mixed, normed = space.qkv[:T], space.mixed[:T], space.normed[:T]
        ops.linear(normed, layer.qkv, qkv)
        ops.norm_rope_store(
            qkv,
            layer.query_norm,
            layer.key_norm,
            eps,
            self.weights.cos,
            self.weights.sin,
            step.positions,
            step.slots,
            pages,
            space.queries[:T],
        )
        step.attend(pages)
        ops.linear(space.attended[:T], layer.dense, mixed)
        ops.add_norm(space.residual[:T], mixed[:, None], None, layer.post_norm, eps, normed)

    def _dense(self, step: _Step, mlp: MlpWeights, next_norm: Tensor) -> None:
        space, T = self._space, step.num_rows
        out = space.mixed[:T, None]
        self.ops.experts(space.normed[:T], space.zeros[:T], mlp.gate_up, mlp.down, out, space.dense_scratch)
        self.ops.add_norm(space.residual[:T], out, None, next_norm, self.config.rms_norm_eps, space.normed[:T])

    def _route(self, step: _Step, moe: MoeWeights, logits: Tensor, ids: Tensor, factors: Tensor) -> None:
        routing = Routing.from_config(self.config, moe.num_shared)
        space, T = self._space, step.num_rows
        self.ops.route(
            space.normed[:T], moe.router, moe.bias, routing, step.slots, logits, ids, factors, space.arrivals[:T]
        )

    def _experts(self, step: _Step, moe: MoeWeights, ids: Tensor, out: Tensor) -> None:
        space, T = self._space, step.num_rows
        if moe.places is not None:
            ids = moe.places[ids.long() + 1]
        self.ops.experts(space.normed[:T], ids, moe.gate_up, moe.down, out, space.moe_scratch)
        if moe.shared is not None:
            shared = space.mixed[:T, None]
            scratch = space.dense_scratch
            self.ops.experts(space.normed[:T], space.zeros[:T], moe.shared.gate_up, moe.shared.down, shared, scratch)

    def _add_experts(self, step: _Step, moe: MoeWeights, out: Tensor, factors: Tensor, next_norm: Tensor) -> None:
        space, T, eps = self._space, step.num_rows, self.config.rms_norm_eps
        residual, normed = space.residual[:T], space.normed[:T]
        if moe.shared is not None:
            self.ops.add_norm(residual, space.mixed[:T, None], None, next_norm, eps, normed)
        self.ops.add_norm(residual, out, factors, next_norm, eps, normed)

    def _head(self, hidden: Tensor, logits: Tensor) -> None:
        self.ops.linear(hidden, self.weights.head, logits)

    # --- results ------------------------------------------------------------------------------------------------

    def _describe(self, step: _Step, num_rows: int, logits: Tensor, wants: _Wants) -> Pass:
        space, K = self._space, self.config.num_experts_per_tok
        num_routed = num_rows if wants.router else 0
        return Pass(
            logits,
            space.router_logits[:, :num_routed],
            space.expert_ids[:, :num_routed, :K],
            space.factors[:, :num_routed, :K],
            space.normed[:num_rows] if wants.hidden else None,
            step.taps[:, :num_rows],
        )

    def _join(self, steps: Sequence[Any], runs: Sequence[Run], wants: _Wants) -> Pass:
        """The results of several steps, in the order of the whole batch's rows."""
        config, device = self.config, self.device
        T, N = runs[-1].rows.stop, sum(len(run.wanted) for run in runs)
        L, K, num_routed = len(self._space.router_logits), config.num_experts_per_tok, T if wants.router else 0
        whole = Pass(
            torch.empty(N, config.vocab_size, device=device),
            torch.empty(L, num_routed, config.num_experts, device=device),
            torch.empty(L, num_routed, K, dtype=torch.int32, device=device),
            torch.empty(L, num_routed, K, device=device),
            torch.empty(T, config.hidden_size, dtype=torch.bfloat16, device=device) if wants.hidden else None,
            torch.empty(len(wants.taps), T, config.hidden_size, dtype=torch.bfloat16, device=device),
        )
        for run_step, some in steps:
            part: Pass = run_step(some, wants)
            rows = torch.tensor([row for run in some for row in run.rows], device=device)
            places = torch.tensor([place for run in some for _, place in run.wanted], device=device, dtype=torch.long)
            whole.logits[places] = part.logits
            whole.taps[:, rows] = part.taps
            for name in ("router_logits", "topk_ids", "topk_weights") if wants.router else ():
                getattr(whole, name)[:, rows] = getattr(part, name)
            if whole.hidden is not None and part.hidden is not None:
                whole.hidden[rows] = part.hidden
        return whole


def _run_all(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()
