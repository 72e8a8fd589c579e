"""Lines of a page with their boxes -> running text: wrapped lines joined, paragraphs and table rows kept apart.

The same for the lines of a PDF and for those recognised in a picture. Knows nothing of where lines come from.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from retrieval.headings import is_heading

_BULLET = re.compile(r"(?:[-•·▪◦–*]|\(?\d{1,3}[.)]|[A-Za-z][.)])\s")
_COLUMN_TOLERANCE = 40.0  # points by which lines of one column may differ on the left (hanging indents)
_PARAGRAPH_LEADING = 1.35  # a step down of more than this many line distances opens a paragraph
COLUMN_GAP = 0.9  # heights of a line between two words of different columns; justified prose stays below
_MAX_CELL_LINES = 4  # lines of the cells in one table row
_CLOSES = ".:;!?。；！？："
_CJK = re.compile("[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")

Box = tuple[float, float, float, float]  # left, top, right, bottom in points; y grows downwards, text runs rightwards


@dataclass(frozen=True, slots=True)
class Line:
    """One line as PDFium gives it, and where it stands on the upright page."""

    text: str
    sources: Sequence[int]  # the PDFium character of each character
    box: Box
    first_word_width: float
    is_tabular: bool  # words stand apart as in the columns of a table
    is_hyphenated: bool  # PDFium saw a hyphen at the end of the line

    @property
    def height(self) -> float:
        return max(self.box[3] - self.box[1], 0.1)


Piece = tuple[str, Sequence[int] | None]  # a text, and the PDFium character of each of its own; None: added by us


def flow(lines: Sequence[Line]) -> list[Piece]:
    """Running text: lines joined where they only go on, apart where something new begins."""
    leading = statistics.median([b.box[1] - a.box[1] for a, b in pairwise(lines)] or [0.0])
    margins = _right_margins(lines)
    rows = _table_rows(lines)
    pieces: list[Piece] = []
    for number, line in enumerate(lines):
        if number:
            previous = lines[number - 1]
            if rows[number] == rows[number - 1]:
                joint = " " if line.box[1] >= previous.box[3] - 0.5 * previous.height else " | "
            else:
                joint = _joint(previous, line, margins[number - 1], leading)
            pieces.append((joint, None))
        pieces.append((line.text, line.sources))
    return pieces


def _right_margins(lines: Sequence[Line]) -> list[float]:
    """For each line where its column ends on the right; infinity unless three lines end there or near it.

    In a list of short lines the longest one would otherwise pass for a full line, and swallow the next item.
    """
    margins: list[float] = []
    for line in lines:
        ends = sorted((o.box[2] for o in lines if abs(o.box[0] - line.box[0]) < _COLUMN_TOLERANCE), reverse=True)
        near = 0.12 * (ends[0] - line.box[0])
        margins.append(ends[0] if len(ends) >= 3 and ends[0] - ends[2] < near else math.inf)
    return margins


def _table_rows(lines: Sequence[Line]) -> list[int]:
    """For each line the number of its table row; a line that is not in a table is a row of its own.

    PDFium gives a row whose cells hold several lines cell by cell: down the first, then up again to the next. A line
    that stands to the right of one of the last few, at the same height, belongs with it and all between.
    """
    rows = list(range(len(lines)))
    for number, line in enumerate(lines):
        for other in range(max(number - _MAX_CELL_LINES, 0), number):
            box = lines[other].box
            overlap = min(box[3], line.box[3]) - max(box[1], line.box[1])
            if overlap > 0.5 * min(line.height, lines[other].height) and line.box[0] >= box[2] - 1:
                rows[other + 1 : number + 1] = [rows[other]] * (number - other)
                break
    return rows


def _joint(previous: Line, line: Line, margin: float, leading: float) -> str:
    """What stands between two lines. A hyphen at a line's end stays: printed "lipid-soluble" must not lose it."""
    if previous.is_hyphenated:
        return ""
    if _is_wrapped(previous, line, margin):
        both_cjk = _CJK.match(previous.text[-1]) and _CJK.match(line.text[0])
        return "" if both_cjk or previous.text[-1] == "-" else " "
    if is_heading(previous.text) != is_heading(line.text):
        return "\n" if is_heading(previous.text) else "\n\n"
    distance = line.box[1] - previous.box[1]
    return "\n" if 0 <= distance <= _PARAGRAPH_LEADING * leading else "\n\n"


def _is_wrapped(previous: Line, line: Line, margin: float) -> bool:
    """Whether a line only goes on where the one before ran out of space: its first word would not have fitted."""
    height = previous.height
    if previous.is_tabular or line.is_tabular:
        return False
    if not 0.8 < line.height / height < 1.25 or not -0.5 * height < line.box[1] - previous.box[3] < 0.8 * height:
        return False
    if not -3 < line.box[0] - previous.box[0] < _COLUMN_TOLERANCE or _BULLET.match(line.text):
        return False
    if (previous.text[-1] in _CLOSES and not line.text[0].islower()) or is_heading(line.text):
        return False
    if margin == math.inf:  # too few lines to know the margin: the words must speak for themselves
        is_long = previous.box[2] - previous.box[0] > 18 * height
        return is_long and line.text[0].islower() and previous.text[-1] not in ".:;|"
    first_word = height if _CJK.match(line.text[0]) else line.first_word_width + 0.25 * height
    return previous.box[2] + first_word > margin
