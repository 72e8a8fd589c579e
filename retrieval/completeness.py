"""The passages that a question must have all of, by what sections they stand in; and when each passage is of.

"Any allergies?" is answered by every allergy section of the record, "trend of potassium" by every mention: a rank must
not decide there, because an enumeration cannot name what was never put before the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contracts import FactKind, PageFacts, Passage, SectionSpan
from retrieval.analyser import analyse
from retrieval.question import Period, Question
from retrieval.reading.dates import find_dates

DocumentFacts = Mapping[str, Mapping[int, PageFacts]]  # document id -> page number -> what was noticed


def required(question: Question, passages: Sequence[Passage], facts: DocumentFacts) -> list[Passage]:
    """Those that must all be read, in the order of reading; none for a question that enumerates nothing."""
    if question.kinds:
        return [p for p in passages if any(span.kind in question.kinds for span in _sections_of(p, facts))]
    if question.series:
        return [p for p in passages if question.series <= set(analyse(p.text)) | _heading_terms(p, facts)]
    return []


def name_required(question: Question, whole: Sequence[Passage], facts: DocumentFacts) -> tuple[str, ...]:
    """What `required` gave: of the kinds asked for those that stand there, for of a kind without a section nothing was
    gathered, whatever the text around says of it; or the question's own terms."""
    if not question.kinds:
        return tuple(sorted(question.series)) if whole else ()
    found = {span.kind for passage in whole for span in _sections_of(passage, facts)}
    return tuple(kind.value for kind in question.kinds if kind in found)


def period_of(question: Question, passages: Sequence[Passage], facts: DocumentFacts) -> Period:
    """The question's stretch of time; from an event on: since the last date on which the record tells of it."""
    if not question.event:
        return question.period
    wanted = set(analyse(question.event))
    told = (day for p in passages if wanted & set(analyse(p.text)) for day in dates_of(p, facts))
    return Period(max(told, default=""), "")


def is_outside(passage: Passage, period: Period, facts: DocumentFacts) -> bool:
    """Whether a passage surely is of another time: it has dates and none of them lies within. No date is no proof."""
    if not period.start and not period.end:
        return False
    days = dates_of(passage, facts)
    return bool(days) and not any(map(period.holds, days))


def dates_of(passage: Passage, facts: DocumentFacts) -> list[str]:
    """ISO 8601: the dates in the passage; else that of its section; else that of the note on its page."""
    if own := [found.iso for found in find_dates(passage.text)]:
        return own
    if dated := [span.date for span in _sections_of(passage, facts) if span.date]:
        return dated
    noticed = facts.get(passage.document_id, {}).get(passage.page)
    return [fact.value for fact in noticed.facts if fact.kind is FactKind.NOTE_DATE] if noticed else []


def written_on(passage: Passage, facts: DocumentFacts) -> str:
    """ISO 8601: the date of the passage's section, else of the note it stands in, which its first page tells; "" where
    neither is known."""
    if dated := [span.date for span in _sections_of(passage, facts) if span.date]:
        return dated[0]
    noticed = facts.get(passage.document_id, {})
    days = [
        (page, fact.value)
        for page, on_page in noticed.items()
        for fact in on_page.facts
        if fact.kind is FactKind.NOTE_DATE and page <= passage.page
    ]
    return max(days, default=(0, ""))[1]


def _sections_of(passage: Passage, facts: DocumentFacts) -> list[SectionSpan]:
    noticed = facts.get(passage.document_id, {}).get(passage.page)
    spans = noticed.sections if noticed else ()
    return [span for span in spans if span.start < passage.end and passage.start < span.end]


def _heading_terms(passage: Passage, facts: DocumentFacts) -> set[str]:
    return {term for span in _sections_of(passage, facts) for term in analyse(span.title)}
