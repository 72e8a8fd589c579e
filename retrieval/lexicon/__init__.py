"""What different words mean the same, read from synonyms.txt.

A meaning becomes an index term of its own beside the words, on both sides: a record's "high blood pressure" and a
question's "HTN" share it. Phrases are matched on analysed terms in English, on the characters in Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_MAX_WORDS = 5
_CHINESE = re.compile("[\u4e00-\u9fff]")


class Synonyms:
    """Phrases -> meanings; a meaning's name starts with "=", which no word does."""

    def __init__(self, groups: Sequence[Sequence[str]], analyse: Callable[[str], Sequence[str]]) -> None:
        """analyse gives a phrase's terms as the index has them. Raises ValueError for a phrase of two meanings."""
        self._english: dict[tuple[str, ...], str] = {}
        self._chinese: dict[str, str] = {}
        for group in groups:
            meaning = f"={group[0]}"
            for phrase in group:
                terms = tuple(analyse(phrase))
                table: dict = self._chinese if _CHINESE.search(phrase) else self._english
                key = phrase.casefold() if _CHINESE.search(phrase) else terms
                if table.setdefault(key, meaning) != meaning:
                    raise ValueError(f"synonyms.txt gives {phrase!r} two meanings: {table[key]} and {meaning}.")
        self._first = {key[0] for key in self._english}
        self._chinese_any = re.compile("|".join(sorted(map(re.escape, self._chinese), key=len, reverse=True)) or "(?!)")

    def meanings(self, terms: Sequence[str]) -> Iterator[str]:
        """The meanings that stand in a sequence of English terms, the longest phrase at each place."""
        start = 0
        while start < len(terms):
            length = self._longest(terms, start) if terms[start] in self._first else 0
            if length:
                yield self._english[tuple(terms[start : start + length])]
            start += max(length, 1)

    def chinese_meanings(self, text: str) -> Iterator[str]:
        """The meanings that stand in a text in Chinese."""
        return (self._chinese[match.group()] for match in self._chinese_any.finditer(text))

    def _longest(self, terms: Sequence[str], start: int) -> int:
        return next((n for n in range(_MAX_WORDS, 0, -1) if tuple(terms[start : start + n]) in self._english), 0)


def read_groups() -> list[list[str]]:
    """The lines of synonyms.txt, each a list of phrases."""
    lines = Path(__file__).with_name("synonyms.txt").read_text(encoding="utf-8").splitlines()
    return [
        [phrase.strip() for phrase in line.split(",")] for line in lines if line.strip() and not line.startswith("#")
    ]
