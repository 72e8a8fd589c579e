"""Small PDFs made for a test."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from bench.small_files import picture

# A valid file whose page tree is empty; cross-reference offsets are exact.
NO_PAGES = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n"
    b"xref\n0 3\n0000000000 65535 f \n0000000009 00000 n \n0000000054 00000 n \n"
    b"trailer<</Size 3/Root 1 0 R>>\nstartxref\n105\n%%EOF\n"
)


def pdf_of(pages: Sequence[Sequence[str]], rotate: int = 0, password: str = "") -> bytes:
    """A PDF with the given lines on each page; `rotate` turns the lines on the sheet, anticlockwise."""
    buffer = io.BytesIO()
    encryption = None
    if password:
        from reportlab.lib.pdfencrypt import StandardEncryption

        encryption = StandardEncryption(password, strength=128)
    canvas = Canvas(buffer, pagesize=A4, encrypt=encryption, invariant=1)
    for lines in pages:
        canvas.setFont("Helvetica", 11)
        if rotate:
            canvas.translate(A4[0] / 2, A4[1] / 2)
            canvas.rotate(rotate)
            canvas.translate(-A4[1] / 2, -A4[0] / 2)
        top = A4[0] - 60 if rotate else A4[1] - 60
        for number, line in enumerate(lines):
            canvas.drawString(60, top - 15 * number, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def scan_of(stamp: str = "") -> bytes:
    """A page that is one grey image, with a line of real text on it if a stamp is given."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1)
    canvas.drawImage(ImageReader(Image.new("L", (200, 280), 200)), 0, 0, *A4)
    if stamp:
        canvas.drawString(60, 800, stamp)
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def pdf_with_scans(texts: Sequence[str], scans: Sequence[str]) -> bytes:
    """Pages of text, then pages that are pictures of text."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1)
    for text in texts:
        for number, line in enumerate(text.splitlines()):
            canvas.drawString(60, 780 - 16 * number, line)
        canvas.showPage()
    for scan in scans:
        canvas.drawImage(ImageReader(Image.open(io.BytesIO(picture("PNG", scan)))), 0, 300, A4[0], A4[0] * 620 / 760)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def noise_of() -> bytes:
    """A page that is one picture in which nothing is written: soft clouds of grey."""
    clouds = Image.effect_noise((50, 70), 90).resize((400, 560), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1)
    canvas.drawImage(ImageReader(clouds), 0, 0, *A4)
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def form_of(label: str, value: str) -> bytes:
    """A page with one form field filled in."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1)
    canvas.drawString(60, 700, label)
    canvas.acroForm.textfield(name="field", value=value, x=60, y=650, width=300, height=30)
    canvas.save()
    return buffer.getvalue()


def yellow_box(png: bytes) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of the highlighted area of a page image."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    red, _, blue = image.split()
    marked = Image.composite(
        Image.new("L", image.size, 0),
        red.point(lambda v: 255 if v > 200 else 0),
        blue.point(lambda v: 255 if v > 150 else 0),
    )
    return marked.getbbox()
