"""Cue phrases of lexicon/cues.yaml as patterns, for texts in lower case: without regard to case they are searched at
less than half the speed. Knows nothing of what a cue says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from safety.beginnings import WORD, beginnings, keys_of


class Phrases:
    """The phrases of all languages as one pattern. A text in ASCII is spared the Chinese ones, which would take most
    of the time. `english` says how the English ones are bounded; `extra` is a pattern beside them."""

    def __init__(self, phrases: Mapping[str, Sequence[str]], english: str = r"\b(?:{})\b", extra: str = "") -> None:
        latin, beside = english.format("|".join(_latin(phrases))), [extra] if extra else []
        self._ascii = re.compile("|".join([latin, *beside]))
        self._all = re.compile("|".join([latin, *phrases["zh"], *beside]))

    def search(self, text: str, start: int = 0) -> re.Match[str] | None:
        return (self._ascii if text.isascii() else self._all).search(text, start)

    def finditer(self, text: str, start: int, end: int) -> Iterator[re.Match[str]]:
        return (self._ascii if text.isascii() else self._all).finditer(text, start, end)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where they stand in a text."""
        return [match.span() for match in self.finditer(text, 0, len(text))]


class Cue(Phrases):
    """Phrases that are searched only where a word begins as one of them does."""

    def __init__(self, phrases: Mapping[str, Sequence[str]], extra: str = "") -> None:
        super().__init__(phrases, extra=extra)
        written = [*_latin(phrases), *phrases["zh"], *filter(None, [extra])]
        try:
            self._keys: frozenset[str] | None = frozenset(key for phrase in written for key in beginnings(phrase))
        except ValueError:
            self._keys = None  # it may begin with anything

    def spans(self, text: str) -> list[tuple[int, int]]:
        return super().spans(text) if self._may_be_in(text) else []

    def is_in(self, text: str) -> bool:
        return self._may_be_in(text) and bool(self.search(text))

    def _may_be_in(self, text: str) -> bool:
        return self._keys is None or not self._keys.isdisjoint(_keys_in(text))


def _latin(phrases: Mapping[str, Sequence[str]]) -> list[str]:
    return [phrase.replace(" ", r"\s+") for language in ("en", "es") for phrase in phrases.get(language, ())]


@lru_cache(maxsize=256)
def _keys_in(text: str) -> frozenset[str]:
    return frozenset(key for word in WORD.findall(text) for key in keys_of(word))
