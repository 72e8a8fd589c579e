"""Synthetic records to measure with, made by reportlab: any number of pages of plain clinical text."""

from __future__ import annotations

import io
import random

from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

LINES_PER_PAGE = 24
_DRUGS = (
    "Apixaban 5 mg",
    "Bisoprolol 2.5 mg",
    "Furosemide 40 mg",
    "Ramipril 5 mg",
    "Metformin 500 mg",
    "Sertraline 50 mg",
)
_SIGNS = ("breathlessness", "ankle swelling", "palpitations", "dizziness", "chest tightness", "a dry cough")
_PLACES = ("the heart failure clinic", "the outpatient department", "ward 7", "the emergency department")


def make_pdf(num_pages: int, seed: int) -> bytes:
    """A text PDF of some 500 words a page; equal seeds give equal words."""
    words = random.Random(seed)
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4)
    for number in range(1, num_pages + 1):
        text = canvas.beginText(50, 800)
        text.setFont("Helvetica", 9, leading=26)
        text.textLine(f"PROGRESS NOTE {seed}-{number}")
        for _ in range(LINES_PER_PAGE):
            text.textLine(_sentence(words))
        canvas.drawText(text)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def _sentence(words: random.Random) -> str:
    day, month, year = words.randint(1, 28), words.randint(1, 12), words.randint(2015, 2025)
    return (
        f"On {day:02}/{month:02}/{year} she came to {words.choice(_PLACES)} with {words.choice(_SIGNS)}; "
        f"{words.choice(_DRUGS)} was given and her potassium was {words.uniform(3, 6):.1f} mmol/L."
    )
