"""PDF -> text, and PDF -> page images with highlighted words. The only file that imports pypdfium2.

PDFium is not thread-safe: every use of it holds one lock. Text offsets are exact: reading a page gives, beside each
character of its text, the index of the PDFium character that it came from, and a highlight follows that index back to
the character's box. Wrapped lines are joined, paragraphs kept apart by an empty line, sideways pages set upright.
"""

from __future__ import annotations

import ctypes
import io
import math
import re
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from contracts import Page, ReadMethod
from retrieval.errors import DocumentError
from retrieval.headings import is_heading
from retrieval.highlight import paint

PARSER = f"pypdfium2 {pdfium.PYPDFIUM_INFO}"

_LOCK = threading.RLock()
PDFIUM_LOCK = _LOCK  # for the one other file that looks into a PDF, retrieval/hidden_text.py
_ERROR_PASSWORD = 4
_TAIL_BYTES = 4096
_SPARSE_CHARS = 200  # a page with less text than this, most of it covered by images, is a scan with a stamp on it
_IMAGE_SHARE = 0.5
_GARBLED_SHARE = 0.2
_MAX_PIXELS = 25_000_000  # a page of 200 inches must not take the memory of the machine
_LINE_HYPHEN = 0x02  # how PDFium gives a hyphen at the end of a line
_BULLET = re.compile(r"(?:[-•·▪◦–*]|\(?\d{1,3}[.)]|[A-Za-z][.)])\s")
_COLUMN_TOLERANCE = 40.0  # points by which lines of one column may differ on the left (hanging indents)
_PARAGRAPH_LEADING = 1.35  # a step down of more than this many line distances opens a paragraph
_COLUMN_GAP = 0.9  # heights of a line between two words of different columns; justified prose stays below
_MAX_CELL_LINES = 4  # lines of the cells in one table row
_CLOSES = ".:;!?。；！？："
_CJK = re.compile("[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")

Box = tuple[float, float, float, float]  # left, top, right, bottom in points; y grows downwards, text runs rightwards


@dataclass(frozen=True, slots=True)
class _Line:
    """One line as PDFium gives it, and where it stands on the upright page."""

    text: str
    sources: list[int]  # the PDFium character of each character
    box: Box
    first_word_width: float
    is_tabular: bool  # words stand apart as in the columns of a table
    is_hyphenated: bool  # PDFium saw a hyphen at the end of the line

    @property
    def height(self) -> float:
        return max(self.box[3] - self.box[1], 0.1)


@dataclass(frozen=True, slots=True)
class PageText:
    """A page's text and, for each of its characters, the index of the PDFium character; -1 for one that we added."""

    text: str
    sources: list[int]


def read_pages(data: bytes, max_pages: int, on_page: Callable[[int, int], None] | None = None) -> list[Page]:
    """The pages of a PDF in order. `on_page(done, total)` is called after each, without the lock.

    Raises DocumentError for a file that is encrypted, cut off, not a PDF, without pages or with more than max_pages.
    """
    with _LOCK, _open(data) as document:
        total = len(document)
    if total == 0:
        raise DocumentError("This PDF has no pages; export it again from where it came from.")
    if total > max_pages:
        raise DocumentError(f"This PDF has {total:,} pages, more than the limit of {max_pages:,}; split it into parts.")
    pages: list[Page] = []
    # Opened again per group of pages, so that other threads can render in between.
    for first in range(0, total, 16):
        with _LOCK, _open(data) as document:
            pages += [_read_page(document, index) for index in range(first, min(first + 16, total))]
        if on_page:
            on_page(len(pages), total)
    return pages


def render_page(data: bytes, page_number: int, highlights: Sequence[tuple[int, int]], dpi: int = 110) -> bytes:
    """PNG of a page (counted from 1), the given ranges of its text marked.

    Raises DocumentError for a file or page that cannot be drawn.
    """
    with _LOCK, _open(data) as document:
        if not 1 <= page_number <= len(document):
            raise DocumentError(f"This PDF has {len(document)} pages; there is no page {page_number}.")
        page = _load(document, page_number - 1)
        scale = _scale(page, dpi)
        image = page.render(scale=scale).to_pil().convert("RGB")
        boxes = _highlight_boxes(page, highlights, image.size) if highlights else []
    paint(image, boxes)
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


@contextmanager
def _open(data: bytes) -> Iterator[pdfium.PdfDocument]:
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        raise DocumentError(_why_not_opened(data, error)) from error
    try:
        # PDFium repairs a file that was cut off and silently leaves out the pages that are missing.
        if b"%%EOF" not in data[-_TAIL_BYTES:]:
            raise DocumentError(_TRUNCATED)
        yield document
    finally:
        document.close()


_TRUNCATED = "This PDF is cut off before its end; copy or export it again and upload the complete file."


def _why_not_opened(data: bytes, error: pdfium.PdfiumError) -> str:
    if getattr(error, "err_code", None) == _ERROR_PASSWORD:
        return "This PDF is protected by a password; save a copy without the password and upload that."
    if b"%%EOF" not in data[-_TAIL_BYTES:]:
        return _TRUNCATED
    if re.search(rb"/Type\s*/Pages\b[^>]*/Count\s+0\b|/Count\s+0\b[^>]*/Type\s*/Pages\b", data):
        return "This PDF has no pages; export it again from where it came from."
    return "This PDF is damaged and cannot be opened; export it again from where it came from."


def _load(document: pdfium.PdfDocument, index: int) -> pdfium.PdfPage:
    """The page, turned so that most of its text is upright, with what was typed into forms and notes as its text."""
    try:
        page = document[index]
        if _has_typed_annotations(page):
            # PDFium's text knows nothing of form fields until they are drawn into the page and it is loaded again.
            pdfium_c.FPDFPage_Flatten(page.raw, pdfium_c.FLAT_NORMALDISPLAY)
            page.close()
            page = document[index]
    except pdfium.PdfiumError as error:
        raise DocumentError(f"Page {index + 1} of this PDF is damaged and cannot be drawn.") from error
    textpage = page.get_textpage()
    count = textpage.count_chars()
    angles = Counter(
        -round(pdfium_c.FPDFText_GetCharAngle(textpage.raw, i) / (math.pi / 2)) % 4
        for i in range(0, count, max(count // 200, 1))
    )
    textpage.close()
    if angles and (quarter := angles.most_common(1)[0][0]) * 90 != page.get_rotation():
        page.set_rotation(quarter * 90)
    return page


def _has_typed_annotations(page: pdfium.PdfPage) -> bool:
    for number in range(pdfium_c.FPDFPage_GetAnnotCount(page.raw)):
        annotation = pdfium_c.FPDFPage_GetAnnot(page.raw, number)
        subtype = pdfium_c.FPDFAnnot_GetSubtype(annotation)
        pdfium_c.FPDFPage_CloseAnnot(annotation)
        if subtype in (pdfium_c.FPDF_ANNOT_WIDGET, pdfium_c.FPDF_ANNOT_FREETEXT):
            return True
    return False


def _read_page(document: pdfium.PdfDocument, index: int) -> Page:
    try:
        page = _load(document, index)
    except DocumentError:
        return Page(index + 1, "", ReadMethod.EMPTY, 0.0)
    text = _page_text(page).text
    if _is_garbled(text):
        return Page(index + 1, "", ReadMethod.EMPTY, 0.0)
    if len(text) < _SPARSE_CHARS and _is_picture(page, text):
        return Page(index + 1, text, ReadMethod.EMPTY, 0.0)
    return Page(index + 1, text)


def _is_garbled(text: str) -> bool:
    """Whether the font's map to Unicode is broken: many replacement, private-use or control characters."""
    letters = [character for character in text if not character.isspace()]
    bad = sum(c == "\ufffd" or "\ue000" <= c <= "\uf8ff" or c < " " for c in letters)
    return bool(letters) and bad > _GARBLED_SHARE * len(letters)


def _is_picture(page: pdfium.PdfPage, text: str) -> bool:
    """Whether a page with little text holds more that cannot be read: images, or letters drawn as shapes."""
    kinds = [(item.type, item) for item in page.get_objects(max_depth=3)]
    if not text.strip():
        return bool(kinds)  # nothing at all is a blank page, and read completely
    width, height = page.get_width(), page.get_height()
    covered = 0.0
    for kind, item in kinds:
        if kind == pdfium_c.FPDF_PAGEOBJ_IMAGE:
            left, bottom, right, top = item.get_bounds()
            covered += max(right - left, 0) * max(top - bottom, 0)
    return covered > _IMAGE_SHARE * width * height


# --- text with a map back to PDFium's characters ------------------------------------------------------------------


def _page_text(page: pdfium.PdfPage) -> PageText:
    textpage = page.get_textpage()
    try:
        lines = _lines(textpage.raw, page.get_rotation())
    finally:
        textpage.close()
    leading = statistics.median([b.box[1] - a.box[1] for a, b in pairwise(lines)] or [0.0])
    margins = _right_margins(lines)
    rows = _table_rows(lines)
    text: list[str] = []
    sources: list[int] = []
    for number, line in enumerate(lines):
        if number:
            previous = lines[number - 1]
            if rows[number] == rows[number - 1]:
                joint = " " if line.box[1] >= previous.box[3] - 0.5 * previous.height else " | "
            else:
                joint = _joint(previous, line, margins[number - 1], leading)
            text.append(joint)
            sources.extend([-1] * len(joint))
        text.append(line.text)
        sources.extend(line.sources)
    return PageText("".join(text), sources)


def _lines(raw: Any, rotation: int) -> list[_Line]:
    """The lines of a text page, trimmed, without characters that PDFium made up for line ends."""
    lines: list[_Line] = []
    characters: list[str] = []
    sources: list[int] = []
    count = pdfium_c.FPDFText_CountChars(raw)
    for i in range(count + 1):
        code = pdfium_c.FPDFText_GetUnicode(raw, i) if i < count else 0x0A
        character = _character(code)
        if character not in ("", "\n") and (characters or character != " "):
            characters.append(character)
            sources.append(i)
        if characters and (character == "\n" or code == _LINE_HYPHEN):
            text = "".join(characters).rstrip()
            extent = _extent(raw, text, sources, rotation)
            lines.append(_Line(text, sources[: len(text)], *extent, is_hyphenated=code == _LINE_HYPHEN))
            characters, sources = [], []
    return lines


def _character(code: int) -> str:
    """One character for one PDFium character ("" for none), so that offsets stay in step."""
    if code in (0x0D, 0):
        return ""
    if code == 0x0A:
        return "\n"
    if code == _LINE_HYPHEN:
        return "-"
    if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
        return "\ufffd"
    character = chr(code)
    return " " if character.isspace() else character


def _extent(raw: Any, text: str, sources: Sequence[int], rotation: int) -> tuple[Box, float, bool]:
    """The box of a line, the width of its first word, and whether some words stand far apart."""
    first, last = (_char_box(raw, sources[i], rotation) for i in (0, len(text) - 1))
    word_end = _char_box(raw, sources[len(text.split(maxsplit=1)[0]) - 1], rotation)
    box = (first[0], min(first[1], last[1]), last[2], max(first[3], last[3]))
    gaps = (
        _char_box(raw, sources[space.end()], rotation)[0] - _char_box(raw, sources[space.start() - 1], rotation)[2]
        for space in re.finditer(" +", text)
    )
    is_tabular = any(gap > _COLUMN_GAP * (box[3] - box[1]) for gap in gaps)
    return box, max(word_end[2] - first[0], 0.0), is_tabular


def _char_box(raw: Any, index: int, rotation: int) -> Box:
    """The box of a character on the upright page; y grows downwards, the origin is of no account."""
    rect = pdfium_c.FS_RECTF()
    pdfium_c.FPDFText_GetLooseCharBox(raw, index, ctypes.byref(rect))
    left, bottom, right, top = rect.left, rect.bottom, rect.right, rect.top
    if rotation == 90:
        return bottom, left, top, right
    if rotation == 180:
        return -right, bottom, -left, top
    if rotation == 270:
        return -top, -right, -bottom, -left
    return left, -top, right, -bottom


def _right_margins(lines: Sequence[_Line]) -> list[float]:
    """For each line where its column ends on the right; infinity unless three lines end there or near it.

    In a list of short lines the longest one would otherwise pass for a full line, and swallow the next item.
    """
    margins: list[float] = []
    for line in lines:
        ends = sorted((o.box[2] for o in lines if abs(o.box[0] - line.box[0]) < _COLUMN_TOLERANCE), reverse=True)
        near = 0.12 * (ends[0] - line.box[0])
        margins.append(ends[0] if len(ends) >= 3 and ends[0] - ends[2] < near else math.inf)
    return margins


def _table_rows(lines: Sequence[_Line]) -> list[int]:
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


def _joint(previous: _Line, line: _Line, margin: float, leading: float) -> str:
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


def _is_wrapped(previous: _Line, line: _Line, margin: float) -> bool:
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


def _highlight_boxes(
    page: pdfium.PdfPage, highlights: Sequence[tuple[int, int]], size: tuple[int, int]
) -> list[tuple[int, int, int, int]]:
    """Pixel boxes, one for each stretch of a line, of the given ranges of the page's text."""
    page_text = _page_text(page)
    textpage = page.get_textpage()
    boxes: list[list[float]] = []
    for start, end in highlights:
        for offset in range(max(start, 0), min(end, len(page_text.sources))):
            source = page_text.sources[offset]
            if source >= 0 and not page_text.text[offset].isspace():
                _grow(boxes, _pixels(page, textpage.raw, source, size))
    textpage.close()
    return [(round(b[0]) - 1, round(b[1]), round(b[2]) + 1, round(b[3])) for b in boxes]


def _pixels(page: pdfium.PdfPage, raw: Any, index: int, size: tuple[int, int]) -> Box:
    rect = pdfium_c.FS_RECTF()
    pdfium_c.FPDFText_GetLooseCharBox(raw, index, ctypes.byref(rect))
    x, y = ctypes.c_int(), ctypes.c_int()
    corners: list[tuple[int, int]] = []
    for horizontal, vertical in ((rect.left, rect.bottom), (rect.right, rect.top)):
        pdfium_c.FPDF_PageToDevice(page.raw, 0, 0, *size, 0, horizontal, vertical, ctypes.byref(x), ctypes.byref(y))
        corners.append((x.value, y.value))
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _grow(boxes: list[list[float]], box: Box) -> None:
    """Adds a character's box to the last stretch if it stands on the same line beside it, else opens a new one."""
    if boxes:
        last = boxes[-1]
        height = max(last[3] - last[1], 1)
        overlap = min(last[3], box[3]) - max(last[1], box[1])
        if overlap > 0.5 * min(height, max(box[3] - box[1], 1)) and -height < box[0] - last[2] < 2 * height:
            boxes[-1] = [min(last[0], box[0]), min(last[1], box[1]), max(last[2], box[2]), max(last[3], box[3])]
            return
    boxes.append(list(box))


def _scale(page: pdfium.PdfPage, dpi: int) -> float:
    scale = dpi / 72
    pixels = page.get_width() * page.get_height() * scale * scale
    return float(scale * min(1.0, math.sqrt(_MAX_PIXELS / max(pixels, 1.0))))
