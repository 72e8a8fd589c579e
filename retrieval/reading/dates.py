"""Dates as clinical documents write them -> ISO 8601. Knows nothing of what a date is of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

_MONTH_NAMES = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = "(?P<name>jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)[a-z]*\\.?"
_PATTERNS = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        r"(?<!\d)(?P<year>(?:19|20)\d\d)\s?[-/.年]\s?(?P<month>\d{1,2})\s?[-/.月]\s?(?P<day>\d{1,2})(?:日|(?!\d))",
        r"(?<!\d)(?P<year>(?:19|20)\d\d)(?P<month>0[1-9]|1[0-2])(?P<day>[0-2]\d|3[01])(?:\d{4,6})?(?!\d)",  # HL7
        r"(?<![\d/.-])(?P<first>\d{1,2})(?P<mark>[-/.])(?P<second>\d{1,2})(?P=mark)(?P<year>(?:19|20)\d\d)(?!\d)",
        rf"(?<!\d)(?P<day>\d{{1,2}})(?:st|nd|rd|th)?[\s-]+{_MONTH}[\s,-]+(?P<year>(?:19|20)\d\d)(?!\d)",
        rf"\b{_MONTH}\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<year>(?:19|20)\d\d)(?!\d)",
    )
)


@dataclass(frozen=True, slots=True)
class FoundDate:
    """text[start:end] says `iso`. other: what it says if day and month are the other way round, "" if it cannot be."""

    start: int
    end: int
    iso: str
    other: str = ""


def find_dates(text: str) -> list[FoundDate]:
    """Every whole date (day, month and year) of a text, in its order."""
    found = sorted(_find(text), key=lambda item: (item.start, -item.end))
    return [item for number, item in enumerate(found) if not number or item.start >= found[number - 1].end]


def _find(text: str) -> Iterator[FoundDate]:
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            parts = match.groupdict()
            year = int(parts["year"])
            if "first" in parts:
                first, second = int(parts["first"]), int(parts["second"])
                # "31/12" can only be day first; what can be both is read month first unless a dot stands between.
                is_day_first = first > 12 or (parts["mark"] == "." and second <= 12)
                month, day = (second, first) if is_day_first else (first, second)
                iso, other = _iso(year, month, day), _iso(year, day, month)
            else:
                name = parts.get("name")
                month = _MONTH_NAMES.index(name[:3].lower()) + 1 if name else int(parts["month"])
                iso, other = _iso(year, month, int(parts["day"])), ""
            if iso:
                yield FoundDate(match.start(), match.end(), iso, "" if other == iso else other)


def _iso(year: int, month: int, day: int) -> str:
    try:
        return date(year, month, day).isoformat()
    except ValueError:
        return ""
