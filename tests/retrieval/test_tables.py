"""A row deep in a long table is found and read by its column headings; a wrong heading is never given."""

from __future__ import annotations

import pytest

from contracts import Page, Passage
from retrieval.chunking import make_passages
from retrieval.headings import contexts
from retrieval.tables import column_headings
from tests.retrieval.conftest import Bench

HEADINGS = "Date | Potassium (mmol/L) | Creatinine (µmol/L)"
ROWS = [f"2025-{month:02d}-{day:02d} | 4.{day % 10} | {90 + day}" for month in range(1, 5) for day in range(1, 29)]


def cut(*pages: str, max_words: int = 40) -> list[Passage]:
    document = [Page(number, text) for number, text in enumerate(pages, start=1)]
    return make_passages("d", "Blood results.xlsx", document, lambda text: len(text.split()), max_words)


def test_every_passage_of_a_long_table_has_its_column_headings() -> None:
    passages = cut("\n".join(["# Kidney", HEADINGS, *ROWS]), "\n".join(ROWS))
    assert len(passages) > 20
    first, *rest = column_headings(passages)
    assert first == ""  # there they stand in the text itself
    assert set(rest) == {HEADINGS}
    assert contexts(passages)[3] == f"Blood results. Kidney. {HEADINGS}"
    assert all(HEADINGS not in passage.text for passage in passages[1:])


def test_a_row_in_the_fourth_month_is_found_by_its_column(bench: Bench) -> None:
    for name, measured in (("a.csv", "Potassium"), ("b.csv", "Ferritin")):
        rows = "\n".join(["Day,Result", *(row.replace(" | ", ",").rpartition(",")[0] for row in ROWS)])
        bench.ready("anna", name, rows.replace("Result", measured))
    found = bench.retriever.search("potassium on 2025-04-27", "anna", limit=1)[0].passage
    assert (found.document_name, "2025-04-27" in found.text) == ("a.csv", True)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Test | 2025-03-01 | 02/03/2025 | 08:00", "Potassium | 4.1 | 4.3 | 4.2"),
        ("Drug | Dose | Since", "Apixaban | 5 mg | 2024"),
        ("Visit | Day 1 | Day 30", "Weight | 71.5 | 70.2"),
        ("检查 | 结果 | 单位", "血钾 | 4.1 | mmol/L"),
    ],
)
def test_what_tells_the_columns_is_a_heading(first: str, second: str) -> None:
    assert set(column_headings(cut("\n".join([first, *[second] * 40])))[1:]) == {first}


@pytest.mark.parametrize(
    "row",
    [
        "Mon BP 120/80 | HR 72",
        "Aspirin | 75 mg daily | since 2019",
        "2025-03-01 | 4.1 | 140",
        "Chair | HR 72 | resting",
        "Weight | 71.5",
    ],
)
def test_a_first_row_of_values_is_no_heading(row: str) -> None:
    assert set(column_headings(cut("\n".join([row] * 60)))) == {""}


def test_the_title_above_the_headings_stays_with_them() -> None:
    passages = cut("\n".join(["Clotting |  | ", "Day | INR | Dose", *["Monday | 2.5 | 3 mg"] * 40]))
    assert column_headings(passages)[-1] == "Clotting: Day | INR | Dose"


def test_a_table_ends_where_something_else_stands() -> None:
    table = "\n".join([HEADINGS, *ROWS[:8]])
    prose = "She walks two miles a day without breathlessness and sleeps well on one pillow. " * 4
    other = "\n".join(["Father | stroke", *["Mother | asthma"] * 8])
    assert column_headings(cut(f"{table}\n{prose}\n\n{other}", max_words=20))[-1] == "Father | stroke"
    assert column_headings(cut(f"{table}\n\n{ROWS[9]}", max_words=50))[-1] == ""  # a blank line parts two tables
    assert column_headings(cut(table, "Sodium | Chloride | Urea\n140 | 101 | 5"))[-1] == ""
    assert column_headings(cut(table, "2025-03-01 | 4.1"))[-1] == ""
    assert column_headings(cut(table, f"A line between.\n{ROWS[9]}"))[-1] == ""
