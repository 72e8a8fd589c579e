"""How people say that somebody is in danger: phrases of `lexicon/concepts.yaml` found in a text, with their status.

Each phrase is tried only in a sentence that holds letters it cannot do without, and there only where a word begins as
it does, so that a text costs time by its words and not by the number of phrases. A phrase that could backtrack without
end is refused as it is read, and a text on which they take too long all together raises. Knows nothing of rules.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from operator import itemgetter
from time import perf_counter
from typing import Any

import ahocorasick

from safety.assertion import Assertion, assess
from safety.beginnings import WORD, beginnings, keys_of
from safety.calm import ALWAYS, Calm, reasons
from safety.lexicon import concepts
from safety.required import required

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
    """required: parts of words of which a sentence must hold one."""

    concept: str
    pattern: re.Pattern[str]
    required: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Word:
    """What a word may begin, what of that needs, and which parts the word itself holds."""

    phrases: tuple[_Phrase, ...]
    required: frozenset[str]
    parts: frozenset[str]


def find_concepts(lowered: str, sentences: Sequence[tuple[int, int]], timeout_s: float) -> Iterator[Hit]:
    """Concepts that a text in lower case names, in order of their place, whatever it says of them.

    Raises TimeoutError once timeout_s are over for every PAGE characters."""
    deadline = perf_counter() + timeout_s * (1 + len(lowered) // PAGE)
    words = [(match.start(), _word(match.group())) for match in WORD.finditer(lowered)]
    for start, end in sentences:
        if perf_counter() > deadline:
            raise TimeoutError
        here = words[bisect_left(words, start, key=_place) : bisect_left(words, end, key=_place)]
        parts = frozenset[str]().union(*(word.parts for _, word in here))
        for place, word in here:
            if not word.required.isdisjoint(parts):
                for phrase in word.phrases:
                    if not phrase.required.isdisjoint(parts) and (match := phrase.pattern.match(lowered, place, end)):
                        yield Hit(phrase.concept, place, match.end(), (start, end))


def known_concepts() -> frozenset[str]:
    """Names that a rule's condition may use."""
    return frozenset(concepts()["concepts"])


# --- the phrases ------------------------------------------------------------------------------------------------


_place = itemgetter(0)


@lru_cache(maxsize=2**16)
def _word(word: str) -> _Word:
    phrases = tuple(phrase for key in keys_of(word) for phrase in _phrases().get(key, ()))
    needed = frozenset[str]().union(*(phrase.required for phrase in phrases))
    return _Word(phrases, needed, frozenset(part for _, part in _parts().iter(word)))


@cache
def _parts() -> Any:
    """Finds the required parts of all phrases in a word (Aho and Corasick, CACM 1975)."""
    automaton = ahocorasick.Automaton()
    for part in {part for phrases in _phrases().values() for phrase in phrases for part in phrase.required}:
        automaton.add_word(part, part)
    automaton.make_automaton()
    return automaton


@cache
def _phrases() -> dict[str, list[_Phrase]]:
    """Key of safety.beginnings -> phrases that begin so."""
    found: dict[str, list[_Phrase]] = defaultdict(list)
    data = concepts()
    for name, languages in data["concepts"].items():
        for written in (phrase for phrases in languages.values() for phrase in phrases):
            expanded = _expand(written, data["words"])
            phrase = _Phrase(name, re.compile(expanded), required(expanded))
            for key in beginnings(expanded):
                found[key].append(phrase)
    return dict(found)


def _expand(phrase: str, words: Mapping[str, str]) -> str:
    phrase = _NAMED.sub(lambda match: f"(?:{words[match.group(1)]})", phrase)
    for mark, gap in _GAPS.items():
        phrase = phrase.replace(mark, gap)
    phrase = phrase.replace(" ?", r"[\s-]{0,4}").replace(" ", r"[\s,-]{1,6}")
    return rf"(?:{phrase})(?![a-z])" if phrase[-1].isalpha() and phrase[-2:-1] != "\\" else phrase
