"""What a record says of one thing, and not of its neighbour.

"CT head: subdural haematoma. MRI spine: disc prolapse." names two of a kind, and what stands beside one is said of no
other. A claim that joins words of two such parts is mixed. Where neither part names another of the kind, prose goes on
("She had a CT. It showed …"), and nothing is objected. Kinds are data (`lexicon/rivals.txt`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest

from safety.facts import STATUSES, Facts, facts_of
from safety.lexicon import ELIDED, rivals
from safety.quantities import DateFact, Quantity
from safety.words import Word, is_owner

DRUG, STUDY, PERSON = "drug", "study", "person"
_OF_PREFIX = {"drug": DRUG, "anchor": STUDY, "letter": "letter"}  # of a word's key
_OF_ONE_NOUN = frozenset(("side", "order"))  # "the right eye is clear, the left red"
SUBJECTS = frozenset((DRUG, STUDY, "relative", "specimen", "organism", "clinic", "vaccine"))  # of a list's items
_TIME_UNITS = frozenset(("min", "h", "day", "week", "month", "year"))


@dataclass(frozen=True, slots=True)
class _Thing:
    said: str | Quantity | DateFact  # a word's key
    name: str  # for people
    kinds: frozenset[str]
    start: int
    end: int
    is_certain: bool = True  # not a verb or a common word, which a list may leave out where it comes again
    is_owner: bool = False  # of numbers
    is_negated: bool = False

    def is_same(self, claimed: _Thing) -> bool:
        return _is_same(self.said, claimed.said) and self.is_negated == claimed.is_negated

    def is_in(self, others: Collection[_Thing]) -> bool:
        """Whether one of the others, of a claim, says it."""
        return any(self.is_same(other) for other in others)


@dataclass(frozen=True, slots=True)
class _Part:
    """What stands between two commas, in a sentence that is known by where it starts."""

    things: tuple[_Thing, ...]
    sentence: int

    def of(self, kind: str) -> list[_Thing]:
        return [thing for thing in self.things if kind in thing.kinds]

    def is_only(self, kind: str) -> bool:
        return bool(self.things) and all(kind in thing.kinds for thing in self.things)


def find_mixed(
    claim: Facts, record: Facts, titles: Collection[str], columns: Collection[Facts], persons: Collection[str]
) -> str:
    """The word of a claim that the record says only of something else of the kind; "" if there is none. titles: keys of
    the words that stand over the record; columns: of each cell of its tables, the facts with those of its title;
    persons: keys of the words that are somebody's name."""
    parts = [_with_names(part, persons) for part in _parts(record)]
    units = [*_units([_with_names(part, persons) for part in _parts(claim)])]
    if _is_verbatim(_parts(claim), parts):
        return ""
    cells = [_Part(tuple(_things(cell)), number) for number, cell in enumerate(columns)]
    return _mixed(units, parts, titles) or _mixed(units, cells, titles)


def _with_names(part: _Part, persons: Collection[str]) -> _Part:
    """At the start of a sentence a capital tells nothing; the rest of the record does."""
    named = (replace(t, kinds=t.kinds | {PERSON}) if t.said in persons else t for t in part.things)
    return replace(part, things=tuple(named))


def _mixed(units: Sequence[Sequence[_Thing]], parts: Sequence[_Part], titles: Collection[str]) -> str:
    for unit in units:
        for name in unit:
            for kind in name.kinds:
                for other in unit:
                    if name.said not in titles and _is_anothers(other, name, kind, unit, parts):
                        return other.name
    return ""


def _is_verbatim(claim: Sequence[_Part], record: Sequence[_Part]) -> bool:
    """Whether the record says the same in the same order, nothing left out, with its commas in the same places."""
    said, found = ([thing for part in parts for thing in (*part.things, None)] for parts in (claim, record))
    said.pop()
    return any(
        all(
            (a and a.said) == (b and b.said) or (a and b and _is_same(a.said, b.said))
            for a, b in zip(found[i:], said, strict=False)
        )
        for i in range(len(found) - len(said) + 1)
    )


def _is_anothers(other: _Thing, name: _Thing, kind: str, unit: Sequence[_Thing], parts: Sequence[_Part]) -> bool:
    if kind in other.kinds or (other.is_owner and not isinstance(name.said, str)):
        return False
    if (
        isinstance(name.said, Quantity)
        and isinstance(other.said, Quantity)
        and not {name.said.unit, other.said.unit} & _TIME_UNITS
    ):
        return False  # a dose and how often it is taken: both are known to be of one drug
    own = _places(name, kind, parts)
    found = [index for index, part in enumerate(parts) if any(t.is_same(other) for t in part.things)]
    if not found or not own.isdisjoint(found) or (kind in _OF_ONE_NOUN and _is_left_out(name, other, own, parts)):
        return False
    if name.is_owner and not isinstance(other.said, str):  # whose a number is, is known: only not of what owns none
        return all(any(not t.is_owner and not t.is_in(unit) for t in parts[index].of(kind)) for index in found)
    if not other.is_certain and {parts[index].sentence for index in own} & {parts[index].sentence for index in found}:
        return False
    if not own:
        return all(_has_rival(_last_of_sentence(index, parts), kind, unit, parts) for index in found)
    is_direct = kind == PERSON and bool(other.kinds)  # "her sister, Merryn, …": each names the other
    return all(
        _has_rival(index, kind, unit, parts, is_direct) and not _leads(other, index, name, kind, parts, own)
        for index in found
    )


def _last_of_sentence(index: int, parts: Sequence[_Part]) -> int:
    return max(i for i, part in enumerate(parts) if part.sentence == parts[index].sentence)


def _is_left_out(name: _Thing, other: _Thing, own: Collection[int], parts: Sequence[_Part]) -> bool:
    """Whether the record says a noun once for several: "during the recent pregnancy …; during the first …"."""
    if not 0 < other.start - name.end <= 1:
        return False
    for index in own:
        things = parts[index].things
        place = next((i for i, thing in enumerate(things) if _is_same(thing.said, name.said)), len(things))
        if place < len(things) and (place + 1 == len(things) or things[place + 1].start - things[place].end > 1):
            return True
    return False


def _has_rival(index: int, kind: str, unit: Sequence[_Thing], parts: Sequence[_Part], is_direct: bool = False) -> bool:
    """Whether a part names another; if it names none, the last part before it in its sentence that does, or the next
    one behind it."""
    sentence = [i for i, part in enumerate(parts) if part.sentence == parts[index].sentence and part.of(kind)]
    if not sentence:
        return False
    near = max((i for i in sentence if i <= index), default=sentence[0])
    return (near == index or not is_direct) and not any(thing.is_in(unit) for thing in parts[near].of(kind))


def _leads(other: _Thing, index: int, name: _Thing, kind: str, parts: Sequence[_Part], own: Collection[int]) -> bool:
    """Whether a word stands before the first name of its sentence and so for all of them, as in "because of a cough
    ramipril was stopped and amlodipine started"; not if the name's own part begins with such a word, too."""
    sentence = [part for part in parts if part.sentence == parts[index].sentence]
    if not any(parts[i].sentence == parts[index].sentence for i in own):
        return False
    first = min((thing.start for part in sentence for thing in part.of(kind)), default=0)
    place = min(thing.start for thing in parts[index].things if _is_same(thing.said, other.said))
    begins = (min((thing.start for thing in parts[i].of(kind)), default=0) for i in own)
    has_own = all(any(t.start < begin for t in parts[i].things) for i, begin in zip(own, begins, strict=True))
    return place < first and not has_own


def _places(name: _Thing, kind: str, parts: Sequence[_Part]) -> set[int]:
    """The parts that speak of a name. Of "apixaban and bisoprolol for X" and of "sensitive to A and B" what is said
    of one is said of both."""
    found = {index for index, part in enumerate(parts) if any(t.is_same(name) for t in part.things)}
    for index in [*found]:
        for step in (1, -1):
            at = index
            while parts[at].is_only(kind) and 0 <= at + step < len(parts):
                beside = parts[at + step]
                if beside.sentence != parts[index].sentence or not beside.things:
                    break
                if kind not in beside.things[0 if step > 0 else -1].kinds:
                    break
                at += step
                found.add(at)
    return found


def _units(parts: Sequence[_Part]) -> Iterator[list[_Thing]]:
    """The statements of a claim: a part begins a new one if it names another thing of a kind that was named."""
    unit: list[_Thing] = []
    for part in parts:
        kinds = {kind for thing in part.things for kind in thing.kinds}
        named = {kind for thing in unit for kind in thing.kinds}
        if kinds & named and not all(thing.kinds & kinds for thing in unit):
            yield unit
            unit = []
        unit += part.things
    yield unit


def _parts(facts: Facts) -> list[_Part]:
    """A part that holds numbers and dates alone goes with what stands before it: "hip replacement, 2015; cataract"."""
    things = sorted(_things(facts), key=lambda thing: thing.start)
    parts: list[_Part] = []
    for start, end, sentence in facts.parts:
        held = tuple(_headed([thing for thing in things if start <= thing.start < end]))
        if held and parts and parts[-1].sentence == sentence and not any(isinstance(t.said, str) for t in held):
            parts[-1] = _Part((*parts[-1].things, *held), sentence)
        else:
            parts.append(_Part(held, sentence))
    return parts


def _headed(things: Sequence[_Thing]) -> Iterator[_Thing]:
    """Of "white lumen" the white is a kind of lumen, and a red one is another."""
    for thing, after in zip_longest(things, things[1:]):
        is_headed = after and _is_english(thing.said) and _is_english(after.said) and after.start - thing.end == 1
        yield replace(thing, kinds=thing.kinds | {f"of {after.said}"}) if after and is_headed else thing


def _is_english(said: str | Quantity | DateFact) -> bool:
    return isinstance(said, str) and said.isascii()


def _things(facts: Facts) -> Iterator[_Thing]:
    drugs = [(word.start, word.end) for word in facts.words if word.key.startswith("drug:")]
    for word in facts.words:
        if not _is_elided(word.key) and not any(
            a <= word.start < b and word.end - word.start < b - a for a, b in drugs
        ):
            yield _thing_of(word)
    for owned in facts.quantities:
        quantity = owned.quantity
        kind = "time" if quantity.unit in _TIME_UNITS else f"in {quantity.unit}"
        yield _Thing(
            quantity, f"{quantity.value} {quantity.unit}".strip(), frozenset((kind,)), quantity.start, quantity.end
        )
    for day in facts.dates:
        yield _Thing(day, "the date", frozenset(("date",)), day.start, day.end)
    for side in facts.sides:
        yield _Thing(f"side:{side.key}", side.key, frozenset(("side",)), side.start, side.end)


def _thing_of(word: Word) -> _Thing:
    kinds = kinds_of(word.key) | (frozenset((PERSON,)) if word.is_name else frozenset())
    is_certain = bool(kinds) or word.is_required or not word.is_verb
    name = word.key.partition(":")[2] or word.key
    return _Thing(word.key, name, kinds, word.start, word.end, is_certain, is_owner(word.key), "negated" in word.flags)


def _is_same(found: str | Quantity | DateFact, claimed: str | Quantity | DateFact) -> bool:
    if isinstance(found, Quantity) and isinstance(claimed, Quantity):
        return found.stands_for(claimed) or (not found.unit and found.value == claimed.value)  # a row may name it
    if isinstance(found, DateFact) and isinstance(claimed, DateFact):
        # A day without its year is no day of that year here, where another is to be told apart.
        return found.stands_for(claimed) and any(
            month or year in {reading[0] for reading in found.readings} for year, month, _ in claimed.readings
        )
    return found == claimed


def _is_elided(key: str) -> bool:
    return key in STATUSES or ELIDED in kinds_of(key)


@cache
def kinds_of(key: str) -> frozenset[str]:
    """The kinds of thing that a word is one of, by its key."""
    prefix, _, _ = key.rpartition(":")
    own = _OF_PREFIX.get(prefix)
    return _listed().get(key, frozenset()) | (frozenset((own,)) if own else frozenset())


@cache
def _listed() -> dict[str, frozenset[str]]:
    kinds: dict[str, frozenset[str]] = {}
    for kind, words in rivals():
        for word in words:
            for found in facts_of(word, [(0, len(word))]).words:
                kinds[found.key] = kinds.get(found.key, frozenset()) | {kind}
    return kinds
