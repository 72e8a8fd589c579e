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
from functools import cache, lru_cache, reduce
from operator import itemgetter, or_
from time import perf_counter
from typing import Any, NamedTuple

import ahocorasick

from safety.assertion import Assertion, assess, is_now
from safety.beginnings import MAX_KEY, WORD, beginnings, keys_of
from safety.calm import ALWAYS, Calm, is_somebody_ill, reasons
from safety.cues import Phrases
from safety.lexicon import concepts, cues, fill
from safety.required import required

PAGE = 2000  # characters; a page needs a few milliseconds
_NO_DENIAL = r"(?!(?:no|not|nor|denies|denied|denying|without|never|sin|ni|niega)\b)"
_GAPS = {
    " ~ ": rf"(?:[\s,/(-]{{1,6}}{_NO_DENIAL}[\w'’.+%-]+){{0,3}}?[\s,/(-]{{1,6}}",
    " … ": rf"(?:[\s,/(-]{{1,6}}{_NO_DENIAL}[\w'’.:%°+/-]+){{0,8}}?[\s,/(-]{{1,6}}",
}
_GAP_BEFORE_SYMPTOM = re.compile(r"(\.\{0,\d+\})(?=(?:\(\?:)?[痛疼麻歪肿晕抖闷])")  # 胸口不疼 denies
_LATIN_WORD = re.compile("[a-zñáéíóú]+")
_BEFORE = 80  # characters in which somebody may have been named
_TOLD = Phrases(cues()["told"])


class Hit(NamedTuple):
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


def is_told(lowered: str, hit: Hit, is_alone: bool) -> bool:
    """Whether the sentence of a hit, or what stands before it, tells of somebody or says that it is so now; of a hit of
    one word, whether somebody is ill there."""
    start, end = hit.sentence
    if is_alone and _LATIN_WORD.fullmatch(lowered, hit.start, hit.end):
        return is_somebody_ill(lowered[start:end])
    return is_now(lowered[start:end]) or _TOLD.is_in(lowered[max(0, start - _BEFORE) : end])


class _Phrase(NamedTuple):
    """required: parts of words of which a sentence must hold one, a bit each: sets of them take twice the time."""

    concept: str
    pattern: re.Pattern[str]
    required: int


def find_concepts(lowered: str, sentences: Sequence[tuple[int, int]], timeout_s: float) -> Iterator[Hit]:
    """Concepts that a text in lower case names, in order of their place, whatever it says of them.

    Raises TimeoutError once timeout_s are over for every PAGE characters."""
    deadline = perf_counter() + timeout_s * (1 + len(lowered) // PAGE)
    matches = list(WORD.finditer(lowered))
    places = list(map(re.Match.start, matches))
    words = list(map(_word, map(re.Match.group, matches)))
    for start, end in sentences:
        if perf_counter() > deadline:
            raise TimeoutError
        first, last = bisect_left(places, start), bisect_left(places, end)
        here = words[first:last]
        parts = reduce(or_, map(_parts_of, here), 0)
        for place, (letters, needed, _) in zip(places[first:last], here, strict=True):
            if held := needed & parts:
                for concept, pattern in _tried(letters, held):
                    if match := pattern.match(lowered, place, end):
                        yield Hit(concept, place, match.end(), (start, end))


def known_concepts() -> frozenset[str]:
    """Names that a rule's condition may use."""
    return frozenset(concepts()["concepts"])


# --- the phrases ------------------------------------------------------------------------------------------------


_bit_of, _parts_of = itemgetter(1), itemgetter(2)


@lru_cache(maxsize=2**16)
def _word(word: str) -> tuple[str, int, int]:
    """A word's first letters, which tell what it may begin as no key is a whole word of MAX_KEY letters; what those
    phrases require, all together; and which parts the word itself holds."""
    letters = word[:MAX_KEY]
    return letters, _needed(letters), reduce(or_, map(_bit_of, _parts().iter(word)), 0)


@lru_cache(maxsize=2**14)
def _tried(letters: str, held: int) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """(concept, pattern) of what a word with these first letters may begin, in a sentence that holds these parts."""
    return tuple((phrase.concept, phrase.pattern) for phrase in _begun_by(letters) if phrase.required & held)


@cache
def _needed(letters: str) -> int:
    return reduce(or_, (_needed_by_key().get(key, 0) for key in keys_of(letters)))


@cache
def _begun_by(letters: str) -> tuple[_Phrase, ...]:
    return tuple(phrase for key in keys_of(letters) for phrase in _phrases().get(key, ()))


@cache
def _parts() -> Any:
    """Finds the required parts of all phrases in a word, each as its bit (Aho and Corasick, CACM 1975)."""
    automaton = ahocorasick.Automaton()
    for part, bit in _bits().items():
        automaton.add_word(part, bit)
    automaton.make_automaton()
    return automaton


@cache
def _phrases() -> dict[str, list[_Phrase]]:
    """Key of safety.beginnings -> phrases that begin so."""
    found: dict[str, list[_Phrase]] = defaultdict(list)
    for written in _written():
        bits = reduce(or_, map(_bits().__getitem__, written.required))
        phrase = _Phrase(written.concept, re.compile(written.pattern), bits)
        for key in written.begun:
            found[key].append(phrase)
    return dict(found)


@cache
def _needed_by_key() -> dict[str, int]:
    """What the phrases of a key require, all together: a new word is asked of its few keys, not of each phrase."""
    return {key: reduce(or_, (phrase.required for phrase in phrases)) for key, phrases in _phrases().items()}


@cache
def _bits() -> dict[str, int]:
    """A bit for each part that some phrase requires."""
    parts = sorted({part for written in _written() for part in written.required})
    return {part: 1 << number for number, part in enumerate(parts)}


class _Written(NamedTuple):
    """A phrase as a regular expression, with the keys of its beginnings and what it requires beyond them."""

    concept: str
    pattern: str
    begun: set[str]
    required: frozenset[str]


@cache
def _written() -> list[_Written]:
    """In the order of the file."""
    data = concepts()
    return [
        _Written(name, pattern, begun := beginnings(pattern), required(pattern, begun))
        for name, languages in data["concepts"].items()
        for phrases in languages.values()
        for pattern in (_expand(phrase, data["words"]) for phrase in phrases)
    ]


def _expand(phrase: str, words: Mapping[str, str]) -> str:
    phrase = fill(phrase, words)
    for mark, gap in _GAPS.items():
        phrase = phrase.replace(mark, gap)
    phrase = phrase.replace(" ?", r"[\s-]{0,4}").replace(" ", r"[\s,-]{1,6}")
    phrase = _GAP_BEFORE_SYMPTOM.sub(r"\1(?<![不无冇没])", phrase)
    is_whole = phrase[-1] == "?" or (phrase[-1].isalpha() and phrase[-2:-1] != "\\")  # "clots?" is not in "clothes"
    return rf"(?:{phrase})(?![a-z])" if is_whole else phrase
