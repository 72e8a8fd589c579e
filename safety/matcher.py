"""Text -> findings of the rules, with spans in the text as it was written.

Sentence by sentence: an instruction hides well in a page and badly in its own sentence, negation has a sentence's
scope, and no pattern ever meets more than MAX_SEGMENT characters at once. Knows nothing of verdicts over whole texts.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import ahocorasick
import regex

from contracts import Direction, Finding, Verdict
from safety.assertion import Assertion, assess, is_exam_question
from safety.calm import Calm
from safety.concepts import Hit, find_concepts, is_alarm, is_told
from safety.normalise import NormalisedText, lower, normalise
from safety.required import all_required
from safety.rule import Rule
from safety.sentences import sentence_spans

TIMEOUT_S = 1.0  # per pattern and sentence; need is below 0.001, but on a starved machine 0.25 was seen to run out
MAX_SEGMENT, OVERLAP = 1000, 200  # characters
REACH = 300  # characters within which the concepts of a condition must stand
_CJK = regex.compile(r"\p{Han}")
# " … " in a pattern: up to ten words of the same clause, none of them a negation.
_GAP = r"(?:(?![\s,/(]+(?:no|not|nor|denies|denied|denying|without|never)\b)[\s,/(]+[\w'’.:%°+/)-]+){0,10}?[\s,/(]+"
_IsSo = Callable[[Hit, tuple[Calm, ...]], bool]
_FLAGS = regex.IGNORECASE | regex.VERSION1


@dataclass(frozen=True, slots=True)
class _Compiled:
    """patterns: each with sets of parts of words, of each of which a sentence in lower case must hold one. conditions:
    the rule's, taken apart once."""

    rule: Rule
    conditions: tuple[tuple[str, ...], ...]
    patterns: tuple[tuple[regex.Pattern[str], list[frozenset[str]]], ...]
    unless: tuple[regex.Pattern[str], ...]


class Matcher:
    """Compiles the rules once; `find` is then safe to call from any thread. Raises regex.error for a bad pattern."""

    def __init__(self, rules: Iterable[Rule], timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        compiled = [
            _Compiled(rule, rule.conditions, _with_required(rule.patterns), _compile(rule.unless)) for rule in rules
        ]
        self._compiled = {d: [c for c in compiled if d in c.rule.direction] for d in Direction}
        self._keywords = {
            d: _automaton({word for c in of_d for word in c.rule.keywords}) for d, of_d in self._compiled.items()
        }

    def find(self, text: str, direction: Direction) -> list[Finding]:
        """Findings in order of their place. A rule that runs out of time gives a finding `unavailable` instead."""
        source = normalise(text)
        lowered = lower(source.text)
        segments = _segments(source.text)
        keywords = _occurrences(lowered, self._keywords[direction])
        findings = self._find_conditions(source, lowered, segments, direction)
        for compiled in self._compiled[direction]:
            places = [place for word in compiled.rule.keywords for place in keywords.get(word, ())]
            if not places:
                continue
            found = list(self._find_rule(compiled, source, _touched(segments, places), direction))
            if found and compiled.rule.is_asserted and is_exam_question(source.text):
                found = [finding for finding in found if finding.severity is Verdict.UNAVAILABLE]
            findings += found
        return _without_repeats(findings)

    def _find_conditions(
        self, source: NormalisedText, lowered: str, segments: Sequence[tuple[int, int]], direction: Direction
    ) -> list[Finding]:
        """Findings of the rules that are made of concepts; none in an examination question."""
        asked = [compiled for compiled in self._compiled[direction] if compiled.conditions]
        if not asked:
            return []
        try:
            hits = list(find_concepts(lowered, segments, self._timeout_s))
        except TimeoutError:
            return [_out_of_time(asked[0].rule, source, (0, len(source.text)))]
        by_concept: dict[str, list[Hit]] = {}
        for hit in hits:
            by_concept.setdefault(hit.concept, []).append(hit)
        is_so: _IsSo = cache(partial(is_alarm, lowered))  # asked of few hits only: it costs more than finding them
        is_report = cache(
            lambda hit, num_others: (
                is_told(lowered, hit, is_alone=not num_others)
                or _num_findings(hit.sentence, hits, is_so) > 1 + num_others
            )
        )
        met = ((compiled.rule, _meet(compiled, by_concept, is_so, is_report)) for compiled in asked)
        found = [_finding(rule, source, (h.start, h.end), h.sentence, direction) for rule, h in met if h is not None]
        return [] if found and is_exam_question(source.text) else found

    def _find_rule(
        self, compiled: _Compiled, source: NormalisedText, segments: Iterable[tuple[int, int]], direction: Direction
    ) -> Iterator[Finding]:
        rule = compiled.rule
        for start, end in segments:
            try:
                span = self._match(compiled, source.text[start:end])
            except TimeoutError:
                yield _out_of_time(rule, source, (start, end))
                return
            if span is not None:
                yield _finding(rule, source, (start + span[0], start + span[1]), (start, end), direction)

    def _match(self, compiled: _Compiled, sentence: str) -> tuple[int, int] | None:
        """The first match in one sentence that counts."""
        lowered = lower(sentence)
        for pattern, needed in compiled.patterns:
            if not all(any(part in lowered for part in parts) for parts in needed):
                continue
            for match in pattern.finditer(sentence, timeout=self._timeout_s):
                if any(unless.search(sentence, timeout=self._timeout_s) for unless in compiled.unless):
                    return None
                if not compiled.rule.is_asserted or assess(sentence, *match.span()) is Assertion.PRESENT:
                    return match.span()
        return None


def _with_required(patterns: Iterable[str]) -> tuple[tuple[regex.Pattern[str], list[frozenset[str]]], ...]:
    return tuple(zip(_compile(patterns), (_required(_expand(pattern)) for pattern in patterns), strict=True))


def _required(pattern: str) -> list[frozenset[str]]:
    """Empty if nothing is. Digits are left out: a pattern's digit is of any script."""
    try:
        return [parts for parts in all_required(pattern) if not all(map(str.isdigit, parts))]
    except (ValueError, re.error):  # the standard library reads less than regex does
        return []


def _compile(patterns: Iterable[str]) -> tuple[regex.Pattern[str], ...]:
    return tuple(regex.compile(_expand(pattern), _FLAGS) for pattern in patterns)


def _expand(pattern: str) -> str:
    return pattern.replace(" … ", _GAP).replace(" ?", r"\s*").replace(" ", r"\s+")


def _automaton(keywords: Iterable[str]) -> Any:
    """Finds all keywords in one pass (Aho and Corasick, CACM 1975)."""
    automaton = ahocorasick.Automaton()
    for keyword in keywords:
        automaton.add_word(keyword, keyword)
    automaton.make_automaton()
    return automaton


def _occurrences(text: str, automaton: Any) -> dict[str, list[int]]:
    """Keyword -> where it begins; one of Latin letters only where a word begins ("ai" is not in "pain")."""
    places: dict[str, list[int]] = defaultdict(list)
    for last, keyword in automaton.iter(text) if len(automaton) else ():
        start = last + 1 - len(keyword)
        if not (start and "a" <= keyword[0] <= "z" and "a" <= text[start - 1] <= "z"):
            places[keyword].append(start)
    return places


def _segments(text: str) -> list[tuple[int, int]]:
    """Sentences; one without end is cut into overlapping pieces."""
    pieces = []
    for start, end in sentence_spans(text):
        while end - start > MAX_SEGMENT:
            cut = text.rfind(" ", start + MAX_SEGMENT - OVERLAP // 2, start + MAX_SEGMENT)  # not within a word
            pieces.append((start, cut if cut > 0 else start + MAX_SEGMENT))
            start += MAX_SEGMENT - OVERLAP
        pieces.append((start, end))
    return pieces


def _touched(segments: list[tuple[int, int]], places: Iterable[int]) -> list[tuple[int, int]]:
    """The segments in which these places lie, with the piece before where pieces overlap."""
    starts = [start for start, _ in segments]
    touched = set()
    for place in places:
        index = bisect_right(starts, place) - 1
        touched |= {i for i in (index - 1, index) if i >= 0 and segments[i][1] > place}
    return [segments[index] for index in sorted(touched)]


def _meet(
    compiled: _Compiled, hits: Mapping[str, list[Hit]], is_so: _IsSo, is_report: Callable[[Hit, int], bool]
) -> Hit | None:
    """The first concept of the first condition whose concepts all stand near it; None if there is no such place. Its
    sentence tells of somebody, or holds a finding more than the condition asks for."""
    not_when = compiled.rule.not_when
    for first, *others in compiled.conditions:
        if first in hits and all(name in hits for name in others):
            for hit in hits[first]:
                near = [_near(hits[name], hit) for name in others]
                is_met = all(near) and all(any(is_so(h, not_when) for h in found) for found in ([hit], *near))
                if is_met and is_report(hit, len(others)):
                    return hit
    return None


def _num_findings(sentence: tuple[int, int], hits: Iterable[Hit], is_so: _IsSo) -> int:
    """How many findings of words of their own a sentence holds, of hits in order."""
    count, end = 0, 0
    for hit in hits:
        if hit.sentence == sentence and is_so(hit, ()):
            count += hit.start >= end
            end = max(end, hit.end)
    return count


def _near(hits: list[Hit], hit: Hit) -> list[Hit]:
    """Those within REACH of another hit, which come in order; the same words do not count twice."""
    first = bisect_left(hits, hit.start - REACH, key=lambda other: other.start)
    last = bisect_right(hits, hit.start + REACH, key=lambda other: other.start)
    return [other for other in hits[first:last] if other.end <= hit.start or hit.end <= other.start]


def _out_of_time(rule: Rule, source: NormalisedText, span: tuple[int, int]) -> Finding:
    message = f"The check “{rule.title}” ran out of time on this text, so the text is withheld; shorten it."
    return Finding(rule.id, Verdict.UNAVAILABLE, *source.raw_span(*span), message, rule.source)


def _finding(
    rule: Rule, source: NormalisedText, match: tuple[int, int], sentence: tuple[int, int], direction: Direction
) -> Finding:
    """Of a document the whole sentence is the finding's span, as the whole sentence is kept from the model."""
    message = rule.message_zh if _CJK.search(source.text, *match) else rule.message
    start, end = source.raw_span(*match)
    evidence = source.raw[start:end]
    if direction is Direction.DOCUMENT:
        start, end = source.raw_span(*sentence)
    return Finding(rule.id, rule.severity_in(direction), start, end, message, rule.source, evidence)


def _without_repeats(findings: list[Finding]) -> list[Finding]:
    unique = {(finding.rule, finding.start, finding.end): finding for finding in findings}
    return sorted(unique.values(), key=lambda finding: (finding.start, finding.end, finding.rule))
