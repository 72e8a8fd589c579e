"""Text -> index terms: two writings of one fact get one form.

2010-11-30, 11/30/2010 and November 30, 2010; 500mg and 500 mg; µg and mcg; diagnoses and diagnosis; oedema and edema;
twenty six and 26; "M R I" as it was dictated and MRI. What different words mean the same (retrieval.lexicon) is a term
beside them. Chinese has no spaces and is indexed by single characters and pairs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from retrieval.lexicon import Synonyms, read_groups

_MONTH_NAMES = (
    "jan january,feb february,mar march,apr april,may,jun june,jul july,aug august,sep sept september,"
    "oct october,nov november,dec december"
)
_MONTHS = {name: number for number, names in enumerate(_MONTH_NAMES.split(","), 1) for name in names.split()}
_MONTH = "(" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\.?"
_DATE = re.compile(
    rf"""(?<![\d.])(?:
      (?P<y1>(?:19|20)\d\d)[-/.](?P<m1>\d{{1,2}})[-/.](?P<d1>\d{{1,2}})(?!\d)      # 2010-11-30
    | (?P<a2>\d{{1,2}})[-/.](?P<b2>\d{{1,2}})[-/.](?P<y2>(?:19|20)\d\d)(?!\d)      # 11/30/2010, 30.11.2010
    | (?P<y3>(?:19|20)\d\d)(?P<m3>[01]\d)(?P<d3>[0-3]\d)(?:\d{{4}}|\d{{6}})?(?!\d) # 20101130, 20101130120000
    | (?P<y4>(?:19|20)\d\d)\s*年\s*(?P<m4>\d{{1,2}})\s*月\s*(?P<d4>\d{{1,2}})\s*日
    | (?P<d5>\d{{1,2}})(?:st|nd|rd|th)?\s+(?P<n5>{_MONTH})\s*,?\s+(?P<y5>(?:19|20)\d\d)
    )
    | (?<![a-z])(?P<n6>{_MONTH})\s+(?P<d6>\d{{1,2}})(?:st|nd|rd|th)?\s*,?\s+(?P<y6>(?:19|20)\d\d)
    """,
    re.VERBOSE,
)
_CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af"
_CJK_RUN = re.compile(f"[{_CJK}]+")
_TOKEN = re.compile(
    rf"""(?P<date>\d{{4}}-\d\d-\d\d(?!\d))
    | (?P<cjk>[{_CJK}]+)
    | (?P<number>\d+(?:[.,]\d+)*)(?P<unit>(?:mcg|mg|kg|g|ml|dl|l|mmhg|mmol|mol|iu|meq|cm|mm|h|hr|bpm)\b)?
    | (?P<word>[^\W\d_]+\d*(?:[^\W_]*)(?:-[^\W_]+)*)
    """,
    re.VERBOSE,
)
_SPELLED = re.compile(r"\b(?:[A-Z] ){1,4}[A-Z]\b(?!')")  # "an M R I": letters as dictation writes them
_UNITS_WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEEN_WORDS = ["ten", "eleven", "twelve", "thirteen", "fourteen"]
_TEEN_WORDS += ["fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS_WORDS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = (
    {word: number for number, word in enumerate(_UNITS_WORDS, 1)}
    | {word: number for number, word in enumerate(_TEEN_WORDS, 10)}
    | {word: 10 * number for number, word in enumerate(_TENS_WORDS, 2)}
)
_UP_TO_99 = (
    f"(?:(?:{'|'.join(_TENS_WORDS)})(?:[ -](?:{'|'.join(_UNITS_WORDS)}))?|{'|'.join([*_TEEN_WORDS, *_UNITS_WORDS])})"
)
# Years ("nineteen ninety three", "two thousand nine") and what counts up to 999.
_NUMBER_WORDS = re.compile(
    rf"\b(?:(?P<century>nineteen|twenty)[ -](?P<year>{'|'.join(_TEEN_WORDS)}|(?:{'|'.join(_TENS_WORDS)})"
    rf"(?:[ -](?:{'|'.join(_UNITS_WORDS)}))?)"
    rf"|(?P<thousands>{'|'.join(_UNITS_WORDS)}) thousand(?: and)?(?: (?P<rest>{_UP_TO_99}))?"
    rf"|(?:(?P<hundreds>{'|'.join(_UNITS_WORDS)}) hundred(?: and)? )?(?P<small>{_UP_TO_99}))\b"
)
_STOP_WORD_LIST = (
    "a an and are as at be been being but by can could did do does for from had has have he her his i if in is it its "
    "me my of on or our s she so that the their them then there these they this those to was we were what when where "
    "which who whom whose will with would you your"
)
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
_CJK_FUNCTION = frozenset(
    "的了是我你他她它们这那在就也都和与及或而但吗呢吧啊呀么什怎哪个些很太会能可以到去来把被给让对从向为因所已还又再只得着请问谢您好"
)


def analyse(text: str) -> list[str]:
    """The index terms of a text, in order, repeats kept; then the meanings that stand in it."""
    text = unicodedata.normalize("NFKC", text)
    terms = _plain_terms(text)
    return [*terms, *_synonyms().meanings(terms), *_synonyms().chinese_meanings(text.casefold())]


def _plain_terms(text: str) -> list[str]:
    text = _SPELLED.sub(lambda match: match.group().replace(" ", ""), text).casefold()
    text = re.sub(r"mm\s*\[hg\]", "mmhg", text.replace("μg", "mcg").replace("'s ", " "))
    text = _NUMBER_WORDS.sub(_as_digits, _DATE.sub(_iso_date, text))
    return [term for match in _TOKEN.finditer(text) for term in _terms(match)]


@lru_cache(maxsize=1)
def _synonyms() -> Synonyms:
    return Synonyms(read_groups(), lambda phrase: _plain_terms(unicodedata.normalize("NFKC", phrase)))


def is_mostly_cjk(text: str) -> bool:
    """Whether most of the letters are Chinese, Japanese or Korean."""
    num_cjk = sum(len(run) for run in _CJK_RUN.findall(text))
    return num_cjk * 2 > sum(character.isalpha() for character in text)


def _iso_date(match: re.Match[str]) -> str:
    """The date as " yyyy-mm-dd "; month first unless that cannot be, as in the records this was measured on."""
    found = {name: value for name, value in match.groupdict().items() if value}
    if "a2" in found:
        first, second = int(found["a2"]), int(found["b2"])
        month, day = (second, first) if first > 12 else (first, second)
        year = found["y2"]
    else:
        form = next(name[1] for name in found if name[0] == "y")
        year, day = found["y" + form], int(found["d" + form])
        name = found.get("n" + form)
        month = _MONTHS[name.rstrip(".")] if name else int(found["m" + form])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match.group()
    return f" {year}-{month:02d}-{day:02d} "


def _as_digits(match: re.Match[str]) -> str:
    """A number in words as digits: "twenty six" is 26, "nineteen ninety three" 1993, "two hundred and five" 205."""
    found = {name: value for name, value in match.groupdict().items() if value}
    if "century" in found:
        return str(100 * _value(found["century"]) + _value(found["year"]))
    if "thousands" in found:
        return str(1000 * _value(found["thousands"]) + _value(found.get("rest", "")))
    return str(100 * _value(found.get("hundreds", "")) + _value(found["small"]))


def _value(words: str) -> int:
    return sum(_VALUES[word] for word in re.split("[ -]", words) if word)


def _terms(match: re.Match[str]) -> Iterable[str]:
    kind, value = match.lastgroup, match.group()
    if kind == "date":
        return value, value[:7], value[:4]
    if kind == "cjk":
        return _cjk_terms(value)
    if match.group("number"):
        number = _plain_number(match.group("number"))
        return (number, match.group("unit")) if match.group("unit") else (number,)
    parts = value.split("-")
    terms = [stem(part) for part in parts if part not in _STOP_WORDS]
    return [*terms, stem("".join(parts))] if len(parts) > 1 else terms


def _cjk_terms(run: str) -> list[str]:
    """Pairs of characters, and single ones, without those that only carry grammar; negations stay."""
    pairs = [run[i : i + 2] for i in range(len(run) - 1) if not set(run[i : i + 2]) <= _CJK_FUNCTION]
    return pairs + [character for character in run if character not in _CJK_FUNCTION]


def _plain_number(number: str) -> str:
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+", number):  # 1,200 is 1200; 5,5 is 5.5
        return number.replace(",", "")
    number = number.replace(",", ".")
    return number.rstrip("0").rstrip(".") if number.count(".") == 1 else number


def stem(word: str) -> str:
    """A light English stemmer: plurals, -ed, -ing, -ly and a final e; what is short or holds a digit stays."""
    if len(word) <= 3 or not word.isascii() or not word.isalpha():
        return word
    word = _american(_singular(word))
    for suffix in ("ing", "ed", "ly"):
        root = word.removesuffix(suffix)
        if root is not word and len(root) >= 3 and re.search("[aeiouy]", root):
            if suffix != "ly" and root[-1] == root[-2] and root[-1] not in "lsz":
                root = root[:-1]
            word = root
            break
    return word.removesuffix("e") if len(word) > 4 else word


def _american(word: str) -> str:
    """One spelling for oedema and edema, tumour and tumor, catheterise and catheterize."""
    word = word.replace("ae", "e").replace("oe", "e")
    word = re.sub(r"our(?=$|ed$|ing$|al$)", "or", word) if len(word) > 5 else word
    return re.sub(r"is(?=e$|ed$|ing$|ation$)", "iz", word) if len(word) > 6 else word


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("sis"):  # diagnosis, diagnoses
        return word[:-2]
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if word.endswith("ae"):
        return word[:-1]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
