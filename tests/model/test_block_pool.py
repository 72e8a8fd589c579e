"""The books of the cache against a cache that is played: whoever is given a block finds its own text in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from model.block_pool import MAX_KEPT_SHARE, BlockPool, OutOfBlocksError

SIZE, NUM_BLOCKS = 3, 9


@dataclass
class Text:
    """A request as the engine keeps it."""

    token_ids: list[int]
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    num_cached: int = 0


class PlayedCache(RuleBasedStateMachine):
    """Each place of a block holds what a key depends on: its token and all before it. Two tokens only, so that texts
    begin alike and part everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, SIZE)
        self.memory: list[list[object]] = [[None] * SIZE for _ in range(NUM_BLOCKS)]
        self.texts: list[Text] = []

    @rule(token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def begin(self, token_ids: list[int]) -> None:
        text = Text(token_ids)
        self.pool.hash_blocks(token_ids, text.hashes)
        text.blocks = self.pool.take_prefix(text.hashes, len(token_ids))
        text.num_cached = start = len(text.blocks) * SIZE
        fork = self.pool.fork(text.hashes, len(text.blocks), token_ids[start : len(token_ids) - 1][:SIZE])
        if fork:
            self.memory[fork.block] = list(self.memory[fork.source])
            text.blocks.append(fork.block)
            text.num_cached += fork.num_tokens
        self.texts.append(text)
        assert text.num_cached < len(token_ids)

    @rule(data=st.data(), num_tokens=st.integers(1, 5))
    def compute(self, data: st.DataObject, num_tokens: int) -> None:
        if not self.texts:
            return
        text = data.draw(st.sampled_from(self.texts))
        end = min(text.num_cached + num_tokens, len(text.token_ids))
        first_full = text.num_cached // SIZE
        while len(text.blocks) * SIZE < end:
            try:
                text.blocks.append(self.pool.allocate())
            except OutOfBlocksError:
                end = len(text.blocks) * SIZE
        for place in range(text.num_cached, end):
            assert self.pool.is_writable(text.blocks[place // SIZE])
            self.memory[text.blocks[place // SIZE]][place % SIZE] = tuple(text.token_ids[: place + 1])
        text.num_cached = max(end, text.num_cached)
        for number in range(first_full, text.num_cached // SIZE):
            self.remember(text, number)

    @rule(data=st.data(), token_ids=st.lists(st.integers(0, 1), max_size=4))
    def say(self, data: st.DataObject, token_ids: list[int]) -> None:
        if self.texts:
            text = data.draw(st.sampled_from(self.texts))
            text.token_ids += token_ids
            self.pool.hash_blocks(text.token_ids, text.hashes)

    @rule(data=st.data(), is_kept=st.booleans())
    def end(self, data: st.DataObject, is_kept: bool) -> None:
        if not self.texts:
            return
        text = data.draw(st.sampled_from(self.texts))
        self.texts.remove(text)
        if text.num_cached % SIZE:
            self.remember(text, text.num_cached // SIZE)
        if is_kept:
            self.pool.keep(text.hashes)
        self.pool.free(text.blocks)

    @rule()
    def forget(self) -> None:
        self.pool.forget_all()

    @invariant()
    def the_books_are_in_order(self) -> None:
        assert self.pool.check_integrity([text.blocks for text in self.texts]) == []
        held = {block for text in self.texts for block in text.blocks}
        assert self.pool.num_available == NUM_BLOCKS - len(held)

    @invariant()
    def everyone_finds_its_own_text(self) -> None:
        for text in self.texts:
            for place in range(text.num_cached):
                expected = tuple(text.token_ids[: place + 1])
                assert self.memory[text.blocks[place // SIZE]][place % SIZE] == expected

    def remember(self, text: Text, number: int) -> None:
        end = min((number + 1) * SIZE, text.num_cached)
        self.pool.remember(text.blocks[number], text.hashes, number, text.token_ids[number * SIZE : end])


TestPlayedCache = PlayedCache.TestCase
TestPlayedCache.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def remember_text(pool: BlockPool, token_ids: list[int]) -> list[bytes]:
    """A text that was computed and let go."""
    hashes: list[bytes] = []
    pool.hash_blocks(token_ids, hashes)
    blocks = [pool.allocate() for _ in hashes]
    for number, block in enumerate(blocks):
        start = number * pool.block_tokens
        pool.remember(block, hashes, number, token_ids[start : start + pool.block_tokens])
    pool.free(blocks)
    return hashes


def num_known(pool: BlockPool, hashes: list[bytes]) -> int:
    blocks = pool.take_prefix(hashes, len(hashes) * pool.block_tokens + 1)
    pool.free(blocks)
    return len(blocks)


def test_what_is_kept_outlives_other_traffic() -> None:
    pool = BlockPool(20, 4)
    record = remember_text(pool, [1] * 20)
    passing = remember_text(pool, [2] * 20)
    pool.keep(record)
    for number in range(10):
        remember_text(pool, [3, number] * 10)
    assert (num_known(pool, record), num_known(pool, passing)) == (5, 0)
    assert pool.check_integrity([]) == []


def test_what_was_kept_longest_ago_makes_way_and_never_hinders_a_request() -> None:
    pool = BlockPool(20, 4)
    records = [remember_text(pool, [number] * 16) for number in range(4)]
    for record in records:
        pool.keep(record)
    assert MAX_KEPT_SHARE == 0.5
    everything = [pool.allocate() for _ in range(10)]
    assert [num_known(pool, record) for record in records] == [0, 2, 4, 4]
    everything += [pool.allocate() for _ in range(10)]
    assert len(set(everything)) == 20
    assert pool.check_integrity([everything]) == []


def test_of_several_continuations_the_one_with_most_in_common_is_copied() -> None:
    pool = BlockPool(10, 4)
    for end in ([5, 6, 7, 8], [5, 6, 9, 9], [4, 4, 4, 4]):
        hashes = remember_text(pool, [1, 2, 3, 4, *end])
    fork = pool.fork(hashes, 1, [5, 6, 9, 1])
    assert fork is not None
    assert fork.num_tokens == 3
    assert pool.is_writable(fork.block)
    assert not pool.is_writable(fork.source)
    assert pool.fork(hashes, 1, [3]) is None
    assert pool.fork([], 0, [5, 6]) is None


def test_no_copy_is_made_where_its_source_would_have_to_go() -> None:
    pool = BlockPool(2, 4)
    remember_text(pool, [1, 2, 3, 4])
    other = pool.allocate()
    assert pool.fork([], 0, [1, 2]) is None
    assert pool.check_integrity([[other]]) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pool: pool._after[b""].clear(),
        lambda pool: pool._block_of.clear(),
        lambda pool: pool._unheld.clear(),
        lambda pool: pool._num_holders.__setitem__(0, 1),
        lambda pool: pool._content.pop(0),
        lambda pool: pool._kept.update({5: None}),
        lambda pool: pool._resting.update({0: None}),
        lambda pool: pool._content.update({0: pool._content[1]}),
    ],
)
def test_the_books_notice_what_is_wrong(spoil) -> None:  # type: ignore[no-untyped-def]
    pool = BlockPool(6, 4)
    remember_text(pool, [1, 2, 3, 4, 5, 6, 7, 8])
    assert pool.check_integrity([]) == []
    spoil(pool)
    assert pool.check_integrity([]) != []
