"""Pages -> sections by their headings, each with a kind, its span and the date it is of.

Headings are known by retrieval.headings; what they are about stands in sections.yaml. A line that opens with a known
title and a colon ("Allergies: penicillin") is a section too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from contracts import Page, SectionKind, SectionSpan
from retrieval.headings import is_heading
from retrieval.reading.dates import find_dates

_MAX_TITLE_CHARS = 60


@dataclass(frozen=True, slots=True)
class _Title:
    kind: SectionKind
    title: str
    start: int
    end: int
    date: str


def find_sections(pages: Sequence[Page]) -> dict[int, tuple[SectionSpan, ...]]:
    """Page number -> its sections in reading order. What stands before the first heading belongs to none."""
    spans: dict[int, tuple[SectionSpan, ...]] = {}
    current: _Title | None = None  # of the page before: it goes on
    for page in pages:
        titles = list(_titles(page.text))
        found: list[SectionSpan] = []
        first = titles[0].start if titles else len(page.text)
        if current and page.text[:first].strip():
            found.append(SectionSpan(current.kind, current.title, page.number, 0, first, 0, 0, current.date))
        for number, title in enumerate(titles):
            end = titles[number + 1].start if number + 1 < len(titles) else len(page.text)
            found.append(
                SectionSpan(title.kind, title.title, page.number, title.start, end, title.start, title.end, title.date)
            )
        current = titles[-1] if titles else current
        spans[page.number] = tuple(found)
    return spans


def section_kind(title: str) -> SectionKind:
    """What a heading announces; OTHER where no known phrase stands in it."""
    words = _normalise(title)
    table = _phrases()
    if words in table:
        return table[words]
    held = _any_phrase().findall(words)
    return table[max(held, key=len)] if held else SectionKind.OTHER


def is_section_title(line: str) -> bool:
    """Whether a line names a kind of section and nothing else."""
    return _normalise(line) in _phrases()


def _titles(text: str) -> Iterator[_Title]:
    start = 0
    is_after_gap = True
    for line in text.splitlines(keepends=True):
        stripped = line.rstrip()
        title, length = _title_of(stripped, is_after_gap)
        is_after_gap = not stripped
        if title:
            dates = find_dates(stripped)
            yield _Title(section_kind(title), title, start, start + length, dates[0].iso if dates else "")
        start += len(line)


def _title_of(line: str, is_alone: bool) -> tuple[str, int]:
    """(title, how many characters of the line it takes); ("", 0) for a line that is no heading."""
    if not line.strip():
        return "", 0
    if is_heading(line) or (is_alone and _is_known_title(line)):
        return line.strip("#: ：\t*"), len(line)
    opening = re.match(r"[^:：|.。\n]{2,60}?\s?[:：]", line)
    if opening and _normalise(opening[0]) in _phrases():
        return opening[0].strip("#: ：\t*-•"), opening.end()
    return "", 0


def _is_known_title(line: str) -> bool:
    """Whether a line that opens a paragraph is a title in ordinary type: short, unpunctuated, of known words."""
    if len(line) > _MAX_TITLE_CHARS or line.rstrip().endswith((".", ",", ";", "。", "，", "；")) or "|" in line:
        return False
    if any(character.isdigit() for character in line):
        return False
    return line[0].isupper() and len(line.split()) <= 6 and section_kind(line) is not SectionKind.OTHER


@lru_cache(maxsize=4096)
def _normalise(title: str) -> str:
    words = re.sub(r"[&/+,]", " and ", title.casefold())
    return " ".join(re.sub(r"[^\w\u4e00-\u9fff -]", " ", words).split()).strip("- ")


@lru_cache(maxsize=1)
def _any_phrase() -> re.Pattern[str]:
    """The phrases, longest first: as words in English, anywhere in Chinese."""
    phrases = sorted(_phrases(), key=len, reverse=True)
    chinese = "|".join(phrase for phrase in phrases if phrase >= "\u4e00")
    english = "|".join(re.escape(phrase) for phrase in phrases if phrase < "\u4e00")
    return re.compile(rf"{chinese}|(?<![\w-])(?:{english})(?![\w-])")


@lru_cache(maxsize=1)
def _phrases() -> dict[str, SectionKind]:
    """Normalised phrase -> kind. Raises ValueError for an unknown kind or a phrase that stands under two."""
    table: dict[str, SectionKind] = {}
    lists = yaml.safe_load(Path(__file__).with_name("sections.yaml").read_text(encoding="utf-8"))
    for kind, phrases in lists.items():
        for phrase in phrases:
            if _normalise(phrase) in table:
                raise ValueError(f"sections.yaml has {phrase!r} twice.")
            table[_normalise(phrase)] = SectionKind(kind)
    return table
