"""Reading processes: every format gives its words; what kills, hangs or floods one costs a sentence."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageStat

from bench.small_files import NOTE, archive, mail, pdf, picture, small_files
from contracts import FactKind, Page, ReadMethod, SectionKind
from retrieval.errors import DocumentError
from retrieval.highlight import line_shapes
from retrieval.parsers import parse
from retrieval.reading import process as processes
from retrieval.reading.facts import find_facts
from retrieval.reading.formats import FORMATS, PDF, PNG, sniff
from retrieval.reading.process import Limits, PagesRead, Readers, ReadingCancelled
from tests.retrieval.pdfs import pdf_of, yellow_box

FILES = small_files()
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", [name for name in FILES if name != "scan.jpg"])
def test_every_format_gives_its_words(readers: Readers, name: str) -> None:
    parsed = parse(FILES[name], name, readers=readers)
    text = "\n".join(page.text for page in parsed.pages)
    assert any(word in text for word in ("Apixaban", "Penicillin", "Potassium | 5.9 | mmol/L", "Ejection fraction: 35"))
    if name.startswith("scan"):
        assert {page.method for page in parsed.pages} == {ReadMethod.OCR}
        assert parsed.pages[0].confidence > 0.9


@pytest.mark.parametrize(
    "name", ["note.txt", "note.pdf", "note.html", "scan.png", "bundle.json", "results.hl7", "record.xml"]
)
def test_every_format_tells_whose_it_is(readers: Readers, name: str) -> None:
    pages = parse(FILES[name], name, readers=readers).pages
    facts = {fact.kind: fact for noticed in find_facts(pages).values() for fact in noticed.facts}
    assert facts[FactKind.PATIENT_NAME].value == "Margaret Ellis"
    assert facts[FactKind.BIRTH_DATE].value == "1950-03-04"
    assert facts[FactKind.RECORD_NUMBER].value == "A-4711"
    for fact in facts.values():
        assert fact.kind is not FactKind.PATIENT_NAME or pages[fact.page - 1].text[fact.start : fact.end] == fact.value


def test_ruled_table_keeps_its_empty_cells(readers: Readers) -> None:
    (page,) = parse(FILES["note.pdf"], "note.pdf", readers=readers).pages
    rows = page.text.split("\n\n")[-1].split("\n")
    assert rows[:2] == ["Drug | Dose | Since", "Bisoprolol | 2.5 mg | 2024-03-01"]
    assert rows[2].startswith("Apixaban | 5 mg |")


def test_sections_have_kinds_spans_and_titles() -> None:
    pages = [Page(1, NOTE), Page(2, "Metformin stopped.\n\nVITAL SIGNS\nBP 120/80.")]
    noticed = find_facts(pages)
    kinds = [section.kind for section in noticed[1].sections]
    assert {SectionKind.ALLERGIES, SectionKind.MEDICATIONS, SectionKind.PLAN} <= set(kinds)
    allergies = next(section for section in noticed[1].sections if section.kind is SectionKind.ALLERGIES)
    assert NOTE[allergies.title_start : allergies.title_end] == "ALLERGIES"
    assert NOTE[allergies.start : allergies.end].strip().endswith("anaphylaxis.")
    carried, vitals = noticed[2].sections
    assert (carried.kind, carried.title) == (SectionKind.PLAN, "PLAN")
    assert vitals.kind is SectionKind.VITALS


def test_paragraphs_carried_forward_are_marked() -> None:
    copied = (
        "She was seen with her daughter; heart failure is stable, weight unchanged, no oedema, and she is well. " * 2
    )
    pages = [Page(n, f"Ward 7 page {n}\n\nVisit {n} was on day {n}.\n\n{copied}") for n in (1, 2, 3)]
    facts = [fact for noticed in find_facts(pages).values() for fact in noticed.facts]
    assert [(fact.page, fact.value) for fact in facts if fact.kind is FactKind.COPIED] == [(2, "page 1"), (3, "page 1")]


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("angle", "rotation"), [(90, 90), (2, 0)])
def test_turned_and_skewed_scans_are_read_and_marked(readers: Readers, angle: float, rotation: int) -> None:
    data = picture("PNG", angle=angle)
    (page,) = parse(data, "scan.png", readers=readers).pages
    assert page.rotation == rotation
    assert "Bisoprolol 2.5 mg once daily" in page.text
    start = page.text.index("Bisoprolol")
    png = readers.render(data, PNG, page, [(start, start + 10)])
    box = yellow_box(png)
    assert box is not None
    upright = Image.open(io.BytesIO(png))
    assert box[2] - box[0] < upright.width / 3
    expected = line_shapes(page.text, page.lines, [(start, start + 10)], upright.size)[0]
    assert abs(box[0] - expected[0]) < 12


@pytest.mark.parametrize("angle", [4, -5])
def test_marks_on_a_skewed_scan_cover_their_own_line_alone(readers: Readers, angle: float) -> None:
    """Of two long lines the first is marked: all of its ink and next to none of the second's."""
    lines = [f"{word} was given at nine and again at six with a glass of water" for word in ("Bisoprolol", "Ramipril")]
    inks = []
    for shown in (lines, lines[:1], lines[1:]):
        sheet = Image.new("RGB", (1600, 600), "white")
        for number, line in enumerate(lines):
            if line in shown:
                ImageDraw.Draw(sheet).text(
                    (120, 250 + 55 * number), line, fill="black", font=ImageFont.load_default(40)
                )
        inks.append(sheet.rotate(angle, Image.Resampling.BICUBIC, fillcolor="white"))
    scan, own, other = inks
    buffer = io.BytesIO()
    scan.save(buffer, "PNG")
    (page,) = parse(buffer.getvalue(), "scan.png", readers=readers).pages
    start = page.text.index("Bisoprolol")
    drawn = Image.open(io.BytesIO(readers.render(buffer.getvalue(), PNG, page, [(start, page.text.index("Ramipril"))])))
    paper = Image.new("RGB", scan.size, "white")
    marked = ImageChops.difference(ImageChops.multiply(drawn, paper), scan).convert("L").point(lambda v: 255 * (v > 5))
    # Beside the ink, which stays black, its blurred edges take the colour.
    edges = [ink.convert("L").point(lambda v: 255 * (40 < v < 250)) for ink in (own, other)]
    shares = [ImageStat.Stat(marked, edge).mean[0] / 255 for edge in edges]
    assert shares[0] > 0.95
    assert shares[1] < 0.03


@pytest.mark.parametrize("name", ["note_rotated90.pdf", "note_scanned.pdf"])
def test_what_is_marked_on_a_turned_or_scanned_page_reads_as_the_cited_words(
    readers: Readers, shared: Path, name: str
) -> None:
    data = (shared / "clinical_docs" / name).read_bytes()
    page = parse(data, name, readers=readers).pages[0]
    words = "PRESENT"
    start = page.text.index(words)
    drawn = readers.render(data, PDF, page, [(start, start + len(words))])
    box = yellow_box(drawn)
    assert box is not None
    marked = Image.new("RGB", (760, 300), "white")
    marked.paste(Image.open(io.BytesIO(drawn)).convert("RGB").crop(box).resize((220, 50)), (100, 120))
    png = io.BytesIO()
    marked.save(png, "PNG")
    (read,) = parse(png.getvalue(), "marked.png", readers=readers).pages
    assert read.text == words


def test_picture_under_an_invisible_layer_of_wrong_text_is_read_from_the_picture(readers: Readers) -> None:
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1)
    canvas.drawImage(ImageReader(Image.open(io.BytesIO(picture("PNG")))), 0, 0, *A4)
    layer = canvas.beginText(60, 700)
    layer.setTextRenderMode(3)
    for _ in range(12):
        layer.textLine("Bisoprolol 25 mg ten times daily, as an earlier program misread it.")
    canvas.drawText(layer)
    canvas.save()
    (page,) = parse(buffer.getvalue(), "scan.pdf", readers=readers).pages
    assert page.method is ReadMethod.OCR
    assert "Bisoprolol 2.5 mg once daily" in page.text
    assert "25 mg ten" not in page.text


def test_letters_moved_by_a_broken_font_are_not_believed() -> None:
    from retrieval.reading.pdf import is_garbled

    english = "The patient was seen in the clinic and is well on bisoprolol and apixaban with no bleeding at all. " * 5
    moved = "".join(chr((ord(c) - 97 + 3) % 26 + 97) if c.islower() else c for c in english.lower())
    assert is_garbled(moved)
    assert not is_garbled(english)
    assert is_garbled("(cid:12)(cid:7)(cid:99) " * 10)
    assert not is_garbled("WBC 5.1 RBC 4.2 HGB 13.1 HCT 39 PLT 210 MCV 92 MCH 30 MCHC 33 RDW 13 MPV 9 " * 4)


# --- what must not bring the program down -------------------------------------------------------------------------


def wild_readers(code: str, **limits: float) -> Readers:
    """Readers whose processes run this before their job, as a parser taken over or gone wild would."""
    start = f"import runpy, sys\nimport retrieval.reading.jobs as jobs\n{code}\n"
    start += "runpy.run_module('retrieval.reading.worker', run_name='__main__')"
    readers = Readers(Limits(1024, **limits), keeps_spare=False)  # type: ignore[arg-type]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}

    def popen() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", start, "1024"]
        return subprocess.Popen(command, cwd=ROOT, env=processes._ENVIRONMENT, bufsize=0, **pipes)

    readers._start = popen  # type: ignore[method-assign]
    return readers


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


PAGE_4 = """
import os, retrieval.reading.pdf as pdf
real = pdf._read_page
def read(document, index):
    if index == 3:
        {}
    return real(document, index)
pdf._read_page = read
"""
WILD = "import os\ndef read(request, data):\n    {}\n    yield\njobs.JOBS['read'] = read"


@pytest.mark.parametrize("harm", ["os.abort()", "while True: pass", "x = bytearray(3 * 10**9)"])
def test_page_that_stops_the_reader_costs_that_page(harm: str) -> None:
    readers = wild_readers(PAGE_4.format(harm), stall_s=6)
    data = pdf_of([[f"Page {number} of the record."] for number in range(1, 7)])
    pages = [page for event in readers.read(data, PDF, 100) if isinstance(event, PagesRead) for page in event.pages]
    assert [page.number for page in pages] == [1, 2, 3, 4, 5, 6]
    assert [page.number for page in pages if page.method is ReadMethod.EMPTY] == [4]


@pytest.mark.parametrize("harm", ["os.abort()", "while True: pass", "x = bytearray(3 * 10**9)"])
def test_file_that_stops_the_reader_is_one_sentence(harm: str) -> None:
    readers, before = wild_readers(WILD.format(harm), stall_s=6), children()
    with pytest.raises(DocumentError, match=r"made the reader stop \(.*\)") as error:
        parse(NOTE.encode(), "note.txt", readers=readers)
    assert "\n" not in str(error.value)
    assert children() <= before


def test_reading_process_reaches_no_address_writes_no_file_and_knows_no_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BEDSIDE_SERVER_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        probe = f"""
def read(request, data):
    import os, socket, tempfile
    tried = []
    try:
        socket.create_connection(("127.0.0.1", {port}), 2); tried.append("connected")
    except OSError: pass
    try:
        with open({str(ROOT / "var-probe")!r}, "wb") as file: file.write(b"x"); file.flush()
        tried.append("wrote")
    except OSError: pass
    if "BEDSIDE_SERVER_KEY" in os.environ: tried.append("key")
    yield {{"event": "refused", "message": "tried: " + ", ".join(tried)}}, b""
jobs.JOBS["read"] = read"""
        try:
            with pytest.raises(DocumentError, match=r"tried: $"):
                parse(NOTE.encode(), "note.txt", readers=wild_readers(probe))
        finally:
            (ROOT / "var-probe").unlink(missing_ok=True)


def test_cancel_ends_reading_at_once() -> None:
    readers, cancel, before = wild_readers(WILD.format("while True: pass")), threading.Event(), children()
    threading.Timer(1.0, cancel.set).start()
    with pytest.raises(ReadingCancelled):
        list(readers.read(NOTE.encode(), "text/plain", 10, cancel=cancel))
    assert children() <= before


def bomb(name: str, megabytes: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed, packed.open(name, "w") as part:
        for _ in range(megabytes):
            part.write(bytes(1_000_000))
    return buffer.getvalue()


ENTITIES = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><ClinicalDocument>&b;</ClinicalDocument>'
LAUGHS = (
    b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha">' + b"".join(
        b'<!ENTITY a%d "%s">' % (n, b"&a%s;" % (str(n - 1).encode() if n else b"") * 10) for n in range(9)
    ) + b"]><ClinicalDocument>&a8;</ClinicalDocument>"
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("bomb.zip", lambda: bomb("note.txt", 20), "hundreds of times its size"),
        ("bomb.xlsx", lambda: bomb("xl/workbook.xml", 320), "300 MB"),
        ("many.zip", lambda: archive({f"{n}.txt": b"x" for n in range(501)}), "501 files"),
        ("deep.zip", lambda: nested(4), "could be read"),
        ("record.xml", lambda: ENTITIES, "defines entities"),
        ("record.xml", lambda: LAUGHS, "defines entities"),
        ("other.xml", lambda: b"<?xml version='1.0'?><a><b/></a>", "no clinical document"),
        ("image.dcm", lambda: bytes(128) + b"DICM" + bytes(40), "DICOM"),
        ("order.hl7", lambda: b"MSH|^~\\&|A|B|C|D|20240101||ORM^O01|1|P|2.5\rPID|1||1", "no results"),
        ("scan.png", lambda: FILES["scan.png"][:2000], "damaged"),
        ("note.docx", lambda: FILES["note.docx"][:9000], "damaged"),
        ("drugs.xlsx", lambda: FILES["drugs.xlsx"][:2000], "damaged"),
        ("huge.png", lambda: huge_png(), "too large"),
        ("table.csv", lambda: bytes(range(256)) * 40, "unknown kind"),
    ],
)  # fmt: skip
def test_hostile_or_broken_file_is_refused_in_one_sentence(
    readers: Readers, name: str, data: Callable[[], bytes], sentence: str
) -> None:
    with pytest.raises(DocumentError, match=sentence) as error:
        parse(data(), name, readers=readers)
    assert "\n" not in str(error.value)


def nested(depth: int) -> bytes:
    return archive({"inner.zip": nested(depth - 1)} if depth else {"note.txt": b"x"})


def huge_png() -> bytes:
    """A valid head that claims 60,000 x 60,000 pixels."""
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + bytes(40)


def test_pdf_with_ten_thousand_pages_is_refused_and_one_with_a_script_is_read(readers: Readers) -> None:
    kids = b" ".join(b"3 0 R" for _ in range(10_000))
    many = (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R/OpenAction<</S/JavaScript/JS(app.launchURL('http://a.example'))>>>>endobj\n"
        b"2 0 obj<</Type/Pages/Count 10000/Kids[" + kids + b"]>>endobj\n"
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
    )
    with pytest.raises(DocumentError, match="10,000 pages, more than the limit of 5,000"):
        parse(many, "many.pdf", readers=readers)
    scripted = pdf().replace(
        b"/Type /Catalog", b"/Type /Catalog /OpenAction << /S /JavaScript /JS (app.alert\\(1\\)) >>"
    )
    assert b"JavaScript" in scripted
    assert "Apixaban" in parse(scripted, "scripted.pdf", readers=readers).pages[0].text


def test_files_inside_an_archive_or_a_mail_are_read_and_bad_ones_named(readers: Readers) -> None:
    packed = archive(
        {"a/note.txt": NOTE.encode(), "empty.txt": b"", "inner.zip": archive({"drugs.csv": FILES["drugs.csv"]})}
    )
    parsed = parse(packed, "record.zip", readers=readers)
    assert len(parsed.pages) == 2
    assert "empty.txt: This file is empty" in parsed.warnings[0]
    posted = parse(mail([("scan.png", FILES["scan.png"])]), "mail.eml", readers=readers)
    assert [page.method for page in posted.pages] == [ReadMethod.TEXT, ReadMethod.OCR]


def test_spare_process_waits_for_the_next_file_and_ends_with_its_readers() -> None:
    before, readers = children(), Readers()
    parse(NOTE.encode(), "note.txt", readers=readers)
    deadline = time.monotonic() + 20
    while not children() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children() - before) == 1
    readers.close()
    assert children() <= before


def test_orphaned_reading_process_ends_itself(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom retrieval.reading.process import Readers\nreaders = Readers(keeps_spare=False)\n"
        "process = readers._start()\nprint(process.pid, flush=True)\nos._exit(0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=True)
    pid = int(output.stdout)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)


def test_seeds_are_what_their_names_say() -> None:
    assert len({sniff(data, name) for name, data in FILES.items()}) == len(FORMATS)
