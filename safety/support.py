"""Does a claim stand in its passages?

Exact where a slip can harm: numbers with their units and the drug or measurement they belong to, how often, dates,
drug names, sides, negation, whose history, and every clinical word. For the rest, most of its words must be found. All
within three adjacent sentences of one passage, or each item of a list in its own. What is in doubt is not supported.

Knows nothing of rules, and of medicine only what `lexicon/` says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from contracts import Finding, Passage, Verdict
from safety.binding import SUBJECTS, find_mixed, kinds_of
from safety.claims import unmarked
from safety.facts import ANSWERED_NONE, EXCEPTION, STATUSES, Facts, OwnedQuantity, dates_over, facts_of
from safety.lexicon import common_words
from safety.modality import is_said_so, unborne_by
from safety.quantities import DateFact
from safety.sentences import sentence_spans
from safety.tables import cells_under, row_at, row_units
from safety.windows import NO_ALLERGIES, Parsed, Window, heading_over, joined, parse, windows, within
from safety.words import Word, is_listed, is_owner, plain, stem

MIN_COVERAGE = 0.7  # share of a claim's content words found in its evidence
MAX_ITEMS = 12  # list items checked one by one

SUPPORT_SOURCE = "Bedside support check (safety/support.py)"
_LETTER = re.compile(r"[^\W\d_]")
_ITEM_END = re.compile(r"[;；，]|,(?!\d)|\n|[.。](?=\s|$)")
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
_STATEMENT = re.compile(r"\s*(?:she|he|they|it|her|his|their|there|the patient)\b|患者|病人|她|他", re.IGNORECASE)
_ITEM = re.compile(r"\s*(?:[;；、]|,\s+and\b|,|，|\band\b)\s*")
_ANY_NEGATION = re.compile(
    r"\b(?:no|not|nor|none|never|cannot|without|den(?:y|ies|ied|ying)|negative|absent|absence|lack\w*|free|neither|nil|"
    r"unremarkable|unlikely|unable|normal|resolved|exclud\w+|ruled out|non\w*|nkda|nad)\b|n't\b"
    r"|无|未|否认|没|不|非|阴性",
    re.IGNORECASE,
)
_EXCEPTION = re.compile(EXCEPTION, re.IGNORECASE)
_REACTION_WORDS = (
    "rash hives urticaria anaphylaxis anaphylactic shock angioedema swelling of the lips tongue face throat itching "
    "wheeze bronchospasm breathlessness nausea vomiting diarrhoea dizziness headache cough hypotension collapse "
    "reaction allergy intolerance side effect severity mild moderate severe cause caused after with confirmed active"
)
_CAUSE_WORDS = "cause caused causing give gave reaction reacted"  # what a list of allergies says by its title
_RESULT_WORDS = "normal abnormal unremarkable positive negative high low raised elevated stable unstable clear"
_REACTIONS, _CAUSES, _RESULTS = (
    frozenset(word.key for word in facts_of(words, [(0, len(words))]).words)
    for words in (_REACTION_WORDS, _CAUSE_WORDS, _RESULT_WORDS)
)


@dataclass(frozen=True, slots=True)
class Support:
    """evidence maps passage index -> (start, end) in its text; missing says what kept the claim from standing."""

    supported: bool
    evidence: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    missing: str = ""


def check_support(claim: str, cited: Sequence[int], passages: Sequence[Passage]) -> Support:
    """Whether the claim stands in the cited passages, or failing these in another one of those given."""
    text = plain(unmarked(claim)).strip()
    if malformed := _malformed(text):
        return Support(False, missing=malformed)
    if not passages:
        return Support(False, missing="there is no passage")
    if foreign := _foreign_word(text, passages):
        return Support(False, missing=f"“{foreign}” is not in the record")
    facts = _read(text, sentence_spans(text) or [(0, len(text))])
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


def _read(claim: str, sentences: Sequence[tuple[int, int]]) -> Facts:
    return replace(facts_of(claim, sentences), unborne=unborne_by(plain(claim)))


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
    words = (word for word in _PLAIN_WORD.findall(text) if word not in common_words() and not is_listed(word))
    return next((word for word in words if word[:-2] not in record and stem(word) not in record), "")


# --- one claim, one passage -------------------------------------------------------------------------------------


def _find(claim: Facts, passage: Passage) -> tuple[int, int] | None:
    """The shortest stretch of the passage in which the claim stands."""
    parsed = parse(passage.text, passage.section)
    needed = {word.key for word in claim.words if word.is_required}
    if not needed <= parsed.keys:
        return None
    return next((w.shown for w in windows(parsed) if not _lacks(claim, w, parsed)), None)


def _lacks(claim: Facts, window: Window, parsed: Parsed) -> str:
    """Why the claim does not stand in the window; "" if it does."""
    # Only a title that holds for the whole window, not one that another within it ends.
    heading = heading_over(parsed, window.start)[0] & heading_over(parsed, window.end)[0]
    found = window.keys | heading | {word.key for word in parsed.facts.words if within(word.start, window.head)}
    if NO_ALLERGIES.search(parsed.text, window.start, window.end):
        found |= {w.key for w in claim.words if w.key == "term:allergic" and "negated" in w.flags}
    for word in claim.words:
        if word.is_required and word.key not in found and not _is_told_by_numbers(word, claim, window):
            return f"“{_readable(word)}” is not in the record there"
    for word in claim.words:
        if word.key not in found and not found.isdisjoint((f"un{word.key}", word.key.removeprefix("un"))):
            return f"the record says the opposite of “{_readable(word)}” there"
    is_of_allergies = "term:allergic" in found
    counted = [word for word in claim.words if not (is_of_allergies and word.key in _CAUSES)]
    if _coverage(counted or claim.words, found) < MIN_COVERAGE:
        return "too few of its words stand together in the record"
    return (
        _lacks_numbers(claim, window, parsed)
        or _lacks_sides(claim, window, parsed)
        or _lacks_change(claim, window, parsed, heading)
        or _lacks_result(claim, window, parsed)
        or _lacks_denial(claim, window, parsed.text)
        or _lacks_pair(claim, window, parsed, heading)
        or _lacks_status(claim, window, parsed)
        or _lacks_mode(claim, window, parsed)
        or _lacks_own(claim, window, parsed, heading)
    )


def _lacks_mode(claim: Facts, window: Window, parsed: Parsed) -> str:
    """What is only planned, was refused or has been stopped is not said to be so: no clinical word, of Chinese not the
    half of the words."""
    if not claim.unborne:
        return ""
    unreal, chinese = [], 0
    for word in (word for word in claim.words if word.key not in _TURNS):
        places = [other.start for other in window.facts.words if other.key == word.key]
        chinese += bool(places) and not word.key.isascii()
        if places and all(_modes_at(place, parsed) & claim.unborne for place in places):
            unreal.append(word)
    known = [word for word in unreal if word.is_required]
    if "stopped" in claim.unborne and not known:
        known = [w for w in claim.words if is_owner(w.key) and _statuses_of(w.key, window, parsed) & _NOT_TAKEN]
    pairs = [word for word in unreal if not word.key.isascii()]
    if known or (pairs and 2 * len(pairs) >= chinese):
        return f"“{_readable((known or pairs)[0])}” is only planned there, was refused, stopped or is another's"
    return ""


def _modes_at(place: int, parsed: Parsed) -> set[str]:
    """Under "Plan", too, what says that something is so is no plan."""
    found = {mode for mode, start, end in parsed.modes if start <= place < end}
    if heading_over(parsed, place)[0] == {"plan"}:
        sentence = next((parsed.text[a:b] for a, b in parsed.sentences if a <= place < b), "")
        found |= set() if is_said_so(sentence) else {"planned"}
    return found


def _is_told_by_numbers(word: Word, claim: Facts, window: Window) -> bool:
    """Whether a rise or a fall shows in two numbers of the claim, which the record has in the same order."""
    if word.key not in _CHANGES:
        return False
    for first, second in zip(claim.quantities, claim.quantities[1:], strict=False):
        one, two = first.quantity, second.quantity
        places = [[q.quantity.start for q in window.facts.quantities if q.quantity.stands_for(x)] for x in (one, two)]
        if first.owner == second.owner and all(places) and min(places[0]) < max(places[1]):
            try:
                return _CHANGES[word.key] * (float(two.value) - float(one.value)) > 0
            except ValueError:  # a range, or a pressure
                return False
    return False


def _coverage(words: Sequence[Word], found: Collection[str]) -> float:
    """The share of words that are found; of Chinese, which is read in overlapping pairs, of characters."""
    places = {place: False for word in words for place in _places(word)}
    places |= {place: True for word in words if word.key in found for place in _places(word)}
    return sum(places.values()) / len(places)


def _places(word: Word) -> range:
    return range(word.start, word.start + (2 if len(word.key) == 2 and not word.key.isascii() else 1))


def _lacks_own(claim: Facts, window: Window, parsed: Parsed, heading: frozenset[str]) -> str:
    columns = [
        joined(parsed.facts, *spans)
        for start, end in parsed.sentences
        if window.start <= start < window.end
        for spans in cells_under(parsed.text, start)
    ]
    mixed = find_mixed(claim, window.facts, heading, columns, parsed.persons)
    return f"“{mixed}” is said of another there" if mixed else ""


def _lacks_numbers(claim: Facts, window: Window, parsed: Parsed) -> str:
    for owned in claim.quantities:
        if not any(_is_same(owned, other, claim, window, parsed) for other in window.facts.quantities):
            return f"“{f'{owned.quantity.value} {owned.quantity.unit}'.strip()}” does not stand there for this"
    dated = [*zip(window.facts.dates, window.facts.date_clauses, strict=True)]
    dated += [(date, (date.start, date.end)) for date in parsed.facts.dates if within(date.start, window.head)]
    for claimed, clause in zip(claim.dates, claim.date_clauses, strict=True):
        own = [said for date, said in dated if _is_same_date(claimed, date, parsed.text)]
        rivals = [said for _, said in dated if said not in own]
        words = {w.key for w in claim.words if within(w.start, clause)} - {q.owner for q in claim.quantities}
        places = [[w.start for w in window.facts.words if w.key == key] for key in words]
        if not own or any(found and _all_elsewhere(found, own, rivals) for found in places):
            return "the date is another one in the record"
    return ""


def _is_same(claimed: OwnedQuantity, other: OwnedQuantity, claim: Facts, window: Window, parsed: Parsed) -> bool:
    """The same number, of the same drug or measurement, not of another moment: of "4.3 on admission, 4.5 at
    discharge" neither may be said of the other."""
    quantity = other.quantity
    if not quantity.unit and claimed.quantity.unit in row_units(parsed.text, quantity.start):
        quantity = replace(quantity, unit=claimed.quantity.unit)
    if not quantity.stands_for(claimed.quantity) or (claimed.owner and other.owner != claimed.owner):
        return False
    if over := dates_over(parsed.text, other.quantity.start, parsed.facts.dates):
        days = [day for day in claim.dates if within(day.start, claimed.clause)]
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


def _said_of(claimed: OwnedQuantity, claim: Facts, window: Window, text: str) -> Iterator[list[int]]:
    """For each word and date in the clause of a claimed number, where it stands in the window."""
    words = [w for w in claim.words if w.is_required and not is_owner(w.key) and within(w.start, claimed.clause)]
    days = [day for day in claim.dates if within(day.start, claimed.clause)]
    found = [[w.start for w in window.facts.words if w.key == word.key] for word in words]
    found += [[d.start for d in window.facts.dates if _is_same_date(day, d, text)] for day in days]
    yield from filter(None, found)


def _lacks_change(claim: Facts, window: Window, parsed: Parsed, heading: frozenset[str]) -> str:
    """Started, stopped, allergic …: of the same drug, or of each that a title of the claim stands over."""
    for claimed in claim.statuses:
        below = [word.key for word in claim.words if word.key.startswith("drug:") and word.start > claimed.start]
        for drug in [claimed.owner] if claimed.owner else below:
            if claimed.key not in heading | _statuses_of(drug, window, parsed):
                return f"“{claimed.key.partition(':')[2]}” is not said of that drug there"
    return ""


def _statuses_of(drug: str, window: Window, parsed: Parsed) -> set[str]:
    """What is said of a drug: beside it, in the last title before it, in the title of its column."""
    place = next((word.start for word in window.facts.words if word.key == drug), -1)
    before = (status for status in window.facts.statuses if not status.owner and status.start < place)
    titles = [status.key for status in before if not row_at(parsed.text, status.start)]
    above = [span for cell, span in cells_under(parsed.text, max(place, 0)) if within(place, cell)]
    column = {status.key for status in parsed.facts.statuses if any(within(status.start, span) for span in above)}
    return {status.key for status in window.facts.statuses if status.owner == drug} | {*titles[-1:]} | column


def _lacks_result(claim: Facts, window: Window, parsed: Parsed) -> str:
    """Normal, high, stable …: of the same thing. Of "blood pressure was 158/96; the ECG was normal" nothing makes the
    pressure normal: what is first said of a thing after its name is what the record says of it. Who says all of the
    record's words, and in its order, says it of the same things."""
    if _is_whole(claim, window):
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


def _is_whole(claim: Facts, window: Window) -> bool:
    """Whether a claim says all of the record's words, and in their order."""
    return [(w.key, w.flags) for w in claim.words] == [(w.key, w.flags) for w in window.facts.words]


def _is_result_of(place: int, result: str, window: Window, parsed: Parsed) -> bool:
    start, end = next(span for span in parsed.sentences if span[0] <= place < span[1])
    said = [(w.start, w.key) for w in window.facts.words if w.key in _RESULTS and start <= w.start < end]
    after = [item for item in said if item[0] > place]
    after += [(q.quantity.start, "") for q in window.facts.quantities if place < q.quantity.start < end]
    if after:
        return min(after)[1] == result
    return any(key == result for _, key in said)


def _lacks_pair(claim: Facts, window: Window, parsed: Parsed, heading: frozenset[str]) -> str:
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


def _names_beside(word: Word, window: Window, text: str, is_name: Callable[[Word], bool]) -> set[str]:
    """The names that stand with a word in its item of a list."""
    start = max((m.end() for m in _ITEM_END.finditer(text, window.start, word.start)), default=window.start)
    match = _ITEM_END.search(text, word.end, window.end)
    end = match.start() if match else window.end
    return {other.key for other in window.facts.words if start <= other.start < end and is_name(other)}


def _is_relative(word: Word) -> bool:
    return "relative" in kinds_of(word.key)


def _is_reaction(word: Word) -> bool:
    return word.key in _REACTIONS


def _lacks_denial(claim: Facts, window: Window, text: str) -> str:
    """A denial needs one in the record; and "no other allergies" is no absence of allergies."""
    denied = {word.key for word in claim.words if "negated" in word.flags}
    needed = 1 if len(denied) >= claim.num_denials else claim.num_denials  # "without a or b" is "no a and no b"
    if claim.num_denials and needed > sum(1 for _ in _ANY_NEGATION.finditer(text, window.start, window.end)):
        return "the record does not deny it there"
    if denied and not claim.has_exception and _EXCEPTION.search(text, window.start, window.end):
        return "the record makes an exception there"
    return ""


def _is_same_date(claimed: DateFact, other: DateFact, text: str) -> bool:
    if not other.stands_for(claimed):
        return False
    years = {reading[0] for reading in other.readings}
    return any(year is None or year in years or str(year) in text for year, _, _ in claimed.readings)


def _lacks_sides(claim: Facts, window: Window, parsed: Parsed) -> str:
    """The same side, of the same thing, and not of what the record says of the other side."""
    found = (*window.facts.sides, *(side for side in parsed.facts.sides if within(side.start, window.head)))
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
            if word.key not in side.nouns[:1] and within(word.start, side.clause):
                places = [w.start for w in window.facts.words if w.key == word.key]
                if places and _all_elsewhere(places, [other.clause for other in same], rivals):
                    return missing
    return ""


def _all_elsewhere(places: Sequence[int], own: Sequence[tuple[int, int]], rivals: Sequence[tuple[int, int]]) -> bool:
    """Whether every place lies where something else is spoken of, and none where this is."""
    return not any(within(place, span) for place in places for span in own) and all(
        any(within(place, rival) for rival in rivals) for place in places
    )


def _lacks_status(claim: Facts, window: Window, parsed: Parsed) -> str:
    for word in claim.words:
        occurrences = [other for other in window.facts.words if other.key == word.key]
        if not occurrences:
            continue
        if not any(_has_same_status(word, other, claim, parsed) for other in occurrences):
            return f"“{_readable(word)}” is said with another meaning there (denied, possible or a relative's)"
    return ""


def _has_same_status(word: Word, other: Word, claim: Facts, parsed: Parsed) -> bool:
    is_denied = "negated" in other.flags or bool(ANSWERED_NONE.match(parsed.text, other.end))
    if ("negated" in word.flags) != is_denied and not _has_answer(other, claim, parsed):
        return False
    is_doubted = any(start <= other.start < end for start, end in parsed.uncertain)
    if is_doubted and not claim.is_uncertain and not is_owner(word.key):
        return False
    if not word.is_required:
        return True
    is_relatives = (
        "family" in other.flags
        or heading_over(parsed, other.start)[1]
        or any(within(other.start, span) for span in parsed.family)
        or ("family" in word.flags and any(map(_is_relative, _beside(other, parsed))))
    )
    if not is_relatives and "family" in word.flags and not _is_relative(word):
        return False
    if is_relatives and not any("family" in w.flags or _is_relative(w) for w in claim.words):
        return False
    return "hypothetical" not in other.flags or claim.is_hypothetical


def _has_answer(word: Word, claim: Facts, parsed: Parsed) -> bool:
    """Whether the record answers there with the claim's own word, which is a denial in one form and none in another:
    "HIV: negative" and "HIV was negative"."""
    said = {other.key for other in claim.words} & _ANSWERS
    return any(other.key in said for other in _beside(word, parsed))


def _beside(word: Word, parsed: Parsed) -> Iterator[Word]:
    """The words of the part of a sentence, or of the row, that holds one."""
    part = next((p[:2] for p in parsed.facts.parts if within(word.start, p[:2])), (0, 0))
    yield from (other for other in parsed.facts.words if within(other.start, part))


# --- lists ------------------------------------------------------------------------------------------------------


def _find_items(text: str, order: Sequence[int], passages: Sequence[Passage]) -> dict[int, tuple[int, int]]:
    """Evidence of a list, item by item, each with the words that lead the list ("stopped: a, b" is two stops) or, where
    it names nothing itself, with what the first names ("CT showed a, b" is two findings of one study)."""
    items = [item for item in _ITEM.split(text.rstrip(".。 ")) if item.strip()]
    if not 2 <= len(items) <= MAX_ITEMS:
        return {}
    lead, subject = _lead(items[0]), _subject(items[0])
    evidence: dict[int, tuple[int, int]] = {}
    for number, item in enumerate(items):
        own = _read(item, [(0, len(item))])
        if not any(word.is_required for word in own.words):
            return {}
        led = lead if _subject(item) or _STATEMENT.match(item) else subject or lead
        facts = own if number == 0 else _read(part := f"{led} {item}".strip(), [(0, len(part))])
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


def _subject(item: str) -> str:
    """The words of an item up to what it names first: a drug, a test, a relative …; "" if it names none."""
    words = facts_of(item, [(0, len(item))]).words
    return next((item[: word.end] for word in words if kinds_of(word.key) & SUBJECTS), "")


_CHANGES = {"term:increase": 1, "term:decrease": -1}  # the sign of the difference
_ANSWERS = frozenset(("term:negative", "term:resolve", "阴性"))
_NOT_TAKEN = frozenset(("term:stop", "term:withhold"))
_TURNS = STATUSES | {"term:after", "term:before"}
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
        parsed = parse(passage.text, passage.section)
        keys = sum(word.key in parsed.keys for word in claim.words)
        for window in windows(parsed):
            score = keys / 1000 + sum(word.key in window.keys for word in claim.words)
            if score > closest:
                closest, reason = score, _lacks(claim, window, parsed)
    return reason


def _readable(word: Word) -> str:
    return word.key.partition(":")[2] or word.key
