"""What stands over a passage that is read apart from its page: its section, the date of its note, its table's columns.

Shown to the model beside the passage, so that it knows which list it reads; the passage itself stays verbatim.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

from contracts import Passage, SectionKind, SectionSpan
from retrieval.completeness import DocumentFacts, written_on
from retrieval.letterhead import without_running_lines
from retrieval.tables import column_headings


def find_contexts(passages: Sequence[Passage], facts: DocumentFacts, wanted: Collection[str]) -> dict[str, str]:
    """For each of the wanted passages, by id, what stands over it: "2026-03-04, Medications on discharge, columns:
    Drug | Dose".

    `passages` must be whole documents in reading order, as the model may read them: a heading that is kept from the
    model is not shown above another passage either.
    """
    readable: dict[str, list[str]] = defaultdict(list)
    for passage in passages:
        readable[passage.document_id].append(passage.text)
    texts = {document_id: "\n".join(parts) for document_id, parts in readable.items()}
    contexts = {}
    # A table goes on below the header of the next page.
    bodies = [replace(passage, text=without_running_lines(passage, facts)) for passage in passages]
    for passage, columns in zip(passages, column_headings(bodies), strict=True):
        if passage.id not in wanted:
            continue
        section = _section_over(passage, facts)
        if section not in texts[passage.document_id]:
            section = ""
        # In this order the embedded model, made without any of it, answers best.
        parts = (written_on(passage, facts), section, columns and f"columns: {columns}")
        contexts[passage.id] = ", ".join(filter(None, parts))
    return contexts


def with_sections(passages: Sequence[Passage], facts: DocumentFacts) -> list[Passage]:
    """The passages with the title of the section that each stands in, where it does not hold it itself.

    One that goes on into another section is given none, lest that be taken for the first one's; but that of the family
    always: without it a relative's illness would be the patient's."""
    titled = []
    for passage in passages:
        span = _span_over(passage, facts)
        holds = span and (span.end >= passage.end or span.kind is SectionKind.FAMILY_HISTORY)
        titled.append(replace(passage, section=_section_over(passage, facts)) if holds else passage)
    return titled


def _section_over(passage: Passage, facts: DocumentFacts) -> str:
    """The title of the section in whose midst the passage begins; "" where the passage holds the title itself."""
    span = _span_over(passage, facts)
    is_inside = span and span.title_start >= passage.start and span.title_end > span.title_start
    return "" if span is None or is_inside else span.title


def _span_over(passage: Passage, facts: DocumentFacts) -> SectionSpan | None:
    """The section in which the passage begins."""
    noticed = facts.get(passage.document_id, {}).get(passage.page)
    spans = noticed.sections if noticed else ()
    return next((span for span in spans if span.start <= passage.start < span.end), None)
