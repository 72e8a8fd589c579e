"""Drafts by the model's own MTP layer, which is trained to predict the token after next (arXiv 2412.19437, 2.2).

After each pass the layer is given what the model computed for its rows, and rolled on for as many tokens as are wanted,
each time from its own state and the token it drafted. Its keys and values lie in the model's cache, as one layer more.
Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.backend import CpuBackend
from model.drafting import Grown


class MtpDrafter:
    """The Drafter over a backend whose model has such a layer."""

    name = "MTP layer"
    uses_blocks = True

    def __init__(self, backend: CpuBackend) -> None:
        assert backend.config.num_nextn_predict_layers
        self._backend = backend
        backend.keeps_hidden = True

    def draft(self, grown: Sequence[Grown]) -> list[list[int]]:
        parts = [part for part in grown if part.num_kept]
        if not parts:
            return [[] for _ in grown]
        hidden_TD = self._backend.last_pass.hidden
        assert hidden_TD is not None
        drafts = self._backend.decoder.draft(
            [part.next_ids for part in parts],
            [part.first_position for part in parts],
            [part.blocks for part in parts],
            hidden_TD,
            [row for part in parts for row in range(part.first_row, part.first_row + part.num_kept)],
            [part.limit for part in parts],
            self._backend.last_threads,
        )
        by_key = {part.key: draft for part, draft in zip(parts, drafts, strict=True)}
        return [by_key.get(part.key, []) for part in grown]

    def copy_block(self, source: int, target: int) -> None:
        """Nothing to do: the backend copies what the layer keeps."""

    def forget(self, key: int) -> None:
        """Nothing to do: what the layer keeps lies in the sequence's blocks."""
