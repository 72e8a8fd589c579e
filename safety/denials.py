"""General denials: "no known allergies", "never had a stroke", "no history of diabetes".

They speak of everything that a record holds, so that they stand only on a passage that says them outright, or on the
whole record. Knows nothing of what was read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from safety.facts import facts_of
from safety.sentences import sentence_spans
from safety.words import plain

_GENERAL = re.compile(
    r"\b(?:nkd?a|never)\b"
    r"|\b(?:no|any|without(?: any)?) (?:(?:known|documented|recorded|reported|current|regular|other|past|prior|"
    r"previous|significant|relevant|drug|medication|food) )*"
    r"(?:allerg\w+|histor\w+|medications?|medicines?|drugs?|surger\w+|operations?|hospitali[sz]ations?|admissions?)\b"
    r"|\bno (?:known|documented|recorded|reported|past|prior|previous)\b|\bnot known to\b|\bnone known\b"
    r"|(?:无|否认|没有)[^，。]{0,8}(?:过敏|病史|史)|从未",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"\b(?:no|not|never|none|nil|without|den(?:y|ies|ied)|nkd?a)\b|n't\b|无|否认|没有|从未", re.IGNORECASE
)
_OUTRIGHT = re.compile(
    rf"{_GENERAL.pattern}|\b(?:none|nil)\b|\bden(?:y|ies|ied|ying)\b|\b(?:no|not|negative for) (?:ever\b|allerg)",
    re.IGNORECASE,
)
_NARROWED = re.compile(  # to one thing, or to one moment
    r"\ballerg\w+ to (?!any|medic|drugs?\b|food)"
    r"|\b(?:today|tonight|overnight|discussed|planned|during|this (?:visit|admission))\b",
    re.IGNORECASE,
)
_HEADING = re.compile(r"[:：]$")
_MAX_HEADING = 40  # characters


def is_general_denial(claim: str) -> bool:
    """Whether a claim says of the patient's whole past or present that there is none of something."""
    text = plain(claim)
    return bool(_DENIAL.search(text) and _GENERAL.search(text))


def is_said_outright(claim: str, evidence: Sequence[str]) -> bool:
    """Whether one statement of the evidence denies what the claim denies, all of it, in as general a way."""
    wanted = _negated(claim)
    return any(
        _OUTRIGHT.search(statement)
        and wanted <= _keys(statement)
        and (_NARROWED.search(claim) or not _NARROWED.search(statement))
        for text in evidence
        for statement in _statements(plain(text))
    )


def _statements(text: str) -> list[str]:
    """Its sentences; a heading and the line below it are one."""
    spans = sentence_spans(text)
    joined = []
    for number, (start, end) in enumerate(spans):
        line = text[start:end]
        is_heading = line.startswith("#") or bool(_HEADING.search(line)) or _is_title(line)
        joined.append(text[start : spans[min(number + 1, len(spans) - 1)][1]] if is_heading else line)
    return joined


def _is_title(line: str) -> bool:
    return len(line) <= _MAX_HEADING and not re.search(r"[.。!?\d]", line)


def _is_nka(statement: str) -> bool:
    return bool(re.search(r"\bnkd?a\b", statement, re.IGNORECASE))


def _keys(text: str) -> set[str]:
    found = {word.key for word in facts_of(text, [(0, len(text))]).words}
    return found | {"term:allergic"} if _is_nka(text) else found


def _negated(claim: str) -> set[str]:
    """What a claim denies: its negated words that matter, else all that matter."""
    words = [w for w in facts_of(claim, [(0, len(claim))]).words if w.is_required]
    return {w.key for w in words if "negated" in w.flags} or {w.key for w in words}
