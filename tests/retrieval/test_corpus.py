"""Every file of the public parser corpus is read or refused as its manifest says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from contracts import ReadMethod
from retrieval.errors import DocumentError
from retrieval.parsers import parse
from retrieval.reading.process import Readers

# What a file that cannot be read is refused for; by file, since the manifest names the kind only for PDFs.
REFUSED = {
    "unstructured__simple.doc": "old Office file",
    "unstructured__password_protected.xlsx": "password",
    "pdfplumber__empty.pdf": "0 bytes",
}
# Words that a person finds in the file, by file.
WORDS = {
    "unstructured__simple.odt": "This is my second thought.",
    "unstructured__stanley-cups.xlsx": "Maple Leafs | TOR | 13",
    "unstructured__eml_fake-email-attachment.eml": "Hey this is a fake attachment!",
    "unstructured__fake-html-cp1252.html": "Some",
    "unstructured__example-steelJIS-datasheet-utf-16.html": "JIS",
    "docling__docx_sources_word_tables.docx": " | ",
    "unstructured__teams_chat.docx": "",
}


def test_every_file_is_read_or_refused_as_the_manifest_says(shared: Path, readers: Readers) -> None:
    folder = shared / "parser_corpus"
    rows = json.loads((folder / "manifest.json").read_text())
    assert len(rows) == 69
    for row in rows:
        name, data = row["file"], (folder / row["file"]).read_bytes()
        expected = "password" if row.get("needs_pass") else REFUSED.get(name)
        if expected:
            with pytest.raises(DocumentError, match=expected) as refusal:
                parse(data, name, recognise=False, readers=readers)
            assert re.fullmatch(r"[^\n]{20,250}\.", str(refusal.value)), name
            continue
        parsed = parse(data, name, recognise=False, readers=readers)
        assert len(parsed.pages) == (row.get("pages") or len(parsed.pages)), name
        assert WORDS.get(name, "") in "\n".join(page.text for page in parsed.pages), name
        if "chars_first30" in row:
            text = "".join(page.text for page in parsed.pages[:30] if page.method is ReadMethod.TEXT)
            waiting = any(page.method is ReadMethod.PENDING for page in parsed.pages)
            assert waiting or len(text) >= 0.7 * row["chars_first30"], name
            assert waiting or not row["image_only"], name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unstructured__pdf_single_table.pdf", "Chipper | 20,843"),
        ("docling__ocr_sources_nemotron_multipage.pdf", "JSON and Markdown"),
    ],
)
def test_pages_that_are_pictures_are_recognised_upright(shared: Path, readers: Readers, name: str, words: str) -> None:
    parsed = parse((shared / "parser_corpus" / name).read_bytes(), name, readers=readers)
    assert {page.method for page in parsed.pages} == {ReadMethod.OCR}
    assert all(page.confidence > 0.8 for page in parsed.pages)
    assert words in parsed.pages[0].text
    assert all(line.start < line.end <= len(page.text) for page in parsed.pages for line in page.lines)
