"""Ranked passages -> those that fit the model's budget; and the record's own sentences that answer a question best.

Budgets are in the model's tokens, through the counter that the caller passes in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from contracts import Passage, ScoredPassage
from retrieval.analyser import analyse
from retrieval.headings import is_heading, last_heading
from retrieval.lexical import Bm25
from retrieval.reading.sections import is_section_title
from retrieval.sentences import split_sentences
from retrieval.tables import VALUE

Quote = tuple[int, int, int]  # index of the passage, start and end in its text

_MIN_SHARE = 0.45  # of the question's weight that a sentence must hold to be worth showing ...
_MIN_OF_BEST = 0.6  # ... and of what the best sentence holds
_SHORT_CHARS = 48  # a line this short says little without its heading
_MAX_GAP = 4  # characters of white space between two passages that follow each other
_HEADING_WEIGHT = 0.5  # a question's word counts this much when only the heading holds it

# What a question is made of, beside what it is about; as the analyser writes the words.
_ASKING_WORDS = (
    "patient tell show list give describe explain please any much many how why take use receive prescribe provide "
    "currently current now know done happen record note document say state mention there long often last latest recent "
    "level value result reading amount today start anything something due next history like"
)
_ASKING = frozenset(analyse(_ASKING_WORDS))
# What a record writes where a question names the kind: it says "apixaban 5 mg", never "the dose of apixaban".
_SIGNS = {
    kind: frozenset(analyse(signs))
    for kinds, signs in {
        "dose dosage strength": "mg mcg g ml unit iu tablet puff",
        "medication medicine drug pill tablet": "mg mcg tablet daily",
        "allergy allergic": "allergic allergy allergies anaphylaxis",
        "weight weigh": "weight kg",
        "height": "height cm",
        "temperature fever": "temperature febrile afebrile",
        "chest": "chest breastbone sternum retrosternal substernal",
        "feel feeling": "feel describe tight sharp dull burning aching crushing stabbing throbbing",
        "frequency": "daily once twice weekly nightly hours",
        "admission admit admitted": "admission admitted admit",
        "discharge discharged": "discharge discharged",
        "diagnosis diagnose diagnosed": "diagnosis diagnosed diagnoses",
        "surgery operation": "surgery operation surgical",
        "pregnant pregnancy": "pregnant pregnancy gestation antenatal",
        "family": "family father mother brother sister parent son daughter",
        "follow-up followup": "follow-up review clinic appointment",
    }.items()
    for kind in analyse(kinds)
}
_ASKING_CJK = re.compile("患者|病人|什么|哪些|怎么|怎样|如何|多少|是否|有没有|为什么|[吗呢吧的了有是对和吃用]")

# A question for a value or a time is best answered by a sentence that holds one.
_ASKS_VALUE = re.compile(
    r"\bwhat (?:is|was|are|were|did)\b|\bhow (?:much|many|high|low)\b|\b(?:dose|level|value)\b|多少", re.I
)
_ASKS_TIME = re.compile(r"\bwhen\b|\bsince\b|\bwhat (?:date|day|time)\b|什么时候|何时", re.I)
_TIME = re.compile(
    r"\b(?:19|20)\d\d\b|\d{1,2}[:/.]\d\d|\b\d{1,2} ?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)|\d ?[年月日]",
    re.I,
)
_ANSWERS_KIND = 0.2  # what holding a value or a time, where one is asked for, adds to a share of the question's words


def label(passage: Passage, key: int) -> str:
    """The line above a passage in a prompt: "[1] Letter.pdf, page 2", and what stands over it there."""
    place = f"[{key}] {passage.document_name}, page {passage.page}"
    return f"{place}, {passage.context}" if passage.context else place


def pack(
    ranked: Sequence[ScoredPassage | Passage], max_tokens: int, count_tokens: Callable[[str], int], first_key: int = 1
) -> list[Passage]:
    """The best passages that fit together, in their order; each counted with its label, the first with this key.

    A passage too long for what is left is passed over for shorter ones behind it.
    """
    packed: list[Passage] = []
    left = max_tokens
    for item in ranked:
        passage = item.passage if isinstance(item, ScoredPassage) else item
        size = _size(passage, first_key + len(packed), count_tokens)
        if size <= left:
            packed.append(passage)
            left -= size
    return packed


def count_all(passages: Sequence[Passage], count_tokens: Callable[[str], int]) -> int:
    """Tokens of all passages, each with its label: what `pack` must be given to leave none out."""
    return sum(_size(passage, number, count_tokens) for number, passage in enumerate(passages, 1))


def _size(passage: Passage, key: int, count_tokens: Callable[[str], int]) -> int:
    return count_tokens(f"{label(passage, key)}\n{passage.text}\n\n")


def with_neighbours(ranked: Sequence[Passage], reading_order: Sequence[Passage], limit: int) -> list[Passage]:
    """The best `limit` passages, then what stands right before and after each on its page, best first."""
    best = list(ranked[:limit])
    place = {passage.id: number for number, passage in enumerate(reading_order)}
    beside = (
        reading_order[number]
        for passage in best
        for number in (place[passage.id] - 1, place[passage.id] + 1)
        if 0 <= number < len(reading_order) and _is_same_page(reading_order[number], passage)
    )
    return list(dict.fromkeys([*best, *beside]))


def without_repeats(required: Sequence[Passage], best: Sequence[Passage]) -> tuple[Passage, ...]:
    """All of `required`, then of `best` what has not been said word for word: notes are copied forward. Nearly equal
    is not equal: the one number that differs may be the dose."""
    told = {_plain(passage.text) for passage in required}
    kept = list(required)
    for passage in best:
        if _plain(passage.text) not in told:
            told.add(_plain(passage.text))
            kept.append(passage)
    return tuple(kept)


def edges_first(passages: Sequence[Passage]) -> list[Passage]:
    """Passages that came best first, so that the best stand at both ends and the worst in the middle, where models
    overlook most (Liu et al., "Lost in the Middle", 2023). Neighbours stay together, in the order of reading."""
    stretches: list[list[Passage]] = []
    for passage in passages:
        near = next((stretch for stretch in stretches if any(_touches(passage, other) for other in stretch)), None)
        if near is None:
            stretches.append([passage])
        else:
            near.append(passage)
    ordered = [sorted(stretch, key=lambda p: (p.page, p.start)) for stretch in stretches]
    return [passage for stretch in [*ordered[0::2], *reversed(ordered[1::2])] for passage in stretch]


def _touches(one: Passage, other: Passage) -> bool:
    return _is_same_page(one, other) and (
        0 <= one.start - other.end <= _MAX_GAP or 0 <= other.start - one.end <= _MAX_GAP
    )


def _is_same_page(one: Passage, other: Passage) -> bool:
    return (one.document_id, one.page) == (other.document_id, other.page)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True, slots=True)
class _Unit:
    """A sentence, list item or table row of a passage, and the terms of it and of its heading."""

    passage: int
    start: int
    end: int
    terms: frozenset[str]
    heading_terms: frozenset[str]


def quotes(query: str, passages: Sequence[Passage], limit: int, exclude: Collection[Quote] = ()) -> list[Quote]:
    """Spans of the passages' own sentences that best answer the query, best first; none if nothing is relevant.

    Spans that overlap one of `exclude` are skipped. Passages are taken to come best first.
    """
    query_terms = frozenset(analyse(_ASKING_CJK.sub(" ", query))) - _ASKING
    units = [unit for index, heading in enumerate(_headings(passages)) for unit in _units(index, passages, heading)]
    if not query_terms or not units:
        return []
    rarity = Bm25([list(unit.terms | unit.heading_terms) for unit in units])
    weights = _weights(query_terms, units, rarity)
    total = sum(weights.values())
    kind = _TIME if _ASKS_TIME.search(query) else VALUE if _ASKS_VALUE.search(query) else None

    def rank(share: float, unit: _Unit) -> float:
        """Nearly equal shares go by the passage's rank, then by the order of reading (the sort is stable)."""
        text = passages[unit.passage].text[unit.start : unit.end]
        return round(share, 2) - 0.01 * min(unit.passage, 10) + (_ANSWERS_KIND if kind and kind.search(text) else 0)

    scored = sorted(((_share(unit, weights) / total, unit) for unit in units), key=lambda pair: -rank(*pair))
    best = max(share for share, _ in scored)
    taken: list[Quote] = []
    seen = {passages[index].text[start:end] for index, start, end in exclude}
    for share, unit in scored:
        text = passages[unit.passage].text[unit.start : unit.end]
        if len(taken) == limit:
            break
        if share < max(_MIN_SHARE, _MIN_OF_BEST * best):
            continue
        if text not in seen and not any(_overlap(unit, span) for span in exclude):
            taken.append((unit.passage, unit.start, unit.end))
            seen.add(text)  # records repeat themselves; say it once
    return taken


def _headings(passages: Sequence[Passage]) -> list[str]:
    """The heading under which each passage begins, as far as the passage right before it is among them or its context
    tells."""
    by_end = {(passage.document_id, passage.page, passage.end): passage for passage in passages}
    headings: list[str] = []
    for passage in passages:
        ends = ((passage.document_id, passage.page, passage.start - gap) for gap in range(_MAX_GAP + 1))
        before = next((by_end[end] for end in ends if end in by_end), None)
        headings.append((last_heading(before.text) if before else "") or passage.context)
    return headings


def _units(index: int, passages: Sequence[Passage], heading: str) -> list[_Unit]:
    text = passages[index].text
    heading_span: tuple[int, int] | None = None
    heading_terms = frozenset(analyse(heading))
    units: list[_Unit] = []
    spans = split_sentences(text)
    for (start, end), (next_start, next_end) in zip(spans, [*spans[1:], (0, 0)], strict=True):
        if _is_title(text[start:end], text[next_start:next_end]):
            heading_span, heading_terms = (start, end), frozenset(analyse(text[start:end]))
            continue
        terms = frozenset(analyse(text[start:end]))
        if not terms:
            continue
        # The first short line below its heading is quoted with it: "ALLERGIES / None known".
        is_first = heading_span is not None and not text[heading_span[1] : start].strip()
        if is_first and heading_span and end - start < _SHORT_CHARS:
            start = heading_span[0]
        units.append(_Unit(index, start, end, terms, heading_terms))
    return units


_DENIES = re.compile(r"\b(?:no|not|none|nil|never|without)\b|[无未不否没]", re.I)


def only_repeats(query: str, text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is a title of what stands below it, and says no more than the query asks or than which
    section of a record begins there: "# Allergies and intolerances" answers nothing."""
    line, below = text[start:end].strip(), text[end:]
    following = next((below[first:last] for first, last in split_sentences(below)), "")
    is_echo = frozenset(analyse(line)) <= frozenset(analyse(query)) or (line.startswith("#") and is_section_title(line))
    return is_echo and not _DENIES.search(line) and _is_title(line, following)


def _is_title(line: str, following: str) -> bool:
    """Whether a line is a heading, or without a mark of its own announces the prose below it: "Why she was admitted". A
    list of plain words ("Penicillin" above "Latex") is not one."""
    if is_heading(line):
        return True
    is_plain = line[:1].isupper() and len(line.split()) <= 6 and not re.search(r"[\d.,;:!?|]", line)
    return is_plain and following.endswith(".") and len(following) > 2 * len(line)


def _weights(query_terms: frozenset[str], units: Sequence[_Unit], rarity: Bm25) -> dict[str, float]:
    """How much each word of the question counts: the rarer among the sentences, the more."""
    frequencies = {
        term: sum(_stands(term, u.terms) or _stands(term, u.heading_terms) for u in units) for term in query_terms
    }
    return {term: rarity.idf(frequency) for term, frequency in frequencies.items()}


def _share(unit: _Unit, weights: dict[str, float]) -> float:
    own = {term for term in weights if _stands(term, unit.terms)}
    heading = {term for term in weights if _stands(term, unit.heading_terms)} - own
    return sum(weights[term] for term in own) + _HEADING_WEIGHT * sum(weights[term] for term in heading)


def _stands(term: str, terms: frozenset[str]) -> bool:
    return term in terms or not terms.isdisjoint(_SIGNS.get(term, frozenset()))


def _overlap(unit: _Unit, span: Quote) -> bool:
    return unit.passage == span[0] and unit.start < span[2] and span[1] < unit.end
