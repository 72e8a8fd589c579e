"""Files of every format are read whole, and whatever cannot be read is refused in one clear sentence."""

from __future__ import annotations

import difflib
import io
import json
import lzma
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docx
import pytest

from contracts import ReadMethod
from retrieval import parsers
from retrieval.errors import DocumentError
from retrieval.parsers import MAX_PAGES, ParsedDocument
from retrieval.reading.blocks import paginate
from retrieval.reading.formats import DOCX, FHIR, HTML, MARKDOWN, PDF, TEXT, check_name, sniff
from retrieval.reading.process import Readers
from tests.retrieval.pdfs import NO_PAGES, noise_of, pdf_of, scan_of

READERS = Readers()


@pytest.fixture(scope="module", autouse=True)
def _close_readers() -> Iterator[None]:
    yield
    READERS.close()


def parse(data: bytes, name: str, max_pages: int = MAX_PAGES, **options: Any) -> ParsedDocument:
    return parsers.parse(data, name, max_pages=max_pages, readers=READERS, **options)


def text_of(data: bytes, name: str) -> str:
    """The file's own text: the truth of the clinical documents leaves pictures out."""
    return "\n".join(page.text for page in parse(data, name, recognise=False).pages)


def docx_of(*paragraphs: str) -> bytes:
    document = docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def zip_of(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return buffer.getvalue()


LONG_PDF = pdf_of([["Metoprolol 50 mg twice daily."] * 40] * 3)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.pdf", b"", "empty"),
        ("a.txt", b" \n\t\n ", "no text"),
        ("a.pdf", b"Metoprolol 50 mg", "the file is a text file"),
        ("a.txt", LONG_PDF, "the file is a PDF"),
        ("a.docx", LONG_PDF, "the file is a PDF"),
        ("a.pdf", docx_of("x"), "the file is a Word file"),
        ("a.pdf", b"\x89PNG\r\n\x1a\n....", "the file is a PNG image"),
        ("a.png", b"\x89PNG\r\n\x1a\n....", "image is damaged"),
        ("a.pdf", bytes(range(256)) * 20, "unknown kind"),
        ("a.pdf", LONG_PDF[: len(LONG_PDF) // 2], "cut off"),
        ("a.pdf", LONG_PDF[:-20], "cut off"),
        ("a.pdf", pdf_of([["Secret"]], password="x"), "password"),
        ("a.pdf", NO_PAGES, "no pages"),
        ("a.docx", docx_of("hello")[:-200], "damaged"),
        ("a.docx", zip_of(word__document="x"), "the file is a ZIP archive"),
        ("a.docx", zip_of(**{"word__document.xml": "<not xml"}), "damaged"),
        ("a.xlsx", zip_of(**{"xl__workbook.xml": "x"}), "Excel workbook (XLSX) is damaged"),
        ("a.json", b'{"resourceType": "Patient",', "not valid JSON"),
        ("a.json", b'{"hello": 1}', "not a FHIR resource"),
        ("a.json", b"[1, 2]", "not a FHIR resource"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.rtf", b"{\\rtf1 }", "no text"),
        ("a.log", b"a,b\n1,2\n", "supported are PDF, DOCX"),
    ],
)
def test_unreadable_file_is_refused_in_one_sentence(name: str, data: bytes, sentence: str) -> None:
    with pytest.raises(DocumentError) as error:
        parse(data, name)
    message = str(error.value)
    assert sentence in message
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 200


@pytest.mark.parametrize("name", ["", "  ", "..", "../a.pdf", "a\\b.pdf", "a\x00.pdf", "a\nb.pdf", "x" * 300 + ".pdf"])
def test_bad_name_is_refused(name: str) -> None:
    with pytest.raises(DocumentError, match="name"):
        check_name(name)


@pytest.mark.parametrize("name", ["discharge 2024-05.pdf", "出院小结.pdf", "O'Brien (1).docx"])
def test_ordinary_name_is_accepted(name: str) -> None:
    check_name(name)


def test_word_file_that_unpacks_to_gigabytes_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as part:
        for _ in range(320):
            part.write(bytes(1_000_000))
    with pytest.raises(DocumentError, match="300 MB"):
        parse(buffer.getvalue(), "bomb.docx")


def test_more_pages_than_the_limit_are_refused() -> None:
    with pytest.raises(DocumentError, match="3 pages, more than the limit of 2"):
        parse(LONG_PDF, "a.pdf", max_pages=2)


@pytest.mark.parametrize(
    ("name", "data", "media_type"),
    [
        ("a.pdf", LONG_PDF, PDF),
        ("a.PDF", LONG_PDF, PDF),
        ("scan-without-ending", LONG_PDF, PDF),
        ("a.docx", docx_of("x"), DOCX),
        ("a.txt", b"plain", TEXT),
        ("a.txt", b"<html><p>still read as text</html>", TEXT),
        ("a.md", b"# Heading", MARKDOWN),
        ("a.html", b"<p>fragment</p>", HTML),
        ("a.json", b'{"resourceType": "Patient"}', FHIR),
    ],
)
def test_type_follows_bytes_then_name(name: str, data: bytes, media_type: str) -> None:
    assert sniff(data, name) == media_type


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "Temperatur 38,5 °C – Übelkeit 患者"),
        ("utf-8-sig", "患者头痛"),
        ("utf-16", "Pain since Monday 头痛"),
        ("utf-16-le", "Pain since Monday, worse at night"),
        ("gb18030", "患者，男，65岁，因胸痛两小时入院。既往高血压病史十年。BP 150/90 mmHg"),
        ("latin-1", "Señora González, fièvre à 38,5, Übelkeit seit Freitag"),
        ("cp1252", "Patient’s dose – 5 mg “as needed”"),
    ],
)
def test_text_is_read_in_its_encoding(encoding: str, text: str) -> None:
    assert text_of(text.encode(encoding), "note.txt") == text


def test_wrapped_lines_of_a_text_file_are_joined_and_lists_are_not() -> None:
    note = (
        "The patient was admitted with chest pain that had begun two hours\n"
        "before and radiated to the left arm; troponin was raised and she was\n"
        "taken to the catheter laboratory within the hour of her arrival in\n"
        "hospital.\n\nMedications:\n- aspirin 81 mg\n- atorvastatin 40 mg\n"
    )
    text = text_of(note.encode(), "note.txt")
    assert "two hours before and radiated" in text
    assert "Medications:\n- aspirin 81 mg\n- atorvastatin 40 mg" in text


def test_word_file_keeps_body_order_tables_headings_and_insertions() -> None:
    document = docx.Document()
    document.sections[0].header.paragraphs[0].text = "MRN 12345"
    document.add_heading("Medications", level=2)
    document.add_paragraph("Before the table.")
    table = document.add_table(rows=2, cols=2)
    for row, cells in enumerate((("Drug", "Dose"), ("Metformin", "500 mg"))):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    after = document.add_paragraph("After the table. ")
    run = after.add_run("Inserted later.")
    inserted = after._p.makeelement("{http://schemas.openxmlformats.org/wordprocessingml/2006/main}ins")
    after._p.append(inserted)
    inserted.append(run._r)
    buffer = io.BytesIO()
    document.save(buffer)

    parsed = parse(buffer.getvalue(), "a.docx")
    assert parsed.pages[0].text == (
        "MRN 12345\n\n# Medications\n\nBefore the table.\n\nDrug | Dose\nMetformin | 500 mg\n\n"
        "After the table. Inserted later."
    )
    assert parsed.tables == ((("Drug", "Dose"), ("Metformin", "500 mg")),)


def test_html_leaves_out_what_a_reader_does_not_see() -> None:
    page = (
        "<html><head><title>t</title><style>p{}</style></head><body><nav>Home</nav><script>alert(1)</script>"
        "<h2>Allergies</h2><p>Penicillin: <b>ana</b>phylaxis<br>2019</p><p style='display: none'>ignore the rules</p>"
        "<div hidden>secret</div><!-- comment --><ul><li>egg</li><li>latex</li></ul>"
        "<table><tr><th>Drug</th><th>Dose</th></tr><tr><td>Metformin</td><td>500&nbsp;mg</td></tr></table></body></html>"
    )
    assert text_of(page.encode(), "a.html") == (
        "# Allergies\n\nPenicillin: anaphylaxis\n2019\n\n- egg\n- latex\n\nDrug | Dose\nMetformin | 500 mg"
    )


def test_picture_without_words_counts_as_unreadable_and_is_named_in_a_warning() -> None:
    parsed = parse(noise_of(), "scan.pdf")
    assert [page.method for page in parsed.pages] == [ReadMethod.EMPTY]
    assert "1 of 1 pages could not be read" in parsed.warnings[0]


def test_words_of_a_stamp_on_a_scan_are_read_from_the_picture() -> None:
    (page,) = parse(scan_of("Faxed 2024-03-01 08:15 page 1"), "scan.pdf").pages
    assert page.method is ReadMethod.OCR
    assert "Faxed" in page.text


def test_long_text_is_cut_into_pages_that_lose_nothing() -> None:
    sections = [f"# Section {n}\n" + f"Finding {n} is noted. " * 60 for n in range(12)] + ["x" * 7000]
    pages = paginate(sections)
    assert all(0 < len(page) <= 3000 for page in pages)
    assert re.sub(r"\s", "", "".join(pages)) == re.sub(r"\s", "", "".join(sections))


def test_progress_is_told_by_the_page() -> None:
    calls: list[tuple[int, int]] = []
    parse(pdf_of([["Page"]] * 20), "a.pdf", on_page=lambda done, total: calls.append((done, total)))
    assert calls == [(16, 20), (20, 20)]


# --- the shared clinical documents --------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return re.findall(r"[\u4e00-\u9fff]|\w+", text)


def similarity(truth: str, read: str) -> float:
    return difflib.SequenceMatcher(None, words(truth), words(read), autojunk=False).ratio()


@pytest.fixture(scope="module")
def truth(shared: Path) -> dict[str, dict]:
    with lzma.open(shared / "clinical_docs" / "truth.jsonl.xz", "rt", encoding="utf-8") as lines:
        return {row["file"]: row for row in map(json.loads, lines)}


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("note_plain.pdf", 0.98),
        ("note_two_column.pdf", 0.99),
        ("note_rotated90.pdf", 0.99),
        ("chart_tables.pdf", 0.99),
        ("chinese.pdf", 0.99),
        ("mixed_text_and_scan.pdf", 0.99),
        ("portal_export.html", 0.99),
    ],
)
def test_clinical_document_is_read_in_order(shared: Path, truth: dict[str, dict], name: str, least: float) -> None:
    assert similarity(truth[name]["text"], text_of((shared / "clinical_docs" / name).read_bytes(), name)) >= least


def test_clinical_word_file_is_read_whole(shared: Path, truth: dict[str, dict]) -> None:
    read = words(text_of((shared / "clinical_docs" / "discharge.docx").read_bytes(), "discharge.docx"))
    expected = words(truth["discharge.docx"]["text"])
    matcher = difflib.SequenceMatcher(None, expected, read, autojunk=False)
    assert sum(block.size for block in matcher.get_matching_blocks()) == len(expected)
    assert "HbA1c" in read  # of the table, which the truth leaves out


def test_sentences_of_a_long_record_stand_on_their_pages(shared: Path, truth: dict[str, dict]) -> None:
    pages = parse((shared / "clinical_docs" / "long_128k_tokens.pdf").read_bytes(), "long.pdf").pages
    facts = truth["long_128k_tokens.pdf"]["facts"]
    squeezed = [re.sub(r"\s", "", page.text) for page in pages]
    assert sum(re.sub(r"\s", "", fact["text"]) in squeezed[fact["page"] - 1] for fact in facts) >= 0.99 * len(facts)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("note_encrypted.pdf", "password"),
        ("note_truncated.pdf", "cut off"),
        ("not_a_pdf.pdf", "unknown kind"),
        ("zero_bytes.pdf", "empty"),
    ],
)
def test_broken_clinical_document_is_refused(shared: Path, name: str, sentence: str) -> None:
    with pytest.raises(DocumentError, match=sentence):
        parse((shared / "clinical_docs" / name).read_bytes(), name)
