"""Numbers with units, how often, and dates, as they are written in records and answers, in one form each.

"two tablets twice a day", "5 to 10 mg", "6,840 ng/L", "148/86 mmHg", "3 Mar 2026", "每日两次". Units are renamed, never
converted: 1 g and 1000 mg stay two things. Knows nothing of passages.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Quantity:
    """value is canonical ("2.5", "5-10", "148/86"); comparator one of "", "<", ">", "<=", ">="."""

    value: str
    unit: str
    comparator: str
    start: int
    end: int

    def stands_for(self, other: Quantity) -> bool:
        """Whether a text that holds self says what other claims: the same, or the same with a unit other leaves out."""
        same_unit = other.unit in ("", self.unit)
        return self.value == other.value and same_unit and self.comparator == other.comparator


@dataclass(frozen=True, slots=True)
class DateFact:
    """A day, a month or a year. readings: (year, month, day), None for what is not given; 03/04/2026 has two."""

    readings: frozenset[tuple[int | None, int | None, int | None]]
    start: int
    end: int

    def stands_for(self, other: DateFact) -> bool:
        """Whether other says no more than self does; a year that other adds is for the caller to look up."""
        return any(
            all(
                b is None or a == b or (i == 0 and a is None) for i, (a, b) in enumerate(zip(mine, theirs, strict=True))
            )
            for mine in self.readings
            for theirs in other.readings
        )


_NUMBER_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100, "thousand": 1000,
}  # fmt: skip
_CHINESE_DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"两": 2, "十": 10, "半": 0}

_WORD_NUMBER = rf"(?:{'|'.join(_NUMBER_WORDS)})(?:(?:[\s-]|\s+and\s+)(?:{'|'.join(_NUMBER_WORDS)}))*\b"
_DIGITS = r"\d{1,3}(?:[,  ]\d{3})+(?:\.\d+)?(?!\d)|\d+(?:[.,]\d+)?|\.\d+"
_NUMBER = rf"(?:{_DIGITS}|\b{_WORD_NUMBER}|[一二两三四五六七八九十](?=[片粒次天日周个小分岁支滴]))"

_BASE_UNITS = {  # canonical -> how it is written; longer forms first where one begins another
    "mcg": r"micrograms?|mcgs?|[uµμ]gs?|ug|微克",
    "mg": r"milligrams?|mgs?|毫克",
    "kg": r"kilograms?|kilos?|kgs?|公斤|千克",
    "ng": r"nanograms?|ng",
    "pg": r"picograms?|pg",
    "g": r"grams?|gms?|g|克",
    "ml": r"millilit(?:er|re)s?|mls?|cc|毫升",
    "dl": r"decilit(?:er|re)s?|dl",
    "l": r"lit(?:er|re)s?|l|升",
    "mmol": r"millimol(?:es?)?|mmols?",
    "mcmol": r"micromol(?:es?)?|[uµμ]mols?|mcmols?",
    "mol": r"mol",
    "meq": r"milliequivalents?|meq",
    "iu": r"international units|iu|国际单位",
    "miu": r"miu",
    "unit": r"units?|u|单位",
    "mmhg": r"mm\s?hg|millimet(?:er|re)s of mercury|毫米汞柱",
    "mm": r"millimet(?:er|re)s?|mm|毫米",
    "cm": r"centimet(?:er|re)s?|cm|厘米",
    "m²": r"m²|m2|square met(?:er|re)s?",
    "m": r"met(?:er|re)s?",
    "ms": r"milliseconds?|msec|ms|毫秒",
    "s": r"seconds?|secs?|秒",
    "min": r"minutes?|mins?|分钟",
    "h": r"hours?|hrs?|h|小时",
    "day": r"days?|天",
    "week": r"weeks?|wks?|周",
    "month": r"months?|个月",
    "year": r"years?(?:[\s-]old)?|yrs?(?:[\s-]old)?|y/?o|岁|年",
    "tablet": r"tablets?|tabs?|pills?|片",
    "capsule": r"capsules?|caps?|粒",
    "puff": r"puffs?|actuations?",
    "drop": r"drops?|滴",
    "dose": r"doses?",
    "vial": r"vials?|支",
    "time": r"times?|次",
    "pack-year": r"pack[\s-]years?",
    "pack": r"packs?",
    "cigarette": r"cigarettes?",
    "lb": r"pounds?|lbs?",
    "inch": r"inch(?:es)?",
    "c": r"°\s?c|℃|degrees? (?:celsius|centigrade)|摄氏度|度",
    "f": r"°\s?f|degrees? fahrenheit",
    "%": r"%|per\s?cent|percent",
    "beat": r"beats?|breaths?",
    "bpm": r"bpm",
    "kcal": r"kcal",
    "met": r"mets?",
}
_UNIT_OF = [(re.compile(rf"(?:{form})", re.IGNORECASE), name) for name, form in _BASE_UNITS.items()]
_UNIT = "(?:" + "|".join(_BASE_UNITS.values()) + ")"
_UNIT_TAIL = r"(?:(?![a-z0-9])|(?=(?:[btq]id|[oqb]d|qn)(?![a-z0-9])))"  # "2.5mgqd", as Chinese notes write it
_COMPOUND = (
    rf"(?:{_UNIT}{_UNIT_TAIL}(?:\s?(?:/|per\s+)\s?(?:\d+(?:\.\d+)?\s?)?{_UNIT}{_UNIT_TAIL})*|(?:/|per\s+)min(?:ute)?\b)"
)
_COMPARATORS = (
    ("<=", r"<=|≤|at most|no more than|not more than|up to|maximum(?: of)?|max"),
    (">=", r">=|≥|at least|no less than|not less than|minimum(?: of)?"),
    ("<", r"<|below|under|less than|lower than|fewer than|低于|小于"),
    (">", r">|above|more than|greater than|higher than|exceed(?:s|ed|ing)?|高于|大于"),
)
_COMPARATOR = "|".join(f"(?P<c{i}>{form})" for i, (_, form) in enumerate(_COMPARATORS))
_QUANTITY = re.compile(
    rf"(?:(?<![a-z])(?:{_COMPARATOR})\s*)?(?<![a-z0-9.])(?P<sign>(?<![\w)\]])-\s?(?=[\d.]))?(?P<first>{_NUMBER})"
    rf"(?:\s?(?P<join>-|/|to\b|out of\b|至|~)\s?(?P<second>{_NUMBER})(?![/\d]))?"
    rf"(?:[\s-]*\|?\s*(?P<unit>{_COMPOUND}))?",
    re.IGNORECASE,
)

_ITEM_NUMBER = re.compile(r"\d{1,2}[.)、]\s")
_GIVEN = ("mg", "mcg", "g", "tablet", "capsule", "puff", "drop", "unit", "ml")  # never less than none

_TIMES_WORD = {"once": "1", "twice": "2", "thrice": "3", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_TIMES_WORD |= {"six": "6", "一": "1", "两": "2", "二": "2", "三": "3", "四": "4"}
_LATIN = {
    "od": "1",
    "qd": "1",
    "o.d.": "1",
    "q.d.": "1",
    "daily": "1",
    "bd": "2",
    "bid": "2",
    "b.d.": "2",
    "b.i.d.": "2",
}
_LATIN |= {"tds": "3", "tid": "3", "t.d.s.": "3", "t.i.d.": "3", "qds": "4", "qid": "4", "q.d.s.": "4", "q.i.d.": "4"}
_BEGINS = r"(?:(?<![a-z])|(?<=\dmg)|(?<=\dml)|(?<=\dg)|(?<=mcg))"  # "2.5mgqd"
_A_DAY = r"(?:daily|(?:a|per|each|every|/)\s*day|in the day|/\s?d\b)"
_FREQUENCY = re.compile(
    rf"\b(?P<times>once|twice|thrice|(?:one|two|three|four|five|six|\d{{1,2}})\s?(?:times|x))[\s-]*{_A_DAY}\b"
    rf"|{_BEGINS}(?P<latin>[btq]\.i\.d\.?|[tq]\.d\.s\.?|b\.d\.|o\.d\.|q\.d\.|bid|tid|qid|tds|qds|bd|od|qd)(?![a-z])"
    rf"|(?:每日|每天|一日|一天|日)(?P<zh>[一二两三四]|\d)次"
    r"|(?P<one>\b(?:daily|every day|each day|(?:a|per) day)\b|/\s?day\b|每[日天](?!\s?[一二两三四\d]))"
    rf"|\b(?P<weekly>once|twice|three times|\d times)\s(?:a|per|each|every)?\s?week(?:ly)?\b"
    r"|\b(?:every|q)\s?(?P<every>\d{1,2}|four|six|eight|twelve)(?:-\d{1,2})?\s?(?P<span>h(?:ours?|rs?)?|days?|weeks?|months?)\b",
    re.IGNORECASE,
)

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan", "february feb", "march mar", "april apr", "may", "june jun", "july jul", "august aug",
            "september sept sep", "october oct", "november nov", "december dec",
        ),
        1,
    )
    for name in names.split()
}  # fmt: skip
_MONTH = "(?:" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\b\.?"
_DATE = re.compile(
    r"(?<!\d)(?P<iso>(?:19|20)\d\d[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01]))(?!\d)"
    r"|(?<!\d)(?P<packed>(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))(?:\d{4,6})?(?!\d)"
    r"|(?<!\d)(?P<zh>(?:(?P<zy>(?:19|20)\d\d)年)?(?P<zm>1[0-2]|0?[1-9])月(?:(?P<zd>[12]\d|3[01]|0?[1-9])[日号])?)"
    r"|(?<!\d)(?P<zyear>(?:19|20)\d\d)年"
    r"|(?<!\d)(?P<numeric>\d{1,2}[-/.]\d{1,2}[-/.](?:(?:19|20)\d\d|\d\d))(?![\d/])"
    rf"|\b(?P<d1>[12]\d|3[01]|0?[1-9])(?:st|nd|rd|th)?(?:\s+of)?[\s-]+(?P<m1>{_MONTH})(?:,?[\s-]+(?P<y1>(?:19|20)\d\d)(?!\d))?"
    rf"|\b(?P<m2>{_MONTH})[\s-]+(?P<d2>[12]\d|3[01]|0?[1-9])(?:st|nd|rd|th)?\b(?!\s*(?:mg|mcg|ml|mmol|%))(?:,?\s+(?P<y2>(?:19|20)\d\d)(?!\d))?"
    rf"|\b(?P<m3>{_MONTH}),?\s+(?P<y3>(?:19|20)\d\d)(?!\d)\b"
    rf"|\b(?:in|since|during|until|by|from|last|this|next|early|mid|late)[\s-]+(?P<m4>{_MONTH})(?!\s*\d)"
    r"|\b(?P<m6>(?-i:January|February|March|April|June|July|August|September|October|November|December|Jan|Feb|Apr|Jun|Jul"
    r"|Aug|Sept?|Oct|Nov|Dec))\b(?!\s*(?:[12]?\d|3[01])(?![\d.]))"
    r"|(?<![\d/.])(?P<m5>0?[1-9]|1[0-2])/(?P<y5>(?:19|20)\d\d)(?![\d/])"
    r"|(?<![\d.,/-])(?P<year>(?:19|20)\d\d)(?![\d.,/-]*\d)(?!\s?(?:mg|ml|mcg|g|ng|kcal|m|units?|pg|iu)\b)",
    re.IGNORECASE,
)  # fmt: skip


# Between a number and the name that it belongs to.
_UP_TO_NAME = re.compile(r"\s*(of\s+)?(?:(?:oral|intravenous|iv)\s+)?", re.IGNORECASE)
_FORM = (
    r"(?:(?:tablets?|tabs?|capsules?|caps?|orally|oral|by mouth|po|intravenous|iv|im|sc|is|was|of|at|takes?|one)\b"
    r"|(?:缓释|肠溶)?片|胶囊|颗粒|口服|每次|静滴|皮下注射)"
)
_BEHIND_DOSE = rf"(?:[\s,;:|()，；：（）-]*{_FORM})*[\s,;:|()，；：（）-]*"
_UP_TO_NUMBER = re.compile(
    # A dose; or behind it, how often it is given.
    rf"[\s:=(：（-]*(?:{_FORM}[\s:=(：（-]*)*(?:\d[\d.,/-]*\s?[a-zµ%/]{{0,9}}{_BEHIND_DOSE})?",
    re.IGNORECASE,
)
_IS_BEHIND_DOSE = re.compile(rf"{_BEHIND_DOSE}(?:\.{_BEHIND_DOSE})?", re.IGNORECASE)  # "tablets. Take one at night"
_TIME = re.compile(
    r"(?P<night>\b(?:nocte|nightly|(?:at|every|each)\s(?:night|bedtime)|(?:before|at)\sbed)\b|睡前|每晚|晚上"
    rf"|{_BEGINS}(?:qn|qhs)(?![a-z]))"
    r"|(?P<morning>\b(?:mane|(?:in\sthe|every|each)\smorning)\b|早上|每早|晨起)"
    r"|(?P<evening>\b(?:in the|every|each) evening\b|傍晚)",
    re.IGNORECASE,
)
_NUMBER_BEFORE = re.compile(r"(?<![\d.,/-])\d[\d.,/-]*\s?[a-zµ%/]{1,9}\s+$", re.IGNORECASE)  # a name
_BRACKETED = re.compile(rf"[(（]({_COMPOUND})[)）]", re.IGNORECASE)
_MAX_NUMBER, _TIME_REACH = 24, 40  # characters


def find_dates(text: str) -> Iterator[DateFact]:
    """Dates in order. text must be lower-cased where case matters to nobody."""
    for match in _DATE.finditer(text):
        if readings := _readings(match):
            yield DateFact(frozenset(readings), *match.span())


def find_frequencies(text: str) -> Iterator[Quantity]:
    """How often, as a quantity "x/day", "x/week" or "every h": "b.i.d.", "twice a day" and 每日两次 are one."""
    for match in _FREQUENCY.finditer(text):
        value, unit = _frequency(match)
        yield Quantity(value, unit, "", *match.span())


def find_quantities(text: str) -> Iterator[Quantity]:
    """Numbers with the unit beside them. A bare "one" is a pronoun more often than a number and is left out."""
    for match in _QUANTITY.finditer(text):
        first, second = match.group("first"), match.group("second")
        unit = _canonical_unit(match.group("unit") or "")
        if first.lower() == "one" and not unit and not second:
            continue
        begins_line = not text[: match.start()].rpartition("\n")[2].strip()
        if begins_line and _ITEM_NUMBER.match(text, match.start()):
            continue
        sign = match.group("sign") or ""
        if sign != "-" and (unit in _GIVEN or begins_line):
            sign = ""  # a dash before a dose, or an item's mark
        comparator = next((_COMPARATORS[i][0] for i in range(len(_COMPARATORS)) if match.group(f"c{i}")), "")
        value = sign.strip() + _canonical_number(first)
        if second:
            join = "/" if match.group("join").lower() in ("/", "out of") else "-"
            value += join + _canonical_number(second)
        yield Quantity(value, unit, comparator, *match.span())


def find_times(text: str) -> Iterator[Quantity]:
    """The times of day at which a dose is given, right behind it or how often it is: "20 mg nocte"."""
    for match in _TIME.finditer(text):
        yield Quantity(str(match.lastgroup), "as time of day", "", *match.span())


def is_behind_dose(text: str, doses: Collection[int], start: int) -> bool:
    """Whether no more than a form or a route stands between one of the doses, of which is told where they end, and what
    begins at start."""
    near = (end for end in range(max(0, start - _TIME_REACH), start + 1) if end in doses)
    return any(_IS_BEHIND_DOSE.fullmatch(text, end, start) for end in near)


def belongs_to_next(
    text: str, quantity: Quantity, before: Sequence[tuple[int, int]], after: int, sentence: int
) -> bool:
    """Whether a number belongs to the name that begins at after ("5 mg of apixaban") and not to the last of those
    before it, each (start, end), in a sentence that begins where it says. In a list without commas the first name or
    number tells how it goes on: "bisoprolol 5 mg apixaban 2.5 mg"."""
    follows = _UP_TO_NAME.fullmatch(text, quantity.end, after)
    if not follows or follows[1]:
        return bool(follows)
    number = quantity.start
    for start, end in reversed(before):
        if not _UP_TO_NUMBER.fullmatch(text, end, number):
            return True
        match = _NUMBER_BEFORE.search(text, max(sentence, start - _MAX_NUMBER), start)
        if not match:
            return False
        number = match.start()
    return True


def units_in(text: str) -> set[str]:
    """The units that stand in brackets, as a table's row names them: "creatinine (mg/dL)"."""
    return {_canonical_unit(match[1]) for match in _BRACKETED.finditer(text)}


def _frequency(match: re.Match[str]) -> tuple[str, str]:
    groups = {name: value.lower() for name, value in match.groupdict().items() if value}
    if "every" in groups:
        return _canonical_number(groups["every"]), f"every {groups['span'][0]}"
    if "weekly" in groups:
        word = groups["weekly"].split()[0]
        return _TIMES_WORD.get(word, word), "x/week"
    if "latin" in groups:
        return _LATIN.get(groups["latin"], _LATIN.get(groups["latin"] + ".", "1")), "x/day"
    if "one" in groups:
        return "1", "x/day"
    word = groups["zh"] if "zh" in groups else groups["times"].removesuffix("times").removesuffix("x").strip()
    return _TIMES_WORD.get(word, word), "x/day"


@lru_cache(maxsize=1024)
def _canonical_number(text: str) -> str:
    text = text.lower().strip()
    if text[0].isdigit() or text[0] == ".":
        return _canonical_digits(text)
    if text in _CHINESE_DIGITS:
        return str(_CHINESE_DIGITS[text])
    total = current = 0
    for word in re.split(r"[\s-]+", text):
        value = _NUMBER_WORDS.get(word)
        if value is None:  # "and"
            continue
        if value >= 100:
            current = max(current, 1) * value
            total, current = (total + current, 0) if value == 1000 else (total, current)
        else:
            current += value
    return str(total + current)


def _canonical_digits(text: str) -> str:
    text = (
        re.sub(r"(?<=\d)[,  ](?=\d{3}(?!\d))", "", text)
        if re.fullmatch(r"\d{1,3}([,  ]\d{3})+(\.\d+)?", text)
        else text
    )
    text = text.replace(",", ".")
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")


@lru_cache(maxsize=1024)
def _canonical_unit(text: str) -> str:
    text = text.strip().lower()
    if text.startswith(("/", "per")):
        return "bpm"
    parts = re.split(r"\s?/\s?|\s+per\s+", re.sub(r"\by/o\b", "yo", text))
    names = [_base_unit(part.strip()) for part in parts]
    unit = "/".join(name for name in names if name)
    unit = unit.removesuffix("/day")  # "2 l/day" is 2 l with the frequency "a day", which find_frequencies gives
    return {"beat/min": "bpm", "time/min": "bpm"}.get(unit, unit)


def _base_unit(text: str) -> str:
    number = re.match(r"[\d.]+\s?", text)
    rest = text[number.end() :] if number else text
    name = next((name for form, name in _UNIT_OF if form.fullmatch(rest)), rest)
    return (number.group().strip() + name) if number else name


def _readings(match: re.Match[str]) -> list[tuple[int | None, int | None, int | None]]:
    groups = {name: value for name, value in match.groupdict().items() if value}
    if "iso" in groups:
        return _valid([tuple(int(part) for part in re.split(r"[-/.]", groups["iso"]))])
    if "packed" in groups:
        packed = groups["packed"]
        return _valid([(int(packed[:4]), int(packed[4:6]), int(packed[6:8]))])
    if "numeric" in groups:
        first, second, year = (int(part) for part in re.split(r"[-/.]", groups["numeric"]))
        year = year if year > 99 else (2000 + year if year < 50 else 1900 + year)
        return _valid([(year, first, second), (year, second, first)])
    for y, m, d in (
        ("zy", "zm", "zd"),
        ("y1", "m1", "d1"),
        ("y2", "m2", "d2"),
        ("y3", "m3", ""),
        ("", "m4", ""),
        ("", "m6", ""),
        ("y5", "m5", ""),
    ):
        if m in groups:
            month = _MONTHS.get(groups[m].lower().rstrip(".")) or int(groups[m])
            return [(_int(groups.get(y)), month, _int(groups.get(d)))]
    return [(int(groups.get("year") or groups["zyear"]), None, None)]


def _valid(readings: list[tuple[int, ...]]) -> list[tuple[int | None, int | None, int | None]]:
    valid: list[tuple[int | None, int | None, int | None]] = []
    for year, month, day in readings:
        try:
            date(year, month, day)
        except ValueError:
            continue
        valid.append((year, month, day))
    return valid


def _int(text: str | None) -> int | None:
    return int(text) if text else None
