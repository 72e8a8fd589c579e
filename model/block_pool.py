"""Which block of the KV cache belongs to whom. Counts only: the keys and values themselves lie in a backend.

A full block is known by the hash of its tokens and of all before it, so that a request whose prompt begins like an
earlier one takes those blocks as they are; blocks that nobody holds stay known until their place is needed. The idea is
vLLM's automatic prefix caching (arXiv 2309.06180). Where a block holds what was computed from the token after it too
(an MTP layer's keys and values), that token belongs to its hash.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


class OutOfBlocksError(RuntimeError):
    """Every block is in use."""


class BlockPool:
    """Not thread-safe: the engine calls it under its own lock."""

    def __init__(self, num_blocks: int, block_tokens: int, num_ahead: int = 0) -> None:
        """num_ahead: how many tokens after a block its contents depend on, 0 or 1."""
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._num_ahead = num_ahead
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_holders = [0] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()  # known by their hash, held by nobody; oldest first

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can still give."""
        return len(self._free) + len(self._unheld)

    def allocate(self) -> int:
        """A block for the caller alone. Raises OutOfBlocksError."""
        if self._free:
            block = self._free.pop()
        elif self._unheld:
            block, _ = self._unheld.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        else:
            raise OutOfBlocksError
        self._num_holders[block] = 1
        return block

    def free(self, blocks: Sequence[int]) -> None:
        """Gives back what `allocate` or `take_prefix` gave."""
        for block in reversed(blocks):  # the end of a text is needed again less than its beginning
            assert self._num_holders[block] > 0, block
            self._num_holders[block] -= 1
            if self._num_holders[block]:
                continue
            if block in self._hash_of:
                self._unheld[block] = None
            else:
                self._free.append(block)

    def hash_blocks(self, token_ids: Sequence[int], hashes: list[bytes]) -> None:
        """Appends the digests of further full blocks of these tokens, each of its tokens and all before it, and of
        the one after it where that counts."""
        size, reach = self.block_tokens, self.block_tokens + self._num_ahead
        for start in range(len(hashes) * size, len(token_ids) - reach + 1, size):
            last = hashes[-1] if hashes else b""
            words = array("I", token_ids[start : start + reach]).tobytes()
            hashes.append(hashlib.blake2b(last + words, digest_size=16).digest())

    def take_prefix(self, hashes: Sequence[bytes], num_tokens: int) -> list[int]:
        """The known blocks that a text of so many tokens begins with, now held by the caller too. At least one token
        is left over: its logits must be computed."""
        blocks = []
        for digest in hashes[: (num_tokens - 1) // self.block_tokens]:
            block = self._block_of.get(digest)
            if block is None:
                break
            self._num_holders[block] += 1
            self._unheld.pop(block, None)
            blocks.append(block)
        return blocks

    def remember(self, digest: bytes, block: int) -> None:
        """Makes a full and computed block known to later requests."""
        if digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def forget_all(self) -> None:
        """No block is known any more: what was erased may not be found again."""
        self._free.extend(self._unheld)
        self._unheld.clear()
        self._block_of.clear()
        self._hash_of.clear()

    def check_integrity(self, tables: Sequence[Sequence[int]]) -> list[str]:
        """What is wrong, given the blocks each living request holds; empty if all is in order."""
        held = [0] * self.num_blocks
        for table in tables:
            for block in table:
                held[block] += 1
        problems = [
            f"block {block} has {counted} holders, {real} requests hold it"
            for block, (counted, real) in enumerate(zip(self._num_holders, held, strict=True))
            if counted != real
        ]
        places = sorted([*self._free, *self._unheld, *(block for block, count in enumerate(held) if count)])
        if places != list(range(self.num_blocks)):
            problems.append("a block is lost or in two places")
        if {block: digest for digest, block in self._block_of.items()} != self._hash_of:
            problems.append("hashes and blocks disagree")
        return problems
