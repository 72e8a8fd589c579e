"""A page of any document as an image, with the quoted words marked.

Pages of PDFs and pictures are drawn as they are, by a reading process; every other format is typeset from its text on a
plain sheet. Fonts of the system are used where they are found (DejaVu, Noto CJK), Pillow's own otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from contracts import Page
from retrieval.headings import is_heading
from retrieval.highlight import paint
from retrieval.reading.formats import FORMATS
from retrieval.reading.process import Readers

WIDTH = 1000
MARGIN = 72
_FONT_SIZE = 19
_LINE_HEIGHT = 29
_MIN_HEIGHT = 700
_INK = (32, 33, 36)
_FAINT = (130, 134, 139)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts", "/System/Library/Fonts")
_LATIN = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "NotoSans-Regular.ttf", "Arial.ttf")
_LATIN_BOLD = ("DejaVuSans-Bold.ttf", "LiberationSans-Bold.ttf", "NotoSans-Bold.ttf", "Arial Bold.ttf")
_CJK = ("NotoSansCJK-Regular.ttc", "NotoSerifCJK-Regular.ttc", "wqy-microhei.ttc", "PingFang.ttc")


@dataclass(frozen=True, slots=True)
class _Glyph:
    """A character of the page's text with its place on the sheet, in pixels."""

    offset: int
    character: str
    x: float
    y: int
    width: float
    font: Font


def render(
    readers: Readers,
    media_type: str,
    data: bytes,
    pages: Sequence[Page],
    page_number: int,
    highlights: Sequence[tuple[int, int]],
) -> bytes:
    """PNG of a page, counted from 1. highlights are ranges of Page.text; what lies outside the text is ignored."""
    page = next(page for page in pages if page.number == page_number)
    if FORMATS[media_type].count_pages:
        return readers.render(data, media_type, page, highlights)
    return _typeset(page, len(pages), highlights)


def _typeset(page: Page, num_pages: int, highlights: Sequence[tuple[int, int]]) -> bytes:
    glyphs = list(_layout(page.text))
    bottom = glyphs[-1].y + _LINE_HEIGHT if glyphs else MARGIN
    image = Image.new("RGB", (WIDTH, max(bottom + MARGIN + _LINE_HEIGHT, _MIN_HEIGHT)), "white")
    draw = ImageDraw.Draw(image)
    for glyph in glyphs:
        # Anchored at the baseline, so that two fonts on a line stand level.
        draw.text((glyph.x, glyph.y + 21), glyph.character, font=glyph.font, fill=_INK, anchor="ls")
    footer = f"{page.number} / {num_pages}"
    draw.text((WIDTH / 2, image.height - MARGIN / 2), footer, font=_font(_LATIN, 15), fill=_FAINT, anchor="ms")
    paint(image, [(*box, 0) for box in _boxes(glyphs, highlights)])
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def _layout(text: str) -> Iterator[_Glyph]:
    """Every visible character with its place: lines wrapped at spaces, or anywhere inside Chinese and long words."""
    y, offset = MARGIN, 0
    for line in text.split("\n"):
        bold = is_heading(line)
        x = float(MARGIN)
        # The marks of a heading are text, but bold type says it better.
        num_marks = len(line) - len(line.lstrip("# ")) if bold else 0
        offset += num_marks
        for word in _words(line[num_marks:]):
            widths = [_width(character, bold) for character in word]
            if x + sum(widths) > WIDTH - MARGIN and x > MARGIN and not word.isspace():
                x, y = float(MARGIN), y + _LINE_HEIGHT
            for character, width in zip(word, widths, strict=True):
                if x + width > WIDTH - MARGIN and not character.isspace():
                    x, y = float(MARGIN), y + _LINE_HEIGHT
                yield _Glyph(offset, character, x, y, width, _font_for(character, bold))
                x += width
                offset += 1
        offset += 1  # the line break
        y += _LINE_HEIGHT if line.strip() else _LINE_HEIGHT // 2


def _words(line: str) -> Iterator[str]:
    """The line in pieces that stay together: a word, a run of spaces, a single CJK character."""
    piece = ""
    for character in line:
        stands_alone = _is_wide(character)
        if piece and (stands_alone or character.isspace() != piece[-1].isspace() or _is_wide(piece[-1])):
            yield piece
            piece = ""
        piece += character
    if piece:
        yield piece


def _boxes(glyphs: Sequence[_Glyph], highlights: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
    for start, end in highlights:
        lines: dict[int, list[_Glyph]] = {}
        for glyph in glyphs:
            if start <= glyph.offset < end:
                lines.setdefault(glyph.y, []).append(glyph)
        for y, marked in lines.items():
            last = marked[-1]
            yield int(marked[0].x) - 1, y, int(last.x + last.width) + 1, y + _LINE_HEIGHT - 3


def _is_wide(character: str) -> bool:
    return character >= "\u2e80"


@lru_cache(maxsize=8192)
def _width(character: str, bold: bool) -> float:
    return _font_for(character, bold).getlength(character if character != "\t" else "    ")


def _font_for(character: str, bold: bool) -> Font:
    if _is_wide(character):
        return _font(_CJK, _FONT_SIZE)
    return _font(_LATIN_BOLD if bold else _LATIN, _FONT_SIZE)


@lru_cache(maxsize=16)
def _font(names: tuple[str, ...], size: int) -> Font:
    files = _font_files()
    found = next((files[name] for name in names if name in files), None)
    return ImageFont.truetype(str(found), size) if found else ImageFont.load_default(size)


@lru_cache(maxsize=1)
def _font_files() -> dict[str, Path]:
    wanted = {*_LATIN, *_LATIN_BOLD, *_CJK}
    folders = [folder for folder in map(Path, _FONT_FOLDERS) if folder.is_dir()]
    return {file.name: file for folder in folders for file in folder.rglob("*.tt[fc]") if file.name in wanted}
