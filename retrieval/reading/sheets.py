"""Excel workbooks (XLSX) and CSV -> one table a sheet, cells as a reader sees them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import date, datetime, time
from typing import Any

from retrieval.errors import DocumentError
from retrieval.reading.blocks import Blocks
from retrieval.reading.packed import check_unpacked
from retrieval.reading.text import decode

_MAX_CELLS = 2_000_000
_DELIMITERS = ",;\t|"


def read_xlsx(data: bytes) -> Blocks:
    check_unpacked(data, "Excel workbook")
    import openpyxl

    workbook = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    blocks = Blocks()
    num_cells = 0
    for sheet in workbook.worksheets:
        rows: list[list[str]] = []
        for row in sheet.iter_rows(values_only=True):
            num_cells += len(row)
            if num_cells > _MAX_CELLS:
                raise DocumentError(f"This Excel workbook has more than {_MAX_CELLS:,} cells; split it.")
            rows.append([_cell(value) for value in row])
        if table := _trim(rows):
            blocks.add(f"# {sheet.title}")
            blocks.add_table(table)
        if sheet.sheet_state != "visible":
            blocks.warnings.append(f"The sheet “{sheet.title}” is hidden in the workbook; it was read all the same.")
    return blocks


def read_csv(data: bytes) -> Blocks:
    text = decode(data)
    if text is None:
        raise DocumentError("This CSV file holds binary data or an unknown encoding; save it as UTF-8.")
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text), delimiter=_delimiter(text)):
            rows.append(row)
    except csv.Error as error:
        raise DocumentError(f"This CSV file cannot be read ({error}); export it again.") from error
    blocks = Blocks()
    blocks.add_table(_trim(rows))
    return blocks


def _delimiter(text: str) -> str:
    """The mark that parts the first lines into the same number of cells, the most of them."""
    lines = [line for line in text.split("\n")[:20] if line.strip()]

    def score(mark: str) -> tuple[int, int]:
        counts = [line.count(mark) for line in lines]
        common = max(set(counts), key=counts.count) if counts else 0
        return (counts.count(common) if common else 0, common)

    return max(_DELIMITERS, key=score)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ", "minutes")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float):
        return f"{value:.12g}"  # 0.1 + 0.2 as it is shown, not as it is stored
    return str(value)


def _trim(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Without empty rows, and without columns that are empty in all of them."""
    filled = [list(row) for row in rows if any(cell.strip() for cell in row)]
    width = max((len(row) for row in filled), default=0)
    padded = [row + [""] * (width - len(row)) for row in filled]
    used = [column for column in range(width) if any(row[column].strip() for row in padded)]
    return [[row[column] for column in used] for row in padded]
