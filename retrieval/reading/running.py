"""Pages -> the lines that run from page to page: letterheads, the patient's name and number, "Page 2 of 3".

They are marked (`FactKind.REPEATED`), never removed: an answer must not rest on one, and what is left out cannot be
found again. Content is never taken for one, whether or not it stands on every page: a value with its unit, what is said
of allergies, and the sections of a record.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile

from contracts import Fact, FactKind, Page, SectionKind
from retrieval.reading.sections import is_section_title, section_kind
from retrieval.tables import VALUE

_EDGE_LINES = 3  # a running header or footer stands in the first or last lines of a page
_MIN_REPEATS = 3  # pages on which one that names nothing of its own must stand; ...
_MIN_NAMED = 2  # ... and one that names a page, a place of care or the patient
_PAGE_NUMBER = re.compile(
    r"(?:\b(?:page|pg\.?|p\.)|第)\s?\d+(?:\s?页)?(?:\s?(?:of|/|共)\s?\d+)?|^\W*\d+(?:\s?(?:of|/)\s?\d+)?\W*$", re.I
)
_PLACE = re.compile(
    r"\b(?:hospital|infirmary|clinic|department|dept|trust|medical cent(?:re|er)|ward|unit|practice)\b"
    r"|医院|诊所|卫生院|科室|病区",
    re.I,
)
_DAY = re.compile(r"\b\d{1,4}([/.-])\d{1,2}\1\d{1,4}\b")
_NUMBER_MARK = "#"

Span = tuple[int, int]


def find_running_lines(pages: Sequence[Page], identity: Mapping[int, Collection[Fact]]) -> Iterator[Fact]:
    """The running lines of a document. identity: by page number where the patient's name, birth date and number stand.

    A page that stands there twice proves nothing: it counts once.
    """
    places: defaultdict[tuple[bool, int, str], list[Fact]] = defaultdict(list)
    named: set[tuple[bool, int, str]] = set()
    for page in pages:
        for is_foot, rank, (start, end) in _edges(page):
            key = is_foot, rank, _shape(page.text[start:end], page.number)
            places[key].append(Fact(FactKind.REPEATED, "", page.number, start, end))
            if _names_something(page.text, start, end, identity.get(page.number, ())):
                named.add(key)
    texts = {page.number: page.text for page in pages}
    for key, facts in places.items():
        if len({texts[fact.page] for fact in facts}) >= (_MIN_NAMED if key in named else _MIN_REPEATS):
            yield from facts


def _edges(page: Page) -> Iterator[tuple[bool, int, Span]]:
    """(whether at the foot, how many lines from the edge, its span) of the lines before the first content from above
    and from below; at most half of the page's lines each."""
    lines = [match.span() for match in re.finditer(r"[^\n]+", page.text) if match[0].strip()]
    for is_foot, ordered in ((False, lines), (True, lines[::-1])):
        edge = ordered[: min(_EDGE_LINES, len(lines) // 2)]
        for rank, span in enumerate(takewhile(lambda span: not _is_content(page.text[slice(*span)]), edge)):
            yield is_foot, rank, span


def _is_content(line: str) -> bool:
    plain = _DAY.sub("", _PAGE_NUMBER.sub("", line))
    opening = re.split("[:：]", line, maxsplit=1)[0]
    return bool(VALUE.search(plain)) or is_section_title(opening) or section_kind(line) is SectionKind.ALLERGIES


def _shape(line: str, number: int) -> str:
    """A line as it is on every page: without the page's number."""
    plain = _PAGE_NUMBER.sub(_NUMBER_MARK, " ".join(line.casefold().split()))
    return re.sub(rf"\b{number}\b", _NUMBER_MARK, plain)


def _names_something(text: str, start: int, end: int, identity: Collection[Fact]) -> bool:
    """Whether a line names a page, the patient, or a place of care other than in a sentence."""
    line = text[start:end]
    is_place = bool(_PLACE.search(line)) and not line.rstrip().endswith((".", "。"))
    return is_place or bool(_PAGE_NUMBER.search(line)) or any(start <= fact.start < end for fact in identity)
