"""PDF -> text, and PDF -> page images. With pdf_text.py the only file that imports pypdfium2.

PDFium is not thread-safe: every use of it holds one lock. Sideways pages are set upright. A page whose text cannot be
trusted (none, garbled, or an invisible layer under a picture) is left PENDING for retrieval.reading.ocr.
"""

from __future__ import annotations

import ctypes
import io
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from PIL import Image

from contracts import Page, ReadMethod
from retrieval.errors import DocumentError
from retrieval.highlight import paint
from retrieval.reading.layout import Box
from retrieval.reading.pdf_tables import find_tables
from retrieval.reading.pdf_text import PageText, char_rect, read_page_text

PARSER = f"pypdfium2 {pdfium.PYPDFIUM_INFO}"

_LOCK = threading.RLock()
_ERROR_PASSWORD = 4
_TAIL_BYTES = 4096
_SPARSE_CHARS = 200  # a page with less text than this, most of it covered by images, is a scan with a stamp on it
_IMAGE_SHARE = 0.5
_GARBLED_SHARE = 0.2
_MIN_WORDS = 60  # of which one must be common, or a vowel now and then, for the letters to be believed
_VOWEL_SHARE = 0.22  # of Latin letters; English has 0.38, the densest abbreviations of a laboratory sheet 0.25
_BROKEN = re.compile("[\ufffd\ue000-\uf8ff\x00-\x08\x0e-\x1f]|\\(cid:\\d+\\)")
_COMMON = {
    "the",
    "of",
    "and",
    "to",
    "in",
    "for",
    "with",
    "is",
    "on",
    "was",
    "no",
    "at",
    "by",
    "or",
    "de",
    "la",
    "el",
    "en",
}
_COMMON |= {"des", "et", "les", "und", "der", "die", "das", "mit", "von"}
_MAX_PIXELS = 25_000_000  # a page of 200 inches must not take the memory of the machine
_MAX_OBJECTS = 20_000
_ANGLES_SAMPLED = 64


def count_pages(data: bytes, max_pages: int) -> int:
    """How many pages a PDF has; DocumentError if it is encrypted, cut off, none, empty or longer than max_pages."""
    with open_pdf(data) as document:
        total = len(document)
    if total == 0:
        raise DocumentError("This PDF has no pages; export it again from where it came from.")
    if total > max_pages:
        raise DocumentError(f"This PDF has {total:,} pages, more than the limit of {max_pages:,}; split it into parts.")
    return total


def read_pages(data: bytes, first: int = 1, last: int | None = None, group: int = 16) -> Iterator[Page]:
    """The pages from first to last, counted from 1, as far as their own text goes; read and given by the group."""
    # Opened again per group of pages, so that other threads can render in between.
    last = last or count_pages(data, 10**9)
    for start in range(first - 1, last, group):
        with open_pdf(data) as document:
            pages = [_read_page(document, index) for index in range(start, min(start + group, last))]
        yield from pages


def render_page(data: bytes, page_number: int, highlights: Sequence[tuple[int, int]], dpi: int = 110) -> bytes:
    """PNG of a page (counted from 1), the given ranges of its text marked.

    Raises DocumentError for a file or page that cannot be drawn.
    """
    image, boxes = _draw(data, page_number, highlights, dpi)
    paint(image, [(*box, 0) for box in boxes])
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def draw_page(data: bytes, page_number: int, dpi: int) -> Image.Image:
    """The page as an RGB image. Raises DocumentError for a file or page that cannot be drawn."""
    return _draw(data, page_number, (), dpi)[0]


def _draw(
    data: bytes, page_number: int, highlights: Sequence[tuple[int, int]], dpi: int
) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    with open_pdf(data) as document:
        if not 1 <= page_number <= len(document):
            raise DocumentError(f"This PDF has {len(document)} pages; there is no page {page_number}.")
        page, textpage = _load(document, page_number - 1)
        image = page.render(scale=_scale(page, dpi)).to_pil().convert("RGB")
        return image, _highlight_boxes(page, textpage, highlights, image.size) if highlights else []


@contextmanager
def open_pdf(data: bytes) -> Iterator[pdfium.PdfDocument]:
    """The document, alone with PDFium. Raises DocumentError, which says why, for a file that cannot be opened."""
    with _LOCK, _opened(data) as document:
        yield document


@contextmanager
def _opened(data: bytes) -> Iterator[pdfium.PdfDocument]:
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


def _load(document: pdfium.PdfDocument, index: int) -> tuple[pdfium.PdfPage, pdfium.PdfTextPage]:
    """The page and its characters, turned so that most of them stand upright; what was typed into forms and notes is
    part of both."""
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
        for i in range(0, count, max(count // _ANGLES_SAMPLED, 1))
    )
    if angles and (quarter := angles.most_common(1)[0][0]) * 90 != page.get_rotation():
        page.set_rotation(quarter * 90)
        textpage = page.get_textpage()  # PDFium orders characters by how the page lies
    return page, textpage


def _has_typed_annotations(page: pdfium.PdfPage) -> bool:
    for number in range(pdfium_c.FPDFPage_GetAnnotCount(page.raw)):
        annotation = pdfium_c.FPDFPage_GetAnnot(page.raw, number)
        subtype = pdfium_c.FPDFAnnot_GetSubtype(annotation)
        pdfium_c.FPDFPage_CloseAnnot(annotation)
        if subtype in (pdfium_c.FPDF_ANNOT_WIDGET, pdfium_c.FPDF_ANNOT_FREETEXT):
            return True
    return False


def _read_page(document: pdfium.PdfDocument, index: int) -> Page:
    number = index + 1
    try:
        page, textpage = _load(document, index)
    except DocumentError:
        return Page(number, "", ReadMethod.EMPTY, 0.0)
    text = _read_text(page, textpage).text
    if is_garbled(text):
        return Page(number, "", ReadMethod.PENDING, 0.0)
    if len(text) < _SPARSE_CHARS and _is_picture(page, text):
        return Page(number, text, ReadMethod.PENDING, 0.0)
    if _is_invisible(page) and _image_share(page) > _IMAGE_SHARE:
        # Somebody's earlier recognition under a scan: of unknown quality, and the picture is what a reader sees.
        return Page(number, text, ReadMethod.PENDING, 0.0)
    return Page(number, text)


def _read_text(page: pdfium.PdfPage, textpage: pdfium.PdfTextPage) -> PageText:
    return read_page_text(textpage.raw, page.get_rotation(), find_tables(page))


def is_garbled(text: str) -> bool:
    """Whether the font's map to Unicode is broken: many replacement, private-use or control characters, or words of
    another alphabet's letters that are none (letters moved by a fixed step leave no common word and few vowels)."""
    num_letters = len("".join(text.split()))
    num_bad = sum(map(len, _BROKEN.findall(text)))
    if num_bad > _GARBLED_SHARE * num_letters:
        return True
    words = re.findall(r"[a-z]{2,}", text.lower())
    if len(words) < _MIN_WORDS or not _COMMON.isdisjoint(words):
        return False
    latin = "".join(words)
    return sum(latin.count(vowel) for vowel in "aeiouy") < _VOWEL_SHARE * len(latin)


def _is_picture(page: pdfium.PdfPage, text: str) -> bool:
    """Whether a page with little text holds more that cannot be read: images, or letters drawn as shapes."""
    if not text.strip():
        return any(True for _ in page.get_objects(max_depth=3))  # nothing at all is a blank page, and read completely
    return _image_share(page) > _IMAGE_SHARE


def _image_share(page: pdfium.PdfPage) -> float:
    """Area of the images as a share of the page; one inside another counts twice."""
    covered = 0.0
    width, height = page.get_width(), page.get_height()
    for item in _objects(page):
        if item.type == pdfium_c.FPDF_PAGEOBJ_IMAGE:
            left, bottom, right, top = item.get_bounds()
            covered += max(min(right, width) - max(left, 0), 0) * max(min(top, height) - max(bottom, 0), 0)
    return covered / max(width * height, 1.0)


def _is_invisible(page: pdfium.PdfPage) -> bool:
    """Whether the first text on the page is drawn in no colour at all (text render mode 3)."""
    for item in _objects(page):
        if item.type == pdfium_c.FPDF_PAGEOBJ_TEXT:
            mode = pdfium_c.FPDFTextObj_GetTextRenderMode(item.raw)
            return bool(mode == pdfium_c.FPDF_TEXTRENDERMODE_INVISIBLE)
    return False


def _objects(page: pdfium.PdfPage) -> Iterator[Any]:
    return islice(page.get_objects(max_depth=3), _MAX_OBJECTS)


def _highlight_boxes(
    page: pdfium.PdfPage, textpage: pdfium.PdfTextPage, highlights: Sequence[tuple[int, int]], size: tuple[int, int]
) -> list[tuple[int, int, int, int]]:
    """Pixel boxes, one for each stretch of a line, of the given ranges of the page's text."""
    page_text = _read_text(page, textpage)
    sources = page_text.sources
    boxes: list[list[float]] = []
    for start, end in highlights:
        for offset in range(max(start, 0), min(end, len(sources))):
            source = sources[offset]
            if source >= 0 and not page_text.text[offset].isspace():
                _grow(boxes, _pixels(page, textpage.raw, source, size))
    return [(round(b[0]) - 1, round(b[1]), round(b[2]) + 1, round(b[3])) for b in boxes]


def _pixels(page: pdfium.PdfPage, raw: Any, index: int, size: tuple[int, int]) -> Box:
    left, bottom, right, top = char_rect(raw, index, pdfium_c.FS_RECTF())
    x, y = ctypes.c_int(), ctypes.c_int()
    corners: list[tuple[int, int]] = []
    for horizontal, vertical in ((left, bottom), (right, top)):
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
