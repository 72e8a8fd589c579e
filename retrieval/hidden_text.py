"""What a file's layout keeps from a reader but not from a parser: white on white, tiny, off the page, invisible.

Each stretch becomes a finding that keeps it from the model and shows it to the clinician. An invisible layer over a
scan is its OCR and no secret; what stands inside a form that a page draws is not looked at. Knows nothing of rules:
what the words say is for the safety layer.
"""

from __future__ import annotations

import ctypes
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from lxml import etree

from contracts import Finding, Page, Verdict
from retrieval.parsers import DOCX, PDF
from retrieval.pdf import PDFIUM_LOCK

RULE = "document.hidden-text"
SOURCE = "OWASP Top 10 for LLM Applications 2025, LLM01 Prompt Injection"
MIN_LETTERS = 8  # a page number in white is no message
_MIN_POINTS = 2.5  # height of a line of text below which nobody reads it
_WHITE = 240  # of 255, in every channel
_SAME_COLOUR = 24  # of 255: two colours that differ less cannot be told apart
_SCAN_SHARE = 0.5  # of the page under images: then an invisible layer is the scan's OCR
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_METADATA = ("Title", "Subject", "Keywords", "Author")


@dataclass(frozen=True, slots=True)
class _Hidden:
    page: int
    why: str
    text: str


def find_hidden(data: bytes, media_type: str, pages: Sequence[Page]) -> dict[int, list[Finding]]:
    """Page number -> findings on text of that page which a reader cannot see; spans are in the page's text.
    What cannot be looked at gives none: it cannot be parsed either."""
    stretches = list({PDF: _hidden_in_pdf, DOCX: _hidden_in_docx}.get(media_type, lambda data: iter(()))(data))
    found: dict[int, list[Finding]] = {}
    for stretch in stretches:
        if sum(map(str.isalpha, stretch.text)) < MIN_LETTERS:
            continue
        for page in pages:
            span = _locate(stretch.text, page.text) if stretch.page in (0, page.number) else None
            if span is not None:
                found.setdefault(page.number, []).append(_finding(stretch, page, span))
    return found


def read_metadata(data: bytes, media_type: str) -> str:
    """What a PDF says of itself: title, subject, keywords and author. It is never part of the text, but is checked."""
    if media_type != PDF:
        return ""
    with PDFIUM_LOCK:
        try:
            document = pdfium.PdfDocument(data)
        except pdfium.PdfiumError:
            return ""
        words = document.get_metadata_dict(skip_empty=True)
        document.close()
    return "\n".join(words[key] for key in _METADATA if key in words)


def _finding(stretch: _Hidden, page: Page, span: tuple[int, int]) -> Finding:
    message = (
        f"Text that a reader cannot see ({stretch.why}). It is kept from the model; look at where the file comes from."
    )
    return Finding(RULE, Verdict.HOLD, *span, message, SOURCE, page.text[slice(*span)])


def _locate(stretch: str, text: str) -> tuple[int, int] | None:
    """Where a stretch stands in a text, white space aside."""
    wanted = "".join(stretch.split())
    places = [place for place, character in enumerate(text) if not character.isspace()]
    start = "".join(text[place] for place in places).find(wanted)
    return None if start < 0 else (places[start], places[start + len(wanted) - 1] + 1)


# --- PDF --------------------------------------------------------------------------------------------------------


def _hidden_in_pdf(data: bytes) -> Iterator[_Hidden]:
    with PDFIUM_LOCK:
        try:
            document = pdfium.PdfDocument(data)
        except pdfium.PdfiumError:
            return
        try:
            for index in range(len(document)):
                yield from _merged(list(_hidden_on_page(document[index], index + 1)))
        except pdfium.PdfiumError:
            return  # a damaged page has no text either
        finally:
            document.close()


def _hidden_on_page(page: pdfium.PdfPage, number: int) -> Iterator[_Hidden]:
    objects = list(page.get_objects(max_depth=1))  # bounds inside a form are in its own coordinates
    texts = [item for item in objects if item.type == pdfium_c.FPDF_PAGEOBJ_TEXT]
    is_scan = _image_share(page, objects) > _SCAN_SHARE
    textpage = page.get_textpage()
    picture = None
    for item in texts:
        why = _why_unseen(page, item, is_scan)
        if why == "white":
            picture = picture or page.render(scale=1, may_draw_forms=False).to_pil().convert("L")
            why = "" if _has_contrast(page, picture, item) else "the colour of the paper"
        if why:
            yield _Hidden(number, why, _text_of(item, textpage))
    textpage.close()


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


def _merged(stretches: list[_Hidden]) -> Iterator[_Hidden]:
    """Neighbours of one kind as one stretch: a line is often drawn word by word."""
    merged: list[_Hidden] = []
    for stretch in stretches:
        if merged and merged[-1].why == stretch.why:
            merged[-1] = _Hidden(stretch.page, stretch.why, f"{merged[-1].text} {stretch.text}")
        else:
            merged.append(stretch)
    yield from merged


# --- DOCX -------------------------------------------------------------------------------------------------------


def _hidden_in_docx(data: bytes) -> Iterator[_Hidden]:
    """Runs that Word hides, writes in white or in a size that nobody reads. Pages are not known: 0 is any."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parser = etree.XMLParser(resolve_entities=False, no_network=True)
            root = etree.fromstring(archive.read("word/document.xml"), parser)
    except (zipfile.BadZipFile, KeyError, etree.XMLSyntaxError):
        return
    for paragraph in root.iter(f"{_W}p"):
        stretches = [_Hidden(0, why, _run_text(run)) for run in paragraph.iter(f"{_W}r") if (why := _why_hidden(run))]
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
