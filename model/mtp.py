"""Drafts by the model's own MTP layer, which is trained to predict the token after next (arXiv 2412.19437, 2.2).

After each pass the layer is given what the model computed for its rows, and rolled on for as many tokens as are wanted,
each time from its own state and the token it drafted. Its keys and values lie in the model's cache, as one layer more.
Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from model.config import ModelConfig
from model.drafting import Grown


class MtpBackend(Protocol):
    """A Backend whose model has such a layer. keeps_hidden: whether its passes keep what the layer is given."""

    config: ModelConfig
    keeps_hidden: bool

    def draft(
        self,
        next_ids: Sequence[Sequence[int]],
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        rows: Sequence[int],
        num_drafts: Sequence[int],
    ) -> list[list[int]]:
        """num_drafts tokens of each sequence, from its last row on. rows: of the last pass, those of all sequences that
        the layer has not yet seen, from first_positions on; next_ids: the token after each."""
        ...


class MtpDrafter:
    """The Drafter over such a backend."""

    name = "MTP layer"
    uses_blocks = True

    def __init__(self, backend: MtpBackend) -> None:
        assert backend.config.num_nextn_predict_layers
        self._backend = backend
        backend.keeps_hidden = True

    def draft(self, grown: Sequence[Grown]) -> list[list[int]]:
        parts = [part for part in grown if part.num_kept]
        if not parts:
            return [[] for _ in grown]
        drafts = self._backend.draft(
            [part.next_ids for part in parts],
            [part.first_position for part in parts],
            [part.blocks for part in parts],
            [row for part in parts for row in range(part.first_row, part.first_row + part.num_kept)],
            [part.limit for part in parts],
        )
        by_key = {part.key: draft for part, draft in zip(parts, drafts, strict=True)}
        return [by_key.get(part.key, []) for part in grown]

    def copy_block(self, source: int, target: int) -> None:
        """Nothing to do: the backend copies what the layer keeps."""

    def forget(self, key: int) -> None:
        """Nothing to do: what the layer keeps lies in the sequence's blocks."""
