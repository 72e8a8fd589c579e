"""Which block of the KV cache belongs to whom. Counts only: the keys and values themselves lie in a backend.

A full block is known by the hash of its tokens and of all before it, so that a request whose prompt begins like an
earlier one takes those blocks as they are; blocks that nobody holds stay known until their place is needed. The idea is
vLLM's automatic prefix caching (arXiv 2309.06180). Where a text parts from a known block, or a known text ended in the
midst of one, the request takes a copy of its own: a block that others may read is never written to. Where a block holds
what was computed from the token after it too (an MTP layer's keys and values), that token belongs to its contents.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_START = b""  # the digest of no tokens at all
MAX_KEPT_SHARE = 0.5  # of all blocks: what is kept is given up last, and must leave room for what is asked now


class OutOfBlocksError(RuntimeError):
    """Every block is in use."""


@dataclass(frozen=True, slots=True)
class Fork:
    """`block` is the caller's alone; its first num_tokens tokens are to be copied from `source` before the pool is
    asked again."""

    source: int
    block: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Content:
    """What a known block holds: tokens, fewer than a block's where a text ended, after the text of digest `parent`, and
    the token ahead where it counts."""

    parent: bytes
    token_ids: tuple[int, ...]
    digest: bytes


class BlockPool:
    """Not thread-safe: the engine calls it under its own lock."""

    def __init__(self, num_blocks: int, block_tokens: int, num_ahead: int = 0) -> None:
        """num_ahead: how many tokens after a block its contents depend on, 0 or 1."""
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.num_ahead = num_ahead
        self._reach = block_tokens + num_ahead
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_holders = [0] * num_blocks
        self._content: dict[int, _Content] = {}  # of known blocks
        self._block_of: dict[bytes, int] = {}  # full known blocks by digest
        self._after: dict[bytes, set[int]] = {}  # known blocks by the digest of the text before them
        self._unheld: OrderedDict[int, None] = OrderedDict()  # known, held by nobody and not kept; oldest first
        self._kept: OrderedDict[int, None] = OrderedDict()  # known blocks that are given up last; oldest first
        self._resting: OrderedDict[int, None] = OrderedDict()  # those of them that nobody holds; oldest first

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can still give."""
        return len(self._free) + len(self._unheld) + len(self._resting)

    def allocate(self) -> int:
        """A block for the caller alone. Raises OutOfBlocksError."""
        if not self._free:
            oldest = next(iter(self._unheld or self._resting), None)
            if oldest is None:
                raise OutOfBlocksError
            self._forget(oldest)
        block = self._free.pop()
        self._num_holders[block] = 1
        return block

    def free(self, blocks: Sequence[int]) -> None:
        """Gives back what `allocate`, `take_prefix` or `fork` gave."""
        for block in reversed(blocks):  # the end of a text is needed again less than its beginning
            assert self._num_holders[block] > 0, block
            self._num_holders[block] -= 1
            if not self._num_holders[block]:
                self._put_by(block)

    def hash_blocks(self, token_ids: Sequence[int], hashes: list[bytes]) -> None:
        """Appends the digests of further full blocks of these tokens, each of its tokens and all before it, and of
        the one after it where that counts."""
        for start in range(len(hashes) * self.block_tokens, len(token_ids) - self._reach + 1, self.block_tokens):
            hashes.append(_digest(_before(hashes, len(hashes)), token_ids[start : start + self._reach]))

    def take_prefix(self, hashes: Sequence[bytes], num_tokens: int) -> list[int]:
        """The known blocks that a text of so many tokens begins with, now held by the caller too. At least one token
        is left over: its logits must be computed."""
        blocks = []
        for digest in hashes[: (num_tokens - 1) // self.block_tokens]:
            block = self._block_of.get(digest)
            if block is None:
                break
            self._hold(block)
            blocks.append(block)
        return blocks

    def fork(self, hashes: Sequence[bytes], number: int, token_ids: Sequence[int]) -> Fork | None:
        """A block that begins like the known one which has most in common with the tokens of a text's block `number`;
        None if none has, or no block is left. hashes: the text's; token_ids: with the token ahead, where it counts."""
        source, num_tokens = -1, 0
        for block in self._after.get(_before(hashes, number), ()):
            common = _count_common(self._content[block].token_ids, token_ids) - self.num_ahead
            if common > num_tokens:
                source, num_tokens = block, common
        if not num_tokens:
            return None
        self._hold(source)  # so that it is not given up for its own copy
        try:
            return Fork(source, self.allocate(), num_tokens)
        except OutOfBlocksError:
            return None
        finally:
            self.free([source])

    def remember(self, block: int, hashes: Sequence[bytes], number: int, token_ids: Sequence[int]) -> None:
        """Makes a text's block `number` known to later requests: one whose tokens are all computed, or where a text
        ended the last one, which nobody may write to any more. hashes: the text's; token_ids: the block's, with the
        token ahead, where it counts."""
        if len(token_ids) <= self.num_ahead or block in self._content:
            return
        parent, is_full = _before(hashes, number), len(token_ids) == self._reach
        digest = hashes[number] if is_full else _digest(parent, token_ids)
        if is_full and digest in self._block_of:
            return
        if not is_full and any(
            _count_common(self._content[other].token_ids, token_ids) == len(token_ids)
            for other in self._after.get(parent, ())
        ):
            return
        self._content[block] = _Content(parent, tuple(token_ids), digest)
        self._after.setdefault(parent, set()).add(block)
        if is_full:
            self._block_of[digest] = block

    def keep(self, hashes: Iterable[bytes]) -> None:
        """Gives the known blocks of these digests up last, as far as MAX_KEPT_SHARE of all goes; beyond it the ones
        kept longest ago become like any other."""
        for block in reversed([self._block_of[digest] for digest in hashes if digest in self._block_of]):
            self._kept[block] = None
            self._kept.move_to_end(block)
            self._touch(block)
        while len(self._kept) > MAX_KEPT_SHARE * self.num_blocks:
            block, _ = self._kept.popitem(last=False)
            self._touch(block)

    def is_writable(self, block: int) -> bool:
        """Whether one request alone holds the block, and none that comes can find it."""
        return self._num_holders[block] == 1 and block not in self._content

    def forget_all(self) -> None:
        """No block is known any more: what was erased may not be found again."""
        for block in list(self._content):
            self._forget(block)

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
        holding = (block for block, count in enumerate(held) if count)
        places = sorted([*self._free, *self._unheld, *self._resting, *holding])
        if places != list(range(self.num_blocks)):
            problems.append("a block is lost or in two places")
        return problems + self._check_known()

    def _check_known(self) -> list[str]:
        problems = [
            f"block {block} is known by a digest that is not its tokens'"
            for block, content in self._content.items()
            if content.digest != _digest(content.parent, content.token_ids)
        ]
        full = {c.digest: block for block, c in self._content.items() if len(c.token_ids) == self._reach}
        if full != self._block_of:
            problems.append("digests and blocks disagree")
        if {(c.parent, block) for block, c in self._content.items()} != {
            (parent, block) for parent, blocks in self._after.items() for block in blocks
        }:
            problems.append("blocks and the texts before them disagree")
        if not (self._content.keys() >= {*self._unheld, *self._kept} and self._kept.keys() >= self._resting.keys()):
            problems.append("a block that is not known is kept for later")
        problems += [
            f"block {block} ends a text and is shared"
            for block, content in self._content.items()
            if len(content.token_ids) < self._reach and self._num_holders[block]
        ]
        return problems

    def _hold(self, block: int) -> None:
        self._num_holders[block] += 1
        self._unheld.pop(block, None)
        self._resting.pop(block, None)

    def _put_by(self, block: int) -> None:
        """Where a block waits that nobody holds."""
        if block in self._kept:
            self._resting[block] = None
        elif block in self._content:
            self._unheld[block] = None
        else:
            self._free.append(block)

    def _touch(self, block: int) -> None:
        """Moves a known block, if nobody holds it, to where it belongs now, as the youngest there."""
        if not self._num_holders[block]:
            self._unheld.pop(block, None)
            self._resting.pop(block, None)
            self._put_by(block)

    def _forget(self, block: int) -> None:
        """Makes a known block unknown, and free if nobody holds it."""
        content = self._content.pop(block)
        self._block_of.pop(content.digest, None)
        siblings = self._after[content.parent]
        siblings.remove(block)
        if not siblings:
            del self._after[content.parent]
        for known in (self._unheld, self._resting, self._kept):
            known.pop(block, None)
        if not self._num_holders[block]:
            self._free.append(block)


def _before(hashes: Sequence[bytes], number: int) -> bytes:
    """The digest of a text's tokens before its block `number`."""
    return hashes[number - 1] if number else _START


def _digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(parent + array("I", token_ids).tobytes(), digest_size=16).digest()


def _count_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return number
    return min(len(one), len(other))
