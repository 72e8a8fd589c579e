"""Drugs in a text: which, whether they are to be given, and in what dose.

Knows nothing of rules, and of medicine only the names that it is handed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from safety.assertion import Assertion, assess
from safety.cues import Cue
from safety.lexicon import cues
from safety.normalise import lower
from safety.quantities import Quantity, belongs_to_next, find_frequencies, find_quantities
from safety.sentences import sentence_spans

DOSE_REACH = 70  # characters from a drug's name to its dose
FREQUENCY_REACH = 40  # characters from a dose to how often it is given
_TOKEN = re.compile(r"[a-z][a-z'’]*(?:-[a-z0-9]+)*")
_MAX_WORDS = 3
_NOT_GIVEN, _GIVES, _WAS_NOT_GIVEN = (Cue(cues()[name]) for name in ("not_given", "gives", "was_not_given"))
_NOT_PROPOSED = (Assertion.NEGATED, Assertion.HISTORICAL, Assertion.FAMILY)
_DOSE_UNITS = re.compile(r"(?:mg|mcg|g|ng|unit|iu|mmol|meq|ml)(?:/kg)?(?:/day|/h|/min)?")


@dataclass(frozen=True, slots=True)
class DrugNames:
    """table: any name, lower case -> the drug. first: the words that names begin with. chinese finds those that are
    written without spaces."""

    table: Mapping[str, str]
    first: frozenset[str]
    chinese: re.Pattern[str]

    @classmethod
    def of(cls, table: Mapping[str, str]) -> DrugNames:
        names = sorted((name for name in table if not name.isascii()), key=len, reverse=True)
        first = frozenset(match.group() for name in table if (match := _TOKEN.match(name)))
        return cls(table, first, re.compile("|".join(map(re.escape, names)) or r"(?!)"))


@dataclass(frozen=True)
class Mention:
    """text[start:end] names the drug. words: its sentence in lower case."""

    drug: str
    start: int
    end: int
    sentence: tuple[int, int]
    words: str = field(repr=False)

    @cached_property
    def is_active(self) -> bool:
        """It is given or to be given, for all that its sentence says. Costs more than finding it: to be asked last."""
        start, end = self.start - self.sentence[0], self.end - self.sentence[0]
        is_blocked = any(first <= start < last for first, last in _not_given(self.words))
        return not is_blocked and assess(self.words, start, end) not in _NOT_PROPOSED


@dataclass(frozen=True, slots=True)
class Dose:
    """amount of unit at once; times_a_day is None if the text does not say, below 1 for less than daily."""

    mention: Mention
    amount: float
    unit: str
    times_a_day: float | None
    is_total: bool  # "3 g daily": all of a day, however it is divided
    start: int
    end: int


def find_mentions(text: str, names: DrugNames) -> list[Mention]:
    """Drugs in order of their place."""
    lowered = lower(text).replace("’", "'")
    first = names.first.intersection(_TOKEN.findall(lowered))  # mostly none, and told in one step
    places = [place for word in first for place in _places(word, lowered)]
    if not lowered.isascii():
        places += [match.start() for match in names.chinese.finditer(lowered)]
    if not places:
        return []
    spans = sentence_spans(text)
    starts = [start for start, _ in spans]
    touched = sorted({max(bisect_right(starts, place) - 1, 0) for place in places})
    return [mention for index in touched for mention in _mentions_in(lowered, spans[index], names)]


def find_doses(text: str, mentions: Sequence[Mention]) -> Iterator[Dose]:
    """The doses that the text gives with those of the drugs that are given."""
    quantities, frequencies = _numbers(text, mentions)
    seen: set[int] = set()
    for number, quantity in enumerate(quantities):
        mention = _owner(text, quantity, mentions)
        if mention is None or mention.start in seen or _is_concentration(text, quantity):
            continue
        seen.add(mention.start)  # a second number may belong to a drug that nobody knows here
        after = next((other.start for other in quantities[number + 1 :]), len(text))
        end = min(quantity.end + FREQUENCY_REACH, mention.sentence[1], after)
        often = next((f for f in frequencies if quantity.end <= f.start < end), None)
        times = _times_a_day(often)
        is_total = bool(_TOTAL.match(text, quantity.end)) or (times == 1 and bool(_DAILY.match(text, quantity.end)))
        largest = quantity.value.split("-")[-1]
        try:
            amount = float(largest)
        except ValueError:
            continue  # "160/800 mg": which of the two it is cannot be told
        yield Dose(mention, amount, quantity.unit, times, is_total, quantity.start, quantity.end)


# --- names ------------------------------------------------------------------------------------------------------

_TOTAL = re.compile(
    r"\s*(?:/\s?day|(?:a|per|each|every) day|/\s?24\s?h|in 24 hours|daily (?:in|divided)|total|每日总量)", re.IGNORECASE
)
_DAILY = re.compile(r"\s*(?:daily|a day|per day|/\s?d\b)", re.IGNORECASE)


def _places(word: str, text: str) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + len(word))


def _mentions_in(lowered: str, span: tuple[int, int], names: DrugNames) -> Iterator[Mention]:
    found = [*_latin(lowered, span, names)]
    if not lowered.isascii():
        found += [(m.start(), m.end(), names.table[m.group()]) for m in names.chinese.finditer(lowered, *span)]
    if not found:
        return
    words = lowered[slice(*span)]
    for start, end, drug in sorted(set(found)):
        yield Mention(drug, start, end, span, words)


def _latin(lowered: str, span: tuple[int, int], names: DrugNames) -> Iterator[tuple[int, int, str]]:
    tokens = [match.span() for match in _TOKEN.finditer(lowered, *span)]
    taken = span[0]
    for index, (start, end) in enumerate(tokens):
        if start < taken or lowered[start:end] not in names.first:
            continue
        for _, end in reversed(tokens[index : index + _MAX_WORDS]):
            if (drug := names.table.get(lowered[start:end])) is not None:
                yield start, end, drug
                taken = end
                break


@lru_cache(maxsize=64)
def _not_given(sentence: str) -> tuple[tuple[int, int], ...]:
    found = []
    for _, end in _NOT_GIVEN.spans(sentence):
        gives = _GIVES.search(sentence, end)
        found.append((end, gives.start() if gives else len(sentence)))
    for start, _ in _WAS_NOT_GIVEN.spans(sentence):
        turns = [turn.end() for turn in _GIVES.finditer(sentence, 0, start)]
        found.append((max(turns, default=0), start))
    return tuple(found)


# --- doses ------------------------------------------------------------------------------------------------------


def _numbers(text: str, mentions: Sequence[Mention]) -> tuple[list[Quantity], list[Quantity]]:
    """Doses and how often, in the sentences that name a drug; offsets are into the whole text."""
    quantities: list[Quantity] = []
    frequencies: list[Quantity] = []
    for start, end in dict.fromkeys(mention.sentence for mention in mentions):
        sentence = text[start:end]
        doses = [q for q in find_quantities(sentence) if _DOSE_UNITS.fullmatch(q.unit)]
        if doses:
            quantities += [replace(q, start=q.start + start, end=q.end + start) for q in doses]
            frequencies += [replace(f, start=f.start + start, end=f.end + start) for f in find_frequencies(sentence)]
    return quantities, frequencies


def _owner(text: str, quantity: Quantity, mentions: Sequence[Mention]) -> Mention | None:
    """The drug right after ("5 mg of apixaban"), else the last one before, of those in the same sentence."""
    here = [m for m in mentions if m.sentence[0] <= quantity.start < m.sentence[1]]
    named = [m for m in here if m.end <= quantity.start]
    after = next((m for m in here if m.start >= quantity.end), None)
    places = [(m.start, m.end) for m in named]
    if after and belongs_to_next(text, quantity, places, after.start, after.sentence[0]) and after.is_active:
        return after
    before = next((m for m in reversed(named) if m.is_active), None)
    return before if before and quantity.start - before.end <= DOSE_REACH else None


def _is_concentration(text: str, quantity: Quantity) -> bool:
    """ "10 mg/mL", "1.2 ng/mL": how much is in something, not how much is given."""
    return bool(re.match(r"\s?(?:/|per)\s?(?:\d+\s?)?(?:ml|l|dl)\b", text[quantity.end :], re.IGNORECASE))


def _times_a_day(often: Quantity | None) -> float | None:
    if often is None:
        return None
    try:
        count = float(often.value)
    except ValueError:
        return None
    if often.unit == "x/day":
        return count
    if often.unit == "x/week":
        return count / 7
    hours = {"every h": 1, "every d": 24, "every w": 168, "every m": 720}.get(often.unit)
    return 24 / (hours * count) if hours and count else None
