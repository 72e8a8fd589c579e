"""Bytes of a file -> pages of text, all at once: what the command line and tests call. The library takes pages as they
come (retrieval.documents). Either way the file is read in a process of its own (retrieval.reading.process).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

from contracts import Page, ReadMethod
from retrieval.errors import DocumentError
from retrieval.reading.archive import MAX_DEPTH
from retrieval.reading.blocks import Table
from retrieval.reading.formats import FORMATS, sniff
from retrieval.reading.process import Opened, Readers

MAX_PAGES = 5_000
PageCallback = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """What was read of a file. parser names the program and its version; tables are rows of cells, in order."""

    pages: tuple[Page, ...]
    media_type: str
    parser: str
    warnings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


def parse(
    data: bytes,
    name: str,
    *,
    max_pages: int = MAX_PAGES,
    on_page: PageCallback | None = None,
    recognise: bool = True,
    readers: Readers | None = None,
) -> ParsedDocument:
    """Reads a file into pages, the files inside it behind one another. `on_page(done, total)` is called as pages are
    read. Without `recognise`, pages that are pictures stay PENDING.

    Raises DocumentError, one sentence for the clinician, for whatever cannot be read.
    """
    with closing(Readers(keeps_spare=False)) if readers is None else nullcontext(readers) as own:
        return _parse(own, data, name, max_pages, on_page or (lambda done, total: None), recognise, 0)


def merge_recognised(before: Page, after: Page) -> Page:
    """A page after its picture was looked at; the few words of its own that it had stay if no others were found."""
    return replace(after, text=before.text) if after.method is ReadMethod.EMPTY else after


def warnings_of(pages: Sequence[Page]) -> list[str]:
    """Sentences on pages that could not be read."""
    empty = [page.number for page in pages if page.method is ReadMethod.EMPTY]
    if not empty:
        return []
    listed = ", ".join(map(str, empty[:10])) + (", …" if len(empty) > 10 else "")
    return [f"{len(empty)} of {len(pages)} pages could not be read: page {listed}."]


def _parse(
    readers: Readers, data: bytes, name: str, max_pages: int, on_page: PageCallback, recognise: bool, depth: int
) -> ParsedDocument:
    media_type = sniff(data, name)
    known = FORMATS[media_type]
    parts: list[ParsedDocument] = []
    if known.read or known.count_pages:
        parts.append(_read(readers, data, media_type, max_pages, on_page, recognise))
    warnings: list[str] = []
    if known.unpack:
        for inner_name, inner in readers.unpack(data, media_type):
            try:
                if depth >= MAX_DEPTH:
                    raise DocumentError("It lies too deep inside other archives; unpack them first.")
                part = _parse(readers, inner, inner_name, max_pages, on_page, recognise, depth + 1)
            except DocumentError as error:
                warnings.append(f"{inner_name}: {error}")
            else:
                parts.append(part)
    if not parts:
        raise DocumentError(f"Nothing in this {known.label} could be read; the first: {warnings[0]}")
    return _joined(parts, media_type, warnings)


def _read(
    readers: Readers, data: bytes, media_type: str, max_pages: int, on_page: PageCallback, recognise: bool
) -> ParsedDocument:
    opened = Opened(0, "")
    pages: dict[int, Page] = {}
    tables: list[Table] = []
    for event in readers.read(data, media_type, max_pages):
        if isinstance(event, Opened):
            opened = event
            continue
        pages |= {page.number: page for page in event.pages}
        tables += event.tables
        on_page(len(pages), opened.num_pages)
    pending = [number for number, page in pages.items() if page.method is ReadMethod.PENDING]
    if recognise and pending:
        for page in readers.recognise(data, media_type, pending):
            pages[page.number] = merge_recognised(pages[page.number], page)
    ordered = tuple(pages[number] for number in sorted(pages))
    return ParsedDocument(
        ordered, media_type, opened.parser, (*opened.warnings, *warnings_of(ordered)), tuple(tables) or _tables(ordered)
    )


def _tables(pages: Sequence[Page]) -> tuple[Table, ...]:
    """The tables in the text of pages: stretches of lines with cells apart by " | "."""
    return tuple(table for page in pages for table in _tables_of(page.text))


def _tables_of(text: str) -> Iterator[Table]:
    for block in text.split("\n\n"):
        rows = tuple(tuple(cell.strip() for cell in line.split(" | ")) for line in block.split("\n") if " | " in line)
        if len(rows) > 1:
            yield rows


def _joined(parts: Sequence[ParsedDocument], media_type: str, warnings: Sequence[str]) -> ParsedDocument:
    pages = [page for part in parts for page in part.pages]
    return ParsedDocument(
        tuple(replace(page, number=number) for number, page in enumerate(pages, start=1)),
        media_type,
        "; ".join(dict.fromkeys(part.parser for part in parts)),
        (*(warning for part in parts for warning in part.warnings), *warnings),
        tuple(table for part in parts for table in part.tables),
    )
