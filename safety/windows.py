"""A passage of the record, read once, and the stretches of it in which a claim may stand.

Up to three adjacent sentences, a line of a block with the line over it, never two items of a list. A title holds for
what stands below it until the next. Knows nothing of claims.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from safety.facts import DENIES, Facts, facts_of, uncertain_spans
from safety.modality import mode_spans
from safety.sentences import sentence_spans
from safety.tables import table_head
from safety.words import Word, plain

MAX_WINDOW = 3  # adjacent sentences
HEADING_REACH = 600  # characters over which a heading in the passage holds
_ITEM_MARK = re.compile(r"[①-⑳・]|o[ \t]+(?=[A-Z\d])|(?:[-*•·]|\(?\d{1,2}[.)、])\s")
_HEADING = re.compile(r"(?:\d{1,2}[.)] ?)?[^\n.!?。|:：\d]{2,60}[:：]?")
_HEADING_WORD = re.compile(
    r"allerg|medic|tablet|diagnos|histor|problem|plan|discharge|admission|investigation|examination|vital|immuni|"
    r"procedure|assessment|social|famil|current|stopped|surg|labor|result|impression|follow|过敏|用药|药物|诊断|病史|检查|家族",
    re.IGNORECASE,
)
# A title and nothing more: "Family history of breast cancer" may be one of a list of problems.
_FAMILY_HEADING = re.compile(
    r"(?:(?:past|relevant) )?(?:\w+ ?(?:and|&|/) ?)?family(?: ?(?:and|&|/) ?\w+)?(?: medical)?(?: history| hx)?\s*:?"
    r"|家族(?:病|遗传)?史:?",
    re.IGNORECASE,
)
_FAMILY_LINE = re.compile(
    r"(?:^|(?<=[.;。；]))\W*(?:(?:family(?: medical)?(?: history| hx)?|fhx?)\s*[:：]|家族(?:病|遗传)?史\s*[:：])"
    r"[^\n]*?(?=$|[.;。；]\s*(?:social|past|medical|drug|medic\w+|allerg\w+|on exam\w*|o/e|examination|plan)\b"
    r"|[.;。；]\s*(?:个人|既往|过敏|婚育|体格|查体)\w{0,3}[:：])",
    re.IGNORECASE | re.MULTILINE,
)
_HEAD_LINE = re.compile(
    r"#?\d{1,2}[.):]? |(?:[A-Z][A-Za-z]+ ){1,3}\d{1,2}:(?!\d)"
)  # "1. Asthma", "WOUND 2: venous ulcer"
_NONE = re.compile(rf"\W*(?:{DENIES.pattern})", re.IGNORECASE)  # the answer to a title
NO_ALLERGIES = re.compile(r"\bnkd?a\b", re.IGNORECASE)
_RELATIVE = re.compile(
    r"\b(?:(?:grand)?(?:mother|father|mum|dad|son|daughter)|brother|sister|aunt|uncle|cousin|sibling|parent)s?\b"
    r"|[父母兄弟姐妹叔伯舅姑姨祖爷奶爸妈哥]",
    re.IGNORECASE,
)
_RULE = re.compile(r"[-=_*]{3,}")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_NO_HEAD = (0, 0)
_MAX_HEAD = 100  # characters of a line in a block
_TITLE = re.compile(r"[A-Z][^\d.,;:!?|]*")


Heading = tuple[int, frozenset[str], bool]  # where it ends, the keys of its words, whether it speaks of the family


@dataclass(frozen=True, slots=True)
class Window:
    """What is said within a few adjacent sentences, or in an item and the line over its block."""

    start: int
    end: int
    facts: Facts
    keys: frozenset[str]
    shown: tuple[int, int]
    head: tuple[int, int]  # the first row of the table that it begins in; empty if there is none


@dataclass(frozen=True, slots=True)
class Parsed:
    """A passage, read once."""

    text: str
    sentences: tuple[tuple[int, int], ...]
    items: tuple[bool, ...]  # of each sentence, whether the mark or the number of a list's item begins it
    begins: tuple[bool, ...]  # whether it begins a block of lines, with which nothing before goes on
    headings: tuple[Heading, ...]
    facts: Facts
    keys: frozenset[str]
    uncertain: tuple[tuple[int, int], ...]
    modes: tuple[tuple[str, int, int], ...]  # what is only planned, was refused …: (mode, start, end)
    family: tuple[tuple[int, int], ...]  # where a line says that it tells of the family
    blocks: tuple[tuple[tuple[int, int], tuple[int, int]], ...]  # lines, each after the one over its block
    persons: frozenset[str]  # keys of the words that are somebody's name


@lru_cache(maxsize=8192)
def parse(text: str, section: str) -> Parsed:
    """section: the title that the passage stands under, where it does not hold it itself."""
    sentences = tuple(sentence_spans(text))
    facts = facts_of(text, sentences)
    headings = (*_carried(section), *_headings(text, sentences, facts))
    keys = {word.key for word in facts.words}.union(*(heading[1] for heading in headings))
    if NO_ALLERGIES.search(text):
        keys.add("term:allergic")
    items = tuple(bool(_ITEM_MARK.match(text, start)) for start, _ in sentences)
    uncertain = tuple(uncertain_spans(text, sentences))
    modes = tuple(mode_spans(plain(text), sentences))
    family = tuple(_of_family(text, sentences))
    blocks = tuple(_blocks(text, sentences, {heading[0] for heading in headings}))
    begins = tuple(_begins(text, before, span) for before, span in zip(((0, 0), *sentences), sentences, strict=False))
    persons = frozenset(word.key for word in facts.words if word.is_name)
    return Parsed(
        text, sentences, items, begins, headings, facts, frozenset(keys), uncertain, modes, family, blocks, persons
    )


def _begins(text: str, before: tuple[int, int], span: tuple[int, int]) -> bool:
    line = text[text.rfind("\n", 0, span[0]) + 1 : span[1]]
    is_apart = bool(_BLANK_LINE.search(text, before[1], span[0]))
    is_prose = text[before[1] - 1 : before[1]] in (".", "。") and line.endswith((".", "。"))
    return bool(_HEAD_LINE.match(line)) or (is_apart and not is_prose)


def _of_family(text: str, sentences: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The sentences of a line of family history that name a relative, and its first."""
    for match in _FAMILY_LINE.finditer(text):
        for start, end in sentences:
            is_first = start <= match.start() < end
            if start < match.end() and end > match.start() and (is_first or _RELATIVE.search(text, start, end)):
                yield max(start, match.start()), end


def _blocks(
    text: str, sentences: Sequence[tuple[int, int]], titles: Collection[int]
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Lines of a form or a list, each after the one that it stands under: of "WOUND 2: venous ulcer", "Size: 2.5 cm",
    "Dressing: zinc paste" the last two after the first; and what is indented after the line that is not. titles: where
    each ends."""
    head: tuple[int, int] | None = None
    outer: list[tuple[int, tuple[int, int]]] = []  # lines over this one, by how far each is indented
    for number, (start, end) in enumerate(sentences):
        before = text[sentences[number - 1][1] : start] if number else "\n\n"
        if "\n" not in before:
            continue
        line = text[text.rfind("\n", 0, start) + 1 : end]
        indent = len(line) - len(line.lstrip()) + bool(_ITEM_MARK.match(line.lstrip()))
        if is_new := bool(_BLANK_LINE.search(before)):
            outer.clear()
        while outer and outer[-1][0] >= indent:
            outer.pop()
        if end in titles or _HEAD_LINE.match(line):
            head = start, end
        elif is_new or _RULE.fullmatch(line):
            head = (start, end) if len(line) <= _MAX_HEAD and not line.endswith((".", "-", "=")) else None
        elif len(line) <= _MAX_HEAD:
            over = outer[-1][1] if outer else head
            if over:
                yield over, (start, end)
            elif _RULE.fullmatch(text[slice(*sentences[number - 1])]):
                head = start, end
        outer.append((indent, (start, end)))


def _carried(section: str) -> Iterator[Heading]:
    """A title from before the passage holds from its first character on."""
    spans = [(0, len(section))]
    for _, keys, is_family in _headings(section, spans, facts_of(section, spans)):
        yield 0, keys, is_family


def _headings(text: str, sentences: Sequence[tuple[int, int]], facts: Facts) -> Iterator[Heading]:
    """The titles that say what stands below them; and those over prose that say nothing known, since what stands above
    them does not hold for it."""
    for (start, end), following in zip(sentences, (*sentences[1:], (0, 0)), strict=False):
        line = plain(text[start:end].lstrip("# "))
        if _HEADING.fullmatch(line) and len(line.split()) <= 6 and _HEADING_WORD.search(line):
            is_none = bool(DENIES.search(line) or (following[0] and _NONE.match(text, following[0])))
            keys = frozenset(w.key for w in facts.words if start <= w.start < end and not is_none)
            yield end, keys, bool(_FAMILY_HEADING.fullmatch(line))
        elif _is_title(line, text[slice(*following)]):
            yield end, frozenset(), False


def _is_title(line: str, below: str) -> bool:
    """Whether a short line announces the prose below it. The items of a list ("Penicillin" above "Latex") do not."""
    is_short = len(line.split()) <= 6 and bool(_TITLE.fullmatch(line))
    return is_short and below.endswith(".") and len(below) > 2 * len(line)


def windows(parsed: Parsed) -> Iterator[Window]:
    """One sentence, then two, then three, but never two items of a list; an exact fit in few words is better evidence
    than a loose one in many."""
    for size in range(1, MAX_WINDOW + 1):
        for first in range(len(parsed.sentences) - size + 1):
            if sum(parsed.items[first : first + size]) > 1 or any(parsed.begins[first + 1 : first + size]):
                continue
            start, end = parsed.sentences[first][0], parsed.sentences[first + size - 1][1]
            words = tuple(w for w in parsed.facts.words if start <= w.start < end)
            facts = _cut(parsed.facts, words, start, end)
            keys = frozenset(w.key for w in words)
            yield Window(start, end, facts, keys, (start, end), table_head(parsed.text, start) or _NO_HEAD)
    for head, item in parsed.blocks:
        facts = joined(parsed.facts, head, item)
        keys = frozenset(w.key for w in facts.words)
        yield Window(*item, facts, keys, (head[0], item[1]), table_head(parsed.text, item[0]) or _NO_HEAD)


def _cut(facts: Facts, words: tuple[Word, ...], start: int, end: int) -> Facts:
    return Facts(
        words=words,
        quantities=tuple(q for q in facts.quantities if start <= q.quantity.start < end),
        dates=tuple(d for d in facts.dates if start <= d.start < end),
        date_clauses=tuple(c for d, c in zip(facts.dates, facts.date_clauses, strict=True) if start <= d.start < end),
        sides=tuple(s for s in facts.sides if start <= s.start < end),
        statuses=tuple(s for s in facts.statuses if start <= s.start < end),
        is_hypothetical=any("hypothetical" in word.flags for word in words),
        is_uncertain=facts.is_uncertain,
        num_denials=facts.num_denials,
        has_exception=facts.has_exception,
        parts=tuple(part for part in facts.parts if start <= part[0] < end),
    )


def joined(facts: Facts, *spans: tuple[int, int]) -> Facts:
    """The facts of several stretches of the text."""
    cut = [_cut(facts, tuple(w for w in facts.words if within(w.start, span)), *span) for span in spans]
    joined: dict[str, Any] = {
        name: tuple(item for part in cut for item in getattr(part, name))
        for name in ("words", "quantities", "dates", "date_clauses", "sides", "statuses", "parts")
    }
    return replace(cut[0], **joined)


def heading_over(parsed: Parsed, place: int) -> tuple[frozenset[str], bool]:
    """The last title above; the one from before the passage, which ends at 0, is known to hold for all of it."""
    end, keys, is_family = next((h for h in reversed(parsed.headings) if h[0] <= place), (0, frozenset(), False))
    return (keys, is_family) if end == 0 or place - end <= HEADING_REACH else (frozenset(), False)


def within(place: int, span: tuple[int, int]) -> bool:
    """Whether a place lies in [start, end)."""
    return span[0] <= place < span[1]
