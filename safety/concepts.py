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
from functools import cache, lru_cache, reduce
from operator import itemgetter, or_
from time import perf_counter
from typing import Any, NamedTuple

import ahocorasick

from safety.assertion import Assertion, assess
from safety.beginnings import MAX_KEY, WORD, beginnings, keys_of
from safety.calm import ALWAYS, Calm, reasons
from safety.lexicon import concepts
from safety.required import required

PAGE = 2000  # characters; a page needs a few milliseconds
_NO_DENIAL = r"(?!(?:no|not|nor|denies|denied|denying|without|never|sin|ni|niega)\b)"
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


class _Phrase(NamedTuple):
    """required: parts of words of which a sentence must hold one, a bit each: sets of them take twice the time."""

    concept: str
    pattern: re.Pattern[str]
    required: int


def find_concepts(lowered: str, sentences: Sequence[tuple[int, int]], timeout_s: float) -> Iterator[Hit]:
    """Concepts that a text in lower case names, in order of their place, whatever it says of them.

    Raises TimeoutError once timeout_s are over for every PAGE characters."""
    deadline = perf_counter() + timeout_s * (1 + len(lowered) // PAGE)
    places = list(map(re.Match.start, WORD.finditer(lowered)))
    words = list(map(_word, WORD.findall(lowered)))
    for start, end in sentences:
        if perf_counter() > deadline:
            raise TimeoutError
        first, last = bisect_left(places, start), bisect_left(places, end)
        here = words[first:last]
        parts = reduce(or_, map(_parts_of, here), 0)
        for place, (phrases, needed, _) in zip(places[first:last], here, strict=True):
            if needed & parts:
                for concept, pattern, one_of in phrases:
                    if one_of & parts and (match := pattern.match(lowered, place, end)):
                        yield Hit(concept, place, match.end(), (start, end))


def known_concepts() -> frozenset[str]:
    """Names that a rule's condition may use."""
    return frozenset(concepts()["concepts"])


# --- the phrases ------------------------------------------------------------------------------------------------


_bit_of, _parts_of = itemgetter(1), itemgetter(2)


@lru_cache(maxsize=2**16)
def _word(word: str) -> tuple[tuple[_Phrase, ...], int, int]:
    """What a word may begin, what of that needs, and which parts the word itself holds."""
    return *_begun_by(word[:MAX_KEY]), reduce(or_, map(_bit_of, _parts().iter(word)), 0)


@cache
def _begun_by(letters: str) -> tuple[tuple[_Phrase, ...], int]:
    """The phrases that a word with these first letters may begin, and what they require, all together. No key is a
    whole word of MAX_KEY letters, so that these tell as much as the word."""
    phrases = tuple(phrase for key in keys_of(letters) for phrase in _phrases().get(key, ()))
    return phrases, reduce(or_, (phrase.required for phrase in phrases), 0)


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
    for name, written in _written():
        phrase = _Phrase(name, re.compile(written), reduce(or_, (_bits()[part] for part in required(written))))
        for key in beginnings(written):
            found[key].append(phrase)
    return dict(found)


@cache
def _bits() -> dict[str, int]:
    """A bit for each part that some phrase requires."""
    parts = dict.fromkeys(part for _, written in _written() for part in sorted(required(written)))
    return {part: 1 << number for number, part in enumerate(parts)}


@cache
def _written() -> list[tuple[str, str]]:
    """(concept, phrase as a regular expression), in the order of the file."""
    data = concepts()
    return [
        (name, _expand(phrase, data["words"]))
        for name, languages in data["concepts"].items()
        for phrases in languages.values()
        for phrase in phrases
    ]


def _expand(phrase: str, words: Mapping[str, str]) -> str:
    phrase = _NAMED.sub(lambda match: f"(?:{words[match.group(1)]})", phrase)
    for mark, gap in _GAPS.items():
        phrase = phrase.replace(mark, gap)
    phrase = phrase.replace(" ?", r"[\s-]{0,4}").replace(" ", r"[\s,-]{1,6}")
    return rf"(?:{phrase})(?![a-z])" if phrase[-1].isalpha() and phrase[-2:-1] != "\\" else phrase
