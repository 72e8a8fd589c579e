"""The words of a text, in one form each: stems, and phrases that mean the same under one key.

"Shortness of breath" and "dyspnoea" are one, "apixaban" is a drug, "potassium" a measurement that numbers belong to.
What grammar adds is left out. Word lists are data (`lexicon/`). Knows nothing of what is said of a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from operator import attrgetter

from safety.lexicon import (
    ELIDED,
    chinese_drugs,
    common_words,
    irregular,
    is_clinical,
    is_drug,
    rivals,
    silent_words,
    synonyms,
)

# One character for one, so that offsets hold.
_PLAIN = str.maketrans("‐‑‒–—−‘’ʼ“”\u00a0\u2009\u202f，（）：；％．", "------'''\"\"   ,():;%.")


WORD = re.compile(r"[a-z]&[a-z]+|[a-z][a-z0-9'+]*(?:-[a-z0-9']+)*|\d+[a-z][a-z0-9]*", re.IGNORECASE)
_CJK_RUN = re.compile(r"[\u3400-\u9fff]+")
_CJK_STOP = re.compile(
    r"否认|没有|未见|无(?![力痛创尿症菌汗])|病史|患者|病人|记录|显示|提示|目前|当时|现在|已经|曾经|服用|使用|给予|用药|剂量|结果|日期|时间|原因|目的|用来|需要|做过|进行|安排|"
    r"其|的|了|为|是|在|与|和|及|并|有|被|于|现|该|她|他|它|这|那|曾|已|共|需|给|把|将|对|从|由|因"
)


@dataclass(frozen=True, slots=True)
class Word:
    key: str
    start: int
    end: int
    is_required: bool  # must stand in the evidence, not only count towards coverage
    flags: frozenset[str] = frozenset()
    is_name: bool = False  # of a person, as its capital and its being no known word tell
    is_verb: bool = False  # by its ending or as an irregular form


def plain(text: str) -> str:
    """The text with one form of dash, quote and space; equal in length."""
    return text.translate(_PLAIN)


def is_listed(word: str) -> bool:
    """Whether a word is a phrase of the word lists by itself."""
    return (stem(word),) in _phrases()


def is_owner(key: str) -> bool:
    return key.startswith(("drug:", "anchor:"))


_DAYS = {
    short: day
    for day, shorts in {
        "monday": "Mon", "tuesday": "Tue Tues", "wednesday": "Wed Weds", "thursday": "Thu Thur Thurs", "friday": "Fri",
        "saturday": "Sat", "sunday": "Sun",
    }.items()
    for short in shorts.split()
}  # fmt: skip
# What a single letter tells apart: "blood group A", "twin B", "hepatitis C".
_LETTERED = re.compile(
    r"\b(?:group|type|twin|grade|hepatitis|vitamin|class|influenza)(?: is| was|:)?\s$", re.IGNORECASE
)
_MIN_RARE = 6  # letters of a word that everyday language does not know, as a claim is checked for invented ones
_BLOOD_GROUP = re.compile(r"[ABO] (?:positive|negative|pos|neg|rh)", re.IGNORECASE)
_WITHIN_SENTENCE = re.compile(r"(?:[a-z,;&]|\b[A-Z][a-z]*\.?)\s+$")
_TITLE_BEFORE = re.compile(r"\b(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Sister|Nurse|RN)\.?\s$")
_DOCTOR_BEFORE = re.compile(
    r"\b(?:dr|prof|doctor|nurse|sister|(?:by|with|under|to|from|see|sees|saw) (?:mr|mrs|ms|miss))\.?\s"
    r"(?:[a-z]\.?\s|\w+\s)?$",
    re.IGNORECASE,
)
_CAPITAL_NEXT = re.compile(r"\s[A-Z][a-z]{2}")
# Whose stem would be another word's: HIV, an aid, a test, new, quit, even, fast.
_WHOLE = frozenset(("hives", "aids", "testes", "news", "quite", "evening", "fasting", "paste"))


def stem(word: str) -> str:
    """A light stem: plural, -ing and -ed off, British spelling to American."""
    word = word.lower().replace("'s", "").strip("'")
    if word in _WHOLE:
        return word
    word = irregular().get(word, word)
    word = word.replace("ae", "e").replace("oe", "e") if len(word) > 4 else word
    word = re.sub(r"(?<=[lr])our\b", "or", word)
    if len(word) > 5 and word.endswith("ies"):
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith(("ss", "us", "is")):
            word = word[: -len(ending)]
            if ending in ("ing", "ed") and len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lse":
                word = word[:-1]
            break
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


def _table(name: str, prefix: str) -> dict[tuple[str, ...], str]:
    return {_key(phrase): prefix + key for phrase, key in synonyms(name).items()}


def _key(phrase: tuple[str, ...]) -> tuple[str, ...]:
    """Its words as a text gives them: hyphenated ones in parts, where they are not the whole phrase."""
    parts = phrase if len(phrase) == 1 else (part for word in phrase for part in _split(word))
    return tuple(stem(part) for part in parts)


def _split(word: str) -> list[str]:
    return [word] if (word,) in synonyms("anchors.txt") or (word,) in synonyms("terms.txt") else word.split("-")


_PHRASES: dict[tuple[str, ...], str] = {}


@cache
def named_by_number() -> re.Pattern[str]:
    """Names that hold a figure: "PHQ-9", "covid-19"."""
    names = {part for name in ("terms.txt", "anchors.txt") for phrase in synonyms(name) for part in phrase}
    held = sorted((re.escape(name) for name in names if re.search(r"\d", name)), key=len, reverse=True)
    return re.compile(rf"(?<![a-z0-9-])(?:{'|'.join(held)})(?![a-z0-9])", re.IGNORECASE)


def _phrases() -> dict[tuple[str, ...], str]:
    if not _PHRASES:
        _PHRASES.update(_table("terms.txt", "term:") | _table("anchors.txt", "anchor:"))
    return _PHRASES


def read_words(text: str, taken: Sequence[tuple[int, int]]) -> list[Word]:
    """The words of a text in order, without those at places that are taken, by numbers and dates."""
    tokens = [
        (stem(part), start, end)
        for match in WORD.finditer(text)
        if not overlaps(taken, *match.span())
        for part, start, end in _parts(match)
    ]
    words, index = [], 0
    while index < len(tokens):
        length, word = _phrase_at(text, tokens, index)
        if word is not None:
            words.append(word)
        index += length
    words = [w for w, after in zip_longest(words, words[1:]) if not _is_class_of(w, after, text)]
    return sorted([*words, *_chinese_words(text, taken)], key=attrgetter("start"))


def _is_class_of(word: Word, after: Word | None, text: str) -> bool:
    """Whether a drug's name is but the class of the one right behind it: "insulin aspart"."""
    return bool(
        word.key in ("drug:insulin", "drug:insulins")
        and after
        and after.key.startswith("drug:")
        and text[word.end : after.start].isspace()
    )


def _parts(match: re.Match[str]) -> Iterator[tuple[str, int, int]]:
    """A hyphenated word as it is if the word lists know it, else its parts."""
    word = match.group().lower()
    if "-" not in word or is_drug(word) or (stem(word),) in _phrases():
        yield word, *match.span()
        return
    for part in re.finditer(r"[^-]+", word):
        yield part.group(), match.start() + part.start(), match.start() + part.end()


def _phrase_at(text: str, tokens: list[tuple[str, int, int]], index: int) -> tuple[int, Word | None]:
    """(tokens used, word) of the longest known phrase that begins at this token; None for a word that says nothing."""
    key, start, end = tokens[index]
    if (day := _DAYS.get(text[start:end])) is not None:
        return 1, Word(f"term:{day}", start, end, True)
    if key == "aids" and text[start:end] != "AIDS":
        return 1, Word(key, start, end, False)  # a hearing aid's plural
    for length in (4, 3, 2, 1):
        keys = tuple(key for key, _, _ in tokens[index : index + length])
        if len(keys) == length and keys in _phrases():
            return length, Word(_phrases()[keys], tokens[index][1], tokens[index + length - 1][2], True)
    written = text[start:end]
    lowered = written.lower()
    if is_drug(lowered):
        return 1, Word(f"drug:{lowered}", start, end, True)
    is_lettered = _LETTERED.search(text, max(0, start - 24), start) or _BLOOD_GROUP.match(text, start)
    if len(lowered) == 1 and is_lettered:
        return 1, Word(f"letter:{lowered}", start, end, True)
    if len(lowered) == 1 or (lowered in silent_words() and not _is_valve(text, start, end)):
        return 1, None
    is_code = any(c.isdigit() for c in written) or (len(written) > 1 and written.isupper())
    is_required = is_code or is_clinical(lowered) or _is_doctor(text, start, written)
    is_known = is_required or not written.isalpha() or lowered in common_words()
    is_required = is_required or (not is_known and written.islower() and len(written) >= _MIN_RARE)
    is_name = _is_titled(text, start, written) or (not is_known and _is_persons(text, start, end))
    is_verb = (len(written) > 4 and lowered.endswith(("ed", "ing", "ly"))) or lowered in irregular()
    return 1, Word(key, start, end, is_required, is_name=is_name, is_verb=is_verb)


def _is_titled(text: str, start: int, word: str) -> bool:
    return word.istitle() and bool(_TITLE_BEFORE.search(text, max(0, start - 16), start))


def _is_persons(text: str, start: int, end: int) -> bool:
    """Whether a word is written as a name is: with a capital within a sentence or beside another such word."""
    if not text[start:end].istitle() or end - start <= 3 or text[end : end + 1] == ":":
        return False
    return bool(_WITHIN_SENTENCE.search(text, max(0, start - 30), start) or _CAPITAL_NEXT.match(text, end))


def _is_valve(text: str, start: int, end: int) -> bool:
    """Mitral regurgitation and aortic stenosis, not Mr and as; unless all around it is in capitals."""
    return text[start:end] in ("MR", "AS", "MS") and not text[max(0, start - 9) : end + 9].isupper()


def _is_doctor(text: str, start: int, word: str) -> bool:
    """Whether a name is that of somebody who treats, and not of the patient: "by Mr Quill"."""
    return word[0].isupper() and bool(_DOCTOR_BEFORE.search(text, max(0, start - 24), start))


def _chinese_words(text: str, taken: Sequence[tuple[int, int]]) -> Iterator[Word]:
    for match in chinese_drugs().finditer(text):
        yield Word(f"drug:{match.group()}", *match.span(), True)
    for run in _CJK_RUN.finditer(text):
        blank = _CJK_STOP.sub(lambda m: " " * len(m.group()), run.group())
        for offset in range(len(blank) - 1):
            pair, start = blank[offset : offset + 2], run.start() + offset
            if " " not in pair and not overlaps(taken, start, start + 2):
                yield Word(pair, start, start + 2, pair in _telling_pairs())


@cache
def _telling_pairs() -> frozenset[str]:
    """The Chinese words of two characters that tell one thing from another."""
    words = (word for kind, words in rivals() if kind != ELIDED for word in words)
    return frozenset(word for word in words if not word.isascii())


def overlaps(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Whether text[start:end] shares a character with one of the spans."""
    return any(a < end and start < b for a, b in spans)
