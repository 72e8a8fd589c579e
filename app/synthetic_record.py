"""A record to measure with: any number of pages of plain clinical text, as a text PDF that is written here by hand.

Knows nothing of patients or of the library.
"""

from __future__ import annotations

import random

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
    pages = [
        [f"PROGRESS NOTE {seed}-{number}", *make_lines(words, LINES_PER_PAGE)] for number in range(1, num_pages + 1)
    ]
    return _write_pdf(pages)


def make_lines(words: random.Random, count: int) -> list[str]:
    """Sentences of a progress note, a line each."""
    return [_sentence(words) for _ in range(count)]


def _sentence(words: random.Random) -> str:
    day, month, year = words.randint(1, 28), words.randint(1, 12), words.randint(2015, 2025)
    return (
        f"On {day:02}/{month:02}/{year} she came to {words.choice(_PLACES)} with {words.choice(_SIGNS)}; "
        f"{words.choice(_DRUGS)} was given and her potassium was {words.uniform(3, 6):.1f} mmol/L."
    )


def _write_pdf(pages: list[list[str]]) -> bytes:
    """PDF 1.4 with one font: objects 1 to 3 are the catalogue, the list of pages and the font, then two a page."""
    numbers = [4 + 2 * index for index in range(len(pages))]
    kids = " ".join(f"{number} 0 R" for number in numbers)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} /MediaBox [0 0 595 842] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, lines in zip(numbers, pages, strict=True):
        shown = "".join(f"({line}) Tj T*\n" for line in lines)
        content = f"BT /F1 9 Tf 26 TL 50 800 Td\n{shown}ET".encode()
        resources = "<< /Font << /F1 3 0 R >> >>"
        page = f"<< /Type /Page /Parent 2 0 R /Resources {resources} /Contents {number + 1} 0 R >>"
        objects += [page.encode(), b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content)]
    file = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(file))
        file += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size, start = len(objects) + 1, len(file)
    file += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n".encode()
    file += f"startxref\n{start}\n%%EOF\n".encode()
    return bytes(file)
