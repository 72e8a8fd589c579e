"""The text of one PDF page with a map back to PDFium's characters, in the order in which a person reads it.

Wrapped lines are joined, paragraphs kept apart by an empty line, the cells of a table's row put into one line. Offsets
are exact: `PageText.sources` gives for each character of the text the PDFium character that it came from. Beside
pdf.py the only file that knows PDFium; the caller holds its lock.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pypdfium2.raw as pdfium_c

from retrieval.reading.layout import COLUMN_GAP, Box, Line, Piece, flow

_LINE_HYPHEN = "\x02"  # how PDFium gives a hyphen at the end of a line
_GAPS = re.compile(" +")
_SPACES = re.compile(r"[^\S\n]")

Word = tuple[str, Sequence[int], Box]


@dataclass(frozen=True, slots=True)
class Table:
    """The grid of a ruled table. A cell that another one spans is None; every row has all columns."""

    rows: tuple[tuple[Box | None, ...], ...]

    @property
    def box(self) -> Box:
        cells = [cell for row in self.rows for cell in row if cell]
        lefts, tops, rights, bottoms = zip(*cells, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)


@dataclass(frozen=True, slots=True)
class PageText:
    """A page's text, made of these pieces."""

    text: str
    pieces: tuple[Piece, ...]

    @property
    def sources(self) -> list[int]:
        """For each character of the text the index of the PDFium character; -1 for one that we added."""
        parts = (sources if sources is not None else [-1] * len(text) for text, sources in self.pieces)
        return [source for part in parts for source in part]


def read_page_text(raw: Any, rotation: int, tables: Sequence[Table] = ()) -> PageText:
    """The text of a PDFium text page; words inside the cells of ruled tables (pdf_tables) row by row."""
    blocks = list(_blocks(list(_lines(raw, rotation)), tables, raw, rotation))
    pieces: list[Piece] = []
    for number, block in enumerate(blocks):
        if number:
            pieces.append(("\n\n", None))
        pieces.extend(block)
    return PageText("".join(text for text, _ in pieces), tuple(pieces))


def _blocks(lines: Sequence[Line], tables: Sequence[Table], raw: Any, rotation: int) -> Iterator[list[Piece]]:
    """Stretches of running text and tables, in order; a table stands where its first line stood."""
    homes = [next((n for n, table in enumerate(tables) if _is_inside(line.box, table)), None) for line in lines]
    drawn: set[int] = set()
    running: list[Line] = []
    for line, home in zip(lines, homes, strict=True):
        if home is None:
            running.append(line)
        elif home not in drawn:
            if running:
                yield flow(running)
                running = []
            drawn.add(home)
            words = [
                word
                for other, place in zip(lines, homes, strict=True)
                if place == home
                for word in _words(other, raw, rotation)
            ]
            yield _table(tables[home], words)
    if running:
        yield flow(running)


def _is_inside(box: Box, table: Table) -> bool:
    left, top, right, bottom = table.box
    return left <= (box[0] + box[2]) / 2 <= right and top <= (box[1] + box[3]) / 2 <= bottom


def _words(line: Line, raw: Any, rotation: int) -> Iterator[Word]:
    rect = pdfium_c.FS_RECTF()
    for match in re.finditer(r"\S+", line.text):
        sources = line.sources[match.start() : match.end()]
        first = upright(char_rect(raw, sources[0], rect), rotation)
        last = upright(char_rect(raw, sources[-1], rect), rotation)
        yield match[0], sources, (first[0], min(first[1], last[1]), last[2], max(first[3], last[3]))


def _table(table: Table, words: Sequence[Word]) -> list[Piece]:
    """Row by row, cells apart by " | ", also the empty ones; a row without a word is left out."""
    pieces: list[Piece] = []
    for row in table.rows:
        cells = [[word for word in words if _is_in_cell(word[2], cell)] if cell else [] for cell in row]
        if not any(cells):
            continue
        if pieces:
            pieces.append(("\n", None))
        for column, cell_words in enumerate(cells):
            if column:
                pieces.append((" | ", None))
            for number, (text, sources, _) in enumerate(cell_words):
                if number:
                    pieces.append((" ", None))
                pieces.append((text, sources))
    return pieces


def _is_in_cell(box: Box, cell: Box) -> bool:
    return cell[0] <= (box[0] + box[2]) / 2 < cell[2] and cell[1] <= (box[1] + box[3]) / 2 < cell[3]


def char_rect(raw: Any, index: int, rect: Any) -> tuple[float, float, float, float]:
    """The loose box of a character in PDF coordinates: left, bottom, right, top. rect is scratch, an FS_RECTF."""
    pdfium_c.FPDFText_GetLooseCharBox(raw, index, ctypes.byref(rect))
    return rect.left, rect.bottom, rect.right, rect.top


def _lines(raw: Any, rotation: int) -> Iterator[Line]:
    """The lines of a text page, trimmed, without characters that PDFium made up for line ends."""
    characters = _characters(raw)
    for match in re.finditer(r"[^\n\x02]*(?P<end>[\n\x02]|$)", characters):
        is_hyphenated = match["end"] == _LINE_HYPHEN
        start, stop = match.start(), match.end() if is_hyphenated else match.start("end")
        shown = characters[start:stop].replace(_LINE_HYPHEN, "-")
        text = shown.strip(" \r\0")
        if not text:
            continue
        start += len(shown) - len(shown.lstrip(" \r\0"))
        sources: Sequence[int] = range(start, start + len(text))
        if "\r" in text or "\0" in text:
            sources = [source for source, character in zip(sources, text, strict=True) if character not in "\r\0"]
            text = text.replace("\r", "").replace("\0", "")
        yield Line(text, sources, *_extent(raw, text, sources, rotation), is_hyphenated)


def _characters(raw: Any) -> str:
    """One character for each of PDFium's: any white space but \\n as a space, what has no meaning as U+FFFD."""
    count = max(pdfium_c.FPDFText_CountChars(raw), 0)
    buffer = (ctypes.c_ushort * (count + 1))()
    written = pdfium_c.FPDFText_GetText(raw, 0, count, buffer)
    text = bytes(buffer)[: 2 * max(written - 1, 0)].decode("utf-16-le", "replace")
    if len(text) != count:  # it leaves out what a font gives no character for; then each must be asked for
        codes = (pdfium_c.FPDFText_GetUnicode(raw, index) for index in range(count))
        text = "".join("\ufffd" if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF else chr(code) for code in codes)
    text = text.replace("\ufffe", _LINE_HYPHEN)  # what the text as a whole has in its place
    return _SPACES.sub(lambda space: space[0] if space[0] == "\r" else " ", text)


def _extent(raw: Any, text: str, sources: Sequence[int], rotation: int) -> tuple[Box, float, bool]:
    """The box of a line, the width of its first word, and whether some words stand far apart."""
    rect = pdfium_c.FS_RECTF()

    def box_of(offset: int) -> Box:
        return upright(char_rect(raw, sources[offset], rect), rotation)

    first, last = box_of(0), box_of(len(text) - 1)
    space = text.find(" ")
    word_end = box_of(space - 1) if space > 0 else last
    box = (first[0], min(first[1], last[1]), last[2], max(first[3], last[3]))
    is_tabular = _has_gap(raw, text, sources, rotation, COLUMN_GAP * (box[3] - box[1]))
    return box, max(word_end[2] - first[0], 0.0), is_tabular


def _has_gap(raw: Any, text: str, sources: Sequence[int], rotation: int, threshold: float) -> bool:
    """Whether two words stand further apart than the threshold. Asked of every space of a record, so that only the two
    sides that count are looked at."""
    before, after = {0: ("right", "left"), 90: ("top", "bottom"), 180: ("left", "right")}.get(
        rotation, ("bottom", "top")
    )
    sign = 1 if rotation in (0, 90) else -1
    rect = pdfium_c.FS_RECTF()
    box_of, to = pdfium_c.FPDFText_GetLooseCharBox, ctypes.byref(rect)
    for space in _GAPS.finditer(text):
        box_of(raw, sources[space.start() - 1], to)
        end = getattr(rect, before)
        box_of(raw, sources[space.end()], to)
        if sign * (getattr(rect, after) - end) > threshold:
            return True
    return False


def upright(rect: tuple[float, float, float, float], rotation: int) -> Box:
    """A box on the upright page; y grows downwards, the origin is of no account."""
    left, bottom, right, top = rect
    if rotation == 90:
        return bottom, left, top, right
    if rotation == 180:
        return -right, bottom, -left, top
    if rotation == 270:
        return -top, -right, -bottom, -left
    return left, -top, right, -bottom
