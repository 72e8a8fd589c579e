"""Where sentences and lines of a record begin and end. Knows nothing of rules or claims.

A record is prose, lists and tables mixed, often with lines wrapped by a page's width. A line break ends a sentence
unless the line was full or the next one goes on in lower case. retrieval/sentences.py cuts pages whose lines the
parsers have joined already, where every break counts; neither layer may import the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from safety.lexicon import abbreviations
from safety.tables import CELL

_WRAPPED_LINE, _WRAPPED_LINE_CJK = 55, 20  # characters from which a line may have been broken by the page's width
# Begins with one set of characters, for which the search skips what is none of them.
_BREAK = re.compile(r"[.!?。！？\n](?:(?<=\n)|(?<=[.!?])[.!?]*[\"'”’)\]]*(?=\s|$)|(?<=[。！？])[。！？]*[”』」）]*)")
_LIST_ITEM = re.compile(
    r"[ \t]*(?:[-*•·・▪◦‣|#①-⑳]|o[ \t]+(?=[A-Z\d])"
    r"|\(?\d{1,3}[.)、]\s|\(?[a-zA-Z][.)]\s|[（(][一二三四五六七八九十\d]+[)）])"
)
_NUMBER = re.compile(r"\s*\d{1,3}")  # of a list
_LABEL = re.compile(r"[ \t]*(?:[A-Z][\w /()-]{1,30}:[ \t]|[\u3400-\u9fff]{2,8}[:：])")  # of a form: "Urine culture: "
_CJK = re.compile(r"[\u3400-\u9fff]")


@lru_cache(maxsize=64)
def sentence_spans(text: str) -> tuple[tuple[int, int], ...]:
    """(start, end) of each sentence, line or list item in order, white space at both ends left out."""
    ends, start = [], 0
    for match in _BREAK.finditer(text):
        is_end = _ends_line(text, start, match.start()) if match.group() == "\n" else _ends_sentence(text, match)
        if is_end:
            start = match.end()
            ends.append(start)
    return tuple(_trimmed(text, [*ends, len(text)]))


def is_abbreviation(before: str) -> bool:
    """Whether the full stop after these words belongs to an abbreviation, an initial or a list number."""
    last = f"{before[-24:]}|".replace("(", " ").split()[-1][:-1]  # nothing, after a space
    return last.lower() in abbreviations() or (len(last) == 1 and last.isupper())


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    mark = text[match.start()]
    if mark in "。！？?":
        return True
    rest = text[match.end() : match.end() + 80].lstrip()
    if rest and rest[0].islower():
        return False
    if mark == "!":
        return True
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    return not (is_abbreviation(line) or _NUMBER.fullmatch(line))


def _ends_line(text: str, start: int, newline: int) -> bool:
    line = text.rfind("\n", 0, newline) + 1
    before = text[max(start, line) : newline].rstrip()
    after = text[newline + 1 : newline + 60]
    if not before or not after.strip() or after[0] in "\r\n" or before[-1] in ".:!?;。：；！？|":
        return True
    if _LIST_ITEM.match(after) or _LABEL.match(after) or before.lstrip().startswith(("|", "#")):
        return True
    if CELL in before or CELL in after.partition("\n")[0]:  # each row of a table stands for itself
        return True
    limit = _WRAPPED_LINE_CJK if _CJK.search(before) else _WRAPPED_LINE
    return not (after.lstrip()[0].islower() or newline - line >= limit)


def _trimmed(text: str, ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    """What stands between one end and the next, without white space around it."""
    start = 0
    for end in ends:
        if part := text[start:end].lstrip():
            yield end - len(part), end - len(part) + len(part.rstrip())
        start = end
