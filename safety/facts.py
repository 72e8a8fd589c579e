"""What a stretch of text says, in a form that two texts can be compared by: words, quantities, dates, sides.

Every word carries whether it is negated, a relative's or hypothetical; every quantity the drug or measurement that
it belongs to. Offsets are into the text given. Knows nothing of claims and passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from safety.assertion import Assertion, Scope, scopes
from safety.quantities import (
    DateFact,
    Quantity,
    belongs_to_next,
    find_dates,
    find_frequencies,
    find_quantities,
    find_times,
    is_behind_dose,
)
from safety.tables import cell_over, row_at, table_head
from safety.words import WORD, Word, is_owner, named_by_number, overlaps, plain, read_words

_SIDE = re.compile(
    r"\b(left|right|bilateral|both)\b(?!\s+ventricular\s+ejection)"
    r"(?!\s+(?:away|now|after|before|the|against|for|in|on|hospital|at)\b)"
    r"|(?<![\d] )\b(?-i:([LR])(?= (?:[a-z]|[A-Z]{2})))|([左右])(?=[\u3400-\u9fff])"
    r"|(双)(?=[侧肺下上眼耳肾手足膝乳髋腿臂颈瞳踝肩肘腕卵输睾])",
    re.IGNORECASE,
)
_UNCERTAIN = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|suspected|suspicious for|suspicion of|likely|presumed|questionable|query|might|"
    r"may (?:have|be|represent)|could (?:be|represent)|concern(?:ing|ed)? (?:for|about)|to rule out|rule out|r/o|"
    r"consider|cannot exclude|differentials?(?: diagnos[ei]s)?)\b|(?<!\w)\?\s?(?=\w)|可能|疑似|考虑|待排",
    re.IGNORECASE,
)
_UNCERTAIN_REACH = 60  # characters
_DENIAL = re.compile(
    r"\b(?:no|not|nor|none|never|cannot|without|den(?:y|ies|ied|ying)|neither)\b|n't\b|否认|没有|未|无", re.IGNORECASE
)
# Of forms and tables: "Headache: no", "Rash | No", "fever -", "头痛：无". A test's "negative" is its result.
_ANSWERED_NO = re.compile(
    r"(?: ?[:|] ?(?:(?:no|none|nil)(?: (?:seen|reported|noted|known|recorded))?\b|否|无|没有)|(?<=[^\W\d_]) -)"
    r" ?(?=$|[\n,;.|。])",
    re.IGNORECASE,
)
# "was not given", "no longer takes": what stands before the cue in its clause is negated as well.
_WHOLE_CLAUSE = re.compile(
    r"\b(?:is|are|was|were|be|been|has|have|had|must|should|do|does|did|will|would|can|could|may)(?:\s+not\b|n't\b)"
    r"|\bnever\b|\bcannot\b|\bno longer\b|未|没有?|不再",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(
    r"[,;:，；。]|\b(?:but|and|because|although|though|however|so that|which|who)\b", re.IGNORECASE
)
EXCEPTION = r"\b(?:no (?:\w+ )?other|other than|except|apart from|aside from)\b|其他|除.{1,12}外"
STATUSES = frozenset(
    f"term:{word}"
    for word in ("start", "stop", "withhold", "continue", "restart", "increase", "decrease", "allergic", "intolerance")
)
_COMPARED = (Assertion.NEGATED, Assertion.FAMILY, Assertion.HYPOTHETICAL)
_PART_END = re.compile(r"[,;，；、|①-⑳]|\b(?:and|then|but|while|whereas)\b", re.IGNORECASE)
_GOES_ON = re.compile(r"\s*(?:it|its|this|these|they|he|she|which|where|the (?:latter|former))\b", re.IGNORECASE)
DENIES = re.compile(r"\b(?:none|nil|no|not|nkd?a|den(?:y|ies|ied))\b|无|否认", re.IGNORECASE)
# "Allergies: none known", or on the next line. Such a title holds for nothing.
ANSWERED_NONE = re.compile(
    r" ?(?:[:|?]|- |\n)[\s|*•-]*(?:(?:none|nil|no known|not known|nkd?a|den(?:y|ies|ied))\b|no\W*$|无|否认)",
    re.IGNORECASE | re.MULTILINE,
)
_TITLE_OF_LIST = re.compile(r" ?: ?(?=[^\W\d])")
NOUN_REACH = 30  # characters from a side to what it is the side of
OWNER_REACH = 160  # characters back to the drug or measurement a number belongs to


@dataclass(frozen=True, slots=True)
class OwnedQuantity:
    quantity: Quantity
    owner: str  # key of the drug or measurement; "" if none is near
    clause: tuple[int, int]  # the stretch between commas and "and" that holds it: what is said of this number


@dataclass(frozen=True, slots=True)
class OwnedStatus:
    """That a drug was started, stopped … or is an allergy."""

    key: str
    owner: str  # "" if its sentence names no drug
    start: int


@dataclass(frozen=True, slots=True)
class Side:
    key: str  # "left", "right" or "both"
    nouns: tuple[str, ...]  # keys of the next words
    start: int
    end: int
    clause: tuple[int, int]  # as of a number: what is said of this side


@dataclass(frozen=True, slots=True)
class Facts:
    words: tuple[Word, ...]
    quantities: tuple[OwnedQuantity, ...]
    dates: tuple[DateFact, ...]
    date_clauses: tuple[tuple[int, int], ...]  # of each date, what is said of it
    sides: tuple[Side, ...]
    statuses: tuple[OwnedStatus, ...]
    is_hypothetical: bool
    is_uncertain: bool
    num_denials: int
    has_exception: bool  # "no other", "except", "apart from"
    parts: tuple[tuple[int, int, int], ...]  # the stretches between commas and "and", a table's row whole: start, end
    # and where its sentence starts
    unborne: frozenset[str] = frozenset()  # of a claim, the modes (`modality.py`) that do not bear it as it says it


def facts_of(text: str, sentences: Sequence[tuple[int, int]]) -> Facts:
    """The facts of a text whose sentences are known. Owners of quantities are looked for across sentences."""
    text = plain(text)
    dates = tuple(find_dates(text))
    taken = [(d.start, d.end) for d in dates]
    frequencies = [q for q in find_frequencies(text) if not overlaps(taken, q.start, q.end)]
    taken += [(q.start, q.end) for q in frequencies]
    named = [match.span() for match in named_by_number().finditer(text)]
    quantities = list(find_quantities(_blank(text, [*taken, *named])))
    taken += [(q.start, q.end) for q in quantities]
    words = read_words(text, taken)
    doses = {q.end for q in (*quantities, *frequencies)} | {w.end for w in words if w.key.startswith("drug:")}
    times = [time for time in find_times(text) if is_behind_dose(text, doses, time.start)]
    words = [word for word in words if not overlaps([(t.start, t.end) for t in times], word.start, word.end)]
    scoped = [replace(s, start=s.start + a, end=s.end + a) for a, b in sentences for s in _scopes(text[a:b])]
    words = [replace(word, flags=_flags(scoped, word)) for word in words]
    owned = tuple(_own(text, q, words, sentences) for q in sorted([*frequencies, *times, *quantities], key=_start))
    return Facts(
        words=tuple(words),
        quantities=owned,
        dates=dates,
        date_clauses=tuple(_date_clause(text, date, sentences) for date in dates),
        sides=tuple(_sides(text, words, sentences)),
        statuses=tuple(_statuses(text, words, sentences)),
        is_hypothetical=any(scope.status is Assertion.HYPOTHETICAL for scope in scoped),
        is_uncertain=bool(_UNCERTAIN.search(text)),
        num_denials=len(_DENIAL.findall(text)),
        has_exception=bool(re.search(EXCEPTION, text, re.IGNORECASE)),
        parts=tuple(part for start, end in sentences for part in _parts_of(text, start, end)),
    )


# --- status -----------------------------------------------------------------------------------------------------


def _scopes(sentence: str) -> list[Scope]:
    answers = list(_ANSWERED_NO.finditer(sentence))  # an answer denies what stands before it, and nothing behind
    found = [
        scope
        for scope in scopes(sentence, is_literal=True)
        if scope.status in _COMPARED and not any(match.start() < scope.start <= match.end() for match in answers)
    ]
    for match in _WHOLE_CLAUSE.finditer(sentence):
        start = max((end.end() for end in _CLAUSE_END.finditer(sentence, 0, match.start())), default=0)
        found.append(Scope(Assertion.NEGATED, start, match.start()))
    for match in answers:
        start = max(sentence.rfind(mark, 0, match.start()) + 1 for mark in "\n|:,;()")
        found.append(Scope(Assertion.NEGATED, start, match.start()))
    return found


def _flags(scoped: list[Scope], word: Word) -> frozenset[str]:
    return frozenset(scope.status.value for scope in scoped if scope.start <= word.start and word.end <= scope.end)


def uncertain_spans(text: str, sentences: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where a text only suspects: from the cue to the end of its clause, at most _UNCERTAIN_REACH characters."""
    spans = []
    for match in _UNCERTAIN.finditer(plain(text)):
        _, end = _sentence_of(match.start(), text, sentences)
        is_list = match.group().lower().startswith("differential")
        clause = end if is_list else next((m.start() for m in _CLAUSE_END.finditer(text, match.end() + 1, end)), end)
        spans.append((match.end(), min(clause, match.end() + _UNCERTAIN_REACH)))
    return spans


# --- numbers and sides ------------------------------------------------------------------------------------------


def _own(text: str, quantity: Quantity, words: Sequence[Word], sentences: Sequence[tuple[int, int]]) -> OwnedQuantity:
    start, end = _sentence_of(quantity.start, text, sentences)
    owners = [word for word in words if is_owner(word.key)]
    row = row_at(text, quantity.start)
    if row and not any(row[0] <= word.start < row[1] for word in owners):
        owner = _column_owner(text, quantity.start, owners)
        if owner is not None:
            return OwnedQuantity(quantity, owner, row)
    clause = _clause(text, quantity.start, quantity.end, sentences)
    return OwnedQuantity(quantity, _owner(text, quantity, owners, start, end), clause)


def _clause(text: str, first: int, last: int, sentences: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The stretch between commas and "and" around text[first:last]."""
    start, end = _sentence_of(first, text, sentences)
    left = max((m.end() for m in _PART_END.finditer(text, start, first)), default=start)
    return left, next((m.start() for m in _PART_END.finditer(text, last, end)), end)


def _parts_of(text: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    sentence = start
    if not row_at(text, start):
        for match in _PART_END.finditer(text, start, end):
            yield start, match.start(), sentence
            start = match.end()
            sentence = start if match.group() in ";；" and not _GOES_ON.match(text, start) else sentence
    yield start, end, sentence


def _date_clause(text: str, date: DateFact, sentences: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """A date between commas belongs to what stands before them: "hip replacement, 2015, cataract, 2019"."""
    start, end = _clause(text, date.start, date.end, sentences)
    if not WORD.search(text[start : date.start] + text[date.end : end]):
        before = text[:start].rstrip(" ,，")
        start = max(_clause(text, len(before), len(before), sentences)[0], _sentence_of(date.start, text, sentences)[0])
    return start, end


def dates_over(text: str, place: int, dates: Sequence[DateFact]) -> list[DateFact]:
    """The dates of a text that stand in a table's first row over a place in a row that has none of its own."""
    row, head = row_at(text, place), table_head(text, place)
    if not row or not head or any(row[0] <= date.start < row[1] for date in dates):
        return []
    start, end = cell_over(text, place, head)
    return [date for date in dates if start <= date.start < end]


def _sentence_of(place: int, text: str, sentences: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return next(((a, b) for a, b in sentences if a <= place < b), (0, len(text)))


def _owner(text: str, quantity: Quantity, owners: Sequence[Word], start: int, end: int) -> str:
    """ "5 mg of apixaban" belongs to what follows; else to the last owner named in the sentence, the next one in it, or
    the last one before it."""
    before = [w for w in owners if w.end <= quantity.start]
    after = [w for w in owners if quantity.end <= w.start < end]
    named = [(w.start, w.end) for w in before if w.start >= start]
    if after and belongs_to_next(text, quantity, named, after[0].start, start):
        return after[0].key
    if named:
        return before[-1].key
    if after:
        return after[0].key
    return before[-1].key if before and quantity.start - before[-1].end <= OWNER_REACH else ""


def _column_owner(text: str, place: int, owners: Sequence[Word]) -> str | None:
    """Whom a number belongs to in a row that names nobody: the one that the table's first row has in that column, ""
    where it has none there: the last word before the number stands in another. None if that row names nobody either."""
    head = table_head(text, place)
    if not head or not any(head[0] <= word.start < head[1] for word in owners):
        return None
    start, end = cell_over(text, place, head)
    named = {word.key for word in owners if start <= word.start < end}
    return named.pop() if len(named) == 1 else ""


def _statuses(text: str, words: Sequence[Word], sentences: Sequence[tuple[int, int]]) -> Iterator[OwnedStatus]:
    """The drug of "stopped" is the one right after it, else the last one before it in the sentence, else the next. A
    table's cell that stands alone ("Continued") belongs to the last drug above it; a heading ("Allergies") to none."""
    owners = [word for word in words if word.key.startswith("drug:")]
    for word in words:
        if word.key not in STATUSES or ANSWERED_NONE.match(text, word.end):
            continue
        start, end = _sentence_of(word.start, text, sentences)
        before = [w for w in owners if w.end <= word.start]
        after = [w for w in owners if word.end <= w.start < end]
        if _TITLE_OF_LIST.match(text, word.end) and not text[text.rfind("\n", 0, word.start) + 1 : word.start].strip(
            "-*• "
        ):
            owner = ""  # "Stopped: ramipril, metformin"
        elif (
            after
            and re.fullmatch(r"\s*(?:[\w%./-]+\s+){0,5}", text[word.end : after[0].start])
            and not re.search(r"\b(?:and|or)\b", text[word.end : after[0].start])
        ):
            owner = after[0].key
        elif before and before[-1].start >= start:
            owner = before[-1].key
        elif after:
            owner = after[0].key
        else:
            is_cell = word.key != "term:allergic" and end - start < 2 * (word.end - word.start) + 8
            owner = before[-1].key if is_cell and before and word.start - before[-1].end <= OWNER_REACH else ""
        if owner or not DENIES.search(text, start, end):
            yield OwnedStatus(word.key, owner, word.start)


def _sides(text: str, words: Sequence[Word], sentences: Sequence[tuple[int, int]]) -> Iterator[Side]:
    drugs = [(word.start, word.end) for word in words if word.key.startswith("drug:")]
    for match in _SIDE.finditer(text):
        if overlaps(drugs, *match.span()):
            continue  # 二甲双胍, 左甲状腺素
        key = {"bilateral": "both", "双": "both", "左": "left", "右": "right", "l": "left", "r": "right"}.get(
            match.group().lower(), match.group().lower()
        )
        end = min(match.end() + NOUN_REACH, _sentence_of(match.start(), text, sentences)[1])
        nouns = tuple(w.key for w in words if match.end() <= w.start <= end)[:3]
        yield Side(key, nouns, *match.span(), _clause(text, *match.span(), sentences))


def _blank(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with these spans made unreadable, so that a date's figures join no range."""
    for start, end in spans:
        text = f"{text[:start]}{'_' * (end - start)}{text[end:]}"
    return text


def _start(item: Word | Quantity) -> int:
    return item.start
