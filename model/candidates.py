"""What a card tells of its logits: of each row the few largest, which is all that most sampling needs, and the others
only to whoever asks. The host takes half a millisecond to look through 157,184 logits, a third of a step.

Suffixes: N rows, k candidates, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """One row's candidates, largest first, the lower id first among equals: values f32 [k], ids i64 [k], on the CPU.
    is_finite: whether all V logits are. read: all of them, [V] f32 on the CPU."""

    values_k: Tensor
    ids_k: Tensor
    is_finite: bool
    read: Callable[[], Tensor]


class Candidates:
    """The rows of a pass, as a tensor of logits [N,V] is indexed: an int gives a row, a slice some of them."""

    def __init__(self, values_Nk: Tensor, ids_Nk: Tensor, is_finite_N: Tensor, logits_NV: Tensor) -> None:
        """The first three on the CPU, logits where they were computed."""
        self._parts = values_Nk, ids_Nk, is_finite_N, logits_NV

    def __len__(self) -> int:
        return len(self._parts[0])

    def __iter__(self) -> Iterator[CandidateRow]:
        return (self.row(number) for number in range(len(self)))

    def __getitem__(self, rows: slice) -> Candidates:
        return Candidates(*(part[rows] for part in self._parts))

    def row(self, number: int) -> CandidateRow:
        values_Nk, ids_Nk, is_finite_N, logits_NV = self._parts
        return CandidateRow(values_Nk[number], ids_Nk[number], bool(is_finite_N[number]), logits_NV[number].cpu)

    def read(self) -> Tensor:
        """All logits [N,V] f32 on the CPU."""
        return self._parts[3].cpu()


Logits = Tensor | Candidates
LogitRow = Tensor | CandidateRow
