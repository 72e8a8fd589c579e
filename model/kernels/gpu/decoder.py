"""The decoder on a card by the Triton kernels: passes over a batch of sequences, with a paged cache of their keys.

A step of answers is one CUDA graph for each size of batch: it reads its inputs from places that stay the same,
allocates nothing and waits for nobody. Chunks of prompts run as they come. Both are the same list of calls
(model.kernels.gpu.step), and where there is no card they run uncaptured, through Triton's interpreter or the
definitions in model.kernels.gpu.reference. The mathematics are model.modeling's, in bf16 with sums in f32; tests hold
it against that.

A token and the draft that follows it are rows of such a step, each with its own length over the same blocks. A row's
sums are added in one order however many rows there are (model.kernels.gpu.buffers.STEP_ROWS), so that a draft should
turn no tie; bench.gpu looks whether that is so on the card.

Suffixes: T rows of a step, N rows asked for; else as in modeling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kernels.cpu_decoder import BLOCK_TOKENS, Pass
from model.kernels.gpu.buffers import STEP_ROWS, make_cache
from model.kernels.gpu.inputs import ChunkInputs, DecodeInputs, Run, fill_chunks, list_runs
from model.kernels.gpu.mtp import MtpSteps
from model.kernels.gpu.offload import ColdExperts
from model.kernels.gpu.step import BUCKETS, Call, Step, Steps, prepare
from model.kernels.gpu.weights import DecoderWeights, MoeWeights

SHORT = 8  # new tokens of a sequence that are rows of a step: an answer's next token, and a draft
CHUNK = 8192  # rows of prompts that are computed together


@dataclass(frozen=True, slots=True)
class _Wants:
    """What is asked of a pass beside logits."""

    hidden: bool
    taps: tuple[int, ...]
    router: bool


@dataclass(frozen=True, slots=True)
class _Graph:
    """A prepared step of answers, and the taps [taps asked for, T, D] that it fills."""

    run: list[Callable[[], object]]
    taps: Tensor


class GpuDecoder:
    """Layers on a device, with a cache of num_blocks blocks, in which the MTP layer's keys and values come last. ops:
    model.kernels.gpu.ops, or its definitions in reference. cold: computes the routed experts that are not on the
    device. has_graphs: whether steps are captured where that can be done."""

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
        self.config, self.weights, self.chunk = config, weights, max(chunk, STEP_ROWS)
        self.device, self.ops = weights.embedding.device, ops
        G, C = config.num_key_value_heads, config.head_dim
        num_layers = len(weights.layers) + (weights.mtp is not None)
        self.cache = make_cache(num_layers, num_blocks, G, C, cache_kind, str(self.device))
        self._has_graphs = has_graphs
        self._steps = Steps(weights, config, self.chunk, ops, cold)
        self._num_moe = sum(isinstance(layer.mlp, MoeWeights) for layer in weights.layers)
        width = -(-config.context_length // BLOCK_TOKENS)
        self._inputs = DecodeInputs(STEP_ROWS, width, self.device)
        self._graphs: dict[tuple[int, tuple[int, ...]], _Graph] = {}
        self._mtp = None
        if weights.mtp is not None:
            inputs = DecodeInputs(STEP_ROWS, width, self.device)
            pages = self.cache[-1]
            self._mtp = MtpSteps(weights.mtp, self._steps, pages, self._num_moe, inputs, self.chunk, has_graphs)

    @property
    def can_draft(self) -> bool:
        return self._mtp is not None

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
        layers alone; logit_rows ascending. Up to SHORT new tokens of a sequence go through a graph, more in chunks."""
        runs = list_runs(input_ids, first_positions, block_tables, logit_rows)
        wants = _Wants(output_hidden, tuple(tap_layers), output_router)
        rows = [row for run in runs if len(run.token_ids) <= SHORT for row in run.split()]
        others = [run for run in runs if len(run.token_ids) > SHORT]
        steps: list[tuple[Callable[[Sequence[Run], _Wants], Pass], Sequence[Run]]]
        steps = [(self._decode, rows[first : first + STEP_ROWS]) for first in range(0, len(rows), STEP_ROWS)]
        steps += [(self._read, chunk) for chunk in fill_chunks(others, self.chunk)]
        if len(steps) == 1:
            run_step, all_runs = steps[0]
            return run_step(all_runs, wants)
        return self._join(steps, runs, wants)

    @torch.no_grad()
    def draft(
        self,
        next_ids: Sequence[Sequence[int]],
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        hidden_ND: Tensor,
        hidden_rows: Sequence[int],
        num_drafts: Sequence[int],
    ) -> list[list[int]]:
        """As CpuDecoder.draft, with hidden_ND [.., D] bf16 on the device. The last pass's results are gone then."""
        assert self._mtp is not None
        hidden_TD = hidden_ND.index_select(0, torch.tensor(hidden_rows, device=self.device))
        return self._mtp.draft(list_runs(next_ids, first_positions, block_tables, ()), hidden_TD, num_drafts)

    # --- the two kinds of step ----------------------------------------------------------------------------------

    def _decode(self, rows: Sequence[Run], wants: _Wants) -> Pass:
        """Runs of one token each, through the graph of the smallest bucket that has room."""
        bucket = next(size for size in BUCKETS if size >= len(rows))
        graph = self._graphs.get((bucket, wants.taps)) or self._capture(bucket, wants)
        self._inputs.fill(rows)
        for part in graph.run:
            part()
        logits = self._steps.space.logits[: len(rows)]
        if any(not row.wanted for row in rows):
            logits = logits[[place for place, row in enumerate(rows) if row.wanted]]
        return self._describe(len(rows), logits, graph.taps, wants)

    def _capture(self, bucket: int, wants: _Wants) -> _Graph:
        ids, *places = self._inputs.rows(bucket)
        step, taps = self._steps.of_rows(bucket, *places), self._make_taps(bucket, wants)
        normed, logits = self._steps.space.normed[:bucket], self._steps.space.logits[:bucket]
        calls = [*self._list_calls(step, ids, taps, wants), Call(partial(self._steps.head, normed, logits))]
        self._inputs.fill([])  # rows that only fill up: the runs before a capture write no keys
        graph = _Graph(prepare(calls, self.device, self._has_graphs), taps)
        self._graphs[bucket, wants.taps] = graph
        return graph

    def _read(self, runs: Sequence[Run], wants: _Wants) -> Pass:
        """A chunk of prompts."""
        given, space = ChunkInputs.of(runs, self.device), self._steps.space
        T = len(given.ids)
        queries, attended = space.queries[:T], space.attended[:T]

        def attend(pages: Tensor) -> None:
            self.ops.attend_prefill(queries, pages, given.tables, given.starts, given.lengths, given.longest, attended)

        step, taps = Step(T, given.positions, given.slots, attend), self._make_taps(T, wants)
        for call in self._list_calls(step, given.ids, taps, wants):
            call.run()
        return self._describe(T, self._read_logits(runs), taps, wants)

    def _read_logits(self, runs: Sequence[Run]) -> Tensor:
        """Logits [N,V] of the rows that runs want, in their order."""
        rows, start, space = [], 0, self._steps.space
        for run in runs:
            rows += [start + token for token, _ in run.wanted]
            start += len(run.token_ids)
        logits_NV = torch.empty(len(rows), self.config.vocab_size, device=self.device)
        for first in range(0, len(rows), STEP_ROWS):
            part = torch.tensor(rows[first : first + STEP_ROWS], device=self.device)
            hidden = space.last_hidden[: len(part)]
            torch.index_select(space.normed, 0, part, out=hidden)
            self._steps.head(hidden, logits_NV[first : first + STEP_ROWS])
        return logits_NV

    def _make_taps(self, num_rows: int, wants: _Wants) -> Tensor:
        shape = (len(wants.taps), num_rows, self.config.hidden_size)
        return torch.zeros(shape, dtype=torch.bfloat16, device=self.device)

    # --- a step, call by call -----------------------------------------------------------------------------------

    def _list_calls(self, step: Step, ids: Tensor, taps: Tensor, wants: _Wants) -> Iterator[Call]:
        yield Call(partial(self._embed, step, ids))
        num_moe = 0
        for index, layer in enumerate(self.weights.layers):
            yield from self._list_taps(step, taps, wants, index)
            yield from self._steps.layer(step, layer, self.cache[index], num_moe, self._norm_before(index + 1))
            num_moe += isinstance(layer.mlp, MoeWeights)
        yield from self._list_taps(step, taps, wants, len(self.weights.layers))

    def _list_taps(self, step: Step, taps: Tensor, wants: _Wants, index: int) -> Iterator[Call]:
        for place, tap in enumerate(wants.taps):
            if tap == index:
                yield Call(partial(taps[place].copy_, self._steps.space.residual[: step.num_rows]))

    def _norm_before(self, index: int) -> Tensor:
        """Of what follows in the residual stream: the next layer, or the head."""
        layers = self.weights.layers
        return layers[index].input_norm if index < len(layers) else self.weights.norm

    def _embed(self, step: Step, ids: Tensor) -> None:
        space, T = self._steps.space, step.num_rows
        torch.index_select(self.weights.embedding, 0, ids, out=space.residual[:T])
        self.ops.rms_norm(space.residual[:T], self._norm_before(0), self.config.rms_norm_eps, space.normed[:T])

    # --- results ------------------------------------------------------------------------------------------------

    def _describe(self, num_rows: int, logits: Tensor, taps: Tensor, wants: _Wants) -> Pass:
        space, L, K = self._steps.space, self._num_moe, self.config.num_experts_per_tok
        num_routed = num_rows if wants.router else 0
        return Pass(
            logits,
            space.router_logits[:L, :num_routed],
            space.expert_ids[:L, :num_routed, :K],
            space.factors[:L, :num_routed, :K],
            space.normed[:num_rows] if wants.hidden else None,
            taps[:, :num_rows],
        )

    def _join(self, steps: Sequence[Any], runs: Sequence[Run], wants: _Wants) -> Pass:
        """The results of several steps, in the order of the whole batch's rows."""
        config, device = self.config, self.device
        T, N = runs[-1].rows.stop, sum(len(run.wanted) for run in runs)
        L, K, num_routed = self._num_moe, config.num_experts_per_tok, T if wants.router else 0
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
