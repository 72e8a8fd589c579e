"""What a file's layout keeps from a reader but not from a parser: white on white, tiny, off the page, invisible.

An invisible layer over a scan is its OCR and no secret; what stands inside a form that a page draws is not looked at.
Knows nothing of rules: what the words say is for the safety layer. What becomes of it: retrieval.hidden.
"""

from __future__ import annotations

import ctypes
import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from lxml import etree

from retrieval.hidden import Stretch
from retrieval.reading.pdf import open_pdf

_MIN_POINTS = 2.5  # height of a line of text below which nobody reads it
_WHITE = 240  # of 255, in every channel
_SAME_COLOUR = 24  # of 255: two colours that differ less cannot be told apart
_SCAN_SHARE = 0.5  # of the page under images: then an invisible layer is the scan's OCR
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_METADATA = ("Title", "Subject", "Keywords", "Author")


def read_metadata(data: bytes) -> str:
    """What a PDF says of itself: title, subject, keywords and author. It is never part of the text, but is checked."""
    with open_pdf(data) as document:
        words = document.get_metadata_dict(skip_empty=True)
    return "\n".join(words[key] for key in _METADATA if key in words)


# --- PDF --------------------------------------------------------------------------------------------------------


def find_in_pdf(data: bytes, numbers: Sequence[int]) -> Iterator[Stretch]:
    """On pages of these numbers, counted from 1. Raises DocumentError for a file that cannot be opened."""
    with open_pdf(data) as document:
        for number in numbers:
            try:
                yield from _merged(list(_hidden_on_page(document[number - 1], number)))
            except pdfium.PdfiumError:
                continue  # a damaged page has no text either


def _hidden_on_page(page: pdfium.PdfPage, number: int) -> Iterator[Stretch]:
    objects = list(page.get_objects(max_depth=1))  # bounds inside a form are in its own coordinates
    texts = [item for item in objects if item.type == pdfium_c.FPDF_PAGEOBJ_TEXT]
    is_scan = _image_share(page, objects) > _SCAN_SHARE
    textpage = picture = None  # made where something is hidden: both take as long as all the rest
    for item in texts:
        why = _why_unseen(page, item, is_scan)
        if why == "white":
            picture = picture or page.render(scale=1, may_draw_forms=False).to_pil().convert("L")
            why = "" if _has_contrast(page, picture, item) else "the colour of the paper"
        if why:
            textpage = textpage or page.get_textpage()
            yield Stretch(number, why, _text_of(item, textpage))


def _why_unseen(page: pdfium.PdfPage, item: pdfium.PdfObject, is_scan: bool) -> str:
    left, bottom, right, top = item.get_bounds()
    x0, y0, x1, y1 = page.get_bbox()
    if right <= x0 or left >= x1 or top <= y0 or bottom >= y1:
        return "off the page"
    if pdfium_c.FPDFTextObj_GetTextRenderMode(item.raw) == pdfium_c.FPDF_TEXTRENDERMODE_INVISIBLE:
        return "" if is_scan else "drawn invisibly"
    if min(top - bottom, right - left) < _MIN_POINTS and right - left + top - bottom > 2 * _MIN_POINTS:
        return "too small to read"
    red, green, blue, alpha = (ctypes.c_uint() for _ in range(4))
    if not pdfium_c.FPDFPageObj_GetFillColor(item.raw, red, green, blue, alpha):
        return ""
    if alpha.value < _SAME_COLOUR:
        return "transparent"
    return "white" if min(red.value, green.value, blue.value) >= _WHITE else ""


def _has_contrast(page: pdfium.PdfPage, picture: Any, item: pdfium.PdfObject) -> bool:
    """Whether anything can be seen where the text stands: white letters on a dark bar can be read."""
    left, bottom, right, top = item.get_bounds()
    x0, _, _, y1 = page.get_bbox()
    box = picture.crop((int(left - x0), int(y1 - top), int(right - x0) + 1, int(y1 - bottom) + 1))
    low, high = box.getextrema()
    return bool(high - low > _SAME_COLOUR)


def _image_share(page: pdfium.PdfPage, objects: Sequence[pdfium.PdfObject]) -> float:
    width, height = page.get_size()
    area = 0.0
    for item in objects:
        if item.type == pdfium_c.FPDF_PAGEOBJ_IMAGE:
            left, bottom, right, top = item.get_bounds()
            area += max(right - left, 0) * max(top - bottom, 0)
    return area / max(width * height, 1)


def _text_of(item: pdfium.PdfObject, textpage: pdfium.PdfTextPage) -> str:
    size = pdfium_c.FPDFTextObj_GetText(item.raw, textpage.raw, None, 0)
    buffer = ctypes.create_string_buffer(size)
    pdfium_c.FPDFTextObj_GetText(item.raw, textpage.raw, ctypes.cast(buffer, ctypes.POINTER(pdfium_c.FPDF_WCHAR)), size)
    return buffer.raw.decode("utf-16-le", "replace").rstrip("\0")


def _merged(stretches: list[Stretch]) -> Iterator[Stretch]:
    """Neighbours of one kind as one stretch: a line is often drawn word by word."""
    merged: list[Stretch] = []
    for stretch in stretches:
        if merged and merged[-1].why == stretch.why:
            merged[-1] = Stretch(stretch.page, stretch.why, f"{merged[-1].text} {stretch.text}")
        else:
            merged.append(stretch)
    yield from merged


# --- DOCX -------------------------------------------------------------------------------------------------------


def find_in_docx(data: bytes) -> Iterator[Stretch]:
    """Runs that Word hides, writes in white or in a size that nobody reads, whatever page they come to stand on."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parser = etree.XMLParser(resolve_entities=False, no_network=True)
            root = etree.fromstring(archive.read("word/document.xml"), parser)
    except (zipfile.BadZipFile, KeyError, etree.XMLSyntaxError):
        return
    for paragraph in root.iter(f"{_W}p"):
        stretches = [Stretch(0, why, _run_text(run)) for run in paragraph.iter(f"{_W}r") if (why := _why_hidden(run))]
        yield from _merged(stretches)


def _why_hidden(run: Any) -> str:
    properties = run.find(f"{_W}rPr")
    if properties is None:
        return ""
    if properties.find(f"{_W}vanish") is not None:
        return "hidden by the word processor"
    size, colour = (properties.find(f"{_W}{name}") for name in ("sz", "color"))
    if size is not None and size.get(f"{_W}val", "").isdigit() and int(size.get(f"{_W}val", "")) < 2 * _MIN_POINTS:
        return "too small to read"
    is_white = colour is not None and colour.get(f"{_W}val", "").upper() in ("FFFFFF", "FEFEFE")
    has_shade = properties.find(f"{_W}shd") is not None or properties.find(f"{_W}highlight") is not None
    return "the colour of the paper" if is_white and not has_shade else ""


def _run_text(run: Any) -> str:
    return "".join(text.text or "" for text in run.iter(f"{_W}t"))
