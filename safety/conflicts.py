"""Where the passages of an answer contradict each other: two doses of a drug, an allergy said and denied, two dates of
what happens once, two sides of one finding.

A false alarm costs trust in the true ones, so that whatever the record explains is no conflict: a dose that was changed
or that notes of different dates give, a dose given once, a range, an allergy found after an earlier denial, a thing
that both sides have. Knows nothing of claims, models and pages as images.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from itertools import combinations

from contracts import Passage
from safety.facts import Facts, OwnedQuantity, Side, facts_of, uncertain_spans
from safety.quantities import DateFact
from safety.sentences import sentence_spans
from safety.words import Word

DOSE, ALLERGY, DATE, SIDE = "conflict.dose", "conflict.allergy", "conflict.date", "conflict.side"

_IN_MCG = {"mcg": Decimal(1), "mg": Decimal(1000), "g": Decimal(1_000_000)}
_DOSE_UNITS = {*_IN_MCG, "unit", "iu", "meq"}
_FREQUENCIES = ("x/day", "x/week", "every h", "every d", "every w", "every m")
_CHANGES = frozenset(f"term:{word}" for word in ("increase", "decrease", "stop", "withhold", "restart"))
_NOT_A_REGIMEN = re.compile(
    r"\b(?:loading|stat|bolus|single|once only|one[- ]off|given|received|administered|infus\w+|titrat\w+|taper\w*|"
    r"wean\w*|previous\w*|formerly|used to|until|max\w*|chang\w+|switch\w+|overdose|level|"
    r"in (?:the )?(?:ed|emergency))\b|既往|曾|改为|加至|减至",
    re.IGNORECASE,
)
# A sentence without any of these says nothing that is compared here; reading each in full would take seconds.
_MAY_SPEAK = re.compile(
    r"\d|allerg|\bnkd?a\b|\bleft\b|\bright\b|stop|withh|held|start|resum|increas|decreas|reduc|chang|switch|titrat|"
    r"taper|wean|[过左右双停加减改]",
    re.IGNORECASE,
)
_SEVERAL_PRODUCTS = frozenset({"drug:insulin", "drug:insulins"})  # of one name: glargine and aspart are two drugs

_ALLERGIC = "term:allergic"
_ALLERGY_LINE = re.compile(r"[\W\d]*(?:drug |medication |known )*allerg(?:y|ies)\b|[\W\d]*过敏", re.IGNORECASE)
_ALLERGEN_HEAD = re.compile(r"[\W\d]*allergens? \|", re.IGNORECASE)  # of a table
_NONE = re.compile(
    r"[\W\d]*(?:none|nil)(?: (?:known|reported|documented|recorded))?\W*|[\W\d]*(?:无|否认)\W*", re.IGNORECASE
)
_DENIES_ALL = re.compile(
    r"\b(?:no (?:known )?(?P<drug>(?:drug|medication|medicine) )?allerg(?:y|ies)|nk(?P<nkda>d)?a)\b(?!\s+to\b)"
    r"|\ballerg(?:y|ies)\s*[:|-]?\s*(?:none|nil|no known|denied)\b"
    r"|\bden(?:y|ies|ied) (?:any )?(?:known )?(?P<denied>(?:drug|medication) )?allerg(?:y|ies)\b(?!\s+to\b)"
    r"|(?:无|否认|没有)(?:已知)?(?P<zh>药物)?过敏",
    re.IGNORECASE,
)
_OF_ALLERGEN = re.compile(
    r"\ballerg(?:ic|y|ies) to (?P<after>[^.;:(]*?)(?=[.;:(]|\band (?:takes|is|has|was)\b|\bbut\b|$)"
    r"|(?P<before>\b[\w-]+)[ -]allergy\b|(?P<zh>[\u3400-\u9fff]{1,12})过敏",
    re.IGNORECASE,
)
_CLASSES = frozenset({"term:penicillins"})  # of drugs, that people are allergic to as such
_RELATIVE = re.compile(r"\b(?:mother|father|brother|sister|son|daughter|family|aunt|uncle|cousin|parent)s?\b", re.I)
_ALLERGEN = re.compile(r"\ballergic to (?P<name>[a-z]{3,})\b", re.IGNORECASE)

_HAPPENS_ONCE = re.compile(
    r"(?!poly|lump|lymphaden)\w*ectomy|\w*transplant\w*|amputation|menopause|cabg", re.IGNORECASE
)
_DIAGNOSED = re.compile(r"\bdiagnos(?:ed|is)\b", re.IGNORECASE)
_BEFORE_DATE = re.compile(r"(?:\b(?:in|on|since|year)|[(|,:–-])\s*(?:the\s+)?$", re.IGNORECASE)
_NOT_THE_EVENT = re.compile(
    r"\b(?:after|following|post\w*|prior|before|review\w*|seen|schedul\w+|plan\w*|book\w*|await\w*|for|revis\w+)\b",
    re.I,
)
_DATE_LAST = re.compile(r"[\s(,:|–-]*(?:(?:in|on|since|during)\s+)?(?:the\s+)?", re.IGNORECASE)
_DATE_FIRST = re.compile(r"\s*[:|)–-]\s*|\s+")
_EVENT_REACH = 48  # characters between an event and its date

_SIDED = re.compile(
    r"\w*(?:ectomy|plasty|plegia|paresis)|fractures?|mass|tumou?r|cancer|carcinoma|replacement|amputation|strokes?|"
    r"infarct(?:ion)?|effusion|pneumonia|pneumothorax|thrombosis|dvt|hernia|nodule|lesion|weakness|abscess|cataract|"
    r"hydronephrosis|transplant\w*",
    re.IGNORECASE,
)
_OTHER_SIDE = re.compile(r"\b(?:bilateral\w*|both|contralateral|other side)\b|双侧|对侧", re.IGNORECASE)
_SAYS_ONLY_SIDE = ("side", "sid")
_SIDE_REACH = 40  # characters between a side and what is found there


@dataclass(frozen=True, slots=True)
class Place:
    """A sentence: passages[passage].text[start:end]."""

    passage: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Conflict:
    rule: str
    subject: str  # what it is about, as a clinician names it: "metformin"
    message: str
    places: tuple[Place, Place]


@dataclass(frozen=True, slots=True)
class _Said:
    """What one sentence says of a subject. value is comparable by the rule's own test only."""

    rule: str
    subject: str
    value: object
    start: int
    end: int
    place: Place = Place(0, 0, 0)
    page: tuple[str, int] = ("", 0)
    written: str = ""  # ISO 8601 date of the note; "" if not known


@dataclass(frozen=True, slots=True)
class _Dose:
    amount: Decimal
    unit: str
    frequency: tuple[str, str] | None  # value and unit, as quantities give them

    def differs(self, other: _Dose) -> bool:
        if self.unit != other.unit:
            return False
        if self.amount == other.amount:
            return bool(self.frequency and other.frequency and self.frequency != other.frequency)
        return self._a_day() is None or self._a_day() != other._a_day()

    def _a_day(self) -> Decimal | None:
        """1 g once a day and 500 mg twice a day are one dose in two forms."""
        is_daily = self.frequency and self.frequency[1] == "x/day" and self.frequency[0].isdigit()
        return self.amount * Decimal(self.frequency[0]) if is_daily and self.frequency else None


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    start: int
    end: int
    facts: Facts
    is_uncertain: bool
    is_under_allergies: bool

    @property
    def drugs(self) -> list[Word]:
        return [word for word in self.facts.words if word.key.startswith("drug:")]


def find_conflicts(passages: Sequence[Passage], written: Sequence[str]) -> list[Conflict]:
    """The contradictions among passages, one a subject. written: for each passage the ISO 8601 date of its note, "" if
    it is not known."""
    said: defaultdict[tuple[str, str], list[_Said]] = defaultdict(list)
    for index, (passage, day) in enumerate(zip(passages, written, strict=True)):
        for item in _statements(passage.text):
            place = Place(index, item.start, item.end)
            page = (passage.document_id, passage.page)
            said[item.rule, item.subject].append(replace(item, place=place, page=page, written=day))
    changed = {subject for rule, subject in said if rule == _CHANGED}
    found = []
    for (rule, subject), items in said.items():
        if rule not in _DIFFER or (rule == DOSE and subject in changed):
            continue
        against = [*items, *said.get((ALLERGY, _DRUGS), []), *said.get((ALLERGY, _EVERYTHING), [])]
        pairs = combinations(against if rule == ALLERGY and subject not in (_DRUGS, _EVERYTHING) else items, 2)
        pair = next(((a, b) for a, b in pairs if _DIFFER[rule](a, b)), None)
        if pair:
            name = subject.partition(":")[2] or subject
            found.append(Conflict(rule, name, _MESSAGES[rule].format(name), (pair[0].place, pair[1].place)))
    return found


_CHANGED = "changed"  # not a conflict: that the dose of the subject was changed
_DRUGS, _EVERYTHING = "any drug", "anything"  # subjects of a general denial

_MESSAGES = {
    DOSE: "The record gives different doses of {}.",
    ALLERGY: "The record says both that there is an allergy to {} and that there is none.",
    DATE: "The record gives different dates for {}.",
    SIDE: "The record gives different sides for {}.",
}


# --- whether two statements contradict each other ---------------------------------------------------------------


def _doses_differ(one: _Said, other: _Said) -> bool:
    is_later = one.written and other.written and one.written != other.written
    assert isinstance(one.value, _Dose)
    assert isinstance(other.value, _Dose)
    return not is_later and one.value.differs(other.value)


def _allergies_differ(one: _Said, other: _Said) -> bool:
    if one.value == other.value:
        return False
    yes, no = (one, other) if one.value else (other, one)
    if no.subject == _DRUGS and not yes.subject.startswith(("drug:", "term:")):
        return False
    return not (yes.written and no.written and yes.written > no.written)


def _dates_differ(one: _Said, other: _Said) -> bool:
    assert isinstance(one.value, DateFact)
    assert isinstance(other.value, DateFact)
    return not any(
        all(a is None or b is None or a == b for a, b in zip(mine, theirs, strict=True))
        for mine in one.value.readings
        for theirs in other.value.readings
    )


def _sides_differ(one: _Said, other: _Said) -> bool:
    """Left and right on one page are two things; "both" anywhere is no contradiction to either."""
    assert isinstance(one.value, _Sided)
    assert isinstance(other.value, _Sided)
    if one.page == other.page or one.value.side == other.value.side or "both" in (one.value.side, other.value.side):
        return False
    parts = {one.value.part, other.value.part} - {""}
    return len(parts) < 2


_DIFFER: dict[str, Callable[[_Said, _Said], bool]] = {
    DOSE: _doses_differ,
    ALLERGY: _allergies_differ,
    DATE: _dates_differ,
    SIDE: _sides_differ,
}


# --- what a passage says ----------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def _statements(text: str) -> tuple[_Said, ...]:
    return tuple(
        said
        for sentence in _sentences(text)
        for find in (_doses, _changes, _allergies, _event_dates, _sided)
        for said in find(sentence)
    )


def _sentences(text: str) -> Iterator[_Sentence]:
    spans = sentence_spans(text)
    uncertain = uncertain_spans(text, spans)
    is_under_allergies = False
    for start, end in spans:
        line = text[start:end]
        is_heading = len(line) < 40 and not line.rstrip().endswith(".") and not re.search(r"\d", line)
        if (
            line.startswith("#")
            or (is_heading and line.rstrip().endswith(":"))
            or _ALLERGY_LINE.fullmatch(line)
            or _ALLERGEN_HEAD.match(line)
        ):
            is_under_allergies = bool(_ALLERGY_LINE.match(line) or _ALLERGEN_HEAD.match(line))
        if not is_under_allergies and not _MAY_SPEAK.search(line):
            continue
        yield _Sentence(
            line,
            start,
            end,
            facts_of(line, [(0, len(line))]),
            any(a < end and start < b for a, b in uncertain),
            is_under_allergies,
        )


def _is_said(word: Word) -> bool:
    return not word.flags


def _said(sentence: _Sentence, rule: str, subject: str, value: object) -> _Said:
    return _Said(rule, subject, value, sentence.start, sentence.end)


def _doses(sentence: _Sentence) -> Iterator[_Said]:
    """One regimen a drug and sentence; a sentence with two is a scheme, not a dose."""
    if sentence.is_uncertain or _NOT_A_REGIMEN.search(sentence.text):
        return
    if any(status.key in _CHANGES or status.key == _ALLERGIC for status in sentence.facts.statuses):
        return
    for drug in {word.key: word for word in sentence.drugs if _is_said(word)}.values():
        owned = [item for item in sentence.facts.quantities if item.owner == drug.key]
        amounts = {_amount(item) for item in owned if item.quantity.unit.partition("/")[0] in _DOSE_UNITS}
        frequencies = {(i.quantity.value, i.quantity.unit) for i in owned if i.quantity.unit in _FREQUENCIES}
        counted = any(item.quantity.unit in ("tablet", "capsule", "puff", "dose", "ml", "drop") for item in owned)
        if drug.key in _SEVERAL_PRODUCTS or counted or len(amounts) != 1 or len(frequencies) > 1:
            continue
        if (amount := amounts.pop()) is not None:
            yield _said(sentence, DOSE, drug.key, _Dose(*amount, frequencies.pop() if frequencies else None))


def _amount(owned: OwnedQuantity) -> tuple[Decimal, str] | None:
    """In micrograms where it is a mass; None for a range, a limit or an amount per something."""
    quantity = owned.quantity
    if quantity.comparator or quantity.unit not in _DOSE_UNITS or not re.fullmatch(r"\d+(?:\.\d+)?", quantity.value):
        return None
    if quantity.unit in _IN_MCG:
        return Decimal(quantity.value) * _IN_MCG[quantity.unit], "mcg"
    return Decimal(quantity.value), quantity.unit


def _changes(sentence: _Sentence) -> Iterator[_Said]:
    for status in sentence.facts.statuses:
        if status.key in _CHANGES and status.owner:
            yield _said(sentence, _CHANGED, status.owner, None)
    if re.search(r"\b(?:chang|switch|titrat|taper|wean)\w+\b|改为|加至|减至", sentence.text, re.IGNORECASE):
        yield from (_said(sentence, _CHANGED, drug.key, None) for drug in sentence.drugs)


def _allergies(sentence: _Sentence) -> Iterator[_Said]:
    if sentence.facts.has_exception or sentence.is_uncertain or _RELATIVE.search(sentence.text):
        return
    if denial := _DENIES_ALL.search(sentence.text):
        only_drugs = any(denial.group(name) for name in ("drug", "nkda", "denied", "zh"))
        yield _said(sentence, ALLERGY, _DRUGS if only_drugs else _EVERYTHING, False)
        return
    if sentence.is_under_allergies and _NONE.fullmatch(sentence.text):
        yield _said(sentence, ALLERGY, _EVERYTHING, False)
        return
    allergens = list(_allergens(sentence))
    negated = any("negated" in word.flags for word in sentence.facts.words if word.key == _ALLERGIC)
    for word in allergens:
        if not word.flags - {"negated"}:
            yield _said(sentence, ALLERGY, word.key, not negated and "negated" not in word.flags)
    if not allergens and (named := _ALLERGEN.search(sentence.text)):
        yield _said(sentence, ALLERGY, named.group("name").lower(), not negated)


def _allergens(sentence: _Sentence) -> Iterator[Word]:
    """The drugs and classes that the sentence speaks of as allergens: all of a list of allergies, else what stands
    right behind "allergic to" or right before "allergy"."""
    is_list = sentence.is_under_allergies or bool(_ALLERGY_LINE.match(sentence.text))
    matches = _OF_ALLERGEN.finditer(sentence.text)
    spans = [match.span(match.lastgroup or 0) for match in matches]
    for word in sentence.facts.words:
        is_allergen = word.key.startswith("drug:") or word.key in _CLASSES
        if is_allergen and (is_list or any(a <= word.start and word.end <= b for a, b in spans)):
            yield word


def _event_dates(sentence: _Sentence) -> Iterator[_Said]:
    if sentence.is_uncertain or _NOT_THE_EVENT.search(sentence.text):
        return
    words = [word for word in sentence.facts.words if word.is_required and _is_said(word)]
    once = [w for w in words if _HAPPENS_ONCE.fullmatch(sentence.text[w.start : w.end])]
    beside = [(word, day) for word in once for day in sentence.facts.dates if _is_beside(sentence.text, word, day)]
    for word, day in beside:
        yield _said(sentence, DATE, _event(sentence, word), day)
    if (
        beside
        or len(sentence.facts.dates) != 1
        or not _BEFORE_DATE.search(sentence.text[: sentence.facts.dates[0].start])
    ):
        return
    (day,) = sentence.facts.dates
    diagnosed = _DIAGNOSED.search(sentence.text)
    if len(once) == 1 and _gap(once[0].start, once[0].end, day) <= _EVENT_REACH:
        yield _said(sentence, DATE, _event(sentence, once[0]), day)
    elif diagnosed and not once and _gap(*diagnosed.span(), day) <= _EVENT_REACH:
        what = [w for w in words if not w.key.startswith(("drug:", "anchor:")) and "diagnos" not in w.key]
        if len(what) == 1:
            yield _said(sentence, DATE, f"the diagnosis of {sentence.text[what[0].start : what[0].end].lower()}", day)


def _is_beside(text: str, word: Word, day: DateFact) -> bool:
    """Whether no more than a mark or a preposition stands between an event and its date: "mastectomy (2004)"."""
    if day.end <= word.start:
        return bool(_DATE_FIRST.fullmatch(text, day.end, word.start))
    return bool(_DATE_LAST.fullmatch(text, word.end, day.start))


def _event(sentence: _Sentence, word: Word) -> str:
    before = [side for side in sentence.facts.sides if 0 <= word.start - side.end <= _SIDE_REACH]
    return "".join(f"{side.key} " for side in before[-1:]) + sentence.text[word.start : word.end].lower()


def _gap(start: int, end: int, day: DateFact) -> int:
    return max(day.start - end, start - day.end)


@dataclass(frozen=True, slots=True)
class _Sided:
    side: str  # "left", "right" or "both"
    part: str  # key of the part of the body; "" where the finding names it


def _sided(sentence: _Sentence) -> Iterator[_Said]:
    if sentence.is_uncertain or _OTHER_SIDE.search(sentence.text) or len({s.key for s in sentence.facts.sides}) != 1:
        return
    side = sentence.facts.sides[0]
    for word in sentence.facts.words:
        written = sentence.text[word.start : word.end]
        if _SIDED.fullmatch(written) and _is_said(word) and abs(word.start - side.start) <= _SIDE_REACH:
            yield _said(sentence, SIDE, _singular(written), _Sided(side.key, _part(side, word)))
            return


def _part(side: Side, finding: Word) -> str:
    return next((noun for noun in side.nouns if noun != finding.key and noun not in _SAYS_ONLY_SIDE), "")


def _singular(word: str) -> str:
    return word.lower().removesuffix("s") if word.lower().endswith(("res", "kes")) else word.lower()
