"""Where things lie in the residual stream of the reader, and the shape that it is written for.

INT4 rounds weights, and on a processor activations too, in groups of GROUP neighbouring dims by the largest of a group.
So the constant lies apart from all that a feed-forward layer reads, and what one reads together is of one size.
"""

from __future__ import annotations

from model.train.lines import MARKS, RULES, list_marks
from model.train.matching import CONTEXT, MEANING
from model.train.rounding import GROUP_SIZE

NUM_LAYERS = 7
HIDDEN, HEADS, GROUPS, HEAD = 416, 8, 2, 128
GROUP = GROUP_SIZE
CONSTANT = 256.0  # in every position's stream; a power of 2: what is divided by it stays exact in bf16
BEACON = 16.0  # in every position's stream, too: the MTP layer's input is measured by it
CODE, SHORT = 48, 32  # dims of a token's code, and of what is kept of a neighbour's
CARRIED = 50.0  # the choice, in an answer, against the answer's own
MAX_KEY = 9  # passages with a number of one digit
PLACE_PAIRS = (1, 3, 4, 7)  # rotary pairs whose phases are a position: no two within 8,192 are alike in all
OFFSET_PAIRS = (1, 3)


class _Stream:
    def __init__(self) -> None:
        self._end = 1
        self.constant = 0
        self.code = self._take(CODE)
        self.space, self.line_break = self._take(1).start, self._take(1).start
        self.number = self._take(MAX_KEY)
        self.offset = self._take(2 * len(OFFSET_PAIRS))
        # 1. the first layer's feed-forward part reads marks, of 0 and 1, and meaning
        assert self._end % GROUP == 0
        self.one = self._take(2)  # two: four bits do not hold what three marks must exceed
        self.mark = {name: self._take(1).start for name in MARKS}
        self.mark_before = {name: self._take(1).start for name in list_marks(1)}
        self.mark_before_that = {name: self._take(1).start for name in list_marks(2)}
        self.seen = (self.mark, self.mark_before, self.mark_before_that)
        self.rule = {name: self._take(1).start for name in dict.fromkeys(rule.target for rule in RULES)}
        self.last_line = self._take(2 * len(PLACE_PAIRS))
        self.is_heading, self.beacon = self._take(1).start, self._take(1).start
        self.chosen_passage = self._take(MAX_KEY)
        assert self._end % GROUP <= MAX_KEY  # not yet written then
        self.meaning = self._take(MEANING)
        # 2. the third's reads place and line, of 1 at most
        self.before, self.before_that = self._take(SHORT), self._take(SHORT)
        self.own, self.ended = self._take(SHORT), self._take(SHORT)
        self.context = self._take(CONTEXT)
        self.place, self.line = self._take(2 * len(PLACE_PAIRS)), self._take(2 * len(PLACE_PAIRS))
        self.passage, self.no_passage = self._take(MAX_KEY), self._take(1).start
        self.chosen = self._take(2 * len(PLACE_PAIRS))
        self.offset_before = self._take(2 * len(OFFSET_PAIRS))
        assert self._end <= HIDDEN, self._end
        self.where = slice(self.passage.start, self.no_passage + 1)  # the passage's number, or that there is none
        self.short = slice(self.code.start, self.code.start + SHORT)

    def _take(self, size: int) -> slice:
        self._end += size
        return slice(self._end - size, self._end)


STREAM = _Stream()
