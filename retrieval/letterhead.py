"""Which stretches of passages are running headers and footers, which answer nothing but a question for what they tell.

They were marked when the document was read (retrieval.reading.running)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from contracts import FactKind, Passage
from retrieval.completeness import DocumentFacts
from retrieval.packing import Quote
from retrieval.reading.running import Span

# What a letterhead tells: where a letter comes from, and whose it is.
_ASKS_LETTERHEAD = re.compile(
    r"\b(?:which|what) (?:\w+ )?(?:hospital|clinic|department|ward|unit|practice)\b"
    r"|\bwhere (?:was|is) (?:\w+ ){1,2}(?:seen|treated|admitted)\b"
    r"|\b(?:name|named|born|birth|birthday|age|old|sex|gender|mrn|address|telephone)\b"
    r"|\b(?:record|hospital|nhs|patient|phone) (?:number|id)\b"
    r"|(?:哪|什么).{0,3}(?:医院|科)|姓名|名字|出生|生日|年龄|几岁|性别|病历号|地址|电话",
    re.I,
)


def running_lines(question: str, passages: Sequence[Passage], facts: DocumentFacts) -> list[Quote]:
    """The running lines in the passages, on which no answer to the question may rest; none where it asks for what such
    a line tells."""
    if _ASKS_LETTERHEAD.search(question):
        return []
    return [(index, start, end) for index, passage in enumerate(passages) for start, end in _running(passage, facts)]


def without_running_lines(passage: Passage, facts: DocumentFacts) -> str:
    """What a passage says between the running lines of its page; "" where it is nothing else."""
    text = passage.text
    for start, end in reversed([*_running(passage, facts)]):
        text = text[:start] + text[end:]
    return text.strip("\n")


def _running(passage: Passage, facts: DocumentFacts) -> Iterator[Span]:
    """(start, end) in the passage of its running lines, in order."""
    noticed = facts.get(passage.document_id, {}).get(passage.page)
    for fact in noticed.facts if noticed else ():
        start, end = max(fact.start, passage.start), min(fact.end, passage.end)
        if fact.kind is FactKind.REPEATED and start < end:
            yield start - passage.start, end - passage.start
