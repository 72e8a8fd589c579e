"""Documents without pages of their own are drawn as clean sheets, with the quoted words marked."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from contracts import Page
from retrieval.page_image import WIDTH, render
from retrieval.reading.formats import PDF, TEXT
from retrieval.reading.process import Readers
from tests.retrieval.pdfs import pdf_of, yellow_box

NOTE = (
    "# Medications\n\nMetoprolol 50 mg twice daily.\n- aspirin 81 mg\n\n患者，男，65岁，因胸痛两小时入院。"
    + "很长的一行" * 40
)


def draw(text: str, *highlights: tuple[int, int]) -> bytes:
    return render(Readers(keeps_spare=False), TEXT, b"", [Page(1, text)], 1, highlights)


def test_sheet_is_drawn_with_its_words_marked() -> None:
    start = NOTE.index("aspirin")
    png = draw(NOTE, (start, start + 7))
    assert Image.open(io.BytesIO(png)).width == WIDTH
    box = yellow_box(png)
    assert box is not None
    assert 20 < box[2] - box[0] < 120
    assert 15 < box[3] - box[1] < 40


def test_chinese_and_wrapped_lines_can_be_marked() -> None:
    start = NOTE.index("很长")
    box = yellow_box(draw(NOTE, (start, len(NOTE))))
    assert box is not None
    assert box[3] - box[1] > 60  # more than one line
    assert box[2] <= WIDTH - 60


def test_words_further_down_are_marked_further_down() -> None:
    first, last = yellow_box(draw(NOTE, (2, 10))), yellow_box(draw(NOTE, (NOTE.index("患者"), NOTE.index("患者") + 2)))
    assert first is not None
    assert last is not None
    assert first[3] < last[1]


@pytest.mark.parametrize("text", ["", "\n\n", "x" * 5000, "tab\tseparated", "emoji 😀 and \u202e controls"])
def test_any_text_can_be_drawn(text: str) -> None:
    assert draw(text, (-10, 3), (4, 99_999), (7, 2)).startswith(b"\x89PNG")


def test_pdf_page_is_drawn_as_it_is(readers: Readers) -> None:
    data = pdf_of([["Aspirin 81 mg"]])
    image = Image.open(io.BytesIO(render(readers, PDF, data, [Page(1, "Aspirin 81 mg")], 1, [(0, 7)])))
    assert image.height > image.width
