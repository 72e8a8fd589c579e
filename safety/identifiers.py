"""Identifiers of persons in a text: what HIPAA's Safe Harbor names (45 CFR 164.514(b)(2)), by pattern, checksum and
words around it, and names by a small tagger.

They are no reason to withhold: a record is about a person. They are masked in logs and exports, and an answer that
holds those of a second patient is warned of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import regex

from safety.identifiers_names import name_spans
from safety.lexicon import chinese_family_names, common_words, eponyms, is_clinical, is_drug

TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Identifier:
    """kind is e.g. "phone" or "name"; start and end are offsets in the text."""

    kind: str
    start: int
    end: int


def find_identifiers(text: str) -> list[Identifier]:
    """Every identifier in order of its place; of those that overlap the first kind of the table below.

    Raises TimeoutError if a pattern runs out of time: whoever masks must then show nothing."""
    found: list[Identifier] = []
    for kind, pattern, is_valid in _PATTERNS:
        for match in pattern.finditer(text, timeout=TIMEOUT_S):
            span = match.span("value")
            if is_valid(match.group("value")) and not _overlaps(found, *span):
                found.append(Identifier(kind, *span))
    found += [Identifier("name", a, b) for a, b in name_spans(text) if not _overlaps(found, a, b)]
    return sorted(found, key=lambda identifier: identifier.start)


def mask(text: str) -> str:
    """The text with each identifier replaced by its kind, e.g. "[phone]"; by "[masked]" as a whole if that fails."""
    try:
        pieces, place = [], 0
        for identifier in find_identifiers(text):
            pieces += [text[place : identifier.start], f"[{identifier.kind}]"]
            place = identifier.end
        return "".join([*pieces, text[place:]])
    except TimeoutError:
        return "[masked]"


def _overlaps(found: list[Identifier], start: int, end: int) -> bool:
    return any(start < other.end and other.start < end for other in found)


# --- checksums --------------------------------------------------------------------------------------------------


def luhn(value: str) -> bool:
    """Check digit of payment cards (ISO/IEC 7812-1)."""
    digits = [int(character) for character in value if character.isdigit()]
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[-2::-2]]
    return 12 < len(digits) < 20 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def iban(value: str) -> bool:
    """Check digits of a bank account (ISO 13616, mod 97)."""
    compact = "".join(value.split()).upper()
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def nhs(value: str) -> bool:
    """Check digit of an NHS number (mod 11)."""
    digits = [int(character) for character in value if character.isdigit()]
    rest = 11 - sum(digit * weight for digit, weight in zip(digits, range(10, 1, -1), strict=False)) % 11
    return len(digits) == 10 and rest % 11 == digits[9] and rest != 10


def chinese_id(value: str) -> bool:
    """Check character of a resident identity number (GB 11643-1999)."""
    total = sum(int(digit) * (2**place % 11) for digit, place in zip(value[:17], range(17, 0, -1), strict=True))
    return "10X98765432"[total % 11] == value[17].upper()


def _always(value: str) -> bool:
    return True


def _is_phone(value: str) -> bool:
    digits = sum(character.isdigit() for character in value)
    return 7 <= digits <= 22


def _is_called(value: str) -> bool:
    """A number that words say is one to call may be short."""
    return sum(character.isdigit() for character in value) >= 6


def _is_no_term(value: str) -> bool:
    """ "J. Farquharson", not "E. Coli"."""
    last = value.split()[-1].rpartition(".")[2].lower()
    is_known = last in common_words() or last in eponyms() or last in _BACTERIA
    return not (is_known or is_clinical(last) or is_drug(last))


def _is_no_place(value: str) -> bool:
    """ "患者江苏人" says where the patient is from."""
    return not value.endswith(("人", "族", "籍"))


_BACTERIA = ("coli", "difficile", "aureus", "albicans", "pylori", "pneumoniae", "faecalis", "faecium", "falciparum")
_PERSON = "|".join(
    (
        "患者(?:姓名)?|病人|患儿|产妇|姓名|家属|联系人|(?:其|患者之)[夫妻子女父母]|陪护|护工",
        "手术者|术者|助手|记录者|报告者|审核者|核对者|检验者|签名|签字|(?:主管|主治|住院|麻醉|报告)?医[师生]|护士长?|主任",
    )
)
_FAMILY = "|".join(chinese_family_names())
_GOES_ON = (
    "查房|执行|完成|核对|负责|接[听诊收]|拒绝|同意|发[热烧]|突发|反复|咳|呕吐|入院|[于今昨因诉在已陪要顺自及和被]"
)
_NO_NAME = "谢谢|高(?:血?压|龄|热)|许多|康复|马上|祝"  # words that begin as family names do
_TITLE = "女士|先生|小姐|主任|医[师生]|大夫|护士|教授|同志"
_NUMBER = r"(?:\s*(?:number|no\.?|nr\.?|id|code))?\s*(?:is|was|:|：|#|=)*\s*"
_KIN = "daughter|son|wife|husband|mother|father|brother|sister|partner|carer|spouse|niece|nephew|neighbou?r"
_GIVEN = r"(?-i:(?P<value>\p{Lu}\p{Ll}[\p{L}'’-]+)(?=[ \t]+\p{Ll}|[,.;:)]|$))"
_Row = tuple[str, str, Callable[[str], bool]]
_TABLE: tuple[_Row, ...] = (
    ("email", r"(?P<value>[\w.+'-]+@[\w-]+(?:\.[\w-]+)+)", _always),
    ("url", r"(?P<value>(?:https?://|www\.)[^\s<>\"'，。]+)", _always),
    ("iban", r"(?<!\w)(?P<value>[a-z]{2}\d{2}(?: ?[a-z0-9]{4}){2,7}(?: ?[a-z0-9]{1,3})?)(?!\w)", iban),
    ("card", r"(?<![\d.])(?P<value>\d(?:[ -]?\d){12,18})(?![\d.]\d|\d)", luhn),
    ("id", r"(?<!\d)(?P<value>\d{17}[\dXx])(?!\d)", chinese_id),
    ("ssn", r"(?<![\d-])(?P<value>(?!000|666)\d{3}-(?!00)\d{2}-(?!0000)\d{4})(?![\d-])", _always),
    ("ssn", rf"(?:ssn|social security){_NUMBER}(?P<value>\d{{3}}[ -]?\d{{2}}[ -]?\d{{4}})(?!\d)", _always),
    ("nhs", rf"nhs{_NUMBER}(?P<value>\d{{3}}[ -]?\d{{3}}[ -]?\d{{4}})(?!\d)", nhs),
    (
        "ip",
        r"(?<![\d.])(?P<value>(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d))(?![\d.]*\d)",
        _always,
    ),
    (
        "ip",
        r"(?<![\w:])(?P<value>(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:){2,6}:[0-9a-f]{1,4})(?![\w:])",
        _always,
    ),
    (
        "licence",
        r"licen[sc]e" + _NUMBER + r"(?P<value>(?=[a-z0-9-]*\d{4})[a-z0-9][a-z0-9-]{4,19})\b",
        _always,
    ),
    (
        "record number",
        r"\b(?:mrn|hospital number|patient (?:id|number)|medical record|accession|member id|policy)"
        + _NUMBER
        + r"(?P<value>(?=[\w-]*\d{3})[\w-]{4,20})\b",
        _always,
    ),
    ("record number", r"(?:病历号|住院号|门诊号|登记号)\s*[:：]?\s*(?P<value>[A-Za-z0-9-]{4,20})", _always),
    (
        "phone",
        r"(?<![\w.])(?P<value>(?:\+|00)\d{1,3}[ .()/-]{0,2}(?:\(?\d+\)?[ .()/-]{0,2}){2,6}\d(?:x\d{1,6})?)(?!\d)",
        _is_phone,
    ),
    ("phone", r"(?<![\w.])(?P<value>\(?\d{3}\)?[ .-]?\d{3}[ .-]\d{4}(?: ?x\d{1,6})?)(?![\w-]*\d)", _is_phone),
    ("phone", r"(?<![\d.-])(?P<value>1[3-9]\d{9}|0\d{2,3}-\d{7,8})(?!\d)", _always),
    (
        "phone",
        r"(?:phone|tel\.?|telephone|mobile|cell|fax|call(?: me)?(?: at| on)?|answering at|reach \w+ at|电话|手机"
        r"|contact (?:number|me at))"
        r"\s*(?:number)?\s*(?:is|:|：|#)*\s*(?P<value>[+(]?\d[\d ().\-/]{4,18}\d(?:x\d{1,6})?)",
        _is_called,
    ),
    (
        "phone",
        r"(?<![\w.-])(?P<value>[+(]?\d[\d ().\-/]{4,18}\d(?:x\d{1,6})?)[ -]*(?:office|fax|mobile|home)\b",
        _is_called,
    ),
    (
        "name",
        r"(?<![\w.-])(?:mrs?|ms|mx|miss|dr|prof|professor)\.?[ \t]+"
        r"(?-i:(?P<value>\p{Lu}[\p{L}'’-]+(?:[ \t]\p{Lu}[\p{L}'’-]+){0,2}))",
        _always,
    ),
    ("name", r"(?<![\w.-])(?-i:(?P<value>(?:\p{Lu}\. ?){1,2}\p{Lu}[\p{L}'’-]*\p{Ll}[\p{L}'’-]*))(?!\w)", _is_no_term),
    # Not behind "Bed 4,": a ward's list has "Telemetry:" there as often as a name.
    ("name", rf"\b(?:{_KIN})[ \t]+{_GIVEN}", _is_no_term),
    ("name", rf"\bhand(?:over|ed over)[ \t]+(?:from|by|to)[ \t]+{_GIVEN}", _is_no_term),
    ("name", rf"\bhand(?:over|ed over)[ \t]+from[ \t]+[\p{{L}}'’-]+[ \t]+to[ \t]+{_GIVEN}", _is_no_term),
    ("name", rf"(?<=由)(?!{_NO_NAME})(?P<value>(?:{_FAMILY})\p{{Han}}{{1,2}}?)(?={_GOES_ON})", _is_no_place),
    ("name", r"(?:患者姓名|姓名|患者)\s*[:：]\s*(?P<value>\p{Han}{2,4})(?!\p{Han})", _always),
    # A family name behind what somebody is, or before a title; what follows must not go on as a word would.
    (
        "name",
        rf"(?:{_PERSON})\s*[:：]?\s*(?!{_NO_NAME})(?P<value>(?:{_FAMILY})\p{{Han}}{{1,2}}?)(?=[^\p{{Han}}]|$|{_GOES_ON})",
        _is_no_place,
    ),
    (
        "name",
        rf"(?:(?<!\p{{Han}})|(?<=[请由经和与找给向让日知]))(?!{_NO_NAME})(?P<value>(?:{_FAMILY})\p{{Han}}{{0,2}}?)(?={_TITLE})",
        _always,
    ),
)
_PATTERNS = [
    (kind, regex.compile(pattern, regex.IGNORECASE | regex.VERSION1), valid) for kind, pattern, valid in _TABLE
]
