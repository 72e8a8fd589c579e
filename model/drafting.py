"""The seam between the engine and what guesses an answer's next tokens: the prompt, an MTP layer, an EAGLE-3 head.

The engine computes a draft in the same pass as the token before it, and keeps of it what it would have sampled anyway;
see Engine. So a drafter may be wrong at any time, and costs nothing but speed. Token ids only; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# bench_speculation, embedded model: with 4 the demo questions' answers come 1.4 times as fast, and 79 % of what is
# drafted stays; 2 is as fast, 8 a little slower.
MAX_DRAFT = 4
FIRST_DRAFT = 2
MAX_PAUSE = 32  # tokens without a draft after several wrong ones: then one step in 33 is dearer for nothing


@dataclass(frozen=True, slots=True)
class Grown:
    """A sequence after a pass. key: names it until `forget`. token_ids: its prompt and answer, which only ever grow.

    Of the rows of the pass, num_kept from first_row on were computed for its tokens from first_position on, and stay;
    the token after each is in token_ids. blocks: its blocks of the cache. limit: of how many tokens a draft is wanted,
    which the blocks have room for.
    """

    key: int
    token_ids: Sequence[int]
    first_position: int
    first_row: int
    num_kept: int
    blocks: Sequence[int]
    limit: int

    @property
    def next_ids(self) -> Sequence[int]:
        """The token after each kept row."""
        return self.token_ids[self.first_position + 1 : self.first_position + self.num_kept + 1]


class Drafter(Protocol):
    """A source of drafts for all sequences of an engine. `name` is shown to users.

    uses_blocks: it keeps something of its own for each token in the sequence's blocks, computed from that token and the
    next; the engine then lets a sequence reuse a block only where the token after it is the same too.
    """

    @property
    def name(self) -> str: ...

    @property
    def uses_blocks(self) -> bool: ...

    def draft(self, grown: Sequence[Grown]) -> list[list[int]]:
        """For each sequence of the last pass at most `limit` tokens that may follow; called once after every pass."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Whatever is kept for the tokens of one block holds for the other's now."""
        ...

    def forget(self, key: int) -> None:
        """The sequence has ended."""
        ...


class Pace:
    """How many tokens to draft for one request from one source. Each drafted token makes a step dearer (a mixture of
    experts reads more of them), so drafts grow while they are right, and pause, each time for twice as long, while they
    are wrong."""

    def __init__(self, max_draft: int) -> None:
        self._max_draft = max_draft
        self._length = min(FIRST_DRAFT, max_draft)
        self._pause = self._num_to_skip = 0

    def allow(self, limit: int) -> int:
        """How many of `limit` tokens to draft in this step. A step that could take some shortens a pause."""
        limit = min(limit, self._length)
        if limit < 1:
            return 0
        if self._num_to_skip:
            self._num_to_skip -= 1
            return 0
        return limit

    def learn(self, num_accepted: int) -> None:
        """Takes note of how many tokens of the last draft were right."""
        if num_accepted:
            self._length = min(2 * num_accepted, self._max_draft)
            self._pause = 0
        else:
            self._length = min(FIRST_DRAFT, self._max_draft)
            self._pause = min(max(2 * self._pause, 1), MAX_PAUSE)
            self._num_to_skip = self._pause
