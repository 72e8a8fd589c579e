"""How people say that somebody is in danger: phrases of `lexicon/concepts.yaml` found in a text, with their status.

Each phrase is tried only where a word begins as it does, and only from there, so that a text costs time by its words
and not by the number of phrases. A phrase that could backtrack without end is refused as it is read, and a text on
which they take too long all together raises. Knows nothing of rules or verdicts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from time import perf_counter

from safety.assertion import Assertion, assess
from safety.beginnings import WORD, beginnings, keys_of
from safety.calm import ALWAYS, Calm, reasons
from safety.lexicon import concepts

PAGE = 2000  # characters; a page needs a few milliseconds
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


def is_alarm(lowered: str, hit: Hit, not_when: Collection[Calm] = ()) -> bool:
    """Whether the text says that it is so now, of a person and in earnest; and nothing of not_when."""
    start, end = hit.sentence
    sentence, place = lowered[start:end], (hit.start - start, hit.end - start)
    return assess(sentence, *place) is Assertion.PRESENT and reasons(sentence, *place).isdisjoint((*ALWAYS, *not_when))


@dataclass(frozen=True, slots=True)
class _Phrase:
    concept: str
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Phrases:
    """Those that may begin with one word. any_of matches where one of them does: mostly none does, and then it alone is
    tried."""

    phrases: tuple[_Phrase, ...]
    any_of: re.Pattern[str]


def find_concepts(lowered: str, sentences: Sequence[tuple[int, int]], timeout_s: float) -> Iterator[Hit]:
    """Concepts that a text in lower case names, in order of their place, whatever it says of them.

    Raises TimeoutError once timeout_s are over for every PAGE characters."""
    deadline = perf_counter() + timeout_s * (1 + len(lowered) // PAGE)
    begun = {word: found for word in set(WORD.findall(lowered)) if (found := _phrases_from(word))}
    for span in sentences:
        if perf_counter() > deadline:
            raise TimeoutError
        sentence = lowered[span[0] : span[1]]
        for word in WORD.finditer(sentence):
            found = begun.get(word.group())
            if found and found.any_of.match(sentence, word.start()):
                for phrase in found.phrases:
                    if match := phrase.pattern.match(sentence, word.start()):
                        yield Hit(phrase.concept, span[0] + match.start(), span[0] + match.end(), span)


def known_concepts() -> frozenset[str]:
    """Names that a rule's condition may use."""
    return frozenset(concepts()["concepts"])


# --- the phrases ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2**14)
def _phrases_from(word: str) -> _Phrases | None:
    """The phrases that may begin with this word."""
    phrases = tuple(phrase for key in keys_of(word) for phrase in _phrases().get(key, ()))
    return _Phrases(phrases, _joined(tuple(phrase.pattern.pattern for phrase in phrases))) if phrases else None


@lru_cache(maxsize=2**14)
def _joined(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


@cache
def _phrases() -> dict[str, list[_Phrase]]:
    """Key of safety.beginnings -> phrases that begin so."""
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
