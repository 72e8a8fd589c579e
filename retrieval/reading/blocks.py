"""What formats without pages are read into: paragraphs, headings and tables in order; and how these become pages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from retrieval.headings import is_heading
from retrieval.sentences import split_sentences

PAGE_CHARS = 3_000
Table = tuple[tuple[str, ...], ...]


@dataclass(slots=True)
class Blocks:
    """Paragraphs, headings and tables in reading order, each a text of one or more lines."""

    texts: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        if text.strip():
            self.texts.append(text.strip())

    def add_table(self, rows: Sequence[Sequence[str]]) -> None:
        table = tuple(tuple(" ".join(cell.split()) for cell in row) for row in rows)
        table = tuple(row for row in table if any(row))
        if table:
            self.tables.append(table)
            self.texts.append("\n".join(" | ".join(row) for row in table))


def paginate(blocks: Sequence[str], page_chars: int = PAGE_CHARS) -> list[str]:
    """Joins blocks into pages of at most `page_chars` characters; a heading opens a page that is half full."""
    pages: list[str] = []
    current = ""
    for piece in (piece for block in blocks for piece in _pieces(block, page_chars)):
        starts_section = is_heading(piece.split("\n", 1)[0]) and len(current) > page_chars / 2
        if current and (starts_section or len(current) + 2 + len(piece) > page_chars):
            pages.append(current)
            current = ""
        current = f"{current}\n\n{piece}" if current else piece
    return [*pages, current] if current else pages


def _pieces(block: str, limit: int) -> Iterator[str]:
    """A block in parts of at most `limit` characters, cut after lines, then sentences, then anywhere."""
    if len(block) <= limit:
        yield block
        return
    ends = [match.end() for match in re.finditer("\n", block)] or [end for _, end in split_sentences(block)]
    cut = max((end for end in ends if end <= limit), default=limit)
    yield block[:cut].strip()
    yield from _pieces(block[cut:].strip(), limit)


def clean(text: str) -> str:
    """Without control and zero-width characters that would break drawing or hide words."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f\u200b\u2060\ufeff]", "", text).replace("\u00a0", " ")
