"""Bytes of an uploaded file -> pages of text. One function a format, one table of formats.

A file is what its bytes say, not what its name says; a file whose name claims another type is refused. Formats without
pages of their own are cut into pages of about 3,000 characters, between sections and paragraphs. Knows nothing of
passages or of who uploaded.
"""

from __future__ import annotations

import codecs
import importlib.metadata
import io
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from contracts import Page, ReadMethod
from retrieval import pdf
from retrieval.errors import DocumentError
from retrieval.fhir import read_fhir
from retrieval.headings import is_heading
from retrieval.sentences import split_sentences

__all__ = ["MAX_PAGES", "SUPPORTED", "DocumentError", "ParsedDocument", "check_name", "parse", "sniff"]

MAX_PAGES = 5_000
PAGE_CHARS = 3_000
MAX_NAME_CHARS = 255
_MAX_UNPACKED_BYTES = 300_000_000  # a DOCX that unpacks to more is an attack or a mistake

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
TEXT = "text/plain"
MARKDOWN = "text/markdown"
HTML = "text/html"
FHIR = "application/fhir+json"

Table = tuple[tuple[str, ...], ...]
PageCallback = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """What was read of a file. parser names the program and its version; tables are rows of cells, in order."""

    pages: tuple[Page, ...]
    media_type: str
    parser: str
    warnings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(slots=True)
class _Blocks:
    """Paragraphs, headings and tables in reading order, each a text of one or more lines."""

    texts: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        if text.strip():
            self.texts.append(text.strip())

    def add_table(self, rows: Sequence[Sequence[str]]) -> None:
        table = tuple(tuple(" ".join(cell.split()) for cell in row) for row in rows)
        table = tuple(row for row in table if any(row))
        if table:
            self.tables.append(table)
            self.texts.append("\n".join(" | ".join(row) for row in table))


@dataclass(frozen=True, slots=True)
class _Format:
    label: str
    extensions: tuple[str, ...]
    read: Callable[[bytes], _Blocks] | None  # None: has pages of its own
    package: str  # whose version is recorded


def parse(data: bytes, name: str, *, max_pages: int = MAX_PAGES, on_page: PageCallback | None = None) -> ParsedDocument:
    """Reads a file into pages. `on_page(done, total)` is called as pages are read.

    Raises DocumentError, one sentence for the clinician, for whatever cannot be read.
    """
    media_type = sniff(data, name)
    known = _FORMATS[media_type]
    if known.read is None:
        pages: list[Page] = pdf.read_pages(data, max_pages, on_page)
        return ParsedDocument(tuple(pages), media_type, pdf.PARSER, tuple(_unread(pages)))
    try:
        blocks = known.read(data)
    except DocumentError:
        raise
    except Exception as error:  # the edge to foreign parsers: any bytes come in, only ours goes out
        raise DocumentError(
            f"This {known.label} is damaged and cannot be read; save it again and upload it."
        ) from error
    texts = paginate([_clean(text) for text in blocks.texts])
    if not texts:
        raise DocumentError(f"This {known.label} holds no text; check that it is the right file.")
    if len(texts) > max_pages:
        raise DocumentError(f"This file is as long as {len(texts):,} pages; the limit is {max_pages:,}; split it.")
    if on_page:
        on_page(len(texts), len(texts))
    parser = f"{known.package} {importlib.metadata.version(known.package)}" if known.package else "bedside"
    pages = [Page(number, text) for number, text in enumerate(texts, start=1)]
    return ParsedDocument(tuple(pages), media_type, parser, tuple(blocks.warnings), tuple(blocks.tables))


def check_name(name: str) -> None:
    """Raises DocumentError for a file name that could lead out of its folder or cannot be shown."""
    if not name.strip() or name.strip() in (".", ".."):
        raise DocumentError("The file has no name; give it one and upload it again.")
    if "/" in name or "\\" in name:
        raise DocumentError("The file name holds a path separator (/ or \\); rename the file and upload it again.")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise DocumentError("The file name holds control characters; rename the file and upload it again.")
    if len(name) > MAX_NAME_CHARS:
        raise DocumentError(f"The file name is longer than {MAX_NAME_CHARS} characters; shorten it.")


# --- which format -------------------------------------------------------------------------------------------------

_FOREIGN = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\xd0\xcf\x11\xe0", "an old Office file (.doc, .xls)"),
    (b"{\\rtf", "an RTF file"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"Rar!", "a RAR archive"),
)


def sniff(data: bytes, name: str) -> str:
    """The media type of a file by its bytes, then its name. Raises DocumentError if the two disagree."""
    if not data:
        raise DocumentError("This file is empty (0 bytes); export or copy it again.")
    content = _content(data)
    extension = PurePath(name.lower()).suffix
    claimed = next((kind for kind, known in _FORMATS.items() if extension in known.extensions), None)
    if content not in _FORMATS:
        if claimed:
            raise DocumentError(
                f"The name ends in {extension}, but the file holds {content}; upload the original file."
            )
        raise DocumentError(f"The file holds {content}, which cannot be read; supported are {SUPPORTED}.")
    if claimed is None and extension:
        raise DocumentError(f"Files ending in {extension} are not supported; supported are {SUPPORTED}.")
    if claimed is None or claimed == content:
        return content
    # Any text may stand in a text file; HTML and JSON are told apart by their names as well.
    if content in (TEXT, HTML, FHIR) and claimed in (TEXT, MARKDOWN):
        return claimed
    if content == TEXT and claimed in (HTML, FHIR):
        return claimed
    label = _FORMATS[content].label
    raise DocumentError(
        f"The name ends in {extension}, but the file is a {label}; correct its name and upload it again."
    )


def _content(data: bytes) -> str:
    """A supported media type, or in words what else the bytes are."""
    if b"%PDF-" in data[:1024]:
        return PDF
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip_content(data)
    for magic, label in _FOREIGN:
        if data.startswith(magic):
            return label
    text = _decoded(data[:200_000])
    if text is None:
        return "binary data of an unknown kind"
    head = text.lstrip("\ufeff \t\r\n")[:2000].lower()
    if re.match(r"<!doctype html|<html|<(?:!--.*?-->\s*)+<html", head, re.DOTALL):
        return HTML
    return FHIR if head.startswith(("{", "[")) else TEXT


def _zip_content(data: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except zipfile.BadZipFile:
        return "a damaged Word file or ZIP archive"
    if "word/document.xml" in names:
        return DOCX
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook"
    return "a ZIP archive"


# --- text, Markdown -----------------------------------------------------------------------------------------------


def _read_text(data: bytes) -> _Blocks:
    text = _decoded(data)
    if text is None:
        raise DocumentError("This text file holds binary data or an unknown encoding; save it as UTF-8.")
    blocks = _Blocks()
    for block in re.split(r"\n\s*\n", _unwrap(text)):
        blocks.add(block)
    return blocks


def _decoded(data: bytes) -> str | None:
    """Text in UTF-8, UTF-16, GB18030 or Latin-1, with \\n line ends; None if it is no text."""
    text = _decode(data)
    if text is None:
        return None
    odd = sum((c < " " and c not in "\t\n\r\f\x0b") or c in "\x7f\ufffd" for c in text)
    if odd > 0.01 * len(text):
        return None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")


def _decode(data: bytes) -> str | None:
    encoding = _encoding(data)
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data)  # incremental: a sample may end inside a character
    except UnicodeDecodeError:
        return None


def _encoding(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = data[:4000].count(0)
    if zeros > 0.2 * len(data[:4000]):  # UTF-16 without a mark: every other byte of ASCII is 0
        return "utf-16-le" if data[1:4000:2].count(0) > data[0:4000:2].count(0) else "utf-16-be"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        pass
    else:
        return "utf-8"
    # In GB18030 bytes above 0x80 come in pairs; in Latin-1 an accented letter mostly stands alone between ASCII ones.
    runs = re.findall(rb"[\x81-\xfe]+", data)
    paired = sum(len(run) for run in runs if len(run) % 2 == 0)
    return "gb18030" if paired > 0.6 * sum(map(len, runs)) else "cp1252" if _is_cp1252(data) else "latin-1"


def _is_cp1252(data: bytes) -> bool:
    return not re.search(rb"[\x81\x8d\x8f\x90\x9d]", data)


def _unwrap(text: str) -> str:
    """Joins lines that an editor wrapped: those after which the next word would have gone over the width."""
    lines = [line.rstrip() for line in text.split("\n")]
    width = max((len(line) for line in lines), default=0)
    if not 50 <= width <= 130 or sum(len(line) > 0.85 * width for line in lines) < 3:
        return text
    joined: list[str] = []
    previous = ""
    for line in lines:
        word = line.split(maxsplit=1)[0] if line.strip() else ""
        is_wrapped = previous and word and line[0].isalnum() and len(previous) + 1 + len(word) > width
        if is_wrapped and not _opens_item(line) and not is_heading(previous) and "|" not in line:
            joined[-1] += " " + line
        else:
            joined.append(line)
        previous = line
    return "\n".join(joined)


def _opens_item(line: str) -> bool:
    return re.match(r"\d{1,3}[.)]\s", line) is not None


# --- Word ---------------------------------------------------------------------------------------------------------

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"


def _read_docx(data: bytes) -> _Blocks:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
    except zipfile.BadZipFile as error:
        raise DocumentError("This Word file is damaged; open it in Word and save it again.") from error
    if unpacked > _MAX_UNPACKED_BYTES:
        raise DocumentError("This Word file unpacks to more than 300 MB; save it without its images.")
    import docx

    document = docx.Document(io.BytesIO(data))
    blocks = _Blocks()
    around = {
        part: list(dict.fromkeys(_docx_text(p._p) for s in document.sections for p in getattr(s, part).paragraphs))
        for part in ("header", "footer")
    }
    blocks.add("\n".join(filter(None, around["header"])))
    _add_docx(document.element.body, blocks)
    blocks.add("\n".join(filter(None, around["footer"])))
    return blocks


def _add_docx(parent: Any, blocks: _Blocks) -> None:
    """Adds the paragraphs and tables below an XML element in body order, content controls and insertions included."""
    for child in parent.iterchildren():
        if child.tag == _W + "p":
            text = _docx_text(child)
            style = child.find(f"{_W}pPr/{_W}pStyle")
            level = (
                re.match(r"(?:heading|berschrift|标题)\s*([1-6])|title", style.get(_W + "val"), re.I)
                if style is not None
                else None
            )
            blocks.add(f"# {text}" if level and text else text)
        elif child.tag == _W + "tbl":
            rows = [[_docx_text(cell) for cell in row.iter(_W + "tc")] for row in child.iter(_W + "tr")]
            blocks.add_table(rows)
        elif child.tag in (_W + "sdt", _W + "sdtContent", _W + "customXml", _W + "ins"):
            _add_docx(child, blocks)


def _docx_text(element: Any) -> str:
    """The text of a paragraph or cell, insertions, links and text boxes included; deletions are no longer text."""
    parts: list[str] = []
    for node in element.iter():
        if node.tag == _W + "t" and not any(parent.tag == _FALLBACK for parent in node.iterancestors()):
            parts.append(node.text or "")
        elif node.tag == _W + "tab":
            parts.append("\t")
        elif node.tag in (_W + "br", _W + "cr", _W + "p"):
            parts.append("\n")
    return "\n".join(line.strip() for line in "".join(parts).splitlines() if line.strip())


# --- HTML ---------------------------------------------------------------------------------------------------------

_HTML_DROPPED = (
    "script",
    "style",
    "noscript",
    "template",
    "nav",
    "head",
    "iframe",
    "object",
    "svg",
    "button",
    "select",
)
_HTML_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_HTML_BLOCK_NAMES = (
    "address article aside blockquote body center dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 "
    "h4 h5 h6 header hr html li main ol p pre section summary table ul"
)
_HTML_BLOCKS = frozenset(_HTML_BLOCK_NAMES.split())


def _read_html(data: bytes) -> _Blocks:
    import bs4

    text = _decoded(data)
    soup = bs4.BeautifulSoup(text if text is not None else data, "html.parser")
    for tag in soup.find_all(_HTML_DROPPED):
        tag.decompose()
    for tag in soup.find_all(_is_hidden):
        tag.decompose()
    for comment in soup.find_all(string=lambda s: isinstance(s, bs4.Comment | bs4.Declaration | bs4.Doctype)):
        comment.extract()
    blocks = _Blocks()
    _add_html(soup, blocks)
    return blocks


def _is_hidden(tag: Any) -> bool:
    return tag.has_attr("hidden") or _HTML_HIDDEN.search(str(tag.get("style", ""))) is not None


def _add_html(parent: Any, blocks: _Blocks) -> None:
    inline: list[str] = []

    def flush() -> None:
        blocks.add("\n".join(" ".join(line.split()) for line in "".join(inline).split("\v")))
        inline.clear()

    for child in parent.children:
        if child.name == "table":
            flush()
            _add_html_table(child, blocks)
        elif child.name and (child.name in _HTML_BLOCKS or child.find(_HTML_BLOCKS)):
            flush()
            if re.fullmatch("h[1-6]", child.name):
                blocks.add("# " + " ".join(child.get_text().split()))
            elif child.name in ("ul", "ol") and not child.find("table"):
                items = (" ".join(item.get_text(" ").split()) for item in child.find_all("li"))
                blocks.add("\n".join(f"- {item}" for item in items if item))
            else:
                _add_html(child, blocks)
        else:
            inline.append("\v" if child.name == "br" else child.get_text())
    flush()


def _add_html_table(table: Any, blocks: _Blocks) -> None:
    if table.find("table"):  # a table for layout: what counts are the tables inside
        _add_html_cells(table, blocks)
        return
    if table.caption:
        blocks.add(" ".join(table.caption.get_text(" ").split()))
    blocks.add_table([[cell.get_text(" ") for cell in row.find_all(("td", "th"))] for row in table.find_all("tr")])


def _add_html_cells(table: Any, blocks: _Blocks) -> None:
    for cell in table.find_all(("td", "th", "caption")):
        if cell.find_parent("table") is table:
            _add_html(cell, blocks)


# --- FHIR ---------------------------------------------------------------------------------------------------------


def _read_fhir(data: bytes) -> _Blocks:
    text = _decoded(data)
    return _Blocks(texts=read_fhir(text.encode() if text is not None else data))


_FORMATS = {
    PDF: _Format("PDF", (".pdf",), None, "pypdfium2"),
    DOCX: _Format("Word file (DOCX)", (".docx",), _read_docx, "python-docx"),
    TEXT: _Format("text file", (".txt", ".text"), _read_text, ""),
    MARKDOWN: _Format("Markdown file", (".md", ".markdown"), _read_text, ""),
    HTML: _Format("HTML file", (".html", ".htm"), _read_html, "beautifulsoup4"),
    FHIR: _Format("JSON file", (".json",), _read_fhir, ""),
}
SUPPORTED = "PDF, DOCX, TXT, MD, HTML and FHIR JSON"
EXTENSIONS = tuple(extension for known in _FORMATS.values() for extension in known.extensions)


# --- pages --------------------------------------------------------------------------------------------------------


def paginate(blocks: Sequence[str], page_chars: int = PAGE_CHARS) -> list[str]:
    """Joins blocks into pages of at most `page_chars` characters; a heading opens a page that is half full."""
    pages: list[str] = []
    current = ""
    for piece in (piece for block in blocks for piece in _pieces(block, page_chars)):
        starts_section = is_heading(piece.split("\n", 1)[0]) and len(current) > page_chars / 2
        if current and (starts_section or len(current) + 2 + len(piece) > page_chars):
            pages.append(current)
            current = ""
        current = f"{current}\n\n{piece}" if current else piece
    return [*pages, current] if current else pages


def _pieces(block: str, limit: int) -> Iterator[str]:
    """A block in parts of at most `limit` characters, cut after lines, then sentences, then anywhere."""
    if len(block) <= limit:
        yield block
        return
    ends = [match.end() for match in re.finditer("\n", block)] or [end for _, end in split_sentences(block)]
    cut = max((end for end in ends if end <= limit), default=limit)
    yield block[:cut].strip()
    yield from _pieces(block[cut:].strip(), limit)


def _clean(text: str) -> str:
    """Without control and zero-width characters that would break drawing or hide words."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f\u200b\u2060\ufeff]", "", text).replace("\u00a0", " ")


def _unread(pages: Sequence[Page]) -> Iterator[str]:
    empty = [page.number for page in pages if page.method is ReadMethod.EMPTY]
    if empty:
        listed = ", ".join(map(str, empty[:10])) + (", …" if len(empty) > 10 else "")
        yield f"{len(empty)} of {len(pages)} pages could not be read, perhaps because they are scans: page {listed}."
