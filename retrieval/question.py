"""What a question asks for, beyond its words: what it refers back to, whole types of the record, a stretch of time.

Rules, not a model: what they say can be read off the question, and nothing is guessed. Knows nothing of passages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from contracts import SectionKind
from retrieval.analyser import analyse
from retrieval.reading.dates import find_dates

_MAX_BACK = 3  # turns that a chain of follow-ups is traced back
_POINTS_BACK = re.compile(
    r"\b(?:it|its|that|this|those|these|they|them|then|the same|the other)\b|它|这个|那个|上述", re.I
)
_GOES_ON = re.compile(
    r"^\s*(?:(?:and|but|or|also|so|what about|how about|since when|until when)\b|那|还有|以及|之后呢)", re.I
)
_SINGLE = re.compile(
    "=|[\u3400-\u9fff]$"
)  # a meaning, or one Chinese character: both stand for a term that is there too
_ASKING = frozenset(
    analyse(
        "and since when until what about how much many often long why where also now then exactly please tell show "
        "more it that this those these they them the same other dose date result there any else he she patient"
    )
)
# Kinds of which a clinician never wants a part: an allergy or a drug left out does harm.
_ALWAYS_WHOLE = (SectionKind.ALLERGIES, SectionKind.MEDICATIONS)
_KIND_WORDS: dict[SectionKind, str] = {
    SectionKind.ALLERGIES: r"\ballerg\w*|\bintoleran\w*|\badverse (?:drug )?reactions?\b|过敏",
    SectionKind.MEDICATIONS: r"\bmedications?\b|\bmedicines?\b|\bmeds\b|\bdrugs?\b(?! (?:use|abuse|allerg))"
    r"|\bprescri\w+|\bpills?\b|\btaking\b|用药|药物|吃什么药|服用",
    SectionKind.PROBLEMS: r"\bproblems?\b|\bdiagnos[ei]s\b|\bconditions?\b|\bcomorbidit\w+|诊断|疾病",
    SectionKind.LABS: r"\blabs?\b|\blab(?:oratory)? (?:results?|values?)\b|\bblood tests?\b|化验|检验",
    SectionKind.VITALS: r"\bvitals?\b|\bvital signs\b|生命体征",
    SectionKind.IMAGING: r"\bimaging\b|\bscans?\b|\bx-?rays?\b|\bradiolog\w+|影像|检查报告",
    SectionKind.PROCEDURES: r"\bprocedures?\b|\boperations?\b|\bsurger(?:y|ies)\b|手术",
    SectionKind.IMMUNIZATIONS: r"\bvaccin\w*|\bimmuni[sz]\w*|\bshots\b|疫苗|接种",
    SectionKind.FAMILY_HISTORY: r"\bfamily history\b|家族史",
    SectionKind.SOCIAL_HISTORY: r"\bsocial history\b|个人史",
    SectionKind.ENCOUNTERS: r"\bencounters?\b|\bvisits?\b|\badmissions?\b|就诊记录|住院记录",
}
_ENUMERATES = re.compile(
    r"\b(?:all|any|ever|every|each|list|which|trends?|over time|complete|whole|entire|summar\w+|never|no known"
    r"|has (?:he|she|the patient) (?:had|been)|how many)\b|所有|全部|有没有|是否|曾|列出|趋势|哪些|变化|每次",
    re.I,
)
_SERIES = re.compile(r"\b(?:trends?|over time|every|all|each|list)\b|趋势|变化|所有|全部|每次", re.I)
_SERIES_WORDS = frozenset(
    analyse(
        "trend of over time every all each list show give me tell what is was are were the value values reading "
        "readings result results measurement measurements level levels how has have been changed change patient "
        "last past year month week day since in this"
    )
)
_UNITS = {"day": 1, "week": 7, "month": 30.44, "year": 365.25}
_LAST = re.compile(r"\b(?:last|past|previous)\s+(?:(\d+|two|three|six|twelve)\s+)?(day|week|month|year)s?\b", re.I)
_COUNTS = {"two": 2, "three": 3, "six": 6, "twelve": 12}
_YEAR = re.compile(r"\b(in|during|since|after|before|until)\s+((?:19|20)\d\d)\b(?![-/.]\d)", re.I)
_CHINESE_YEAR = re.compile(r"((?:19|20)\d\d)年(?!\d|\s*\d+月)(以来|以后|之后|以前|之前)?")
_SINCE_EVENT = re.compile(r"\b(?:since|after)\s+(?:the |her |his |that |last )+([a-z]+(?: [a-z]+)?)\s*[?.!]?$", re.I)
_BEFORE = ("before", "until", "以前", "之前")


@dataclass(frozen=True, slots=True)
class Period:
    """From `start` to `end`, ISO 8601 dates, both included; "" leaves that side open."""

    start: str = ""
    end: str = ""

    def holds(self, day: str) -> bool:
        return (not self.start or day >= self.start) and (not self.end or day <= self.end)


@dataclass(frozen=True, slots=True)
class Question:
    """text: what is searched for. kinds: sections wanted whole. series: terms whose every mention is wanted. period:
    when. event: an occurrence that the period begins with ("operation"), whose date only the record knows."""

    text: str
    kinds: tuple[SectionKind, ...] = ()
    series: frozenset[str] = frozenset()
    period: Period = Period()
    event: str = ""


def understand(question: str, earlier: Sequence[str], today: date) -> Question:
    """earlier: the questions before this one, oldest first."""
    text = standalone(question, earlier)
    when, period, event = _period(text, today)
    what = text.replace(when, " ")
    kinds = tuple(kind for kind, words in _KIND_WORDS.items() if re.search(words, what, re.I))
    if not _ENUMERATES.search(what):
        kinds = tuple(kind for kind in kinds if kind in _ALWAYS_WHOLE)
    series = frozenset(_series_terms(what)) if not kinds and _SERIES.search(what) else frozenset()
    return Question(text, kinds, series, period, event)


def standalone(question: str, earlier: Sequence[str]) -> str:
    """The question with those that it refers back to in front: "and since when?" alone finds nothing."""
    parts = [question]
    for before in reversed(earlier[-_MAX_BACK:]):
        if not _leans(parts[0]):
            break
        parts.insert(0, before)
    return " ".join(parts)


def _leans(question: str) -> bool:
    """Whether a question means nothing without the one before: it points back, or names nothing of its own."""
    own = [term for term in analyse(question) if term not in _ASKING and not _SINGLE.match(term)]
    return not own or (len(own) <= 3 and bool(_POINTS_BACK.search(question) or _GOES_ON.search(question)))


def _series_terms(text: str) -> list[str]:
    return [term for term in analyse(text) if term not in _SERIES_WORDS and not term.startswith("=")]


def _period(text: str, today: date) -> tuple[str, Period, str]:
    """(its words, the stretch of time that a question names, the event it begins with where only the record knows
    that one's date)."""
    if match := _LAST.search(text):
        count = _COUNTS.get((match[1] or "1").lower()) or int(match[1] or 1)
        return match[0], Period((today - timedelta(days=round(count * _UNITS[match[2].lower()]))).isoformat()), ""
    if match := _YEAR.search(text):
        return match[0], _around(match[1].lower(), f"{match[2]}-01-01", f"{match[2]}-12-31"), ""
    if match := _CHINESE_YEAR.search(text):
        return match[0], _around(match[2] or "in", f"{match[1]}-01-01", f"{match[1]}-12-31"), ""
    for found in find_dates(text):
        if word := re.search(r"\b(since|after|from|before|until)\s*$", text[: found.start], re.I):
            return text[word.start() : found.end], _around(word[1].lower(), found.iso, found.iso), ""
    if match := _SINCE_EVENT.search(text):
        return match[0], Period(), match[1]
    return "\0", Period(), ""  # no question holds a NUL


def _around(word: str, first: str, last: str) -> Period:
    if word in ("in", "during"):
        return Period(first, last)
    return Period("", first) if word in _BEFORE else Period(first, "")
