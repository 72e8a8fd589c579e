"""Whether a sentence says that something is so, or is absent, past, possible, a relative's, or asked in general.

Cue phrases (lexicon/cues.yaml: English, Chinese, some Spanish) open scopes that end at a turn of the sentence ("but",
";", "because"): the ConText idea (Harkema et al., J Biomed Inform 2009). Knows nothing of rules or claims.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import groupby, pairwise

from safety.cues import Cue, Phrases
from safety.lexicon import cues
from safety.normalise import lower


class Assertion(StrEnum):
    PRESENT = "present"
    NEGATED = "negated"
    HISTORICAL = "historical"
    HYPOTHETICAL = "hypothetical"
    FAMILY = "family"
    GENERAL = "general"  # a question of knowledge or about the record, not about a state now


@dataclass(frozen=True, slots=True)
class Scope:
    """text[start:end] is under a cue of this status."""

    status: Assertion
    start: int
    end: int


_CUES = cues()
_PSEUDO = Cue(_CUES["pseudo"])
_FORWARD = {Assertion(status): Cue(phrases) for status, phrases in _CUES["forward"].items()}
_BACKWARD = {Assertion(status): Cue(phrases) for status, phrases in _CUES["backward"].items()}
_NOT_CONTRACTED = re.compile(r"n't\b")
_NOT_DOING = re.compile(
    r"(?:not|n't)\s+(?:(?!having|complaining|reporting|experiencing|showing|endorsing)\w+ing"
    r"|print|download|upload|load|save|open|sync|work|connect|arrive|log in|match)\b"
)
_NEXT = re.compile(r",|\band\b")
_END = Cue(_CUES["end"], extra=r";|；|。|\.\s+(?=\S)|\s{4,}")
_ZH_COMMA = r"，|(?<=[\u3400-\u9fff]),"  # NFKC has made it the ASCII one, in what a rule reads
# A condition ends where its consequence begins; a relative's story where the patient's does.
_END_OF = {
    Assertion.HYPOTHETICAL: re.compile(r", (?:he|she|they|you|then|please|call|go)\b|" + _ZH_COMMA),
    Assertion.FAMILY: re.compile(
        r"\b(?:patient|he|she|i|who|is|now|just|him|found|says|said|reports|noticed|called|brought|thinks|witnessed)\b"
        r"|, (?=has\b)|患者|本人|我|" + _ZH_COMMA
    ),
    Assertion.HISTORICAL: re.compile(
        r"\b(?:has|is|with|and (?:is|now|has)|states?|developed|come in|came in|woke|having|started)\b|" + _ZH_COMMA
    ),
}
_WINDOW = {Assertion.HISTORICAL: 90}  # characters a cue reaches, where the sentence's end is too far
_DEFAULT_WINDOW = 400
_ORDER = (Assertion.NEGATED, Assertion.FAMILY, Assertion.HYPOTHETICAL, Assertion.HISTORICAL)

_KNOWLEDGE = Phrases(_CUES["knowledge"], english=r"^\W*(?:please\s+)?(?:{})\b")
_QUESTION = re.compile(
    r"^\W*(?:(?:and|so|but|please|hi|hello)\W+)*(?:what(?:'s)?|how|which|when|why|where|who|is|are|do|does|did|was|were|has|"
    r"have|had|can|could|should|would|will|may)\b[^?]*\?\W*$"
    # "This first or that first in suspected appendicitis?", "Torsion in children: is oophorectomy necessary?"
    r"|^[^,.;:?]{,200} or [^,.;:?]{,200} (?:in|for|after|with|during) [^,.;:?]{,200}\?\W*$"
    r"|^[^.?]{,300}: (?:is|are|can|does|an?|cause)\b(?![^?]*\b(?:i|we|next|now)\b)[^?]*\?\W*$"
)
_IMMEDIATE = Cue(_CUES["immediate"])
_PAST = Cue(_CUES["past"], extra=r"[(,–-]\s?(?:19|20)\d\d\b|\b(?:19|20)\d\d\W*$")
_PRESENT = Cue(_CUES["present"])
_SETTLED = Cue(_CUES["settled"])
_RELAPSE = Cue(_CUES["relapse"])
_CLAUSE = re.compile(
    r"[,;:，；。]\s*|\.\s+|\s+(?=(?:but|and (?:now|today|is|has|this|currently|tonight))\b)|(?=但|现在|如今|目前)"
)
_OPTIONS = r"\ba[).] .{1,80}\bb[).] |\(a\) .{1,80}\(b\) |(?m:^)\s*q\d*[.:]"
MAX_EXAM = 4000  # characters; a longer text is a record, whatever words stand in it
_EXAM = Phrases(_CUES["exam"], extra=_OPTIONS)
_HISTORY_HEADING = Phrases(_CUES["history_heading"], english=r"^\W*(?:{})\s?[:–-]")


def assess(sentence: str, start: int, end: int) -> Assertion:
    """The status of sentence[start:end]. Where several scopes cover it, the first of negated, family, hypothetical,
    historical, general. A negation must stand before it: "won't stop bleeding" holds a negation and is none. Clauses
    that are dated to the past and say nothing of now are historical."""
    lowered = lower(sentence)
    found = {
        scope.status
        for scope in _scopes(lowered)
        if (scope.start <= start < scope.end if scope.status is Assertion.NEGATED else scope.start < end <= scope.end)
    }
    if Assertion.HISTORICAL in found and _is_back(lowered):
        found.remove(Assertion.HISTORICAL)
    for status in _ORDER:
        if status in found:
            return status
    if _is_general_question(lowered):
        return Assertion.GENERAL
    return Assertion.HISTORICAL if any(a <= start < b for a, b in _past(lowered)) else Assertion.PRESENT


def scopes(sentence: str, is_literal: bool = False) -> tuple[Scope, ...]:
    """All scopes of one sentence, in no particular order. is_literal also takes phrases that only look like cues
    ("without difficulty", "no change"): right where two texts are compared word for word."""
    return _scopes(lower(sentence), is_literal)


def is_now(sentence: str) -> bool:
    """Whether a sentence in lower case says of something that it is so now, whatever else it says."""
    present = _PRESENT.spans(sentence)
    return bool(present) and any(_outside(_SETTLED.spans(sentence), present))


def is_exam_question(text: str) -> bool:
    return len(text) <= MAX_EXAM and bool(_EXAM.search(lower(text)))


def is_history(text: str) -> bool:
    """Whether a text is past or family history as it is noted down, and says of nothing that it is so now."""
    lowered = lower(text[:MAX_EXAM])
    return _HISTORY_HEADING.is_in(lowered) and not is_now(lowered)


# --- of a sentence in lower case --------------------------------------------------------------------------------


@lru_cache(maxsize=2048)
def _scopes(sentence: str, is_literal: bool = False) -> tuple[Scope, ...]:
    forward = {status: spans for status, cue in _FORWARD.items() if (spans := cue.spans(sentence))}
    if contracted := _spans(_NOT_CONTRACTED, sentence):
        forward[Assertion.NEGATED] = forward.get(Assertion.NEGATED, []) + contracted
    backward = {status: spans for status, cue in _BACKWARD.items() if (spans := cue.spans(sentence))}
    if not forward and not backward:
        return ()
    pseudo = [] if is_literal else _PSEUDO.spans(sentence)
    ends = _END.spans(sentence)
    found = []
    for status, places in forward.items():
        limits = ends + _spans(_END_OF.get(status), sentence)
        for start, end in _outside(pseudo, places):
            # What stands right behind a "not" belongs to it: "not currently employed", "does not report any".
            begin = end + 2 if status is Assertion.NEGATED else end
            limit = min((a for a, _ in limits if a >= begin), default=len(sentence))
            if _NOT_DOING.match(sentence, start):  # "not making sense, sugar 2.1" denies no sugar
                limit = min(limit, match.start() if (match := _NEXT.search(sentence, end)) else limit)
            found.append(Scope(status, end, min(limit, end + _WINDOW.get(status, _DEFAULT_WINDOW))))
    for status, places in backward.items():
        for start, end in _outside(pseudo, places):
            limit = max((b for _, b in ends if b <= start), default=0)
            found.append(Scope(status, max(limit, _last_comma(sentence, start, end)), start))
    return tuple(found)


@lru_cache(maxsize=512)
def _is_general_question(sentence: str) -> bool:
    """Asks for knowledge, or what the record says, and names nobody who is ill now."""
    is_asked = _KNOWLEDGE.search(sentence) or _QUESTION.search(sentence)
    return bool(is_asked) and not _IMMEDIATE.is_in(sentence)


@lru_cache(maxsize=512)
def _past(sentence: str) -> tuple[tuple[int, int], ...]:
    """What a sentence dates to the past: all of it where it says of nothing that it is so now, else the clauses between
    those that do ("abruption in last pregnancy, both well; today cervical screening"), unless it is back."""
    if not _PAST.is_in(sentence):
        return ()
    if not is_now(sentence):
        return ((0, len(sentence)),)
    if _is_back(sentence):
        return ()
    clauses = pairwise([0, *(match.end() for match in _CLAUSE.finditer(sentence)), len(sentence)])
    stretches = []
    for is_present, run in groupby(clauses, lambda clause: is_now(sentence[slice(*clause)])):
        starts, ends = zip(*run, strict=True)
        if not is_present and _PAST.is_in(sentence[starts[0] : ends[-1]]):
            stretches.append((starts[0], ends[-1]))
    return tuple(stretches)


@lru_cache(maxsize=512)
def _is_back(sentence: str) -> bool:
    """Says that something past is so again."""
    return is_now(sentence) and _RELAPSE.is_in(sentence)


def _outside(taken: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    return (span for span in spans if not any(start <= span[0] < end for start, end in taken))


def _spans(pattern: re.Pattern[str] | None, sentence: str) -> list[tuple[int, int]]:
    return [match.span() for match in pattern.finditer(sentence)] if pattern else []


def _last_comma(sentence: str, start: int, end: int) -> int:
    """Where the clause of a backward cue begins: "fever, chest pain absent" leaves the fever. A cue that is a clause of
    its own speaks of the one before: "bowel obstruction, resolved"."""
    before = sentence[:start].rstrip()
    if before.endswith(",") and re.match(r"\s*[\"”]?(?:[.;,]|$)", sentence[end:]):
        start = len(before) - 1
    return max(sentence.rfind(mark, 0, start) for mark in (",", "，", ":", "：")) + 1
