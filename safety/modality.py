"""What a record only plans, was refused, has stopped or tells of somebody else, and a claim says as if it were so.

"Plan: start apixaban" is no "she takes apixaban", "amoxicillin was withheld" no "she was given amoxicillin". Each mode
has cues with the clause that they speak of, and the forms of a claim that it does not bear. Knows nothing of words and
rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_CLAUSE_END = re.compile(
    r"[;:.!?。；：\n]|,|，|\b(?:and|but|because|although|which|who|so that|unless|when)\b", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[;.!?。；\n]|\bbut\b|现|改为", re.IGNORECASE)
_TAKES = r"\b(?:takes?|taking|(?:is|are|remains?) on|continues?|currently)\b|目前|正在|服用"
_DONE = (
    r"\b(?:had|has had|underwent|received|accepted|agreed|showed|shows|confirmed|grew|(?:was|were|been) (?:\w+ )?"
    r"(?:given|done|performed|started|stopped|carried|taken|put|prescribed))\b|已|显示|确诊"
)


@dataclass(frozen=True, slots=True)
class _Mode:
    """ahead: cues of what follows; behind: of what stands before them. unborne: claims that it does not bear."""

    ahead: re.Pattern[str]
    behind: re.Pattern[str]
    unborne: re.Pattern[str]


def _mode(ahead: str, behind: str, unborne: str) -> _Mode:
    return _Mode(*(re.compile(pattern, re.IGNORECASE) for pattern in (ahead, behind, unborne)))


_NEVER = r"(?!)"
MODES = {
    "planned": _mode(
        r"\bplan(?:ned|s)?\b(?: is)?(?: to| for)?:?|\b(?:is|are|am) to\b|\bdue (?:for|in|on)\b|\bawait\w*|\bto have\b"
        r"|\b(?:booked|scheduled|listed) for\b|\bconsider(?:ing)?\b|\brequest(?:ed)?\b(?! by)|\bif\b"
        r"|\b(?:recommend|suggest|advise|offer)(?:s|d|ed)?\b(?! that| by)|\b(?:will|should|(?-i:may)|might|would)\b"
        r"|拟|建议|计划|必要时|考虑行",
        r"\b(?:planned|booked|scheduled|requested|recommended|advised|offered|awaited)\b",
        f"{_TAKES}|{_DONE}",
    ),
    "refused": _mode(
        r"\b(?:declin|refus)(?:e[sd]?|ing)\b|\b(?:avoid|do not give|did not (?:give|take|have))\b|拒绝",
        r"\b(?:(?:declin|refus)ed|withheld|cancelled|canceled|postponed|omitted|not (?:given|done|performed|taken))\b",
        f"{_TAKES}|{_DONE}",
    ),
    "stopped": _mode(
        r"\b(?:stop(?:ped)?|discontinued?|previously|formerly|used to|came off|(?:switched|changed) from)\b"
        r"|停用|停服|既往",
        r"\b(?:stopped|discontinued|ceased|withdrawn|withheld|(?:changed|switched) to|replaced by)\b"
        r"|停用|停药|改为|换为",
        _TAKES,
    ),
    "settled": _mode(
        _NEVER, r"\b(?:now |has )?resolved\b|\bas a child\b|\bin childhood\b", r"\b(?:has|have)\b(?! had)|患有"
    ),
    "another's": _mode(
        r"\b(?:neighbour|neighbor|colleague|friend|flatmate|workmate|classmate)s?\b",
        _NEVER,
        r"\b(?:she|he|patient)\b|患者",
    ),
}


def modes_in(text: str) -> frozenset[str]:
    """The modes of which a text has a cue."""
    return frozenset(name for name, mode in MODES.items() if mode.ahead.search(text) or mode.behind.search(text))


def unborne_by(claim: str) -> frozenset[str]:
    """The modes that do not bear a claim, by how it says what it says."""
    return frozenset(name for name, mode in MODES.items() if mode.unborne.search(claim)) - modes_in(claim)


def mode_spans(text: str, sentences: Sequence[tuple[int, int]]) -> Iterator[tuple[str, int, int]]:
    """(mode, start, end) of what the cues of a text speak of."""
    for start, end in sentences:
        for name, mode in MODES.items():
            for match in mode.ahead.finditer(text, start, end):
                stop = _SENTENCE_END.search(text, match.end(), end)
                yield name, match.end(), stop.start() if stop else end
            for match in mode.behind.finditer(text, start, end):
                yield name, _clause_start(text, start, match.start()), match.start()


def _clause_start(text: str, start: int, place: int) -> int:
    """Where the clause before a cue begins; what goes on after "and" has the subject of the clause before that."""
    ends = [match for match in _CLAUSE_END.finditer(text, start, place) if match.group() not in (":", "：")]
    if ends and not text[ends[-1].end() : place].strip():
        ends.pop()
    return ends[-1].end() if ends else start
