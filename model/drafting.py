"""Guesses an answer's next tokens from the prompt: an answer that quotes the record repeats its words.

Prompt lookup decoding (Saxena, 2023): the last tokens are looked for earlier in prompt and answer, and what followed
them there is the draft. The engine computes a draft in the same pass as the token before it, and keeps of it what it
would have sampled anyway; see Engine. Token ids only; knows nothing of the model.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

# bench_speculation, embedded model: with 4 the demo questions' answers come 1.4 times as fast, and 79 % of what is
# drafted stays; 2 is as fast, 8 a little slower.
MAX_DRAFT = 4
# On the embedded model's answers to the demo questions, a gain of 1.46 by these; 1.43 where 3 tokens must match,
# 1.45 with 4 tokens in the first one (74 % right instead of 79), 1.40 to 1.45 with pauses of up to 128 or 8: all within
# the noise but the share that is right, which counts where a token costs more than here.
MIN_NGRAM, MAX_NGRAM = 2, 4  # tokens that must match, and after which a longer match would say no more
MAX_CANDIDATES = 16  # places of a common pair that are compared, the latest first: a few microseconds at most
FIRST_DRAFT = 2
MAX_PAUSE = 32  # tokens without a draft after several wrong ones: then one step in 33 is dearer for nothing


class PromptLookup:
    """Drafts for one request. Each drafted token makes a step dearer (a mixture of experts reads more of them), so
    drafts grow while they are right, and pause, each time for twice as long, while they are wrong."""

    def __init__(self, max_draft: int) -> None:
        self._max_draft = max_draft
        self._length = min(FIRST_DRAFT, max_draft)
        self._pause = self._num_to_skip = 0
        # Hash chains as in LZ77, so that a step costs the same after a long prompt: the place after the latest
        # occurrence of each pair of tokens, and for each place the one before it of the same pair; 0 is none.
        self._latest: dict[tuple[int, int], int] = {}
        self._before = array("i", [0, 0])

    def propose(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """Up to `limit` tokens that may follow. token_ids: prompt and answer, which only ever grow at their end."""
        limit = min(limit, self._length)
        if limit < 1:
            return []
        self._index(token_ids)
        if self._num_to_skip:
            self._num_to_skip -= 1
            return []
        place = self._find(token_ids)
        period = len(token_ids) - place  # a match that overlaps the end is read on into the draft itself, as in LZ77
        return [token_ids[place + i % period] for i in range(limit)] if place else []

    def learn(self, num_accepted: int) -> None:
        """Takes note of how many tokens of the last draft were right."""
        if num_accepted:
            self._length = min(2 * num_accepted, self._max_draft)
            self._pause = 0
        else:
            self._length = min(FIRST_DRAFT, self._max_draft)
            self._pause = min(max(2 * self._pause, 1), MAX_PAUSE)
            self._num_to_skip = self._pause

    def _index(self, token_ids: Sequence[int]) -> None:
        """Up to the last pair that a token follows, so that the end of the text does not find itself."""
        for place in range(len(self._before), len(token_ids)):
            pair = (token_ids[place - 2], token_ids[place - 1])
            self._before.append(self._latest.get(pair, 0))
            self._latest[pair] = place

    def _find(self, token_ids: Sequence[int]) -> int:
        """The place after the longest match of the text's end, the latest of those as long; 0 if there is none."""
        best, longest = 0, MIN_NGRAM - 1
        place = self._latest.get((token_ids[-2], token_ids[-1]), 0) if len(token_ids) > MIN_NGRAM else 0
        for _ in range(MAX_CANDIDATES):
            if not place or longest == MAX_NGRAM:
                break
            length = _count_equal(token_ids, place)
            if length > longest:
                best, longest = place, length
            place = self._before[place]
        return best


def _count_equal(token_ids: Sequence[int], place: int) -> int:
    """How many tokens before `place` equal those at the end of the text; a pair does, by the index."""
    end, length = len(token_ids), MIN_NGRAM
    while length < min(MAX_NGRAM, place) and token_ids[place - length - 1] == token_ids[end - length - 1]:
        length += 1
    return length
