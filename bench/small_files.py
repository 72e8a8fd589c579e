"""One small clinical file of every format that is read, made in code: seeds for the fuzzer and examples for tests.

All tell of the same invented patient, Margaret Ellis, born 1950-03-04, record number A-4711.
"""

from __future__ import annotations

import io
import json
import zipfile
from email.message import EmailMessage
from typing import Any

from PIL import Image, ImageDraw, ImageFont

PATIENT = "Patient: Margaret Ellis\nDate of birth: 1950-03-04\nMedical record number: A-4711\n"
NOTE = (
    f"DISCHARGE SUMMARY\n\n{PATIENT}Date: 2024-03-05\nAuthor: Dr Ruth Sanchez\n\n"
    "ALLERGIES\nPenicillin: anaphylaxis.\n\n"
    "MEDICATIONS\nBisoprolol 2.5 mg once daily.\nApixaban 5 mg twice daily.\n\nPLAN\nClinic in six weeks.\n"
)
ROWS = (("Drug", "Dose", "Since"), ("Bisoprolol", "2.5 mg", "2024-03-01"), ("Apixaban", "5 mg", ""))


def small_files() -> dict[str, bytes]:
    """File name -> bytes; between 0.2 and 40 kB each."""
    return {
        "note.txt": NOTE.encode(),
        "note.md": b"# Medications\n\n- bisoprolol 2.5 mg\n\n| Drug | Dose |\n|---|---|\n| Apixaban | 5 mg |\n",
        "note.html": _html(),
        "note.rtf": _rtf(),
        "note.eml": mail([("drugs.csv", _csv())]),
        "note.pdf": pdf(),
        "note.docx": _docx(),
        "note.odt": odt(),
        "drugs.xlsx": _xlsx(),
        "drugs.csv": _csv(),
        "scan.png": picture("PNG"),
        "scan.jpg": picture("JPEG"),
        "scan.tiff": picture("TIFF", pages=2),
        "bundle.json": _fhir(),
        "results.hl7": _hl7(),
        "record.xml": _ccda(),
        "report.dcm": _dicom(),
        "record.zip": archive({"notes/note.txt": NOTE.encode(), "drugs.csv": _csv()}),
    }


def picture(kind: str, text: str = NOTE, pages: int = 1, angle: float = 0) -> bytes:
    """A scanned page of the text, turned anticlockwise by `angle` degrees."""
    frame = Image.new("L", (760, 620), 255)
    draw = ImageDraw.Draw(frame)
    draw.multiline_text((50, 40), text, font=ImageFont.load_default(22), fill=0, spacing=6)
    turned = frame.rotate(angle, expand=True, fillcolor=255)
    buffer = io.BytesIO()
    more: dict[str, Any] = {}
    if kind == "TIFF":
        more = {"save_all": True, "append_images": [turned] * (pages - 1), "compression": "tiff_lzw"}
    turned.save(buffer, kind, **more)
    return buffer.getvalue()


def mail(attachments: list[tuple[str, bytes]]) -> bytes:
    message = EmailMessage()
    message["From"], message["To"] = "Ruth Sanchez <r.sanchez@clinic.example>", "records@hospital.example"
    message["Subject"], message["Date"] = "Margaret Ellis", "Tue, 05 Mar 2024 10:00:00 +0000"
    message.set_content(NOTE)
    for name, data in attachments:
        message.add_attachment(data, maintype="application", subtype="octet-stream", filename=name)
    return bytes(message)


def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return buffer.getvalue()


def pdf(text: str = NOTE) -> bytes:
    """A page of text and below it a ruled table."""
    from reportlab.pdfgen.canvas import Canvas

    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1)
    canvas.setFont("Helvetica", 11)
    for number, line in enumerate(text.splitlines()):
        canvas.drawString(60, 780 - 16 * number, line)
    top, left, height, width = 400, 60, 20, 140
    for row in range(len(ROWS) + 1):
        canvas.line(left, top - row * height, left + 3 * width, top - row * height)
    for column in range(4):
        canvas.line(left + column * width, top, left + column * width, top - len(ROWS) * height)
    for row, cells in enumerate(ROWS):
        for column, cell in enumerate(cells):
            canvas.drawString(left + column * width + 4, top - row * height - 14, cell)
    canvas.save()
    return buffer.getvalue()


def _csv() -> bytes:
    return "\n".join(",".join(row) for row in ROWS).encode()


def _html() -> bytes:
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in ROWS)
    return f"<html><body><h1>Medications</h1><p>{PATIENT}</p><table>{rows}</table></body></html>".encode()


def _rtf() -> bytes:
    body = "\\par ".join(NOTE.splitlines())
    return ("{\\rtf1\\ansi\\ansicpg1252 " + body + " caf\\'e9 \\u24739?\\par}").encode("ascii")


def _docx() -> bytes:
    import docx

    document = docx.Document()
    document.add_heading("Medications", level=1)
    document.add_paragraph(PATIENT)
    table = document.add_table(rows=3, cols=3)
    for row, cells in enumerate(ROWS):
        for column, cell in enumerate(cells):
            table.cell(row, column).text = cell
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def odt(body: str = "", styles: str = "") -> bytes:
    """With this XML after the note's own, and as its styles."""
    names = ("office", "text", "table", "style")
    spaces = " ".join(f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in names)
    cells = ("".join(f"<table:table-cell><text:p>{cell}</text:p></table:table-cell>" for cell in row) for row in ROWS)
    rows = "".join(f"<table:table-row>{row}</table:table-row>" for row in cells)
    paragraphs = "".join(f"<text:p>{line}</text:p>" for line in NOTE.splitlines())
    text = f"{paragraphs}<text:h>Medications</text:h><table:table>{rows}</table:table>{body}"
    content = f"<office:document-content {spaces}><office:body><office:text>{text}</office:text></office:body>"
    files = {
        "mimetype": b"application/vnd.oasis.opendocument.text",
        "content.xml": f"{content}</office:document-content>".encode(),
        "styles.xml": f"<office:document-styles {spaces}>{styles}</office:document-styles>".encode(),
    }
    return archive(files, zipfile.ZIP_STORED)


def _xlsx() -> bytes:
    import openpyxl

    workbook = openpyxl.Workbook()
    sheet = workbook.active
    sheet.title = "Medications"
    for row in ROWS:
        sheet.append(row)
    buffer = io.BytesIO()
    workbook.save(buffer)
    return buffer.getvalue()


def _fhir() -> bytes:
    number = {"type": {"coding": [{"code": "MR"}]}, "value": "A-4711"}
    patient = {
        "resourceType": "Patient",
        "id": "p",
        "identifier": [number],
        "name": [{"given": ["Margaret"], "family": "Ellis"}],
        "birthDate": "1950-03-04",
    }
    allergy = {"resourceType": "AllergyIntolerance", "code": {"text": "Penicillin"}, "criticality": "high"}
    entries = [{"resource": patient}, {"resource": allergy}]
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}).encode()


def _hl7() -> bytes:
    lines = (
        "MSH|^~\\&|LAB|H|EHR|H|20240305||ORU^R01|1|P|2.5",
        "PID|1||A-4711^^^H^MR||Ellis^Margaret||19500304|F",
        "OBR|1|||24323-8^Metabolic panel^LN|||202403051015",
        "OBX|1|NM|2823-3^Potassium^LN||5.9|mmol/L|3.5-5.1|H|||F|||202403051015",
        "OBX|2|NM|2160-0^Creatinine^LN||88|umol/L|45-84|H|||F",
        "NTE|1||Haemolysed sample\\.br\\repeat advised",
    )
    return "\r".join(lines).encode()


def _ccda() -> bytes:
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in ROWS)
    return (
        '<?xml version="1.0"?><ClinicalDocument xmlns="urn:hl7-org:v3"><title>Health Summary</title>'
        '<effectiveTime value="20240305"/><recordTarget><patientRole><id extension="A-4711"/><patient><name>'
        '<given>Margaret</given><family>Ellis</family></name><birthTime value="19500304"/></patient></patientRole>'
        "</recordTarget><component><structuredBody><component><section><title>Medications</title><text>"
        f"<paragraph>As taken.</paragraph><table>{rows}</table><list><item>Apixaban</item></list></text></section>"
        "</component></structuredBody></component></ClinicalDocument>"
    ).encode()


def _dicom() -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    def concept(meaning: str) -> Sequence:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99B", meaning
        return Sequence([code])

    def item(kind: str, name: str) -> Dataset:
        content = Dataset()
        content.RelationshipType, content.ValueType = "CONTAINS", kind
        content.ConceptNameCodeSequence = concept(name)
        return content

    finding, measure, section = item("TEXT", "Finding"), item("NUM", "Ejection fraction"), item("CONTAINER", "Findings")
    finding.TextValue = "Mild mitral regurgitation."
    value = Dataset()
    value.NumericValue, value.MeasurementUnitsCodeSequence = "35", concept("percent")
    measure.MeasuredValueSequence = Sequence([value])
    section.ContentSequence = Sequence([finding, measure])
    report = Dataset()
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    report.file_meta.MediaStorageSOPInstanceUID = report.SOPInstanceUID = generate_uid(entropy_srcs=["small file"])
    report.PatientName, report.PatientID, report.PatientBirthDate = "Ellis^Margaret", "A-4711", "19500304"
    report.Modality = "SR"
    report.ConceptNameCodeSequence = concept("Echocardiography report")
    report.ContentSequence = Sequence([section])
    buffer = io.BytesIO()
    report.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
