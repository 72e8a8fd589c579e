"""PDF text follows the reader's eye, and a highlight lands on the words that were asked for."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from PIL import Image

from contracts import ReadMethod
from retrieval.errors import DocumentError
from retrieval.reading.pdf import read_pages, render_page
from tests.retrieval.pdfs import form_of, pdf_of, scan_of, yellow_box

WRAPPED = (
    "The patient was admitted with crushing central chest pain that had begun two hours before",
    "and radiated to the left arm. Troponin was raised, and the electrocardiogram showed changes",
    "of the anterior wall, so that she was taken to the catheter laboratory without any further",
    "delay. She is stable today.",
)
MEDICATIONS = (
    "MEDICATIONS",
    "Aspirin 81 mg daily",
    "Metoprolol succinate 50 mg by mouth twice daily",
    "Lisinopril 10 mg",
)


def read(data: bytes) -> str:
    return "\n".join(page.text for page in read_pages(data))


def span(text: str, words: str) -> tuple[int, int]:
    start = text.index(words)
    return start, start + len(words)


def test_wrapped_lines_become_one_paragraph_and_list_items_stay_apart() -> None:
    text = read(pdf_of([[*WRAPPED, "", *MEDICATIONS]]))
    assert "two hours before and radiated to the left arm" in text
    assert text.endswith("\n".join(MEDICATIONS))


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_sideways_page_is_read_and_drawn_upright(angle: int) -> None:
    data = pdf_of([WRAPPED], rotate=angle)
    text = read(data)
    assert text.startswith("The patient was admitted")
    box = yellow_box(render_page(data, 1, [span(text, "patient was admitted")]))
    assert box is not None
    left, top, right, bottom = box
    assert right - left > 3 * (bottom - top)  # words run from left to right on the image


def test_highlight_covers_exactly_its_line() -> None:
    data = pdf_of([["First line of the note.", "Second line of the note.", "Third line of the note."]])
    text = read(data)
    boxes = [yellow_box(render_page(data, 1, [span(text, f"{word} line")])) for word in ("First", "Second", "Third")]
    assert all(boxes)
    tops = [box[1] for box in boxes if box]
    bottoms = [box[3] for box in boxes if box]
    assert tops == sorted(tops)
    assert bottoms[0] <= tops[1] + 3
    assert bottoms[1] <= tops[2] + 3


def test_highlight_over_a_line_end_marks_both_lines() -> None:
    data = pdf_of([WRAPPED])
    text = read(data)
    one = yellow_box(render_page(data, 1, [span(text, "two hours before")]))
    both = yellow_box(render_page(data, 1, [span(text, "two hours before and radiated")]))
    assert one is not None
    assert both is not None
    assert both[3] - both[1] > 1.5 * (one[3] - one[1])


def test_highlight_out_of_range_changes_nothing() -> None:
    data = pdf_of([["One line."]])
    assert render_page(data, 1, [(500, 900), (-5, 0), (3, 3)]) == render_page(data, 1, [])


def test_value_typed_into_a_form_is_read_and_can_be_marked() -> None:
    data = form_of("Known allergies", "Penicillin anaphylaxis 2019")
    text = read(data)
    assert "Penicillin anaphylaxis 2019" in text
    assert yellow_box(render_page(data, 1, [span(text, "anaphylaxis")])) is not None


def test_blank_page_is_not_unreadable_but_a_scan_is() -> None:
    assert [page.method for page in read_pages(pdf_of([["Text."], [], ["More."]]))] == [ReadMethod.TEXT] * 3
    assert [page.method for page in read_pages(scan_of())] == [ReadMethod.PENDING]


def test_page_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DocumentError, match="no page 2"):
        render_page(pdf_of([["Text."]]), 2, [])


def test_giant_page_is_drawn_small_enough() -> None:
    import reportlab.pdfgen.canvas

    buffer = io.BytesIO()
    canvas = reportlab.pdfgen.canvas.Canvas(buffer, pagesize=(14_400, 14_400))
    canvas.drawString(100, 100, "two hundred inches")
    canvas.save()
    image = Image.open(io.BytesIO(render_page(buffer.getvalue(), 1, [])))
    assert image.width * image.height <= 26_000_000


def test_reading_and_drawing_from_many_threads_agree() -> None:
    data = pdf_of([WRAPPED] * 8)
    expected = read(data)
    image = render_page(data, 3, [(0, 20)])
    seen: list[bool] = []

    def work() -> None:
        seen.append(read(data) == expected and render_page(data, 3, [(0, 20)]) == image)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 6


def test_rows_of_a_table_are_not_joined_like_prose(shared: Path) -> None:
    text = read((shared / "clinical_docs" / "chart_tables.pdf").read_bytes())
    rows = [line for line in text.splitlines() if "Blood Pressure" in line]
    assert rows
    assert all(line.count("Blood Pressure") == 1 and "BMI" not in line for line in rows)


def test_row_of_a_table_with_wrapped_cells_is_one_line(shared: Path) -> None:
    text = read((shared / "clinical_docs" / "chart_tables.pdf").read_bytes())
    row = next(line for line in text.splitlines() if line.startswith("Bakers Yeast"))
    assert "Moderately Susceptible" in row
    assert "04-16-2010 10:00:00" in row
    assert row.endswith("Active")
