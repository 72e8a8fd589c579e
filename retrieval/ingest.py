"""The reading of one document: pages as they come, who it is about, passages, vectors, pictures recognised last.

Every step is durable before the next begins, and looks first at what is there: a reading that was cut off goes on where
it was, page for page. Knows nothing of queues or screens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from contracts import (
    Document,
    DocumentStatus,
    DocumentStore,
    Fact,
    Finding,
    Page,
    PageBatch,
    PageFacts,
    Passage,
    Patient,
    ProgressCallback,
    ReadMethod,
    SafetyChecker,
    Verdict,
)
from retrieval.chunking import make_passages
from retrieval.hidden import Stretch, hidden_findings
from retrieval.identity import find_mismatches
from retrieval.index import VectorIndex
from retrieval.parsers import merge_recognised, warnings_of
from retrieval.reading import ocr
from retrieval.reading.facts import find_facts
from retrieval.reading.process import Opened, Readers
from retrieval.vectors import Embedder, embed_passages, indexed_passages

EMBED_BATCH = 32  # passages between two looks at cancel: about a second on two cores
_PAGES_BETWEEN_VECTORS = 8  # recognised pages that are found by their words alone for a while
_WAITING = "document-check-waiting"
_VERSION_SHARE = 0.3  # of an older file's lines that stand in the newer one, which then replaces it


Counted = Callable[[int, int], None]  # done, total


def _say_nothing(done: int, total: int) -> None:
    """While pictures are recognised only they are counted."""


class IngestCancelled(Exception):  # noqa: N818 - a signal, not an error
    """Raised between two steps once cancel is set."""


class Unconfirmed(Exception):  # noqa: N818 - a state that waits for a person
    """The document names another patient; the message says where it differs."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What reading needs, the same for all documents."""

    store: DocumentStore
    index: VectorIndex
    embedder: Embedder
    safety: SafetyChecker
    readers: Readers
    max_pages: int
    indexing: threading.Lock  # one document's vectors at a time, and none while an index is rebuilt


class Ingest:
    """The way of one document from bytes to READY."""

    def __init__(
        self,
        parts: Parts,
        document: Document,
        patient: Patient | None,
        on_progress: ProgressCallback,
        cancel: threading.Event,
    ) -> None:
        self._parts, self._store = parts, parts.store
        self._document, self._patient = document, patient
        self._on_progress, self._cancel = on_progress, cancel
        self._facts: list[Fact] = []

    def run(self) -> None:
        """Reads and indexes. Raises Unconfirmed before anything can be searched, IngestCancelled once cancel is set,
        and whatever the file, the index or the store do wrong."""
        self._read_text()
        pages = self._store.get_pages(self._document.id)
        noticed = find_facts(pages)
        self._check_identity(noticed)
        self._store.save_page_facts(self._document.id, noticed)
        self._set_status(DocumentStatus.INDEXING)  # words find the passages from now on
        self._check_waiting(lambda done, total: self._on_progress("checking", done, total))
        self._embed(lambda done, total: self._on_progress("indexing", done, total))
        pending = {page.number: page for page in pages if page.method is ReadMethod.PENDING}
        if pending:
            self._set_status(DocumentStatus.RECOGNISING)
            self._recognise(pending)
            self._store.save_page_facts(self._document.id, find_facts(self._store.get_pages(self._document.id)))
            self._embed(_say_nothing)

    # --- reading --------------------------------------------------------------------------------------------------

    def _read_text(self) -> None:
        """Every page's own text into the store, from the first that is not there on."""
        stored = self._store.get_pages(self._document.id)
        document = self._store.get_document(self._document.id) or self._document
        if stored and len(stored) == document.num_pages:
            return
        self._set_status(DocumentStatus.READING)
        opened = Opened(0, "")
        done = len(stored)
        data = self._store.get_file(self._document.id)
        events = self._parts.readers.read(
            data, self._document.media_type, self._parts.max_pages, len(stored) + 1, self._cancel
        )
        for event in events:
            self._stop_if_cancelled()
            if isinstance(event, Opened):
                opened = event
                continue
            self._save(event.pages, opened, event.hidden)
            done += len(event.pages)
            self._on_progress("reading", done, opened.num_pages)

    def _recognise(self, pending: Mapping[int, Page]) -> None:
        document = self._store.get_document(self._document.id) or self._document
        parser = document.parser if ocr.parser() in document.parser else f"{document.parser}, {ocr.parser()}"
        opened = Opened(document.num_pages, parser, document.warnings)
        data, media_type = self._store.get_file(self._document.id), self._document.media_type
        self._on_progress("recognising", 0, len(pending))
        with closing(self._parts.readers.recognise(data, media_type, list(pending), self._cancel)) as recognised:
            for done, after in enumerate(recognised, start=1):
                self._stop_if_cancelled()
                page = merge_recognised(pending[after.number], after)
                self._check_identity(find_facts([page]))
                self._save([page], opened)
                self._check_waiting(_say_nothing)
                self._on_progress("recognising", done, len(pending))
                if done % _PAGES_BETWEEN_VECTORS == 0:
                    self._embed(_say_nothing)
        pages_now = self._store.get_pages(self._document.id)
        self._save([], replace(opened, warnings=(*opened.warnings, *warnings_of(pages_now))))

    def _save(self, pages: Sequence[Page], opened: Opened, hidden: Sequence[Stretch] = ()) -> None:
        """Into the store, kept from the model until _check_waiting has looked at them: that takes longer than reading,
        and words may find them before."""
        findings: dict[int, Sequence[Finding]] = {}
        for page in pages:
            about_file = self._check_metadata(opened.metadata) if page.number == 1 else []
            waiting = [_waiting(page)] if page.text else []
            if found := (*about_file, *hidden_findings(hidden, page), *waiting):
                findings[page.number] = found
        passages = [passage for page in pages for passage in self._passages(page)]
        batch = PageBatch(opened.num_pages, opened.parser, pages, passages, findings, opened.warnings)
        self._store.save_pages(self._document.id, batch)

    def _passages(self, page: Page) -> Iterator[Passage]:
        """Passages with ids that tell the page, so that pages may be read in any order. The confidence of a recognised
        one is that of its least certain line."""
        cut = make_passages(self._document.id, self._document.name, [page], self._parts.embedder.count_tokens)
        for number, passage in enumerate(cut):
            lines = [line for line in page.lines if line.start < passage.end and passage.start < line.end]
            confidence = min((line.confidence for line in lines), default=passage.confidence)
            yield replace(passage, id=f"{self._document.id}:{page.number:05d}-{number:03d}", confidence=confidence)

    def _check_waiting(self, on_page: Counted) -> None:
        """Checks the pages that wait for it, in order of reading; each may reach the model once that is stored."""
        found = self._store.get_document_findings(self._document.id)
        waiting = {number for number, findings in found.items() if any(f.rule == _WAITING for f in findings)}
        pages = [page for page in self._store.get_pages(self._document.id) if page.number in waiting]
        for done, page in enumerate(pages):
            on_page(done, len(pages))
            self._stop_if_cancelled()
            others = [finding for finding in found[page.number] if finding.rule != _WAITING]
            self._store.save_page_findings(self._document.id, page.number, [*others, *self._check(page)])

    def _check(self, page: Page) -> tuple[Finding, ...]:
        """The findings on a page; a check that could not run is a finding over the whole page."""
        result = self._parts.safety.check_document(page.text)
        if result.verdict is not Verdict.UNAVAILABLE or result.findings:
            return result.findings
        message = "This page could not be checked for injected instructions; read it before relying on it."
        return (Finding("document-check-unavailable", Verdict.UNAVAILABLE, 0, len(page.text), message),)

    def _check_metadata(self, text: str) -> list[Finding]:
        """Findings on words about the file. They never reach the model, so that nothing is kept from it: a notice."""
        found = self._parts.safety.check_document(text).findings if text else ()
        return [replace(finding, start=0, end=0, severity=Verdict.NOTICE) for finding in found]

    # --- what was noticed -----------------------------------------------------------------------------------------

    def _check_identity(self, noticed: Mapping[int, PageFacts]) -> None:
        """Holds what these pages and those before tell of the patient against what is known."""
        document = self._store.get_document(self._document.id)
        if self._patient is None or document is None or document.is_confirmed:
            return
        self._facts += [fact for on_page in noticed.values() for fact in on_page.facts]
        if mismatches := find_mismatches(self._facts, self._patient):
            words = "; ".join(map(str, mismatches))
            raise Unconfirmed(f"{words[0].upper()}{words[1:]}.")

    # --- vectors --------------------------------------------------------------------------------------------------

    def _embed(self, on_passages: Counted) -> None:
        """Vectors for the passages that have none yet, and none for those that are no more."""
        while not self._parts.indexing.acquire(timeout=0.2):
            self._stop_if_cancelled()
        try:
            self._embed_missing(on_passages)
        finally:
            self._parts.indexing.release()

    def _embed_missing(self, on_passages: Counted) -> None:
        passages = self._store.list_document_passages(self._document.id)
        patient_id = self._document.patient_id
        prefix = f"{self._document.id}:"
        present = {id_ for id_ in self._parts.index.ids(patient_id) if id_.startswith(prefix)}
        items = indexed_passages(passages)
        if stale := present.difference(*(item.ids for item in items)):
            self._parts.index.delete(patient_id, sorted(stale))
        missing = [item for item in items if not present.issuperset(item.ids)]
        for first in range(0, len(missing), EMBED_BATCH):
            self._stop_if_cancelled()
            batch = missing[first : first + EMBED_BATCH]
            self._parts.index.add(patient_id, *embed_passages(self._parts.embedder, batch))
            on_passages(len(items) - len(missing) + first + len(batch), len(items))
        self._stop_if_cancelled()

    def _set_status(self, status: DocumentStatus) -> None:
        self._store.set_document_status(self._document.id, status)

    def _stop_if_cancelled(self) -> None:
        if self._cancel.is_set():
            raise IngestCancelled


def _waiting(page: Page) -> Finding:
    message = "This page is still being checked for injected instructions; the model reads it afterwards."
    return Finding(_WAITING, Verdict.UNAVAILABLE, 0, len(page.text), message)


def is_version_of(newer: Sequence[Page], older: Sequence[Page]) -> bool:
    """Whether a file of the same name is a newer state of the same document, not another one that bears its name."""
    lines, known = _lines(older), _lines(newer)
    return bool(lines) and len(lines & known) >= _VERSION_SHARE * len(lines)


def _lines(pages: Sequence[Page]) -> set[str]:
    return {" ".join(line.casefold().split()) for page in pages for line in page.text.splitlines() if line.strip()}
