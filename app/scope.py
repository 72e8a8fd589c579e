"""Which documents a question is put to, chosen by name, type and date, and how much of the model's context they take.

Knows nothing of Streamlit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from contracts import Document, DocumentStatus, DocumentStore, FactKind

_HIDDEN = (DocumentStatus.DELETING, DocumentStatus.REPLACED)  # no part of the record any more


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens of the documents chosen, and how many the model has room for beside a question."""

    tokens: int
    room: int

    @property
    def is_whole(self) -> bool:
        """Whether all of it is put before the model; else the passages that fit a question are."""
        return self.tokens <= self.room


@dataclass(frozen=True, slots=True)
class Filed:
    """A document with what its pages tell of it. dates: ISO 8601, of its notes and sections, in order."""

    id: str
    name: str
    types: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()

    def is_within(self, since: date | None, until: date | None) -> bool:
        """Whether any of its dates lies within. A document without a date is kept: no date is no proof."""
        low, high = (day.isoformat() if day else "" for day in (since, until))
        return not self.dates or any(low <= day <= (high or day) for day in self.dates)


class Filing:
    """What the pages of each patient's documents tell, read once for each state that a document comes to."""

    def __init__(self, store: DocumentStore) -> None:
        self._store = store
        self._known: dict[str, dict[Document, Filed]] = {}

    def list_filed(self, patient_id: str, documents: Sequence[Document]) -> list[Filed]:
        """The patient's documents that can be chosen, of all that there are."""
        known = self._known.get(patient_id, {})
        shown = [document for document in documents if document.status not in _HIDDEN]
        now = self._known[patient_id] = {d: known.get(d) or _filed(self._store, d) for d in shown}
        return list(now.values())

    def forget(self) -> None:
        """Drops what is kept in memory, after a deletion."""
        self._known.clear()


def narrow(
    filed: Sequence[Filed], types: Sequence[str] = (), since: date | None = None, until: date | None = None
) -> list[Filed]:
    """Those of one of the types, where any is given, and of the stretch of time."""
    return [one for one in filed if (not types or set(types) & set(one.types)) and one.is_within(since, until)]


def _filed(store: DocumentStore, document: Document) -> Filed:
    noticed = store.get_page_facts(document.id).values()
    facts = [fact for page in noticed for fact in page.facts]
    types = {fact.value.strip().capitalize() for fact in facts if fact.kind is FactKind.NOTE_TYPE}
    days = {fact.value for fact in facts if fact.kind is FactKind.NOTE_DATE}
    days |= {section.date for page in noticed for section in page.sections if section.date}
    return Filed(document.id, document.name, tuple(sorted(types)), tuple(sorted(days)))
