"""Prepared prompts: the keys and values of a prompt's beginning as bytes, to be put back instead of computed again.

They are worth nothing to another model, precision, kernel or text, so a header names all of these, and what does not
match exactly is refused. Whole blocks only: the rest of the last one may hold what another text left there. Knows
nothing of patients, files and keys; the bytes are as private as the text they were computed from.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from contracts import SamplingParams
from model.block_pool import OutOfBlocksError
from model.engine import Engine
from model.kernels.cpu_decoder import BLOCK_TOKENS
from model.request import TokenEvent

PIECE_BYTES = 8 * 2**20  # a long record has gigabytes, which are never in memory twice
_VERSION = 1


class PreparedError(ValueError):
    """A prepared prompt is not for this model and text, or is damaged; the message says which. Compute it again."""


class PromptKeeper:
    """Computes, exports and restores the beginnings of prompts for one engine. All methods are thread-safe."""

    def __init__(self, engine: Engine, model: str) -> None:
        """model: what tells these weights from all others, in the precision that they are computed in."""
        self._engine = engine
        self._model = model

    def trim(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens of whole blocks, of which the keys and values can be kept, and the one ahead where it counts."""
        num_ahead = self._engine.num_ahead
        num_blocks = max(len(token_ids) - num_ahead, 0) // BLOCK_TOKENS
        return list(token_ids[: num_blocks * BLOCK_TOKENS + num_ahead]) if num_blocks else []

    def count_bytes(self, token_ids: Sequence[int]) -> int:
        """How much their keys and values take."""
        return len(token_ids) // BLOCK_TOKENS * self._engine.block_bytes

    def count_known(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens, in whole blocks, are in the engine's cache."""
        with self._engine.hold_prefix(token_ids) as blocks:
            return len(blocks) * BLOCK_TOKENS

    def is_known(self, token_ids: Sequence[int]) -> bool:
        """Whether all of these tokens, as `trim` gives them, are in the engine's cache."""
        return self.count_known(token_ids) == len(token_ids) - self._engine.num_ahead

    def compute(self, token_ids: Sequence[int], cancel: threading.Event) -> bool:
        """Reads the tokens into the engine's cache; False if `cancel` was set before the end. What was computed until
        then stays known. The model's next token is sampled and dropped: where numbers are broken, SamplerError says so.
        """
        with closing(self._engine.stream(token_ids, SamplingParams(max_tokens=1), cancel)) as events:
            return all(event.finish_reason != "cancelled" for event in events if isinstance(event, TokenEvent))

    def keep(self, token_ids: Sequence[int]) -> None:
        """Lets the tokens stay in the cache longer than other traffic."""
        self._engine.keep_prefix(token_ids)

    def forget(self) -> None:
        """No later request finds anything that was computed until now."""
        self._engine.forget_prefixes()

    def make_header(self, token_ids: Sequence[int]) -> bytes:
        """What tells the keys and values of these whole blocks from all others. Equal headers, equal contents."""
        fields = {
            "version": _VERSION,
            "model": self._model,
            "layout": self._engine.cache_layout,
            "digests": [digest.hex() for digest in self._engine.hash_blocks(token_ids)],
        }
        return json.dumps(fields, separators=(",", ":")).encode("ascii")

    def export(self, token_ids: Sequence[int]) -> Generator[bytes, None, None]:
        """The header, then the keys and values in pieces of whole blocks, which stay in the cache until it is closed.

        Raises PreparedError if not all of the tokens are in the cache, or they are not those of whole blocks."""
        header = self.make_header(token_ids)
        with self._engine.hold_prefix(token_ids) as blocks:
            if not blocks or len(blocks) * BLOCK_TOKENS + self._engine.num_ahead != len(token_ids):
                raise PreparedError("Not all of the prompt is in the cache.")
            yield header
            step = max(1, PIECE_BYTES // self._engine.block_bytes)
            for first in range(0, len(blocks), step):
                yield self._engine.read_blocks(blocks[first : first + step])

    def restore(self, prompt_ids: Sequence[int], pieces: Iterator[bytes]) -> int:
        """Puts what `export` gave into the cache, for this prompt, which begins with the exported tokens; how many
        tokens that are. 0 if there is no room for them beside the answers that run.

        Raises PreparedError, and nothing is known of it, unless model, kernels, layout and tokens are the same."""
        token_ids = self._check_header(prompt_ids, next(pieces, b""))
        num_tokens = len(token_ids) - self._engine.num_ahead
        if self.is_known(token_ids):
            return num_tokens
        try:
            with self._engine.fill_prefix(token_ids) as blocks:
                self._write(blocks, pieces)
        except OutOfBlocksError:
            return 0
        return num_tokens

    def _check_header(self, prompt_ids: Sequence[int], header: bytes) -> Sequence[int]:
        """The exported tokens."""
        num_blocks = _count_digests(header)
        token_ids = prompt_ids[: num_blocks * BLOCK_TOKENS + self._engine.num_ahead]
        if not num_blocks or self.make_header(token_ids) != header:
            raise PreparedError("The prepared prompt is of another text, model or kernel.")
        return token_ids

    def _write(self, blocks: Sequence[int], pieces: Iterator[bytes]) -> None:
        done = 0
        for piece in pieces:
            count, rest = divmod(len(piece), self._engine.block_bytes)
            if rest or not 0 < count <= len(blocks) - done:
                raise PreparedError("The prepared prompt is damaged: its pieces are not whole blocks.")
            self._engine.write_blocks(blocks[done : done + count], piece)
            done += count
        if done != len(blocks):
            raise PreparedError("The prepared prompt is damaged: its end is missing.")


def _count_digests(header: bytes) -> int:
    try:
        fields: Any = json.loads(header)
        return len(fields["digests"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PreparedError("The prepared prompt is damaged: it has no header.") from error
