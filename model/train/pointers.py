"""Where heads are to look while a model learns to read: at a line's start, at the line asked for, at its next word.

Attention supervised where the answer's source is known (Liu et al. 2016, "Neural machine translation with supervised
attention", arXiv 1609.04186): a few heads of the lower layers are told what to look at, so that copying a line, which
gradient alone finds after thousands of steps, is there after dozens. The loss is minus the logarithm of the attention
that falls into an interval of positions. It must hold until the answers lean on these heads: on a small copy whose
weight of it fell to 0 within the run they were lost again.

Shape suffixes as in `model.modeling`; R the rows of a sequence that are asked of each kind of looking.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, auto

import torch
from torch import Tensor

from contracts import Passage
from model.train.examples import ABSTENTION, Claim, Item
from model.train.lines import Lines

_OFF = -1e9
NUM_ROWS = 128  # of a sequence, for each kind of looking


class Look(IntEnum):
    """What a position looks at."""

    BEFORE = 0  # the token before it
    BEFORE_THAT = auto()  # the one before that
    START = auto()  # where its line begins
    NUMBER = auto()  # the number of its passage
    LINE = auto()  # its line so far
    QUESTION = auto()  # in an answer: the question
    CHOICE = auto()  # before a sentence: the line that it is to tell
    CLAIM = auto()  # within it: the same
    SOURCE = auto()  # the token there that is told next


HEADS: tuple[tuple[int, int, Look], ...] = (
    (0, 0, Look.BEFORE), (0, 1, Look.BEFORE_THAT), (1, 0, Look.START), (1, 1, Look.NUMBER), (2, 0, Look.LINE),
    (2, 1, Look.START), (3, 0, Look.LINE), (3, 1, Look.QUESTION), (4, 0, Look.CHOICE), (4, 1, Look.CHOICE),
    (4, 0, Look.CLAIM), (4, 1, Look.CLAIM),
    (5, 0, Look.SOURCE), (5, 1, Look.SOURCE), (5, 2, Look.SOURCE), (6, 0, Look.SOURCE),
)  # fmt: skip
"""(layer, key-value group, what its first head looks at); those that a model does not have are left out."""

Span = tuple[Look, int, int, int]
"""What is looked at, the position that looks, and the interval that it looks into."""


def look_at_lines(lines: Lines, first: int, before: int) -> list[Span]:
    """What the positions of a stretch of prompt look at. first: position of the stretch; before: of the token that it
    follows, -1 where there is none."""
    found: list[Span] = []
    start = number = line = passage = -1
    earlier = [before - 1, before]
    for here, (of_line, of_passage) in enumerate(zip(lines.line, lines.passage, strict=True), first):
        start = here if of_line != line else start
        number = here if of_passage != passage else number
        line, passage = of_line, of_passage
        found += [(Look.BEFORE, here, earlier[1], earlier[1] + 1), (Look.BEFORE_THAT, here, earlier[0], earlier[0] + 1)]
        if line >= 0:
            found += [(Look.START, here, start, start + 1), (Look.LINE, here, start, here + 1)]
        if passage > 0:
            found.append((Look.NUMBER, here, number, number + 1))
        earlier = [earlier[1], here]
    return [span for span in found if span[2] >= 0]


@dataclass(frozen=True, slots=True)
class Source:
    """A prompt's shared part: its text, where its tokens begin there, and of each passage where its header and its text
    begin."""

    text: str
    begins: list[int]
    passages: list[tuple[int, int]]

    @classmethod
    def of(cls, text: str, spans: Sequence[tuple[int, int]], passages: Sequence[Passage]) -> Source:
        starts, place = [], 0
        for key, passage in enumerate(passages, 1):
            place = text.index(f"[{key}] {passage.document_name}, page {passage.page}", place)
            starts.append((place, text.index("\n", place) + 1))
        return cls(text, [begin for begin, _ in spans], starts)

    def token_at(self, place: int) -> int:
        return bisect_right(self.begins, place) - 1

    def find(self, claim: Claim | None) -> tuple[int, int] | None:
        """Where a claim stands in the text, however its lines are broken; None: the sentence of an abstention."""
        words = (claim.text if claim else ABSTENTION).split()
        pattern = re.compile(r"\s+".join(map(re.escape, words)))
        match = pattern.search(self.text, self.passages[claim.passage][1] if claim else 0)
        return match and match.span()


def look_at_source(
    source: Source, item: Item, spans: Sequence[tuple[int, int]], question: tuple[int, int]
) -> list[Span]:
    """What an answer's positions look at, each for the token after it. spans: of the answer's tokens in its text;
    question: the interval of the question's positions, the last of which tells the first token."""
    found: list[Span] = []
    cursor = 0
    for claim in (None,) if not item.claims else item.claims:
        place = source.find(claim)
        told = claim.text.rstrip(".!?。！？ ") if claim else ABSTENTION
        cursor = item.answer.find(told, cursor)
        if item.said or place is None or cursor < 0:
            return []
        line = (source.token_at(place[0]), source.token_at(place[1] - 1) + 1)
        end = cursor + len(told)
        close = item.answer.index("]", end) if claim else end
        for here, (begin, stop) in enumerate(spans, question[1] - 1):
            if not cursor <= begin < close:
                continue
            if begin < end:  # the same token, found by its last character
                token = source.token_at(place[0] + min(stop, end) - 1 - cursor)
            elif claim and item.answer[begin:stop].isdigit():
                token = source.token_at(source.passages[claim.passage][0] + 1)
            else:  # what ends the line
                token = source.token_at(place[0] + len(told))
            found.append((Look.CHOICE if begin == cursor else Look.CLAIM, here, *line))
            found += [(Look.QUESTION, here, *question), (Look.SOURCE, here, token, token + 1)]
        cursor = close
    return found


def shifted(span: Span, first: int, shift: int) -> list[int]:
    """Its position and interval, where all from `first` on stand `shift` places further on."""
    _, here, low, high = span
    return [here + shift * (here >= first), low + shift * (low >= first), high + shift * (high > first)]


def spread(spans: Sequence[Span]) -> tuple[Span, ...]:
    """At most NUM_ROWS of each kind, evenly."""
    kept: list[Span] = []
    for look in Look:
        part = [span for span in spans if span[0] == look]
        number = min(len(part), NUM_ROWS)
        kept += [part[index * len(part) // number] for index in range(number)]
    return tuple(kept)


class Watch:
    """The loss of where a batch's heads look, gathered layer by layer. looks [B,K,R,3]: position and interval, -1 where
    a row is empty; mask [B,1,S,S] what each position may look at."""

    def __init__(self, looks: Tensor, mask: Tensor) -> None:
        self.losses: dict[Look, list[Tensor]] = {}
        S = mask.shape[-1]
        self._rows = looks[..., 0].clamp(min=0)
        self._is_asked = looks[..., 0] >= 0
        place = torch.arange(S, device=mask.device)
        self._is_wanted = (place >= looks[..., 1, None]) & (place < looks[..., 2, None])
        self._is_visible = mask.gather(2, self._rows.flatten(1)[:, None, :, None].expand(-1, -1, -1, S))
        self._is_visible = self._is_visible.view(self._is_wanted.shape)

    def __call__(self, layer: int, q_BHSC: Tensor, k_BGSC: Tensor) -> None:
        H, G, C = q_BHSC.shape[1], k_BGSC.shape[1], q_BHSC.shape[3]
        for of_layer, group, look in HEADS:
            if of_layer != layer or group >= G:
                continue
            rows_BR, is_asked_BR = self._rows[:, look], self._is_asked[:, look]
            q_BRC = q_BHSC[:, group * H // G].gather(1, rows_BR[..., None].expand(-1, -1, C))
            scores_BRS = (q_BRC @ k_BGSC[:, group].mT).float() / math.sqrt(C)
            seen_BRS = scores_BRS.masked_fill(~self._is_visible[:, look], _OFF)
            wanted_BRS = scores_BRS.masked_fill(~self._is_wanted[:, look], _OFF)
            missed_BR = seen_BRS.logsumexp(-1) - wanted_BRS.logsumexp(-1)
            loss = (missed_BR * is_asked_BR).sum() / is_asked_BR.sum().clamp(min=1)
            self.losses.setdefault(look, []).append(loss)

    def total(self) -> Tensor:
        """The mean over the heads that are told where to look."""
        return torch.stack([loss for losses in self.losses.values() for loss in losses]).mean()
