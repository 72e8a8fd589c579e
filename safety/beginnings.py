"""With which letters the texts that a pattern matches may begin, so that most patterns need not be tried.

A key is the first letters of a word; one that ends in a space stands for a whole word. A pattern that could backtrack
without end is refused. Knows nothing of what the patterns are for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

MAX_KEY = 4  # letters
MAX_REPEATS = 40  # from which a repetition counts as one without bound
WORD = re.compile(r"[a-z0-9]+|[\u3400-\u9fff\u2160-\u216f]")  # a Chinese character counts as a word


@lru_cache(maxsize=2**14)
def keys_of(word: str) -> tuple[str, ...]:
    """The keys under which a word's patterns are found."""
    return *(word[:length] for length in range(1, min(len(word), MAX_KEY) + 1)), f"{word} "


def beginnings(pattern: str) -> set[str]:
    """The first letters of every text that a pattern can match, up to MAX_KEY; one that is a whole word ends in a
    space. Raises ValueError if the text may begin with anything."""
    parsed: Any = re._parser.parse(pattern)  # type: ignore[attr-defined]  # the standard library's own reading
    if _has_nested_repeats(list(parsed)):
        raise ValueError(f"{pattern!r} repeats a repetition, which can take for ever; bound one of the two.")
    keys = {lead.key for lead in _lead({_Lead("")}, list(parsed))}
    if not all(key.strip() for key in keys):
        raise ValueError(f"{pattern!r} may begin with anything; begin it with a letter, a digit or a list of words.")
    return keys


def _has_nested_repeats(nodes: Any, is_inside: bool = False) -> bool:
    """Whether a repetition without bound stands inside another one."""
    if isinstance(nodes, tuple) and len(nodes) == 2 and str(nodes[0]) in ("MAX_REPEAT", "MIN_REPEAT"):
        _, high, inner = nodes[1]
        is_unbounded = high > MAX_REPEATS
        return (is_unbounded and is_inside) or _has_nested_repeats(inner, is_inside or is_unbounded)
    if isinstance(nodes, str | int | None):
        return False
    return any(_has_nested_repeats(node, is_inside) for node in nodes)


class _End(StrEnum):
    OPEN = "open"  # more letters may be known
    ANY = "any"  # any letters may follow
    WORD = "word"  # the word ends here


@dataclass(frozen=True, slots=True)
class _Lead:
    text: str
    end: _End = _End.OPEN

    @property
    def key(self) -> str:
        return f"{self.text} " if self.end is _End.WORD and len(self.text) < MAX_KEY else self.text[:MAX_KEY]

    def grown(self, character: str) -> _Lead:
        if self.end is not _End.OPEN or len(self.text) >= MAX_KEY:
            return self
        if self.text and not (character.isalnum() and character.isascii() and self.text.isascii()):
            return _Lead(self.text, _End.WORD)
        return _Lead(self.text + character, _End.OPEN if character.isascii() else _End.WORD)

    def closed(self, end: _End) -> _Lead:
        return _Lead(self.text, end) if self.end is _End.OPEN else self


def _lead(begun: set[_Lead], nodes: list[Any]) -> set[_Lead]:
    """How a text may begin after these nodes of a parsed pattern."""
    for kind, value in nodes:
        begun = _step(begun, str(kind), value)
    return begun


def _step(begun: set[_Lead], kind: str, value: Any) -> set[_Lead]:
    if kind == "LITERAL":
        return {lead.grown(chr(value).lower()) for lead in begun}
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        low, high, inner = value
        once = _lead(begun, list(inner))
        more = once if high == 1 else {lead.closed(_End.ANY) for lead in once}
        return more | begun if low == 0 else more
    if kind == "SUBPATTERN":
        return _lead(begun, list(value[-1]))
    if kind == "BRANCH":
        return {lead for branch in value[1] for lead in _lead(begun, list(branch))}
    if kind == "IN" and all(str(item[0]) in ("LITERAL", "RANGE") for item in value):
        return {lead.grown(chr(code).lower()) for lead in begun for item in value for code in codes(item)}
    if kind == "IN" and "DIGIT" in str(value):
        return {lead.grown(digit) for lead in begun for digit in "0123456789"}
    if kind in ("ASSERT", "ASSERT_NOT"):
        return begun
    is_word = kind == "AT" or "SPACE" in str(value)
    return {lead.closed(_End.WORD if is_word else _End.ANY) for lead in begun}


def codes(item: tuple[Any, Any]) -> range:
    """Characters of a literal or a range in a set of a parsed pattern."""
    return range(item[1], item[1] + 1) if str(item[0]) == "LITERAL" else range(item[1][0], item[1][1] + 1)
