"""How people say that somebody is in danger: phrases of `lexicon/concepts.yaml` found in a text, with their status.

Each phrase is tried only where a word begins as it does, and only from there, so that a text costs time by its words
and not by the number of phrases. A phrase that could backtrack without end is refused as it is read, and a text on
which they take too long all together raises. Knows nothing of rules or verdicts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from time import perf_counter
from typing import Any

from safety.assertion import Assertion, assess
from safety.lexicon import concepts

MAX_KEY = 4  # letters by which a phrase is looked up
PAGE = 2000  # characters; a page needs a few milliseconds
MAX_REPEATS = 40  # from which a repetition counts as one without bound
_WORD = re.compile(r"[a-z0-9]+|[\u3400-\u9fff\u2160-\u216f]")
_NO_DENIAL = r"(?!(?:no|not|nor|denies|denied|denying|without|never)\b)"
_GAPS = {
    " ~ ": rf"(?:[\s,/(-]{{1,6}}{_NO_DENIAL}[\w'’.+%-]+){{0,3}}?[\s,/(-]{{1,6}}",
    " … ": rf"(?:[\s,/(-]{{1,6}}{_NO_DENIAL}[\w'’.:%°+/-]+){{0,8}}?[\s,/(-]{{1,6}}",
}
_NAMED = re.compile(r"<(\w+)>")


@dataclass(frozen=True, slots=True)
class Hit:
    """text[start:end] names the concept; sentence is where it stands."""

    concept: str
    start: int
    end: int
    sentence: tuple[int, int]


def is_present(lowered: str, hit: Hit) -> bool:
    """Whether the text says that it is so now."""
    start, end = hit.sentence
    return assess(lowered[start:end], hit.start - start, hit.end - start) is Assertion.PRESENT


@dataclass(frozen=True, slots=True)
class _Phrase:
    concept: str
    pattern: re.Pattern[str]


def find_concepts(lowered: str, sentences: Sequence[tuple[int, int]], timeout_s: float) -> Iterator[Hit]:
    """Concepts that a text in lower case names, in order of their place, whatever it says of them.

    Raises TimeoutError once timeout_s are over for every PAGE characters."""
    deadline = perf_counter() + timeout_s * (1 + len(lowered) // PAGE)
    for span in sentences:
        if perf_counter() > deadline:
            raise TimeoutError
        sentence = lowered[span[0] : span[1]]
        for word in _WORD.finditer(sentence):
            for phrase in _phrases_from(word.group()):
                if match := phrase.pattern.match(sentence, word.start()):
                    yield Hit(phrase.concept, span[0] + match.start(), span[0] + match.end(), span)


def known_concepts() -> frozenset[str]:
    """Names that a rule's condition may use."""
    return frozenset(concepts()["concepts"])


# --- the phrases ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2**14)
def _phrases_from(word: str) -> tuple[_Phrase, ...]:
    """The phrases that may begin with this word."""
    keys = [word[:length] for length in range(1, min(len(word), MAX_KEY) + 1)] + [f"{word} "]
    return tuple(phrase for key in keys for phrase in _phrases().get(key, ()))


@cache
def _phrases() -> dict[str, list[_Phrase]]:
    """Beginning of a word -> phrases that begin so; a key that ends in a space stands for the whole word."""
    found: dict[str, list[_Phrase]] = defaultdict(list)
    data = concepts()
    for name, languages in data["concepts"].items():
        for written in (phrase for phrases in languages.values() for phrase in phrases):
            expanded = _expand(written, data["words"])
            phrase = _Phrase(name, re.compile(expanded))
            for key in beginnings(expanded):
                found[key].append(phrase)
    return dict(found)


def _expand(phrase: str, words: Mapping[str, str]) -> str:
    phrase = _NAMED.sub(lambda match: f"(?:{words[match.group(1)]})", phrase)
    for mark, gap in _GAPS.items():
        phrase = phrase.replace(mark, gap)
    phrase = phrase.replace(" ?", r"[\s-]{0,4}").replace(" ", r"[\s,-]{1,6}")
    return rf"(?:{phrase})(?![a-z])" if phrase[-1].isalpha() and phrase[-2:-1] != "\\" else phrase


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
        return {lead.grown(chr(code).lower()) for lead in begun for item in value for code in _codes(item)}
    if kind == "IN" and "DIGIT" in str(value):
        return {lead.grown(digit) for lead in begun for digit in "0123456789"}
    if kind in ("ASSERT", "ASSERT_NOT"):
        return begun
    is_word = kind == "AT" or "SPACE" in str(value)
    return {lead.closed(_End.WORD if is_word else _End.ANY) for lead in begun}


def _codes(item: tuple[Any, Any]) -> range:
    return range(item[1], item[1] + 1) if str(item[0]) == "LITERAL" else range(item[1][0], item[1][1] + 1)
