"""The grids of a PDF page's ruled tables: PDFium's paths -> rules -> pdfplumber's table finder -> cells.

Only geometry: pdf_text.py puts the words into the cells. The finder alone is used, not pdfplumber's reader, which needs
0.1 s a page.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from retrieval.reading.layout import Box
from retrieval.reading.pdf_text import Table, upright

_MIN_RULES = 6  # fewer make no table of two rows and two columns
_MAX_RULES = 4_000  # a page with more is a drawing, and the finder needs seconds
_MAX_THICKNESS = 3.0  # points: a thicker rectangle is a box, of which the four sides count
_TOLERANCE = 3.0


def find_tables(page: pdfium.PdfPage) -> list[Table]:
    """Tables of two columns and more, from top to bottom; one row may be all that a page break left of one."""
    rules = list(_rules(page))
    if len(rules) < _MIN_RULES or len(rules) > _MAX_RULES:
        return []
    from pdfplumber import table as finder

    edges = finder.merge_edges([_edge(rule) for rule in rules], _TOLERANCE, _TOLERANCE, _TOLERANCE, _TOLERANCE)
    cells = finder.intersections_to_cells(finder.edges_to_intersections(edges, _TOLERANCE, _TOLERANCE))
    tables = [_to_table(group) for group in finder.cells_to_tables(cells)]
    return sorted(
        (table for table in tables if len(table.rows[0]) >= 2 and len(table.rows) * len(table.rows[0]) >= 3),
        key=lambda table: table.box[1],
    )


def _to_table(cells: Sequence[Box]) -> Table:
    lefts = sorted({cell[0] for cell in cells})
    tops = sorted({cell[1] for cell in cells})
    at = {(cell[1], cell[0]): cell for cell in cells}
    return Table(tuple(tuple(at.get((top, left)) for left in lefts) for top in tops))


def _rules(page: pdfium.PdfPage) -> Iterator[Box]:
    """Horizontal and vertical lines, on the upright page; of a filled thin rectangle its long axis."""
    rotation = page.get_rotation()
    count = 0
    for item in page.get_objects(filter=[pdfium_c.FPDF_PAGEOBJ_PATH], max_depth=3):
        for rule in _path_rules(item):
            count += 1
            if count > _MAX_RULES + 1:
                return
            yield upright(rule, rotation)


def _path_rules(item: Any) -> Iterator[Box]:
    left, bottom, right, top = item.get_bounds()
    if min(right - left, top - bottom) <= _MAX_THICKNESS:
        yield left, bottom, right, top
        return
    points: list[tuple[float, float]] = []
    start = (0.0, 0.0)
    matrix = item.get_matrix()
    x, y = ctypes.c_float(), ctypes.c_float()
    for number in range(min(pdfium_c.FPDFPath_CountSegments(item.raw), _MAX_RULES)):
        segment = pdfium_c.FPDFPath_GetPathSegment(item.raw, number)
        pdfium_c.FPDFPathSegment_GetPoint(segment, ctypes.byref(x), ctypes.byref(y))
        point = matrix.on_point(x.value, y.value)
        if pdfium_c.FPDFPathSegment_GetType(segment) == pdfium_c.FPDF_SEGMENT_MOVETO:
            points, start = [], point
        points.append(point)
        if pdfium_c.FPDFPathSegment_GetClose(segment):
            points.append(start)
        for (x0, y0), (x1, y1) in pairwise(points[-3:]):
            if min(abs(x1 - x0), abs(y1 - y0)) <= 1:
                yield min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _edge(rule: Box) -> dict[str, Any]:
    """A rule as pdfplumber's finder takes it."""
    left, top, right, bottom = rule
    is_flat = right - left >= bottom - top
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    x0, x1 = (left, right) if is_flat else (middle_x, middle_x)
    y0, y1 = (middle_y, middle_y) if is_flat else (top, bottom)
    return {
        "x0": x0,
        "x1": x1,
        "top": y0,
        "bottom": y1,
        "width": x1 - x0,
        "height": y1 - y0,
        "orientation": "h" if is_flat else "v",
        "object_type": "line",
    }
