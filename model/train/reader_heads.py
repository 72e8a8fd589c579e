"""Attention heads written by hand: what a query asks, what keys offer, and what is carried where.

Each head has one dim of its own that keeps the length of its queries and keys, so that a logit is the plain product of
what `ask` and `offer` put down. Rotary dims are longer by YaRN's factor; `turn` and `look_back` take that off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from model.modeling import Attention, BailingMoeV2ForCausalLM
from model.train.reader_stream import CONSTANT, HEAD, STREAM

LENGTH = 512.0  # of a head's queries and keys
STEEP = 2.5  # by how much, at most, a rotary pair of `latest` falls a token
_NEIGHBOUR = (2.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # strengths of rotary pairs: distance 1 beats all others


class HeadGroup:
    """One key-value group of an attention layer: its query heads, key and value, as rows of the fused weight."""

    def __init__(self, model: BailingMoeV2ForCausalLM, layer: int, group: int) -> None:
        attention: Attention = model.model.layers[layer].attention  # type: ignore[assignment]
        H, G, C = attention.num_heads, attention.num_kv_heads, attention.head_dim
        self._weight, self._dense = attention.query_key_value.weight, attention.dense.weight
        self._queries = [C * (group * (H // G) + i) for i in range(H // G)]
        self._key, self._value = C * (H + group), C * (H + G + group)
        self.frequencies, self._longer = model.rotary.inv_freq, model.rotary.attention_factor
        self.half = len(self.frequencies)
        self._free = 2 * self.half  # the next dim of a head that does not turn and is not taken
        self._carried = 0
        for row in (*self._queries, self._key, self._value):
            self._weight[row : row + C] = 0
        for row, dim in [*((q, C - 1) for q in self._queries), (self._key, C - 2)]:
            self._weight[row + dim, STREAM.constant] = LENGTH / CONSTANT

    def measure_by_itself(self, head: int) -> None:
        """Gives up the lengths: a logit is then a cosine."""
        self._weight[self._queries[head] + HEAD - 1] = 0
        self._weight[self._key + HEAD - 2] = 0

    def take(self, size: int) -> slice:
        """Dims of a head for a match of its own."""
        self._free += size
        assert self._free <= HEAD - 2
        return slice(self._free - size, self._free)

    def ask(self, head: int, dims: slice | int, source: slice | int, gain: float = 1.0) -> None:
        _fill(self._weight, self._queries[head], dims, source, gain)

    def offer(self, dims: slice | int, source: slice | int, gain: float = 1.0) -> None:
        _fill(self._weight, self._key, dims, source, gain)

    def ask_matrix(self, head: int, dims: slice, source: slice, matrix: Tensor) -> None:
        row = self._queries[head]
        self._weight[row + dims.start : row + dims.stop, source] = matrix

    def offer_matrix(self, dims: slice, source: slice, matrix: Tensor) -> None:
        self._weight[self._key + dims.start : self._key + dims.stop, source] = matrix

    def turn(self, pairs: Sequence[int], strengths: Sequence[float], mark: int, head: int | None, phase: float) -> None:
        """Writes rotary pairs of a query head, or of the key (head None), that are on where `mark` is. A query's phase
        is in radians; a distance d is the phase -frequency d."""
        row = self._key if head is None else self._queries[head]
        scale = (1 / CONSTANT if mark == STREAM.constant else 1.0) / self._longer
        for pair, strength in zip(pairs, strengths, strict=True):
            self._weight[row + pair, mark] = strength * scale * math.cos(phase)
            self._weight[row + self.half + pair, mark] = strength * scale * math.sin(phase)

    def look_back(self, head: int, distance: float, gain: float) -> None:
        """The query looks so many positions back; the key's part is `offer_position`."""
        for pair, strength in enumerate(_NEIGHBOUR):
            angle = -float(self.frequencies[pair]) * distance
            self.turn([pair], [gain * math.sqrt(strength)], STREAM.constant, head, angle)

    def offer_position(self, gain: float) -> None:
        self.turn(range(len(_NEIGHBOUR)), [gain * math.sqrt(s) for s in _NEIGHBOUR], STREAM.constant, None, 0.0)

    def latest(self, head: int, pairs: Sequence[int], marks: Sequence[int]) -> None:
        """Looks at the latest position with one of the marks. Of the rotary pairs the slowest turn less than half
        within a prompt, so that nothing earlier comes near again; faster ones part neighbours. Each falls by as much
        a token, so that where a fast one rises again the slower ones outweigh it."""
        dims = self.take(1)
        gains = [STEEP / float(self.frequencies[pair]) for pair in pairs]
        base = math.sqrt(1.2 * sum(gains))
        self.ask(head, dims, STREAM.constant, base / CONSTANT)
        roots = [math.sqrt(gain) for gain in gains]
        self.turn(pairs, roots, STREAM.constant, head, 0.5)  # ahead: steep from the start
        for mark in marks:
            self.offer(dims, mark, base)
            self.turn(pairs, roots, mark, None, 0.0)

    def carry(self, source: slice | int, gain: float = 1.0) -> slice:
        """Reads these dims into the value; returns where."""
        size = 1 if isinstance(source, int) else source.stop - source.start
        dims = slice(self._carried, self._carried + size)
        self._carried += size
        assert self._carried <= HEAD
        _fill(self._weight, self._value, dims, source, gain)
        return dims

    def cancel(self, dims: slice, mark: int) -> None:
        """Takes a mark off a value of one dim, so that a position with it says nothing."""
        self._weight[self._value + dims.start, mark] = -1.0

    def write(self, head: int, target: slice | int, dims: slice, gain: float | Tensor = 1.0) -> None:
        """What the head found of these dims of the value goes to `target`, times a number or by a matrix."""
        column = self._queries[head]
        if isinstance(gain, Tensor):
            target = slice(target, target + 1) if isinstance(target, int) else target
            self._dense[target, column + dims.start : column + dims.stop] = gain
            return
        first = target if isinstance(target, int) else target.start
        for offset in range(dims.stop - dims.start):
            self._dense[first + offset, column + dims.start + offset] = gain


def _fill(weight: Tensor, row: int, dims: slice | int, source: slice | int, gain: float) -> None:
    dims = slice(dims, dims + 1) if isinstance(dims, int) else dims
    source = slice(source, source + 1) if isinstance(source, int) else source
    for offset in range(dims.stop - dims.start):
        weight[row + dims.start + offset, source.start + offset] = gain


def look_before_end(group: HeadGroup, head: int) -> None:
    """The token before this one, or where that is an end and nothing else the one before it."""
    group.offer_position(8.0)
    group.look_back(head, 1.4, 8.0)
    skip = group.take(1)
    group.ask(head, skip, STREAM.constant, 5.0 / CONSTANT)
    group.offer(skip, STREAM.mark["pure"], -6.0)
