"""What a reading process can be asked for: each job takes a request and a file and yields frames."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from PIL import Image

from contracts import LineBox, Page, ReadMethod
from retrieval.errors import DocumentError
from retrieval.hidden import Stretch
from retrieval.highlight import line_shapes, paint
from retrieval.reading import hidden_text, images, ocr, pdf
from retrieval.reading.blocks import clean, paginate
from retrieval.reading.formats import DOCX, FORMATS, PDF, Format
from retrieval.reading.wire import Frame, page_to_json

MAX_RENDERED_SIDE = 2_200
_RENDER_DPI = 110

Request = dict[str, Any]


def _read(request: Request, data: bytes) -> Iterator[Frame]:
    """{media_type, first, batch, max_pages} -> opened, then pages in batches from page `first` on."""
    known = FORMATS[request["media_type"]]
    if known.count_pages is None:
        yield from _read_blocks(known, request, data)
        return
    total = known.count_pages(data, request["max_pages"])
    is_pdf = request["media_type"] == PDF
    metadata = hidden_text.read_metadata(data) if is_pdf else ""
    yield {"event": "opened", "num_pages": total, "parser": known.parser, "metadata": metadata}, b""
    if is_pdf:
        pages = pdf.read_pages(data, request["first"], total, request["batch"])
    else:
        pages = (Page(number, "", ReadMethod.PENDING, 0.0) for number in range(request["first"], total + 1))
    while batch := list(islice(pages, request["batch"])):
        hidden = hidden_text.find_in_pdf(data, [page.number for page in batch]) if is_pdf else ()
        yield {"event": "pages", "pages": [page_to_json(page) for page in batch], "hidden": _as_json(hidden)}, b""


def _read_blocks(known: Format, request: Request, data: bytes) -> Iterator[Frame]:
    assert known.read is not None
    blocks = known.read(data)
    texts = paginate([clean(text) for text in blocks.texts])
    if not texts:
        raise DocumentError(f"This {known.label} holds no text; check that it is the right file.")
    if len(texts) > (max_pages := request["max_pages"]):
        raise DocumentError(f"This file is as long as {len(texts):,} pages; the limit is {max_pages:,}; split it.")
    yield {"event": "opened", "num_pages": len(texts), "parser": known.parser, "warnings": blocks.warnings}, b""
    pages = [page_to_json(Page(number, text)) for number, text in enumerate(texts, start=1)]
    hidden = hidden_text.find_in_docx(data) if request["media_type"] == DOCX else ()
    yield {"event": "pages", "pages": pages, "tables": blocks.tables, "hidden": _as_json(hidden)}, b""


def _as_json(stretches: Iterable[Stretch]) -> list[dict[str, Any]]:
    return [asdict(stretch) for stretch in stretches]


def _recognise(request: Request, data: bytes) -> Iterator[Frame]:
    """{media_type, pages} -> each page as it was recognised."""
    for number in request["pages"]:
        yield {"event": "pages", "pages": [page_to_json(ocr.recognise(_picture(request, data, number), number))]}, b""


def _picture(request: Request, data: bytes, number: int) -> Image.Image:
    if request["media_type"] == PDF:
        return pdf.draw_page(data, number, ocr.DPI)
    return images.load_frame(data, number)


def _render(request: Request, data: bytes) -> Iterator[Frame]:
    """{media_type, page, text, highlights, lines, rotation} -> a PNG as payload."""
    highlights = [(start, end) for start, end in request["highlights"]]
    lines = [LineBox(**line) for line in request["lines"]]
    if request["media_type"] == PDF and not lines:
        yield {"event": "drawn"}, pdf.render_page(data, request["page"], highlights, _RENDER_DPI)
        return
    if request["media_type"] == PDF:
        image = pdf.draw_page(data, request["page"], _RENDER_DPI)
    else:
        image = images.load_frame(data, request["page"])
        image.thumbnail((MAX_RENDERED_SIDE, MAX_RENDERED_SIDE))
    image = image.rotate(-request["rotation"], expand=True)
    paint(image, line_shapes(request["text"], lines, highlights, image.size))
    png = io.BytesIO()
    image.save(png, "PNG")
    yield {"event": "drawn"}, png.getvalue()


def _unpack(request: Request, data: bytes) -> Iterator[Frame]:
    """{media_type} -> a frame a file, its bytes as payload."""
    unpack = FORMATS[request["media_type"]].unpack
    assert unpack is not None
    for name, content in unpack(data):
        yield {"event": "file", "name": name}, content


JOBS: dict[str, Callable[[Request, bytes], Iterator[Frame]]] = {
    "read": _read,
    "recognise": _recognise,
    "render": _render,
    "unpack": _unpack,
}
