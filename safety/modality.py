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
_SENTENCE_END = re.compile(
    r"[;.!?。；\n]|\bbut\b|\b(?:so|and) (?:she|he) (?:is|has|was|herself|himself)\b"
    r"|患者(?:本人|今日|现)|本次|目前|现(?!病史)|已",
    re.IGNORECASE,
)
_TAKES = r"\b(?:takes?|taking|(?:is|are|remains?) (?:still )?on|continues?|currently)\b|目前|正在|服用|使用|仍|现"
# A claim that says that something is or was so; a bare "CT head on Monday" does not.
_SAYS = (
    r"\b(?:is|are|was|were|has|have|had|took|takes?|underwent|grew|shows|given|seen|\w{3,}ed)\b"
    r"|已|显示|证实|完成|做[过了]|发生|出现|正在|目前|使用|服用|今日|低于|高于|现|仍"
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
_TO_BE_DONE = (
    r"\bto (?:see|follow|come|be|have|start|stop|begin|go|contact|discuss|review|repeat|check|attend|undergo)\b"
)
_PLANNED_ZH = r"拟|计划|建议|择期|预约|排期|定于|约在|推迟|延期|暂缓|有待|待(?!查)|备选|风险|警惕"
_REFUSED_ZH = r"拒绝|不同意|取消|未予|禁用|暂不|尚未签字|商议中"
_STOPPED_ZH = r"停用|停服|停药|已停|暂停|改为|改用|换为|换用|已?戒(?=烟|酒)"
MODES = {
    "planned": _mode(
        r"\bplan(?:ned|s)?\b(?: is)?(?: to| for)?:?|\b(?:is|are|am) to\b|\bdue (?:for|in|on)\b|\bawait\w*"
        r"|\b(?:booked|scheduled|listed|pencilled in) for\b|\bconsider(?:ing)?\b|\brequest(?:ed)?\b(?! by)|\bif\b"
        r"|\b(?:recommend|suggest)(?:s|ed)?\b|\b(?:advise|offer)(?:s|d|ed)?\b(?! that| by)|\badvice:"
        r"|\b(?:will|should|(?-i:may)|might|would)\b|(?:^|[.;:,]\s*)(?:switch|restart|repeat|rpt|refer|arrange|book|swap|aim)\b"
        r"|\bfor (?=[\w -]{1,40}\b(?:tomorrow|next)\b)|\bintends?\b"
        rf"|{_TO_BE_DONE}|{_PLANNED_ZH}|原定|原计划|必要时|考虑行|如(?!下|上|厕)|若|不除外|待排",
        r"\b(?:planned|booked|scheduled|requested|recommended|suggested|advised|offered|awaited"
        r"|ordered|referred|cross-?matched|pencilled in)\b"
        r"|\b(?:is|are|was) (?:due|not due)\b|\bwould be\b|\bwill be (?:sent|arranged|booked|done)\b"
        r"|\b(?:put off|deferred|delayed|postponed|rescheduled)\b"
        rf"|{_TO_BE_DONE}|{_PLANNED_ZH}|不除外|不能排除|待排|待结果|待回报",
        _SAYS,
    ),
    "refused": _mode(
        r"\b(?:declin|refus)(?:e[sd]?|ing)\b|\b(?:avoid|do not give|did not (?:give|take|have))\b"
        rf"|\b(?:opted|decided|advised) against\b|\bnot yet decided\b|{_REFUSED_ZH}",
        r"\b(?:(?:declin|refus)ed|withheld|cancelled|canceled|postponed|omitted|on hold|proved unnecessary)\b"
        rf"|\bnot (?:given|done|performed|taken|started)\b|{_REFUSED_ZH}",
        _SAYS,
    ),
    "stopped": _mode(
        r"\b(?:stop(?:ped)?|discontinued?|previously|formerly|used to|took|came off|(?:switched|changed) from)\b"
        rf"|{_STOPPED_ZH}|既往|曾",
        r"\b(?:stopped|discontinued|ceased|withdrawn|withheld|on hold|(?:changed|switched) to|replaced by)\b"
        rf"|{_STOPPED_ZH}",
        _TAKES,
    ),
    "removed": _mode(
        _NEVER, r"\b(?:removed|taken out|explanted)\b|拔除", r"\bin situ\b|\bstill\b|\bhas an?\b|在位|留置"
    ),
    "settled": _mode(
        r"曾", r"\b(?:now |has )?resolved\b|\bas a child\b|\bin childhood\b", r"\b(?:has|have)\b(?! had)|患有|本次"
    ),
    "another's": _mode(
        r"\b(?:neighbour|neighbor|colleague|friend|flatmate|workmate|classmate)s?\b"
        r"|\b(?:husband|wife|partner)\b(?= (?:has|had|was|died|takes|is on)\b)|(?:妻子|丈夫|父亲|母亲|儿子|女儿)(?!诉)",
        _NEVER,
        r"\b(?:she|he|patient)\b|患者",
    ),
}


def is_said_so(text: str) -> bool:
    """Whether a text says that something is or was so."""
    return bool(MODES["planned"].unborne.search(text))


def modes_in(text: str) -> frozenset[str]:
    """The modes of which a text has a cue."""
    return frozenset(name for name, mode in MODES.items() if mode.ahead.search(text) or mode.behind.search(text))


def unborne_by(claim: str) -> frozenset[str]:
    """The modes that do not bear a claim, by how it says what it says."""
    own = modes_in(claim)
    own |= {"planned", "refused"} if own & {"planned", "refused"} else frozenset()  # offered, and refused
    return frozenset(name for name, mode in MODES.items() if mode.unborne.search(claim)) - own


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
