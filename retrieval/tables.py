"""Which column headings a passage stands under, when it goes on in a table that an earlier passage began.

Every parser writes a row of a table as a line of cells apart by " | ". Knows nothing of files or vectors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from contracts import Passage
from retrieval.reading.dates import find_dates

VALUE = re.compile(
    r"\d ?(?:%|°|(?:mg|mcg|µg|μg|g|kg|ml|l|mmol|µmol|μmol|umol|ng|pg|iu|units?|mmhg|bpm|ms|cm|mm|weeks?)\b)|\d/\d", re.I
)
_NUMBER = re.compile(r"[<>≤≥~±+-]?\d[\d.,]*")
_SHORT_DATE = re.compile(r"(?:19|20)\d\d|\d{1,2}/\d{1,2}(?:/\d\d)?|\d{1,2}:\d\d")

Cells = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    """A table as far as it has been read. headings: its first full row, as it stands there; "" where that row is none.

    title: what stands in a cell of its own above. tells_apart: every row below the headings holds a digit, so that one
    without may be the headings of another table.
    """

    cells: Cells
    headings: str
    title: str = ""
    num_rows: int = 0
    tells_apart: bool = True

    @property
    def context(self) -> str:
        return ": ".join(filter(None, (self.title, self.headings)))


def column_headings(passages: Sequence[Passage]) -> list[str]:
    """For each passage the title and the heading row of the table in whose midst it begins, on one line; "" for others.

    `passages` must be in reading order. A table goes on over a page break if the rows have as many cells. A first row
    that holds values as the rows below does is no heading: a wrong heading would be worse than none. A passage without
    text parts no table.
    """
    found: list[str] = []
    table: _Table | None = None
    previous: Passage | None = None
    for passage in passages:
        if not passage.text:
            found.append("")
            continue
        first, *rest = passage.text.split("\n")
        table = _read(table, first) if table and previous and _goes_on(table, previous, passage) else None
        found.append(table.context if table and table.num_rows > 0 else "")
        if table is None:
            table = _read(None, first)
        for line in rest:
            table = _read(table, line)
        previous = passage
    return found


def _goes_on(table: _Table, previous: Passage, passage: Passage) -> bool:
    """Whether the passage's first line is the table's next row."""
    if previous.document_id != passage.document_id:
        return False
    if previous.page == passage.page:
        return passage.start - previous.end <= 1  # a line break; a blank line is longer
    cells = _cells(passage.text.split("\n", 1)[0])
    is_next_page = passage.page == previous.page + 1
    return is_next_page and len(cells) == len(table.cells) and not (table.tells_apart and _is_wordy(cells))


def _read(table: _Table | None, line: str) -> _Table | None:
    """The table with one more line; None where the line is no row."""
    cells = _cells(line)
    if len(cells) < 2:
        return None
    if table is None or sum(map(bool, table.cells)) < 2:
        title = next(filter(None, table.cells), "") if table else ""
        return _Table(cells, line.strip(), title)
    return replace(
        table,
        headings=table.headings if table.num_rows or _are_headings(table.cells, cells) else "",
        num_rows=table.num_rows + 1,
        tells_apart=table.tells_apart and any(map(str.isdigit, line)),
    )


def _are_headings(first: Cells, second: Cells) -> bool:
    """Whether a table's first row tells what stands below it, and is not a row like the second."""
    return not any(
        _is_value(above) or (any(map(str.isdigit, above)) and _shape(above) == _shape(below))
        for above, below in zip(first, second, strict=False)
    )


def _is_value(cell: str) -> bool:
    if find_dates(cell) or _SHORT_DATE.fullmatch(cell):  # results are often laid out with a column for each day
        return False
    return bool(_NUMBER.fullmatch(cell) or VALUE.search(cell))


def _shape(cell: str) -> str:
    return re.sub(r"\d" if cell.isdigit() else r"\d+", "0", cell)


def _is_wordy(cells: Cells) -> bool:
    """Whether it may be a row of headings: a word in every cell, and no number."""
    return all(cells) and not any(map(str.isdigit, "".join(cells)))


def _cells(line: str) -> Cells:
    """Of a row its cells; of any other line one."""
    return tuple(cell.strip() for cell in f" {line} ".split(" | "))
