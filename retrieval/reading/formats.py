"""Which format a file has, and what reads it: one table of formats, one function a format.

A file is what its bytes say, not what its name says; a file whose name claims another type is refused.
"""

from __future__ import annotations

import importlib.metadata
import io
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from retrieval.errors import DocumentError
from retrieval.reading import images, pdf
from retrieval.reading.archive import unpack_mail, unpack_zip
from retrieval.reading.blocks import Blocks
from retrieval.reading.ccda import read_ccda
from retrieval.reading.dicom_report import read_dicom
from retrieval.reading.fhir import read_fhir
from retrieval.reading.hl7_results import read_hl7
from retrieval.reading.html import read_html
from retrieval.reading.mail import read_mail
from retrieval.reading.odt import read_odt
from retrieval.reading.rtf import read_rtf
from retrieval.reading.sheets import read_csv, read_xlsx
from retrieval.reading.text import decode, read_text
from retrieval.reading.word import read_docx

MAX_NAME_CHARS = 255

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
ODT = "application/vnd.oasis.opendocument.text"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
CSV = "text/csv"
TEXT = "text/plain"
MARKDOWN = "text/markdown"
HTML = "text/html"
RTF = "application/rtf"
MAIL = "message/rfc822"
PNG = "image/png"
JPEG = "image/jpeg"
TIFF = "image/tiff"
FHIR = "application/fhir+json"
HL7 = "application/hl7-v2"
CCDA = "application/hl7-cda+xml"
DICOM = "application/dicom"
ZIP = "application/zip"

Unpack = Callable[[bytes], Iterator[tuple[str, bytes]]]


@dataclass(frozen=True, slots=True)
class Format:
    """read: for a format without pages of its own. count_pages(data, max_pages): for one with pages. unpack: the files
    inside, which become documents of their own. parser: the program that reads it, with its version."""

    label: str
    extensions: tuple[str, ...]
    parser: str
    read: Callable[[bytes], Blocks] | None = None
    count_pages: Callable[[bytes, int], int] | None = None
    unpack: Unpack | None = None


def _read_fhir(data: bytes) -> Blocks:
    text = decode(data)
    return Blocks(texts=read_fhir(text.encode() if text is not None else data))


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


FORMATS = {
    PDF: Format("PDF", (".pdf",), pdf.PARSER, count_pages=pdf.count_pages),
    DOCX: Format("Word file (DOCX)", (".docx",), _version("python-docx"), read_docx),
    ODT: Format("OpenDocument text (ODT)", (".odt",), _version("defusedxml"), read_odt),
    XLSX: Format("Excel workbook (XLSX)", (".xlsx",), _version("openpyxl"), read_xlsx),
    CSV: Format("CSV file", (".csv", ".tsv"), "bedside", read_csv),
    TEXT: Format("text file", (".txt", ".text"), "bedside", read_text),
    MARKDOWN: Format("Markdown file", (".md", ".markdown"), "bedside", read_text),
    HTML: Format("HTML file", (".html", ".htm", ".xhtml"), _version("beautifulsoup4"), read_html),
    RTF: Format("RTF file", (".rtf",), _version("striprtf"), read_rtf),
    MAIL: Format("mail message (EML)", (".eml",), "bedside", read_mail, unpack=unpack_mail),
    PNG: Format("PNG image", (".png",), images.PARSER, count_pages=images.count_frames),
    JPEG: Format("JPEG image", (".jpg", ".jpeg"), images.PARSER, count_pages=images.count_frames),
    TIFF: Format("TIFF image", (".tif", ".tiff"), images.PARSER, count_pages=images.count_frames),
    FHIR: Format("JSON file", (".json",), "bedside", _read_fhir),
    HL7: Format("HL7 message", (".hl7", ".oru"), _version("hl7"), read_hl7),
    CCDA: Format("C-CDA document (XML)", (".xml", ".cda", ".ccda"), _version("defusedxml"), read_ccda),
    DICOM: Format("DICOM report", (".dcm", ".dicom"), _version("pydicom"), read_dicom),
    ZIP: Format("ZIP archive", (".zip",), "bedside", unpack=unpack_zip),
}
SUPPORTED = (
    "PDF, DOCX, ODT, XLSX, CSV, TXT, MD, HTML, RTF, EML, PNG, JPEG, TIFF, FHIR, HL7, C-CDA, DICOM reports and ZIP"
)
EXTENSIONS = tuple(extension for known in FORMATS.values() for extension in known.extensions)


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

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"II*\x00", TIFF),
    (b"MM\x00*", TIFF),
    (b"{\\rtf", RTF),
)
_FOREIGN = (
    (b"GIF8", "a GIF image"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"Rar!", "a RAR archive"),
    (b"BM", "a BMP image"),
)
_OLE = b"\xd0\xcf\x11\xe0"
_ENCRYPTED_OFFICE = "EncryptedPackage".encode("utf-16-le")
# Any text may stand in these, so that the name decides.
_BY_NAME: dict[str, tuple[str, ...]] = {
    TEXT: (MARKDOWN, CSV, HTML, FHIR, HL7, CCDA, MAIL),
    HTML: (TEXT, MARKDOWN, CCDA),
    FHIR: (TEXT, MARKDOWN, CSV),
    HL7: (TEXT,),
    CCDA: (TEXT, HTML),
    MAIL: (TEXT, MARKDOWN),
}


def sniff(data: bytes, name: str) -> str:
    """The media type of a file by its bytes, then its name. Raises DocumentError if the two disagree."""
    if not data:
        raise DocumentError("This file is empty (0 bytes); export or copy it again.")
    content = _content(data)
    extension = PurePath(name.lower()).suffix
    claimed = next((kind for kind, known in FORMATS.items() if extension in known.extensions), None)
    if content not in FORMATS:
        if claimed:
            raise DocumentError(
                f"The name ends in {extension}, but the file holds {content}; upload the original file."
            )
        raise DocumentError(f"The file holds {content}, which cannot be read; supported are {SUPPORTED}.")
    if claimed is None and extension and content in _BY_NAME:
        raise DocumentError(f"Files ending in {extension[:20]} are not supported; supported are {SUPPORTED}.")
    if claimed is None or claimed == content:
        return content
    if claimed in _BY_NAME.get(content, ()):
        return claimed
    label = FORMATS[content].label
    raise DocumentError(
        f"The name ends in {extension}, but the file is a {label}; correct its name and upload it again."
    )


def _content(data: bytes) -> str:
    """A supported media type, or in words what else the bytes are."""
    if b"%PDF-" in data[:1024]:
        return PDF
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip_content(data)
    if data.startswith(_OLE):
        if _ENCRYPTED_OFFICE in data:
            return "an Office file that is protected by a password"
        return "an old Office file (.doc, .xls), to be saved anew as .docx or .xlsx"
    if data[128:132] == b"DICM":
        return DICOM
    for magic, kind in (*_MAGIC, *_FOREIGN):
        if data.startswith(magic):
            return kind
    text = decode(data[:200_000])
    return "binary data of an unknown kind" if text is None else _text_content(text)


def _text_content(text: str) -> str:
    head = text.lstrip("\ufeff \t\r\n\x0b")[:4000]
    lower = head.lower()
    if re.match(r"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*(?:<!doctype html|<html)", lower, re.DOTALL):
        return HTML
    if lower.startswith("<") and "clinicaldocument" in lower:
        return CCDA
    if re.match(r"(?:MSH|FHS|BHS)[|^~&#]", head):
        return HL7
    if lower.startswith(("{", "[")):
        return FHIR
    if re.match(r"(?:[!-9;-~]+:[^\n]*\n(?:[ \t][^\n]*\n)*){3}", head) and re.search(
        r"^(?:from|received|return-path|message-id|mime-version):", lower, re.M
    ):
        return MAIL
    return TEXT


def _zip_content(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return "a damaged Word file, Excel workbook or ZIP archive"
    if "word/document.xml" in names:
        return DOCX
    if "xl/workbook.xml" in names:
        return XLSX
    if data[30:].startswith(b"mimetype" + ODT.encode()):  # by the standard first of all and never compressed
        return ODT
    if names[:1] == ["mimetype"]:
        return "an OpenDocument file or e-book, to be saved anew as .docx or .pdf"
    return ZIP
