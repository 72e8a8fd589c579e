"""What a pass is given, as the card's kernels read it: which token stands in which row, where its keys go.

Suffixes: T rows, B sequences, M blocks of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.kernels.cpu_decoder import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive new tokens of one sequence. first_row: of the whole batch; wanted: which of these tokens logits are
    asked for, and at which places of the result."""

    token_ids: Sequence[int]
    first_position: int
    blocks: Sequence[int]
    first_row: int
    wanted: tuple[tuple[int, int], ...]

    def cut(self, first: int, end: int) -> Run:
        """The tokens from the first on up to the end."""
        wanted = tuple((token - first, place) for token, place in self.wanted if first <= token < end)
        return Run(self.token_ids[first:end], self.first_position + first, self.blocks, self.first_row + first, wanted)

    def split(self) -> list[Run]:
        """A run of each token: its row sees the ones before it through the cache."""
        return [self.cut(token, token + 1) for token in range(len(self.token_ids))]

    @property
    def rows(self) -> range:
        return range(self.first_row, self.first_row + len(self.token_ids))


def list_runs(
    input_ids: Sequence[Sequence[int]],
    first_positions: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    logit_rows: Sequence[int] | None,
) -> list[Run]:
    """A run of each sequence. logit_rows: by default each one's last."""
    ends = np.cumsum([len(ids) for ids in input_ids])
    rows = [int(end) - 1 for end in ends] if logit_rows is None else logit_rows
    runs = []
    for ids, position, blocks, end in zip(input_ids, first_positions, block_tables, ends, strict=True):
        first = int(end) - len(ids)
        wanted = tuple((row - first, place) for place, row in enumerate(rows) if first <= row < end)
        runs.append(Run(ids, position, blocks, first, wanted))
    return runs


def fill_chunks(runs: Sequence[Run], size: int) -> list[list[Run]]:
    """The runs in order, in lists of at most `size` tokens together; a long one is cut."""
    chunks: list[list[Run]] = []
    room = 0
    for run in runs:
        first = 0
        while first < len(run.token_ids):
            if not room:
                chunks.append([])
                room = size
            end = min(first + room, len(run.token_ids))
            chunks[-1].append(run.cut(first, end))
            room -= end - first
            first = end
    return chunks


@dataclass(frozen=True, slots=True)
class ChunkInputs:
    """ids, positions and slots i32 [T]; tables i32 [B,M], starts i32 [B+1], lengths i32 [B]: as ops.attend_prefill
    takes them. longest: tokens of the longest run."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    tables: Tensor
    starts: Tensor
    lengths: Tensor
    longest: int

    @classmethod
    def of(cls, runs: Sequence[Run], device: torch.device) -> ChunkInputs:
        sizes = [len(run.token_ids) for run in runs]
        positions = [np.arange(run.first_position, run.first_position + n) for run, n in zip(runs, sizes, strict=True)]
        width = max(len(run.blocks) for run in runs)
        tables = np.zeros((len(runs), width), np.int32)
        for table, run in zip(tables, runs, strict=True):
            table[: len(run.blocks)] = run.blocks
        slots = [_find_slots(at, table) for at, table in zip(positions, tables, strict=True)]
        ids = np.concatenate([np.asarray(run.token_ids) for run in runs])
        starts = np.cumsum([0, *sizes])
        lengths = [int(at[-1]) + 1 for at in positions]
        parts = [ids, np.concatenate(positions), np.concatenate(slots), tables.ravel(), starts, np.asarray(lengths)]
        flat = torch.from_numpy(np.concatenate(parts).astype(np.int32)).to(device)  # one transfer
        ids_T, positions_T, slots_T, tables_, starts_B1, lengths_B = flat.split([len(part) for part in parts])
        tables_BM = tables_.view(len(runs), width)
        return cls(ids_T, positions_T, slots_T, tables_BM, starts_B1, lengths_B, max(sizes))


class DecodeInputs:
    """Up to max_rows new tokens, also several of a sequence, in places that stay: what a captured step reads. All i32:
    ids, positions, slots, lengths [rows], tables [rows, M]; a row that only fills up has slot -1 and length 0."""

    def __init__(self, max_rows: int, width: int, device: torch.device) -> None:
        is_pinned = device.type == "cuda"
        self._staged_rows = torch.zeros(4, max_rows, dtype=torch.int32, pin_memory=is_pinned)
        self._staged_tables = torch.zeros(max_rows, width, dtype=torch.int32, pin_memory=is_pinned)
        self._rows = torch.zeros_like(self._staged_rows, device=device)
        self._tables = torch.zeros_like(self._staged_tables, device=device)
        self._known: list[Sequence[int]] = [[]] * max_rows  # what each row of the tables holds
        self._copied = torch.cuda.Event() if is_pinned else None

    def rows(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """ids, positions, slots, lengths and tables of a step of so many rows: views of what `fill` writes."""
        ids, positions, slots, lengths = self._rows[:, :number]
        return ids, positions, slots, lengths, self._tables[:number]

    def fill(self, runs: Sequence[Run]) -> None:
        """Puts these in the first rows; all others only fill up. Tables are sent where they have changed."""
        if self._copied is not None:
            self._copied.synchronize()  # the last step's copy may still read what is overwritten here
        ids, positions, slots, lengths = self._staged_rows.numpy()
        ids[:], positions[:], slots[:], lengths[:] = 0, 0, -1, 0
        is_changed = False
        for row, run in enumerate(runs):
            position = run.first_position
            ids[row], positions[row], lengths[row] = run.token_ids[0], position, position + 1
            slots[row] = run.blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
            blocks = list(run.blocks[: position // BLOCK_TOKENS + 1])
            if blocks != self._known[row]:
                self._staged_tables[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
                self._known[row] = blocks
                is_changed = True
        self._rows.copy_(self._staged_rows, non_blocking=True)
        if is_changed:
            self._tables[: len(runs)].copy_(self._staged_tables[: len(runs)], non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def _find_slots(positions: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table[positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
