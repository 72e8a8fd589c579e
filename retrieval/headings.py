"""Which lines are headings, and under which heading each passage stands.

A passage's words alone ("Negative.") rarely say what they are about; its document's name and the heading above it do.
In the midst of a long table the column headings do. All go into what is indexed, never into Passage.text, which stays
verbatim.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from contracts import Passage
from retrieval.tables import column_headings

MAX_HEADING_CHARS = 90
_MAX_COLUMNS_CHARS = 120  # of column headings in what is indexed: with all else still below MiniLM's 256 tokens
_CLOSED = tuple(".,;!?。；，！？|")
_BULLET = re.compile(r"\s*(?:[-*•·–]|\d{1,3}[.)])\s")


def is_heading(line: str) -> bool:
    """Whether a line announces what follows: marked with #, all in capitals, or short and ending in a colon."""
    line = line.strip()
    if not line or len(line) > MAX_HEADING_CHARS or "|" in line:
        return False
    if line.startswith("#"):
        return bool(line.strip("# "))
    if line.endswith(_CLOSED) or _BULLET.match(line):
        return False
    letters = [character for character in line if character.isalpha()]
    if len(letters) >= 3 and all(character.isupper() for character in letters):
        return True
    return line.endswith((":", "：")) and len(line) <= 60


def contexts(passages: Sequence[Passage]) -> list[str]:
    """For each passage its document's name, the heading it stands under and, where it goes on in a table, the column
    headings, in one line.

    `passages` must be in reading order, document by document; a heading holds until the next one, across pages.
    """
    names = [_title(passage.document_name) for passage in passages]
    above = zip(names, headings_above(passages), column_headings(passages), strict=True)
    return [". ".join(filter(None, (name, heading, _cut(columns)))) for name, heading, columns in above]


def headings_above(passages: Sequence[Passage]) -> list[str]:
    """For each passage the heading it stands under, "" where it opens with one of its own. In order as for contexts."""
    found: list[str] = []
    document_id, heading = "", ""
    for passage in passages:
        if passage.document_id != document_id:
            document_id, heading = passage.document_id, ""
        opens_with_heading = is_heading(passage.text.split("\n", 1)[0])
        found.append("" if opens_with_heading else heading)
        heading = last_heading(passage.text) or heading
    return found


def _title(document_name: str) -> str:
    name = PurePath(document_name).stem if "." in document_name else document_name
    return re.sub(r"[_\s]+", " ", name).strip()[:MAX_HEADING_CHARS]


def _cut(columns: str) -> str:
    """As many column headings as there is room for."""
    return columns if len(columns) <= _MAX_COLUMNS_CHARS else columns[:_MAX_COLUMNS_CHARS].rpartition(" | ")[0]


def last_heading(text: str) -> str:
    """The last heading in a text, without its marks; "" if there is none."""
    for line in reversed(text.splitlines()):
        if is_heading(line):
            return line.strip("#: ：\t")
    return ""
