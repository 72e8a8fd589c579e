"""What a record itself abbreviates: "double balloon enteroscopy (DBE)" makes each find the other.

Schwartz and Hearst, "A simple algorithm for identifying abbreviation definitions in biomedical text", 2003, kept to the
plain case: a short form in brackets whose letters are the first letters of the words right before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SHORT = re.compile(r"\(([A-Z][A-Za-z]?[A-Z]{1,5})s?\)")
_WORD = re.compile(r"[A-Za-z]+")
_SMALL = frozenset(["of", "the", "and", "for", "in", "to", "a", "an", "with", "on", "by"])


class Abbreviations:
    """The pairs that texts define, short form -> long form in lower case."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._long: dict[str, str] = {}
        for text in texts:
            for match in _SHORT.finditer(text):
                if long_form := _long_form(match.group(1), text[max(match.start() - 120, 0) : match.start()]):
                    self._long.setdefault(match.group(1), long_form)

    def expand(self, query: str) -> str:
        """The other forms of what a question names; "" for none."""
        plain = f" {' '.join(_WORD.findall(query)).casefold()} "
        short = (short for short, long_form in self._long.items() if f" {long_form} " in plain)
        long = (self._long[word] for word in _WORD.findall(query) if word in self._long)
        return " ".join([*short, *long])


def _long_form(short: str, before: str) -> str:
    """The words right before a short form, one for each of its letters, small words not counted; "" if they differ."""
    words = [word.casefold() for word in _WORD.findall(before)]
    letters = list(short.casefold())
    taken: list[str] = []
    while words and letters:
        word = words.pop()
        if word[0] == letters[-1]:
            letters.pop()
        elif word not in _SMALL:
            return ""
        taken.insert(0, word)
    return "" if letters else " ".join(taken)
