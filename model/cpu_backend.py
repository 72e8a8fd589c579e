"""A pass for the engine by the C++ kernels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from model.backend import Slice, count_blocks, describe_cache, find_cache_dtype, read_cache_blocks, write_cache_blocks
from model.kernels.cpu_decoder import CpuDecoder, Pass, Threads
from model.kernels.expert_cache import ExpertCache
from model.modeling import BailingMoeV2ForCausalLM
from model.thread_choice import ThreadChoice
from model.traffic import bytes_a_token


class CpuBackend:
    """The C++ kernels. fewer: threads that steps are computed with instead where those are faster, as beside a busy
    program; thread_choice says which they are. last_pass: what the last pass computed, for drafters: the states after
    the final norm where keeps_hidden is set, and the residual stream before the layers in tap_layers. last_threads:
    those that it was computed with."""

    keeps_hidden = False
    tap_layers: Sequence[int] = ()
    last_pass: Pass
    last_threads: Threads

    def __init__(
        self,
        model: BailingMoeV2ForCausalLM,
        threads: Threads,
        fewer: Threads | None = None,
        experts: ExpertCache | None = None,
        cache: str = "auto",
    ) -> None:
        """experts: where the routed experts of a model that holds none are read from. cache: see
        model.backend_choice.make_backend."""
        self.config = model.config
        self.bytes_a_token = bytes_a_token(model)
        self.cache_dtype = dtype = find_cache_dtype(cache, model.model.norm.weight.dtype)
        self.num_blocks = count_blocks(model.config, dtype)
        self.name = f"C++ {threads.library.variant}, {_name_threads(threads, fewer)}"
        self.thread_choice = ThreadChoice(fewer.num_threads, threads.num_threads) if fewer else None
        self._threads = {pool.num_threads: pool for pool in (threads, fewer) if pool}
        self._model = model
        self.decoder = CpuDecoder(model, threads, self.num_blocks, dtype, experts)
        self._first_moe = self.config.first_k_dense_replace  # every layer from it on is one
        self.cache_layout = f"{threads.library.build} {describe_cache(self.decoder.cache, dtype, self.config)}"
        self.block_bytes = self.decoder.cache[:, :, 0].nbytes
        self._logits = torch.empty(0, self.config.vocab_size)  # kept: fresh memory for 32 answers costs 3 ms of a step

    def forward(self, batch: Sequence[Slice]) -> Tensor:
        ends = 0
        wanted: list[int] = []
        for part in batch:
            ends += len(part.token_ids)
            wanted.extend(range(ends - part.num_logits, ends))
        if len(wanted) > len(self._logits):
            self._logits = torch.empty(len(wanted), self.config.vocab_size)
        observer = self._model.router_observer
        choice = self.thread_choice
        with choice.step(ends) if choice else nullcontext(max(self._threads)) as num_threads:
            self.last_threads = self._threads[num_threads]
            self.last_pass = out = self.decoder.forward(
                [part.token_ids for part in batch],
                [part.first_position for part in batch],
                [part.blocks for part in batch],
                wanted,
                self.keeps_hidden,
                self.tap_layers,
                self.last_threads,
                observer is not None,
                self._logits[: len(wanted)],
            )
        if observer is not None and self._first_moe < self.config.num_hidden_layers:
            observer(out.topk_ids[self._first_moe :], out.router_logits[self._first_moe :], ends)
        return out.logits

    def draft(
        self,
        next_ids: Sequence[Sequence[int]],
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        rows: Sequence[int],
        num_drafts: Sequence[int],
    ) -> list[list[int]]:
        """See model.mtp.MtpBackend."""
        assert self.last_pass.hidden is not None
        hidden, threads = self.last_pass.hidden, self.last_threads
        return self.decoder.draft(next_ids, first_positions, block_tables, hidden, rows, num_drafts, threads)

    def copy_block(self, source: int, target: int) -> None:
        self.decoder.cache[:, :, target] = self.decoder.cache[:, :, source]

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        return read_cache_blocks(self.decoder.cache, blocks)

    def write_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        write_cache_blocks(self.decoder.cache, blocks, data)


def _name_threads(threads: Threads, fewer: Threads | None) -> str:
    if fewer:
        return f"{fewer.num_threads} or {threads.num_threads} threads"
    return f"{threads.num_threads} thread{'s' if threads.num_threads > 1 else ''}"
