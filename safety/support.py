"""Does a claim stand in its passages?

Exact where a slip can harm: numbers with their units and the drug or measurement they belong to, how often, dates,
drug names, sides, negation, whose history, and every clinical word. For the rest, most of its words must be found. All
within three adjacent sentences of one passage, or each item of a list in its own. What is in doubt is not supported.

Knows nothing of rules, and of medicine only what `lexicon/` says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from contracts import Finding, Passage, Verdict
from safety.claims import strip_citations
from safety.facts import (
    EXCEPTION,
    STATUSES,
    Facts,
    OwnedQuantity,
    Word,
    dates_over,
    facts_of,
    is_owner,
    plain,
    table_head,
    uncertain_spans,
)
from safety.lexicon import common_words
from safety.quantities import DateFact
from safety.sentences import sentence_spans

MIN_COVERAGE = 0.7  # share of a claim's content words found in its evidence
MAX_WINDOW = 3  # adjacent sentences
MAX_ITEMS = 12  # list items checked one by one
HEADING_REACH = 600  # characters over which a heading in the passage holds

SUPPORT_SOURCE = "Bedside support check (safety/support.py)"
_LETTER = re.compile(r"[^\W\d_]")
_MARKUP = re.compile(r"^\s*(?:[-*•·#>]+\s+|\(?\d{1,2}[.)、]\s+)+|\*\*|__|`")
_ITEM_END = re.compile(r"[;；，]|,(?!\d)|\n|[.。](?=\s|$)")
_ITEM_MARK = re.compile(r"(?:[-*•·]|\(?\d{1,2}[.)、])\s")
_PLAIN_WORD = re.compile(r"(?<![\w-])[a-z]{6,}(?![\w-])")
_STUTTER = re.compile(r"\b([^\W\d_]{2,})(?:\W+\1\b){2,}", re.IGNORECASE)
_ONLY_A_NAME = re.compile(
    r"(?:the )?(?:patient|mr|mrs|ms|miss|mx|dr|prof|professor|doctor|nurse|sir|madam)\.?\s*"
    r"(?:[A-Z][\w'’.-]*\s*){0,4}[.,;!]*"
    r"|(?:患者|病人|医生)?[\u3400-\u9fff]{1,3}(?:先生|女士|医生|太太|小姐)[。，]?",
    re.IGNORECASE,
)
_CAPITALISED = re.compile(r"(?:[A-Z][\w'’.-]*\W*)+")
_BROKEN_CITATION = re.compile(r"\[\d+(?![\d\]])|\[\s*$")
_OF_PASSAGES = re.compile(r"\b(?:the|these|those) passages\b", re.IGNORECASE)
_ITEM = re.compile(r"\s*(?:[;；、]|,\s+and\b|,|，|\band\b)\s*")
_HEADING = re.compile(r"(?:\d{1,2}[.)] ?)?[^\n.!?。|:：\d]{2,60}[:：]?")
_HEADING_WORD = re.compile(
    r"allerg|medic|tablet|diagnos|histor|problem|plan|discharge|admission|investigation|examination|vital|immuni|"
    r"procedure|assessment|social|famil|current|stopped|surg|labor|result|impression|follow|过敏|用药|药物|诊断|病史|检查|家族",
    re.IGNORECASE,
)
_ANY_NEGATION = re.compile(
    r"\b(?:no|not|nor|none|never|cannot|without|den(?:y|ies|ied|ying)|negative|absent|absence|lack\w*|free|neither|nil|"
    r"unremarkable|unlikely|unable|normal|resolved|exclud\w+|ruled out|non\w*|nkda|nad)\b|n't\b"
    r"|无|未|否认|没|不|非|阴性",
    re.IGNORECASE,
)
_EXCEPTION = re.compile(EXCEPTION, re.IGNORECASE)
# A title and nothing more: "Family history of breast cancer" may be one of a list of problems.
_FAMILY_HEADING = re.compile(
    r"(?:(?:past|relevant) )?(?:\w+ ?(?:and|&|/) ?)?family(?: ?(?:and|&|/) ?\w+)?(?: medical)?(?: history| hx)?\s*:?"
    r"|家族(?:病|遗传)?史:?",
    re.IGNORECASE,
)
_TITLE = re.compile(r"[A-Z][^\d.,;:!?|]*")

_RELATIVE_WORDS = "mother father brother sister son daughter aunt uncle grandmother grandfather cousin"
_REACTION_WORDS = (
    "rash hives urticaria anaphylaxis anaphylactic shock angioedema swelling of the lips tongue face throat itching "
    "wheeze bronchospasm breathlessness nausea vomiting diarrhoea dizziness headache cough hypotension collapse "
    "reaction allergy intolerance side effect severity mild moderate severe cause caused after with confirmed active"
)
_RESULT_WORDS = "normal abnormal unremarkable positive negative high low raised elevated stable unstable clear"
_RELATIVES, _REACTIONS, _RESULTS = (
    frozenset(word.key for word in facts_of(words, [(0, len(words))]).words)
    for words in (_RELATIVE_WORDS, _REACTION_WORDS, _RESULT_WORDS)
)
# The subject that says, then that it does not say, then at most what. No second statement may ride along.
_SOURCE = r"(?:passage|record|document|note|source|text|chart|letter)s?"
_ABSTENTION = re.compile(
    r"(?:i(?:'m| am) sorry[,.]? (?:but )?)?(?:(?:the|these|this|those|any of the|none of the)\s+)?"
    rf"(?:given |provided |available |numbered )?(?:patient's |medical )?{_SOURCE}\s+"
    r"(?:(?:do|does|did)(?:\s+not|n't)\s+(?:say|state|mention|contain|hold|specify|record|include|"
    r"provide|give|document|"
    r"show|answer|describe|list|indicate|address)|(?:say|contain|give|hold)s?\s+(?:nothing|no information))"
    r"(?P<rest>(?:\s+[^\s,;:.!?]+){0,22})\s*[.!]?",
    re.IGNORECASE,
)
_ABSTENTION_OTHER = re.compile(
    rf"(?:(?:this|that|it) is not (?:stated|mentioned|documented|recorded|given) in the {_SOURCE}"
    rf"|(?:not|nothing) (?:stated|mentioned|documented|recorded|found) in the {_SOURCE}"
    rf"|i (?:cannot|can't|could not) find (?:this|that|it|the answer) in the {_SOURCE}"
    r"|(?:根据)?(?:所给|提供的|上述|现有)?的?(?:病历|记录|资料|文档|段落|文中|材料)[里中内]?[均并]?(?:没有|未|无)(?:明确)?"
    r"(?:提到|提及|说明|记载|记录|给出|包含|相关(?:信息|记录|内容))[^，,；;。但]{0,24})\s*[.!。！]?",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"^\s*(?:how|when|why|what|which|where|who|whether|if|this|that|it|the answer|an answer|enough|any information|"
    r"information|the information|anything)\b",
    re.IGNORECASE,
)
# A second statement, and an instruction: neither may ride along with an abstention.
_STATEMENT = re.compile(
    r"\b(?:is|are|was|were|has|have|had|because|stop|and (?:he|she|it|they|the))\b",
    re.IGNORECASE,
)
_RIDER = re.compile(
    r"\b(?:but|however|although|though|yet|so \w+|therefore|instead|usually|typically|generally|"
    r"should|must|recommend\w*|"
    r"take|give|start|safe|normal)\b",
    re.IGNORECASE,
)


_Heading = tuple[int, frozenset[str], bool]  # where it ends, the keys of its words, whether it speaks of the family


@dataclass(frozen=True, slots=True)
class Support:
    """evidence maps passage index -> (start, end) in its text; missing says what kept the claim from standing."""

    supported: bool
    evidence: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    missing: str = ""


@dataclass(frozen=True, slots=True)
class _Window:
    """What is said within a few adjacent sentences."""

    start: int
    end: int
    facts: Facts
    keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A passage, read once."""

    text: str
    sentences: tuple[tuple[int, int], ...]
    items: tuple[bool, ...]  # of each sentence, whether the mark or the number of a list's item begins it
    headings: tuple[_Heading, ...]
    facts: Facts
    keys: frozenset[str]
    uncertain: tuple[tuple[int, int], ...]


def check_support(claim: str, cited: Sequence[int], passages: Sequence[Passage]) -> Support:
    """Whether the claim stands in the cited passages, or failing these in another one of those given."""
    text = plain(_MARKUP.sub("", strip_citations(claim))).strip()
    if malformed := _malformed(text):
        return Support(False, missing=malformed)
    if not passages:
        return Support(False, missing="there is no passage")
    if foreign := _foreign_word(text, passages):
        return Support(False, missing=f"“{foreign}” is not in the record")
    facts = facts_of(text, sentence_spans(text) or [(0, len(text))])
    if not facts.words:
        return Support(False, missing="it names nothing that could be looked up")
    named = [index for index in dict.fromkeys(cited) if 0 <= index < len(passages)]
    others = [index for index in range(len(passages)) if index not in named]
    evidence = {i: span for i in named if (span := _find(facts, passages[i]))}
    if not evidence:
        evidence = next(({i: span} for i in others if (span := _find(facts, passages[i]))), {})
    if not evidence:
        evidence = _find_items(text, [*named, *others], passages)
    if not evidence:
        return Support(False, missing=_explain(facts, [passages[i] for i in named or others]))
    return Support(True, evidence, _citation_findings(claim, cited, evidence, len(passages)))


def _malformed(text: str) -> str:
    """What keeps a text from being a sentence at all; "" if it may be one. Small models break off and stutter."""
    if not _LETTER.search(text):
        return "it holds no statement"
    if _ONLY_A_NAME.fullmatch(text) and (_CAPITALISED.fullmatch(text) or not text.isascii()):
        return "it names somebody and says nothing of them"
    if text.rstrip().endswith((":", "：")):
        return "it announces something and does not say it"
    if _STUTTER.search(text):
        return "it repeats itself"
    if _BROKEN_CITATION.search(text):
        return "its citation is broken"
    if _OF_PASSAGES.search(text):
        return "it speaks of the passages, not of the patient"
    return ""


def _foreign_word(text: str, passages: Sequence[Passage]) -> str:
    """A word that is neither common nor, but for its ending, anywhere in the passages: misspelt, or invented. Names
    are left out: a record says "he" for most of a page."""
    record = " ".join(passage.text for passage in passages).casefold()
    words = (word for word in _PLAIN_WORD.findall(text) if word not in common_words())
    return next((word for word in words if word[:-2] not in record), "")


def is_abstention(claim: str) -> bool:
    """Whether a claim says that the record does not say, and nothing else."""
    text = plain(_MARKUP.sub("", strip_citations(claim))).strip()
    match = _ABSTENTION.fullmatch(text)
    if match:
        rest = match.group("rest")
        return not _RIDER.search(rest) and bool(_ABOUT.search(rest) or not _STATEMENT.search(rest))
    return bool(_ABSTENTION_OTHER.fullmatch(text))


def abstention_object(claim: str) -> str:
    """What an abstention says is not in the record ("allergies"); "" where it names nothing that can be looked up."""
    text = plain(_MARKUP.sub("", strip_citations(claim))).strip()
    match = _ABSTENTION.fullmatch(text)
    rest = match.group("rest") if match else ""
    return "" if _ABOUT.search(rest) else re.sub(r"^\s*(?:any|the|a|an|his|her|their|of|no)\b", "", rest).strip()


# --- one claim, one passage -------------------------------------------------------------------------------------


def _find(claim: Facts, passage: Passage) -> tuple[int, int] | None:
    """The shortest stretch of the passage in which the claim stands."""
    parsed = _parse(passage.text, passage.section)
    needed = {word.key for word in claim.words if word.is_required}
    if not needed <= parsed.keys:
        return None
    return next(((w.start, w.end) for w in _windows(parsed) if not _lacks(claim, w, parsed)), None)


@lru_cache(maxsize=8192)
def _parse(text: str, section: str) -> _Parsed:
    """section: the title that the passage stands under, where it does not hold it itself."""
    sentences = tuple(sentence_spans(text))
    facts = facts_of(text, sentences)
    headings = (*_carried(section), *_headings(text, sentences, facts))
    keys = {word.key for word in facts.words}.union(*(heading[1] for heading in headings))
    items = tuple(bool(_ITEM_MARK.match(text, start)) for start, _ in sentences)
    return _Parsed(text, sentences, items, headings, facts, frozenset(keys), tuple(uncertain_spans(text, sentences)))


def _carried(section: str) -> Iterator[_Heading]:
    """A title from before the passage holds from its first character on."""
    spans = [(0, len(section))]
    for _, keys, is_family in _headings(section, spans, facts_of(section, spans)):
        yield 0, keys, is_family


def _headings(text: str, sentences: Sequence[tuple[int, int]], facts: Facts) -> Iterator[_Heading]:
    """The titles that say what stands below them; and those over prose that say nothing known, since what stands above
    them does not hold for it."""
    for (start, end), following in zip(sentences, (*sentences[1:], (0, 0)), strict=False):
        line = plain(text[start:end].lstrip("# "))
        if _HEADING.fullmatch(line) and len(line.split()) <= 6 and _HEADING_WORD.search(line):
            keys = frozenset(w.key for w in facts.words if start <= w.start < end)
            yield end, keys, bool(_FAMILY_HEADING.fullmatch(line))
        elif _is_title(line, text[slice(*following)]):
            yield end, frozenset(), False


def _is_title(line: str, below: str) -> bool:
    """Whether a short line announces the prose below it. The items of a list ("Penicillin" above "Latex") do not."""
    is_short = len(line.split()) <= 6 and bool(_TITLE.fullmatch(line))
    return is_short and below.endswith(".") and len(below) > 2 * len(line)


def _windows(parsed: _Parsed) -> Iterator[_Window]:
    """One sentence, then two, then three, but never two items of a list; an exact fit in few words is better evidence
    than a loose one in many."""
    for size in range(1, MAX_WINDOW + 1):
        for first in range(len(parsed.sentences) - size + 1):
            if sum(parsed.items[first : first + size]) > 1:
                continue
            start, end = parsed.sentences[first][0], parsed.sentences[first + size - 1][1]
            words = tuple(w for w in parsed.facts.words if start <= w.start < end)
            yield _Window(start, end, _cut(parsed.facts, words, start, end), frozenset(w.key for w in words))


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
    )


def _lacks(claim: Facts, window: _Window, parsed: _Parsed) -> str:
    """Why the claim does not stand in the window; "" if it does."""
    # Only a title that holds for the whole window, not one that another within it ends.
    heading = _heading_over(parsed, window.start)[0] & _heading_over(parsed, window.end)[0]
    head = table_head(parsed.text, window.start) or (0, 0)
    found = window.keys | heading | {word.key for word in parsed.facts.words if _within(word.start, head)}
    for word in claim.words:
        if word.is_required and word.key not in found:
            return f"“{_readable(word)}” is not in the record there"
    if sum(word.key in found for word in claim.words) < MIN_COVERAGE * len(claim.words):
        return "too few of its words stand together in the record"
    return (
        _lacks_numbers(claim, window, parsed)
        or _lacks_sides(claim, window)
        or _lacks_change(claim, window, heading)
        or _lacks_result(claim, window, parsed)
        or _lacks_denial(claim, window, parsed.text)
        or _lacks_pair(claim, window, parsed, heading)
        or _lacks_status(claim, window, parsed)
    )


def _lacks_numbers(claim: Facts, window: _Window, parsed: _Parsed) -> str:
    for owned in claim.quantities:
        if not any(_is_same(owned, other, claim, window, parsed) for other in window.facts.quantities):
            return f"“{f'{owned.quantity.value} {owned.quantity.unit}'.strip()}” does not stand there for this"
    head = table_head(parsed.text, window.start) or (0, 0)
    dated = [*zip(window.facts.dates, window.facts.date_clauses, strict=True)]
    dated += [(date, (date.start, date.end)) for date in parsed.facts.dates if _within(date.start, head)]
    for claimed, clause in zip(claim.dates, claim.date_clauses, strict=True):
        own = [said for date, said in dated if _is_same_date(claimed, date, parsed.text)]
        rivals = [said for _, said in dated if said not in own]
        words = {w.key for w in claim.words if _within(w.start, clause)} - {q.owner for q in claim.quantities}
        places = [[w.start for w in window.facts.words if w.key == key] for key in words]
        if not own or any(found and _all_elsewhere(found, own, rivals) for found in places):
            return "the date is another one in the record"
    return ""


def _is_same(claimed: OwnedQuantity, other: OwnedQuantity, claim: Facts, window: _Window, parsed: _Parsed) -> bool:
    """The same number, of the same drug or measurement, not of another moment: of "4.3 on admission, 4.5 at
    discharge" neither may be said of the other."""
    if not other.quantity.stands_for(claimed.quantity) or (claimed.owner and other.owner != claimed.owner):
        return False
    if over := dates_over(parsed.text, other.quantity.start, parsed.facts.dates):
        days = [day for day in claim.dates if _within(day.start, claimed.clause)]
        if not all(any(_is_same_date(day, date, parsed.text) for date in over) for day in days):
            return False
    rivals = [
        q.clause
        for q in window.facts.quantities
        if q.quantity.unit == other.quantity.unit
        and q.clause != other.clause
        and q.quantity.value != other.quantity.value
    ]
    said = _said_of(claimed, claim, window, parsed.text)
    return not any(_all_elsewhere(places, [other.clause], rivals) for places in said)


def _said_of(claimed: OwnedQuantity, claim: Facts, window: _Window, text: str) -> Iterator[list[int]]:
    """For each word and date in the clause of a claimed number, where it stands in the window."""
    words = [w for w in claim.words if w.is_required and not is_owner(w.key) and _within(w.start, claimed.clause)]
    days = [day for day in claim.dates if _within(day.start, claimed.clause)]
    found = [[w.start for w in window.facts.words if w.key == word.key] for word in words]
    found += [[d.start for d in window.facts.dates if _is_same_date(day, d, text)] for day in days]
    yield from filter(None, found)


def _within(place: int, span: tuple[int, int]) -> bool:
    return span[0] <= place < span[1]


def _lacks_change(claim: Facts, window: _Window, heading: frozenset[str]) -> str:
    """Started, stopped, allergic …: of the same drug; and a change from one number to another in the same direction."""
    for claimed in claim.statuses:
        if not claimed.owner:
            continue
        owner = next((w.start for w in window.facts.words if w.key == claimed.owner), -1)
        if claimed.key not in heading and not any(
            other.key == claimed.key and (other.owner == claimed.owner or (not other.owner and other.start < owner))
            for other in window.facts.statuses
        ):
            return f"“{claimed.key.partition(':')[2]}” is not said of that drug there"
    return ""


def _lacks_result(claim: Facts, window: _Window, parsed: _Parsed) -> str:
    """Normal, high, stable …: of the same thing. Of "blood pressure was 158/96; the ECG was normal" nothing makes the
    pressure normal: what is first said of a thing after its name is what the record says of it. Who says all of the
    record's words, and in its order, says it of the same things."""
    if [(w.key, w.flags) for w in claim.words] == [(w.key, w.flags) for w in window.facts.words]:
        return ""
    subject: Word | None = None
    numbers = [owned.quantity.start for owned in claim.quantities]
    for word in claim.words:
        if subject and any(subject.start < number < word.start for number in numbers):
            subject = None  # the number was what is said of it; another thing follows
        if word.key not in _RESULTS:
            subject = subject or word
        elif subject and not any(
            _is_result_of(place.start, word.key, window, parsed)
            for place in window.facts.words
            if place.key == subject.key
        ):
            return f"“{_readable(word)}” is not said of that there"
    return ""


def _is_result_of(place: int, result: str, window: _Window, parsed: _Parsed) -> bool:
    start, end = next(span for span in parsed.sentences if span[0] <= place < span[1])
    said = [(w.start, w.key) for w in window.facts.words if w.key in _RESULTS and start <= w.start < end]
    after = [item for item in said if item[0] > place]
    after += [(q.quantity.start, "") for q in window.facts.quantities if place < q.quantity.start < end]
    if after:
        return min(after)[1] == result
    return any(key == result for _, key in said)


def _lacks_pair(claim: Facts, window: _Window, parsed: _Parsed, heading: frozenset[str]) -> str:
    """What one allergen does, or one relative has, is said of no other of a list: "penicillin: rash; latex: hives"."""
    kinds = [(_is_relative, lambda word: not _is_relative(word))]
    if "term:allergic" in heading | window.keys:
        kinds.append((lambda word: not _is_reaction(word), _is_reaction))
    elif "term:allergic" in parsed.keys:
        kinds.append((lambda word: word.key.startswith("drug:"), _is_reaction))
    for is_name, is_said in kinds:
        named = {word.key for word in claim.words if is_name(word)}
        for word in (word for word in claim.words if named and is_said(word)):
            places = [other for other in window.facts.words if other.key == word.key]
            beside = [_names_beside(place, window, parsed.text, is_name) for place in places]
            if beside and all(names and named.isdisjoint(names) for names in beside):
                return f"“{_readable(word)}” is said of another there"
    return ""


def _names_beside(word: Word, window: _Window, text: str, is_name: Callable[[Word], bool]) -> set[str]:
    """The names that stand with a word in its item of a list."""
    start = max((m.end() for m in _ITEM_END.finditer(text, window.start, word.start)), default=window.start)
    match = _ITEM_END.search(text, word.end, window.end)
    end = match.start() if match else window.end
    return {other.key for other in window.facts.words if start <= other.start < end and is_name(other)}


def _is_relative(word: Word) -> bool:
    return word.key in _RELATIVES


def _is_reaction(word: Word) -> bool:
    return word.key in _REACTIONS


def _lacks_denial(claim: Facts, window: _Window, text: str) -> str:
    """A denial needs one in the record; and "no other allergies" is no absence of allergies."""
    if claim.num_denials > sum(1 for _ in _ANY_NEGATION.finditer(text, window.start, window.end)):
        return "the record does not deny it there"
    is_denied = any("negated" in word.flags for word in claim.words)
    if is_denied and not claim.has_exception and _EXCEPTION.search(text, window.start, window.end):
        return "the record makes an exception there"
    return ""


def _is_same_date(claimed: DateFact, other: DateFact, text: str) -> bool:
    if not other.stands_for(claimed):
        return False
    years = {reading[0] for reading in other.readings}
    return any(year is None or year in years or str(year) in text for year, _, _ in claimed.readings)


def _lacks_sides(claim: Facts, window: _Window) -> str:
    """The same side, of the same thing, and not of what the record says of the other side."""
    found = window.facts.sides
    for side in claim.sides:
        missing = f"“{side.key}” is not the side in the record"
        same = [other for other in found if other.key == side.key]
        if not same:
            return missing
        noun = next((key for key in side.nouns if any(key in other.nouns for other in found)), None)
        if noun and not any(noun in other.nouns for other in same):
            return missing
        rivals = [other.clause for other in found if other.key != side.key]
        for word in claim.words:
            if word.key not in side.nouns[:1] and _within(word.start, side.clause):
                places = [w.start for w in window.facts.words if w.key == word.key]
                if places and _all_elsewhere(places, [other.clause for other in same], rivals):
                    return missing
    return ""


def _all_elsewhere(places: Sequence[int], own: Sequence[tuple[int, int]], rivals: Sequence[tuple[int, int]]) -> bool:
    """Whether every place lies where something else is spoken of, and none where this is."""
    return not any(_within(place, span) for place in places for span in own) and all(
        any(_within(place, rival) for rival in rivals) for place in places
    )


def _lacks_status(claim: Facts, window: _Window, parsed: _Parsed) -> str:
    for word in claim.words:
        occurrences = [other for other in window.facts.words if other.key == word.key]
        if not occurrences:
            continue
        if not any(_has_same_status(word, other, claim, parsed) for other in occurrences):
            return f"“{_readable(word)}” is said with another meaning there (denied, possible or a relative's)"
    return ""


def _has_same_status(word: Word, other: Word, claim: Facts, parsed: _Parsed) -> bool:
    if ("negated" in word.flags) != ("negated" in other.flags):
        return False
    is_doubted = any(start <= other.start < end for start, end in parsed.uncertain)
    if is_doubted and not claim.is_uncertain and not is_owner(word.key):
        return False
    if not word.is_required:
        return True
    if ("family" in word.flags) != ("family" in other.flags or _heading_over(parsed, other.start)[1]):
        return False
    if "family" in other.flags and not any("family" in w.flags for w in claim.words):
        return False
    return "hypothetical" not in other.flags or claim.is_hypothetical


def _heading_over(parsed: _Parsed, place: int) -> tuple[frozenset[str], bool]:
    """The last title above; the one from before the passage, which ends at 0, is known to hold for all of it."""
    end, keys, is_family = next((h for h in reversed(parsed.headings) if h[0] <= place), (0, frozenset(), False))
    return (keys, is_family) if end == 0 or place - end <= HEADING_REACH else (frozenset(), False)


# --- lists ------------------------------------------------------------------------------------------------------


def _find_items(text: str, order: Sequence[int], passages: Sequence[Passage]) -> dict[int, tuple[int, int]]:
    """Evidence of a list, item by item, each with the words that lead the list ("stopped: a, b" is two stops)."""
    items = [item for item in _ITEM.split(text.rstrip(".。 ")) if item.strip()]
    if not 2 <= len(items) <= MAX_ITEMS:
        return {}
    lead = _lead(items[0])
    evidence: dict[int, tuple[int, int]] = {}
    for number, item in enumerate(items):
        part = item if number == 0 else f"{lead} {item}".strip()
        facts = facts_of(part, [(0, len(part))])
        own = facts_of(item, [(0, len(item))])
        if not any(word.is_required for word in own.words):
            return {}
        found = next(((i, span) for i in order if (span := _find(facts, passages[i]))), None)
        if found is None:
            return {}
        index, (start, end) = found
        start_before, end_before = evidence.get(index, (start, end))
        evidence[index] = (min(start, start_before), max(end, end_before))
    return evidence


def _lead(item: str) -> str:
    """The words of a list's first item that hold for all: what leads up to its first drug, measurement or finding, and
    whether that is started, stopped, an allergy …"""
    facts = facts_of(item, [(0, len(item))])
    items = [word.start for word in facts.words if word.is_required and word.key not in _STATUS]
    items += [owned.quantity.start for owned in facts.quantities]
    return item[: min(items, default=0)]


_STATUS = STATUSES | {"term:discharge", "term:admit"}


# --- what is said about it --------------------------------------------------------------------------------------


def _citation_findings(
    claim: str, cited: Sequence[int], evidence: Mapping[int, tuple[int, int]], num_passages: int
) -> tuple[Finding, ...]:
    end = len(claim)
    findings = []
    if invented := [index + 1 for index in cited if not 0 <= index < num_passages]:
        message = f"Passage [{invented[0]}] does not exist; the citation was removed."
        findings.append(Finding("support.citation-invented", Verdict.NOTICE, 0, end, message, SUPPORT_SOURCE))
    if not set(evidence) & set(cited):
        message = "The citation was corrected: the statement stands in another passage than the model named."
        findings.append(Finding("support.citation-corrected", Verdict.NOTICE, 0, end, message, SUPPORT_SOURCE))
    return tuple(findings)


def _explain(claim: Facts, passages: Sequence[Passage]) -> str:
    """The reason of the passage that came closest."""
    closest, reason = -1.0, "it stands in no passage"
    for passage in passages:
        parsed = _parse(passage.text, passage.section)
        keys = sum(word.key in parsed.keys for word in claim.words)
        for window in _windows(parsed):
            score = keys / 1000 + sum(word.key in window.keys for word in claim.words)
            if score > closest:
                closest, reason = score, _lacks(claim, window, parsed)
    return reason


def _readable(word: Word) -> str:
    return word.key.partition(":")[2] or word.key
