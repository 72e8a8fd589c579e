"""What makes alarming words no alarm, though nothing denies them: a figure of speech, a story, a lesson, an animal or a
thing, an errand about emergencies in general; and, for the rules that say so, what is over, long-standing or slight.

Cue phrases are in lexicon/cues.yaml under "calm". Knows nothing of rules; which reasons silence a rule is the rule's to
say, since a stroke that passed is still urgent and a cramp that passed is not.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache

from safety.assertion import is_now
from safety.cues import Cue, Phrases
from safety.lexicon import cues


class Calm(StrEnum):
    FIGURE = "figure"  # "I nearly had a heart attack when I saw the bill"
    STORY = "story"  # its clause is of a film, a lesson, a drill; or it is quoted, and not as what somebody says
    THING = "thing"  # an animal or a thing does it
    ERRAND = "errand"  # its clause is of a poster, an audit, a word; unless somebody is ill in the sentence
    OVER = "over"  # what stands before the cue has passed
    LASTING = "lasting"  # it has been so for long
    SLIGHT = "slight"


ALWAYS = frozenset({Calm.FIGURE, Calm.STORY, Calm.THING, Calm.ERRAND})
BY_RULE = frozenset(Calm) - ALWAYS
_CUES = {Calm(reason): Cue(phrases) for reason, phrases in cues()["calm"].items()}
_ILL = Phrases(cues()["ill"])
_UNLESS = {Calm.LASTING: is_now, Calm.ERRAND: _ILL.is_in}  # of a sentence in which a reason counts for nothing
_MEANWHILE = Phrases(cues()["meanwhile"])  # before a story or an errand: the rest of the sentence is none
_CLAUSE_END = re.compile(r"[,;.，；。]|\b(?:but|and|now|when|cuando)\b|但|现在")
_QUOTED = re.compile(r"[\"“「][^\"”」]*[\"”」]")
_SAID = Phrases(cues()["said"], english=r"\b(?:{})\b[^\"“]*$")
_SLIGHT_REACH = 40  # characters behind the cue


def reasons(sentence: str, start: int, end: int) -> frozenset[Calm]:
    """Why sentence[start:end], of a sentence in lower case, is no alarm; empty if it may be one."""
    return frozenset(reason for reason, first, last in _spans(sentence) if first < end and start < last)


def is_somebody_ill(sentence: str) -> bool:
    """Whether a sentence in lower case tells of somebody who is ill, whatever else it speaks of."""
    return _ILL.is_in(sentence)


@lru_cache(maxsize=512)
def _spans(sentence: str) -> tuple[tuple[Calm, int, int], ...]:
    """(reason, start, end) of what each cue reaches."""
    quoted = [m.span() for m in _QUOTED.finditer(sentence) if not _SAID.search(sentence[: m.start()])]
    return *((Calm.STORY, *place) for place in quoted), *(
        (reason, *_reach(reason, sentence, *place))
        for reason, cue in _CUES.items()
        for place in cue.spans(sentence)
        if reason not in _UNLESS or not _UNLESS[reason](sentence)
    )


def _reach(reason: Calm, sentence: str, start: int, end: int) -> tuple[int, int]:
    match reason:
        case Calm.FIGURE:
            return start, end
        case Calm.STORY | Calm.ERRAND if _MEANWHILE.is_in(sentence[_clause_start(sentence, start) : start]):
            return start, end
        case Calm.STORY | Calm.ERRAND:
            return _clause_start(sentence, start), _clause_end(sentence, end)
        case Calm.THING:
            return start, _clause_end(sentence, end)
        case Calm.OVER:
            return 0, start
        case Calm.SLIGHT:
            return start, min(_clause_end(sentence, end), end + _SLIGHT_REACH)
    before = sentence[:start].rstrip(" ,，")
    last = _clause_end(sentence, end)
    is_own_clause = sentence[len(before) : start].strip() != "" and not sentence[end:last].strip()
    return _clause_start(before, len(before) if is_own_clause else start), last


def _clause_start(sentence: str, place: int) -> int:
    return max((match.end() for match in _CLAUSE_END.finditer(sentence, 0, place)), default=0)


def _clause_end(sentence: str, place: int) -> int:
    match = _CLAUSE_END.search(sentence, place)
    return match.start() if match else len(sentence)
