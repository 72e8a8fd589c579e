"""The largest logits of each row, found on the card and fetched in one copy, which is what ends a step.

Suffixes: N rows, k candidates, V vocab.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.candidates import Candidates
from model.kernels.gpu.buffers import make_keys

NUM_CANDIDATES = 64  # more than any top-k in use, and the most that the kernel finds


class TopLogits:
    """For passes of any number of rows, max_rows at a time."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device, ops: Any) -> None:
        self._ops, self._max_rows = ops, max_rows
        k = self._k = min(NUM_CANDIDATES, 1 << (vocab_size.bit_length() - 1))
        size = max_rows * k
        self._held = torch.zeros(2 * size + max_rows, dtype=torch.int32, device=device)  # read by one copy
        self._staged = torch.zeros_like(self._held, device="cpu", pin_memory=device.type == "cuda")
        self._keys = make_keys(max_rows, vocab_size, k, str(device))

    def find(self, logits_NV: Tensor) -> Candidates:
        """Waits for the card. The candidates are copies; the logits stay where they are, good until the next pass."""
        parts = [self._find(part) for part in logits_NV.split(self._max_rows)] if len(logits_NV) else []
        if not parts:
            parts = [tuple(part[:0] for part in self._cut(self._staged))]
        values, ids, is_finite = (torch.cat(part) for part in zip(*parts, strict=True))
        return Candidates(values, ids.long(), is_finite, logits_NV)

    def _find(self, logits_NV: Tensor) -> tuple[Tensor, ...]:
        number = len(logits_NV)
        values, ids, is_finite = (part[:number] for part in self._cut(self._held))
        self._ops.top_logits(logits_NV, values, ids, is_finite, self._keys)
        self._staged.copy_(self._held)
        return tuple(part[:number].clone() for part in self._cut(self._staged))

    def _cut(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """values f32 [N,k], ids i32 [N,k] and is_finite bool [N] in a buffer."""
        size = self._max_rows * self._k
        values, ids, flags = flat.split([size, size, self._max_rows])
        shape = (self._max_rows, self._k)
        return values.view(torch.float32).view(shape), ids.view(shape), flags.view(torch.bool)[: self._max_rows]
