"""OpenDocument texts (ODT) -> blocks in body order: headings, paragraphs, lists, tables; the page's header and footer.

OASIS, "Open Document Format for Office Applications 1.3, Part 3", 2021. What was deleted under tracked changes and what
was commented is left out. Read by defusedxml: a document type, an entity or a reference outside is never followed.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from retrieval.errors import DocumentError
from retrieval.reading.blocks import Blocks
from retrieval.reading.packed import check_unpacked

_OASIS = "{urn:oasis:names:tc:opendocument:xmlns:"
_OFFICE, _TEXT, _TABLE, _STYLE = (f"{_OASIS}{name}:1.0}}" for name in ("office", "text", "table", "style"))
_DAMAGED = "This OpenDocument text is damaged; open it where it was made and save it again."
_MAX_REPEATED = 200  # equal cells in a row, or equal rows: more only fill a sheet
_LEFT_OUT = {f"{_OFFICE}annotation", f"{_TEXT}tracked-changes", f"{_TEXT}note-citation", f"{_TEXT}ruby-text"}
_WHITE = {f"{_TEXT}s": " ", f"{_TEXT}tab": "\t", f"{_TEXT}line-break": "\n"}


def read_odt(data: bytes) -> Blocks:
    """Raises DocumentError for a file that is damaged, protected, or refers outside."""
    check_unpacked(data, "OpenDocument text")
    if b"encryption-data" in _read(data, "META-INF/manifest.xml"):
        raise DocumentError("This OpenDocument text is protected by a password; save it without one.")
    content, styles = _parse(_read(data, "content.xml")), _parse(_read(data, "styles.xml") or b"<none/>")
    body = content.find(f"{_OFFICE}body/{_OFFICE}text")
    if body is None:
        raise DocumentError(_DAMAGED)
    blocks = Blocks()
    blocks.add(_around(styles, "header"))
    _add(body, blocks)
    blocks.add(_around(styles, "footer"))
    if any(style.get(f"{_TEXT}display") == "none" for root in (content, styles) for style in root.iter()):
        blocks.warnings.append("Some of this file’s text is hidden in the word processor; it was read all the same.")
    return blocks


def _read(data: bytes, part: str) -> bytes:
    """A part of the archive; b"" if it is not there."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.read(part) if part in archive.namelist() else b""
    except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError, OSError) as error:
        raise DocumentError(_DAMAGED) from error


def _parse(part: bytes) -> Any:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        return fromstring(part, forbid_dtd=True)
    except DefusedXmlException as error:
        raise DocumentError(
            "This OpenDocument text defines entities or refers to other files; save it anew."
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise DocumentError(_DAMAGED) from error


def _add(parent: Any, blocks: Blocks) -> None:
    for child in parent:
        if child.tag == f"{_TEXT}h":
            blocks.add(f"# {' '.join(_text(child).split())}" if _text(child) else "")
        elif child.tag == f"{_TEXT}p":
            blocks.add(_text(child))
        elif child.tag == f"{_TEXT}list":
            blocks.add("\n".join(f"- {item}" for item in _items(child)))
        elif child.tag == f"{_TABLE}table":
            blocks.add_table(list(_rows(child)))
        elif child.tag not in _LEFT_OUT:  # a section, an index, a group of frames
            _add(child, blocks)


def _items(items: Any) -> Iterator[str]:
    """Of a list and the lists in it."""
    for item in items:
        for child in item:
            if child.tag == f"{_TEXT}list":
                yield from _items(child)
            elif text := " ".join(_text(child).split()):
                yield text


def _rows(table: Any) -> Iterator[list[str]]:
    for child in table:
        if child.tag == f"{_TABLE}table-row":
            row = [cell for element in child for cell in [_text(element)] * _repeated(element, "columns")]
            yield from [row] * (_repeated(child, "rows") if any(row) else 1)
        elif child.tag.startswith(_TABLE):  # header rows, groups of rows
            yield from _rows(child)


def _repeated(element: Any, what: str) -> int:
    number = element.get(f"{_TABLE}number-{what}-repeated", "1")
    return min(max(int(number), 1), _MAX_REPEATED) if number.isdecimal() else 1


def _text(element: Any) -> str:
    """The text of a paragraph or cell, notes, links and text boxes included; its paragraphs as lines."""
    return "\n".join(line.strip() for line in "".join(_pieces(element)).splitlines() if line.strip())


def _pieces(element: Any) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if child.tag in _WHITE:
            yield _WHITE[child.tag]
        elif child.tag not in _LEFT_OUT:
            is_paragraph = child.tag in (f"{_TEXT}p", f"{_TEXT}h")
            yield "\n" if is_paragraph else ""
            yield from _pieces(child)
            yield "\n" if is_paragraph else ""
        yield child.tail or ""


def _around(styles: Any, part: str) -> str:
    """The header or footer of the pages, each wording once."""
    return "\n".join(dict.fromkeys(filter(None, map(_text, styles.iter(f"{_STYLE}{part}")))))
