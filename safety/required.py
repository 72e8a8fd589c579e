"""Letters of which every text that a pattern matches must hold some, so that most patterns are never tried on a text.

Read from the pattern itself, as safety.beginnings reads how its texts may begin. Knows nothing of what the patterns are
for.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from safety.beginnings import WORD, codes

_GRAMMAR = re.compile("an|and|at|can|for|ha[ds]|have|hers?|he|his|in|i[st]|my|not?|o[fnr]|she|the|to|was|with")
_MAX_CHOICES = 60  # more of them would find nothing that is rare


def required(pattern: str, begun: Collection[str] = ()) -> frozenset[str]:
    """Parts of lower-case words (single Chinese characters), of which each match holds at least one; of all such sets
    the one of the longest and fewest. One that says no more than how a match begins (keys of safety.beginnings) is
    taken only where no other tells anything. Raises ValueError if there is none."""
    letters = [key.strip() for key in begun]
    return max(all_required(pattern), key=lambda parts: (not _is_told(parts, letters), *_worth(parts)))


def all_required(pattern: str) -> list[frozenset[str]]:
    """All such sets: of each of them a match holds at least one. Raises ValueError if there is none."""
    parsed: Any = re._parser.parse(pattern)  # type: ignore[attr-defined]  # the standard library's own reading
    found = _of_sequence(list(parsed))
    if not found:
        raise ValueError(f"{pattern!r} holds no letters that every match has; write some of them out.")
    return found


def _is_told(parts: frozenset[str], letters: Collection[str]) -> bool:
    """Whether these parts are in every text that begins with such letters, or in nearly every text."""
    is_begun = all(any(part.startswith(key) or key.startswith(part) for part in parts) for key in letters)
    return (is_begun and bool(letters)) or not _worth(parts)[0]


def _of_sequence(nodes: list[Any]) -> list[frozenset[str]]:
    """Every set of parts of which the nodes, one after the other, hold one."""
    found: list[frozenset[str]] = []
    run = ""
    for kind, value in [*nodes, ("END", None)]:
        character = chr(value).lower() if str(kind) == "LITERAL" else ""
        if character and WORD.fullmatch(run + character):
            run += character
            continue
        if run:
            found.append(frozenset({run}))
        run = character if WORD.fullmatch(character) else ""
        found += _of_node(str(kind), value)
    return found


def _of_node(kind: str, value: Any) -> list[frozenset[str]]:
    if kind == "SUBPATTERN":
        return _of_sequence(list(value[-1]))
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        return _of_sequence(list(value[2])) if value[0] else []
    if kind == "IN" and all(str(item[0]) in ("LITERAL", "RANGE") for item in value):
        characters = frozenset(chr(code).lower() for item in value for code in codes(item))
        return [characters] if len(characters) <= _MAX_CHOICES and all(map(WORD.fullmatch, characters)) else []
    if kind == "IN" and "DIGIT" in str(value):
        return [frozenset("0123456789")]
    if kind == "BRANCH":
        branches = [max(_of_sequence(list(branch)), key=_worth, default=None) for branch in value[1]]
        pieces = frozenset[str]().union(*(branch or () for branch in branches))
        return [pieces] if all(branches) and len(pieces) <= _MAX_CHOICES else []
    return []


def _worth(pieces: frozenset[str]) -> tuple[int, int]:
    """How much they tell: by the shortest, as a Chinese character tells as much as two letters and a word of grammar
    nothing."""
    lengths = (len(piece) if piece.isascii() else 2 * len(piece) for piece in pieces)
    return (0 if any(map(_GRAMMAR.fullmatch, pieces)) else min(lengths)), -len(pieces)
