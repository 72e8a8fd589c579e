"""Where the rows and cells of a table begin and end, and what stands over a cell. Offsets are into the text given."""

from __future__ import annotations

import re
from collections.abc import Iterator

from safety.quantities import units_in

CELL = " | "  # between the cells of a row, as the parsers write them
_IN_TABLE = re.compile(r" \| |^\|?[ :|-]*-[ :|-]*$", re.MULTILINE)  # a row, or the rule under a first row


def row_at(text: str, place: int) -> tuple[int, int] | None:
    """The row of a table that holds this place."""
    start, end = text.rfind("\n", 0, place) + 1, text.find("\n", place)
    end = len(text) if end < 0 else end
    return (start, end) if CELL in text[start:end] else None


def table_head(text: str, place: int) -> tuple[int, int] | None:
    """The first row of the table that holds a place; None if that is the row itself, or no table."""
    row = row_at(text, place)
    top = row[0] if row else 0
    while top and _IN_TABLE.search(text, above := text.rfind("\n", 0, top - 1) + 1, top):
        top = above
    return (top, text.find("\n", top)) if row and top < row[0] else None


def cells_under(text: str, place: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Each cell of the row at a place that stands under one of the table's first row, and that one."""
    row, head = row_at(text, place), table_head(text, place)
    if not row or not head:
        return
    start = row[0]
    for cell in text[slice(*row)].split(CELL):
        yield (start, start + len(cell)), cell_over(text, start, head)
        start += len(cell) + len(CELL)


def cell_over(text: str, place: int, head: tuple[int, int]) -> tuple[int, int]:
    """The cell over a place in a table's first row; empty where that row is shorter."""
    column = text[text.rfind("\n", 0, place) + 1 : place].count(CELL)
    cells = text[slice(*head)].split(CELL)
    start = head[0] + sum(len(cell) + len(CELL) for cell in cells[:column])
    return start, start + sum(map(len, cells[column : column + 1]))


def row_units(text: str, place: int) -> set[str]:
    """The units in brackets in the row of a place and in the cell over it."""
    row, head = row_at(text, place), table_head(text, place)
    over = text[slice(*cell_over(text, place, head))] if head else ""
    return units_in(text[slice(*row)] + over) if row else set()
