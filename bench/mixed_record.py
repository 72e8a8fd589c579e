"""A record as a hospital has them: pages of text, ruled tables, scans and Chinese, in one PDF that is drawn here.

Four facts stand in it once each, so that a drive can ask for them: one on a page of text, one in a table, one in a scan
and one in Chinese.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from app.synthetic_record import make_lines

_WIDTH, _HEIGHT = A4
_SCAN_DPI = 150
_TESTS = ("Potassium", "Sodium", "Creatinine", "Urea", "Haemoglobin", "Platelets", "CRP", "Albumin")
_CHINESE_FONT = "STSong-Light"  # one of the fonts that every PDF reader knows by name
_CHINESE = "患者诉胸闷、气短,活动后加重,休息后缓解。查体:双下肢轻度水肿,心率{rate}次/分。嘱低盐饮食,按时服药。"


@dataclass(frozen=True, slots=True)
class Planted:
    """A fact that stands on one page only, and a question for it."""

    question: str
    words: str
    page: int


@dataclass(frozen=True, slots=True)
class MixedRecord:
    pdf: bytes
    num_pages: int
    num_scans: int
    planted: tuple[Planted, ...]  # of text, table, Chinese and scan, in this order


def make_record(num_pages: int = 300, num_scans: int = 20, seed: int = 7) -> MixedRecord:
    """Text on most pages, every tenth a table, every twelfth Chinese; the scans are the last pages. What is planted in
    typed pages stands in the second half of them. Equal seeds give equal words."""
    draw = random.Random(seed)
    pdfmetrics.registerFont(UnicodeCIDFont(_CHINESE_FONT))
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1)
    num_typed = num_pages - num_scans
    planted: dict[str, Planted] = {}
    for number in range(1, num_pages + 1):
        kind = "scan" if number > num_typed else _kind(number)
        fact = _FACTS[kind] if kind not in planted and number > num_typed // 2 else None
        if fact:
            planted[kind] = Planted(*fact, number)
        _PAGES[kind](canvas, draw, number, fact[1] if fact else "")
        canvas.showPage()
    canvas.save()
    facts = tuple(planted[kind] for kind in _FACTS if kind in planted)
    return MixedRecord(buffer.getvalue(), num_pages, num_scans, facts)


def _kind(number: int) -> str:
    if number % 10 == 0:
        return "table"
    return "chinese" if number % 12 == 0 else "text"


def _draw_text(canvas: Canvas, draw: random.Random, number: int, fact: str) -> None:
    _draw_lines(canvas, [f"PROGRESS NOTE {number}", *make_lines(draw, 23), *filter(None, [fact])])


def _draw_lines(canvas: Canvas, lines: list[str], font: str = "Helvetica", size: float = 7.5) -> None:
    canvas.setFont(font, size)
    for row, line in enumerate(lines):
        canvas.drawString(50, _HEIGHT - 50 - 30 * row, line)


def _draw_table(canvas: Canvas, draw: random.Random, number: int, fact: str) -> None:
    rows = [("Date", "Test", "Result", "Unit")]
    rows += [
        (f"{draw.randint(1, 28):02}/{draw.randint(1, 12):02}/2024", name, f"{draw.uniform(3, 140):.1f}", "mmol/L")
        for name in _TESTS * 3
    ]
    if fact:
        rows[-1] = ("03/05/2024", *fact.split(" | "))
    canvas.setFont("Helvetica-Bold", 12)
    canvas.drawString(50, _HEIGHT - 50, f"LABORATORY RESULTS {number}")
    canvas.setFont("Helvetica", 9)
    left, top, width, height = 50.0, _HEIGHT - 80, 120.0, 22.0
    columns = [left + width * n for n in range(len(rows[0]) + 1)]
    canvas.grid(columns, [top - height * n for n in range(len(rows) + 1)])
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            canvas.drawString(columns[column] + 6, top - height * (row + 1) + 7, cell)


def _draw_chinese(canvas: Canvas, draw: random.Random, number: int, fact: str) -> None:
    lines = [
        f"病程记录 {number}",
        *[_CHINESE.format(rate=draw.randint(60, 110)) for _ in range(20)],
        *filter(None, [fact]),
    ]
    _draw_lines(canvas, lines, _CHINESE_FONT, 9)


def _draw_scan(canvas: Canvas, draw: random.Random, number: int, fact: str) -> None:
    """A picture of print, a little askew, on paper that is not quite white."""
    scale = _SCAN_DPI / 72
    sheet = Image.new("L", (round(_WIDTH * scale), round(_HEIGHT * scale)), 244)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(round(10 * scale))
    for row, line in enumerate([f"SCANNED LETTER {number}", *make_lines(draw, 14), *filter(None, [fact])]):
        pen.text((40 * scale, (50 + 34 * row) * scale), line, fill=30, font=font)
    sheet = sheet.rotate(draw.uniform(-0.7, 0.7), fillcolor=244, resample=Image.Resampling.BICUBIC)
    canvas.drawImage(ImageReader(sheet), 0, 0, _WIDTH, _HEIGHT)


_FACTS = {
    "text": ("When was the pacemaker implanted?", "The pacemaker was implanted on 14/02/2019 in Harrow."),
    "table": ("What was the ferritin?", "Ferritin | 412 | ug/L"),
    "chinese": ("患者对什么药物过敏?", "过敏史:患者对青霉素过敏,曾出现皮疹。"),
    "scan": ("Which stent was placed?", "A zotarolimus stent was placed in the right coronary artery."),
}
_PAGES: dict[str, Callable[[Canvas, random.Random, int, str], None]] = {
    "text": _draw_text,
    "table": _draw_table,
    "chinese": _draw_chinese,
    "scan": _draw_scan,
}
