"""Cue phrases of lexicon/cues.yaml as patterns, for texts in lower case: without regard to case they are searched at
less than half the speed. Knows nothing of what a cue says."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import count
from operator import or_

from safety.beginnings import WORD, beginnings, keys_of
from safety.required import required

BOUNDED = r"\b(?:{})\b"


class Phrases:
    """The phrases of all languages as one pattern. A text in ASCII is spared the Chinese ones, which would take most
    of the time. `english` says how the English ones are bounded; `extra` is a pattern beside them."""

    def __init__(self, phrases: Mapping[str, Sequence[str]], english: str = BOUNDED, extra: str = "") -> None:
        latin, beside = english.format("|".join(_latin(phrases))), [extra] if extra else []
        self._ascii = re.compile("|".join([latin, *beside]))
        self._all = re.compile("|".join([latin, *phrases["zh"], *beside]))

    def search(self, text: str, start: int = 0) -> re.Match[str] | None:
        return (self._ascii if text.isascii() else self._all).search(text, start)

    def is_in(self, text: str) -> bool:
        return bool(self.search(text))

    def finditer(self, text: str, start: int, end: int) -> Iterator[re.Match[str]]:
        return (self._ascii if text.isascii() else self._all).finditer(text, start, end)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where they stand in a text."""
        return [match.span() for match in self.finditer(text, 0, len(text))]


class Cue(Phrases):
    """Phrases that are tried only where a word begins as one of them does. `extra`, and the few phrases that may begin
    with anything, are searched wherever the text holds letters that they cannot do without."""

    def __init__(self, phrases: Mapping[str, Sequence[str]], extra: str = "") -> None:
        super().__init__(phrases, extra=extra)
        keys = {phrase: _beginnings(phrase) for phrase in (*_latin(phrases), *phrases["zh"])}
        anywhere = [*(BOUNDED.format(phrase) for phrase, begun in keys.items() if not begun), *filter(None, [extra])]
        self._bit = _entered(set[str]().union(*keys.values()))
        self._begun = re.compile(BOUNDED.format("|".join(phrase for phrase in _latin(phrases) if keys[phrase])))
        self._anywhere = [(re.compile(pattern), _required(pattern)) for pattern in anywhere]

    def spans(self, text: str) -> list[tuple[int, int]]:
        if not text.isascii():
            return super().spans(text) if self._may_be_in(text) else []
        found, end = [], 0
        for place in self._places(text):
            if place >= end and (match := self._begun.match(text, place)):
                end = match.end()
                found.append((place, end))
        return found + [match.span() for pattern in self._searched(text) for match in pattern.finditer(text)]

    def is_in(self, text: str) -> bool:
        if not text.isascii():
            return self._may_be_in(text) and super().is_in(text)
        return any(self._begun.match(text, place) for place in self._places(text)) or any(
            pattern.search(text) for pattern in self._searched(text)
        )

    def _may_be_in(self, text: str) -> bool:
        return self._bit in _begun_in(text) or any(self._searched(text))

    def _places(self, text: str) -> list[int]:
        """Where words begin as phrases do, in order."""
        return _begun_in(text).get(self._bit, [])

    def _searched(self, text: str) -> Iterator[re.Pattern[str]]:
        return (pattern for pattern, parts in self._anywhere if not parts or any(part in text for part in parts))


def _latin(phrases: Mapping[str, Sequence[str]]) -> list[str]:
    latin = [phrase for language in ("en", "es") for phrase in phrases.get(language, ())]
    return [phrase.replace(" ?", r"\s*").replace(" ", r"\s+") for phrase in latin]


def _beginnings(phrase: str) -> set[str]:
    """Empty if it may begin with anything, or with what begins no word: "(-)"."""
    try:
        begun = beginnings(phrase)
    except ValueError:
        return set()
    return begun if all(WORD.match(key) for key in begun) else set()


def _required(pattern: str) -> frozenset[str]:
    """Empty if nothing is."""
    try:
        return required(pattern)
    except ValueError:
        return frozenset()


# --- which cues a word may begin --------------------------------------------------------------------------------


_BEGUN: dict[str, int] = {}  # key of safety.beginnings -> the cues that begin so, a bit each; every Cue enters itself
_COUNT = count()


def _entered(keys: Collection[str]) -> int:
    """The bit of a new cue whose phrases begin with one of these keys."""
    bit = 1 << next(_COUNT)
    for key in keys:
        _BEGUN[key] = _BEGUN.get(key, 0) | bit
    _begun_by.cache_clear()
    _begun_in.cache_clear()
    return bit


@lru_cache(maxsize=2**14)
def _begun_by(word: str) -> tuple[int, ...]:
    """The bit of each cue that a word may begin."""
    begun = reduce(or_, (_BEGUN.get(key, 0) for key in keys_of(word)))
    return tuple(1 << number for number in range(begun.bit_length()) if begun >> number & 1)


@lru_cache(maxsize=256)
def _begun_in(text: str) -> dict[int, list[int]]:
    """The bit of each cue that words of a text may begin, and where they do, in order."""
    places: dict[int, list[int]] = {}
    for match in WORD.finditer(text):
        for bit in _begun_by(match.group()):
            places.setdefault(bit, []).append(match.start())
    return places
