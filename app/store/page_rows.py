"""Pages and what was noticed on them <-> rows. Pure conversion; the columns `lines` and `facts` are JSON, sealed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Row

from contracts import Fact, FactKind, LineBox, Page, PageFacts, ReadMethod, SectionKind, SectionSpan

_LINE_FIELDS = ("start", "end", "left", "top", "right", "bottom", "confidence", "drop")


def page_to_row(page: Page) -> dict[str, Any]:
    return {
        "number": page.number,
        "text": page.text,
        "method": page.method.value,
        "confidence": page.confidence,
        "lines": _lines_to_json(page) if page.lines else None,
    }


def page_from_row(row: Row) -> Page:
    stored = row.lines or {"rotation": 0, "boxes": []}
    lines = tuple(LineBox(*values) for values in stored["boxes"])
    return Page(row.number, row.text, ReadMethod(row.method), row.confidence, lines, stored["rotation"])


def facts_from_row(page: int, value: dict[str, Any] | None) -> PageFacts:
    """The facts of a page; none for a page that was read before facts were kept."""
    if value is None:
        return PageFacts(page)
    sections = (SectionSpan(**item | {"kind": SectionKind(item["kind"]), "page": page}) for item in value["sections"])
    facts = (Fact(**item | {"kind": FactKind(item["kind"]), "page": page}) for item in value["facts"])
    return PageFacts(page, tuple(sections), tuple(facts))


def _lines_to_json(page: Page) -> dict[str, Any]:
    boxes = [[getattr(line, name) for name in _LINE_FIELDS] for line in page.lines]
    return {"rotation": page.rotation, "boxes": boxes}


def facts_to_json(facts: PageFacts) -> dict[str, Any]:
    return {
        "sections": [_without_page(asdict(section)) for section in facts.sections],
        "facts": [_without_page(asdict(fact)) for fact in facts.facts],
    }


def _without_page(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "page"}
