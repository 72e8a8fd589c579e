"""Drafts by the MTP layer on a card: model.kernels.cpu's mtp.cpp, with a step of answers for each drafted token.

Rows that only leave keys and values go through its first half, any number at once. The last row of each sequence goes
through all of it, and on from its own state and the token that it found, without the host: one graph a token. Suffixes
as in model.kernels.gpu.step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from model.kernels.gpu.buffers import STEP_ROWS
from model.kernels.gpu.inputs import ChunkInputs, DecodeInputs, Run, fill_chunks
from model.kernels.gpu.step import BUCKETS, Call, Step, Steps, prepare
from model.kernels.gpu.weights import MtpWeights


class MtpSteps:
    """The layer over its own pages of the cache. number: its place among the MoE layers of `steps`; chunk: the most
    rows that are computed at once; inputs: of its own graphs."""

    def __init__(
        self,
        weights: MtpWeights,
        steps: Steps,
        pages: Tensor,
        number: int,
        inputs: DecodeInputs,
        chunk: int,
        has_graphs: bool,
    ) -> None:
        self._weights, self._steps, self._pages, self._number = weights, steps, pages, number
        self._inputs, self._chunk, self._has_graphs = inputs, chunk, has_graphs
        self._graphs: dict[int, list[Callable[[], object]]] = {}
        D = steps.config.hidden_size
        with steps.device:
            self._joined = torch.zeros(chunk, 2 * D, dtype=torch.bfloat16)
            self._states = torch.zeros(STEP_ROWS, D, dtype=torch.bfloat16)  # to go on from
            self._ids = torch.zeros(STEP_ROWS, dtype=torch.int64)  # the token after each

    def draft(self, runs: Sequence[Run], hidden_TD: Tensor, num_drafts: Sequence[int]) -> list[list[int]]:
        """See GpuDecoder.draft. runs: of the tokens after each row, whose states are hidden's rows in their order."""
        ends = [len(run.token_ids) - bool(number) for run, number in zip(runs, num_drafts, strict=True)]
        for chunk in fill_chunks([run.cut(0, end) for run, end in zip(runs, ends, strict=True)], self._chunk):
            self._store(chunk, hidden_TD)
        drafts: list[list[int]] = [[] for _ in runs]
        longest_first = sorted((s for s in range(len(runs)) if num_drafts[s]), key=lambda s: -num_drafts[s])
        for first in range(0, len(longest_first), STEP_ROWS):
            chosen = longest_first[first : first + STEP_ROWS]
            lasts = [runs[s].cut(ends[s], ends[s] + 1) for s in chosen]
            found = self._roll_on(lasts, hidden_TD, [num_drafts[s] for s in chosen])
            for s, ids in zip(chosen, zip(*found, strict=True), strict=True):
                drafts[s] = list(ids[: num_drafts[s]])
        return drafts

    def _store(self, runs: Sequence[Run], hidden_TD: Tensor) -> None:
        """Keys and values of rows that nothing is drafted from."""
        steps, given = self._steps, ChunkInputs.of(runs, self._steps.device)
        rows = torch.tensor([row for run in runs for row in run.rows], device=steps.device)
        self._join(given.ids.long(), hidden_TD, rows)
        step = Step(len(rows), given.positions, given.slots, lambda pages: None)
        steps.store(step, self._weights.layer, self._pages)

    def _roll_on(self, lasts: Sequence[Run], hidden_TD: Tensor, numbers: Sequence[int]) -> list[list[int]]:
        """Step by step a token for each that wants one still, the longest drafts first; what stands behind those that
        want no more means nothing."""
        sizes = [sum(number > step for number in numbers) for step in range(numbers[0])]
        graphs = [self._find_graph(size) for size in sizes]  # before the states are there that a capture writes over
        S, device = len(lasts), self._steps.device
        rows, ids = ([run.first_row for run in lasts], [run.token_ids[0] for run in lasts])
        self._ids[:S] = torch.tensor(ids, device=device)
        torch.index_select(hidden_TD, 0, torch.tensor(rows, device=device), out=self._states[:S])
        found = torch.zeros(len(sizes), S, dtype=torch.int64, device=device)
        for step, (size, graph) in enumerate(zip(sizes, graphs, strict=True)):
            self._inputs.fill([Run([0], run.first_position + step, run.blocks, 0, ()) for run in lasts[:size]])
            for part in graph:
                part()
            found[step, :size] = self._ids[:size]
        return found.tolist()

    def _find_graph(self, num_rows: int) -> list[Callable[[], object]]:
        bucket = next(size for size in BUCKETS if size >= num_rows)
        if bucket not in self._graphs:
            self._inputs.fill([])  # see GpuDecoder
            self._graphs[bucket] = prepare(self._list_calls(bucket), self._steps.device, self._has_graphs)
        return self._graphs[bucket]

    def _list_calls(self, num_rows: int) -> Iterator[Call]:
        """From states and tokens to the states and tokens after them."""
        steps, weights = self._steps, self._weights
        step = steps.of_rows(num_rows, *self._inputs.rows(num_rows)[1:])
        yield Call(partial(self._join, self._ids[:num_rows], self._states[:num_rows], None))
        yield from steps.layer(step, weights.layer, self._pages, self._number, weights.final_norm)
        yield Call(partial(self._guess, num_rows))

    def _join(self, next_ids: Tensor, hidden: Tensor, rows: Tensor | None) -> None:
        """MTPLayer.join into the residual stream, of these rows of hidden or of all."""
        steps, weights, T, eps = self._steps, self._weights, len(next_ids), self._steps.config.rms_norm_eps
        space, (embedded, state) = steps.space, self._joined[:T].chunk(2, 1)
        steps.ops.rms_norm(steps.weights.embedding, weights.embedding_norm, eps, embedded, next_ids)
        steps.ops.rms_norm(hidden, weights.hidden_norm, eps, state, rows)
        steps.ops.linear(self._joined[:T], weights.join, space.residual[:T])
        steps.ops.rms_norm(space.residual[:T], weights.layer.input_norm, eps, space.normed[:T])

    def _guess(self, num_rows: int) -> None:
        space = self._steps.space
        self._states[:num_rows].copy_(space.normed[:num_rows])
        logits = space.logits[:num_rows]
        self._steps.head(space.normed[:num_rows], logits)
        torch.argmax(logits, -1, out=self._ids[:num_rows])
