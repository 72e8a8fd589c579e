"""Text -> spans of its sentences and lines, English and Chinese.

Knows nothing of pages or passages. A line break always ends a sentence: the parsers have already joined wrapped
lines, so what is left of them separates list items, table rows and headings. safety/sentences.py reads what anybody
writes, with lines still wrapped, and neither layer may import the other.
"""

from __future__ import annotations

import re

# Words that end in a stop without ending a sentence; lower case, without the last stop.
_ABBREVIATION_LIST = (
    "dr mr mrs ms prof st vs no nos fig figs approx ca cf dept est inc jr sr e.g i.e a.m p.m p.o b.i.d t.i.d q.i.d "
    "q.d q.h.s p.r.n i.v i.m s.c a.c p.c h.s etc al resp temp wt ht vol wk wks yr yrs mo mos hr hrs min tab tabs cap "
    "caps inj susp sol gtt"
)
_ABBREVIATIONS = frozenset(_ABBREVIATION_LIST.split())
_END = re.compile(r"""(?:[.!?]+["'”’)\]]*(?=\s)|[。！？]+["'”’」』）]*|\n+)""")
_STARTS_SENTENCE = re.compile(r"""\s+["'“‘(\[]*[A-Z0-9\u00c0-\u00de\u2022\u3040-\u9fff•\-*–]""")
_LIST_MARKER = re.compile(r"[\s\-*•·(]*(?:\d{1,3}|[A-Za-z])$")


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Spans (start, end) of the sentences in order, trimmed; together they hold all but white space."""
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        if match.group()[0] in ".!?" and not _ends_sentence(text, start, match):
            continue
        _append_trimmed(spans, text, start, match.end())
        start = match.end()
    _append_trimmed(spans, text, start, len(text))
    return spans


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    if text[match.end()] == "\n":
        return True
    if not _STARTS_SENTENCE.match(text, match.end()):
        return False
    if match.group()[0] != ".":
        return True
    before = text[start : match.start()]
    if _LIST_MARKER.fullmatch(before):  # "1. Ovarian cancer": the number belongs to its item
        return False
    words = before.split()
    last = words[-1].lstrip("([\"'“‘").lower() if words else ""
    is_initial = len(last) == 1 and last.isalpha()
    return not (is_initial or last in _ABBREVIATIONS)


def _append_trimmed(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        spans.append((start, end))
