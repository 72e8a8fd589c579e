"""The library of a patient's documents: add, read and index, delete, repair, draw.

Each document walks QUEUED → READING → INDEXING → READY, or ends FAILED with a sentence. Bytes, pages and passages rest
in the store; vectors in the index, which can always be made again from the store. Knows nothing of jobs or screens:
progress goes out by a callback, cancel comes in as an event.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from contracts import (
    Document,
    DocumentStatus,
    DocumentStore,
    Finding,
    Page,
    Passage,
    ProgressCallback,
    SafetyChecker,
    Verdict,
)
from retrieval import page_image
from retrieval.chunking import make_passages
from retrieval.errors import DISK_FULL, DocumentError, IndexFailure, IndexUnreadable, is_disk_full
from retrieval.headings import indexed_texts
from retrieval.hidden_text import find_hidden, read_metadata
from retrieval.index import VectorIndex
from retrieval.parsers import MAX_PAGES, check_name, parse, sniff
from retrieval.search import Embedder

logger = logging.getLogger(__name__)

MAX_BYTES = 200_000_000
_EMBED_BATCH = 32  # passages between two looks at cancel: about a second on two cores
_UNFINISHED = (DocumentStatus.QUEUED, DocumentStatus.READING, DocumentStatus.INDEXING)


class _Cancelled(Exception):  # noqa: N818 - a signal, not an error
    """Raised between two steps of reading when cancel is set; never leaves this file."""


@dataclass(frozen=True, slots=True)
class _Run:
    """A document being read: how to stop it, and how to know that it has ended."""

    cancel: threading.Event
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What repair() found to do; names of documents, and counts."""

    resumed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    rebuilt_patients: int = 0
    removed_collections: int = 0
    set_aside: str = ""  # where an unreadable index folder was moved


def _ignore_progress(step: str, done: int, total: int) -> None:
    """For callers who show no progress."""


class DocumentLibrary:
    """What the pages and the command line call. Safe to call from several threads."""

    def __init__(
        self,
        store: DocumentStore,
        index: VectorIndex,
        embedder: Embedder,
        safety: SafetyChecker,
        max_bytes: int = MAX_BYTES,
        max_pages: int = MAX_PAGES,
        before_delete: Callable[[str], None] | None = None,
        on_delete: Callable[[], None] = lambda: None,
    ) -> None:
        """before_delete is called with the patient's id once no search finds the document any more and before its rows
        go, so that whoever keeps something made of it on disk removes that; if it raises, the next start tries again.
        on_delete is called after each deletion, so that whoever keeps passages in memory can drop them."""
        self._store = store
        self._index = index
        self._embedder = embedder
        self._safety = safety
        self._max_bytes = max_bytes
        self._max_pages = max_pages
        self._before_delete = before_delete or (lambda patient_id: None)
        self._on_delete = on_delete
        self._lock = threading.Lock()
        self._running: dict[str, _Run] = {}
        self._indexing = threading.Lock()  # one document's vectors at a time, and none while an index is rebuilt

    def add(self, patient_id: str, name: str, data: bytes) -> Document:
        """Stores a file as QUEUED, durably; the same bytes again give the document already there.

        Raises DocumentError, before anything is stored, for a bad name, an empty file, one over the limit, or one
        whose bytes are not what its name says.
        """
        check_name(name)
        if len(data) > self._max_bytes:
            size, limit = len(data) / 1e6, self._max_bytes / 1e6
            raise DocumentError(f"This file is {size:,.1f} MB; the limit is {limit:,.0f} MB; split it or compress it.")
        return self._store.add_document(patient_id, name, sniff(data, name), data)

    def ingest(
        self,
        document_id: str,
        on_progress: ProgressCallback = _ignore_progress,
        cancel: threading.Event | None = None,
    ) -> Document | None:
        """Reads, checks and indexes a document; returns it READY or FAILED, or None if it was cancelled and removed.

        What the file or the index does wrong ends FAILED with a sentence; what the store raises is raised.
        """
        run = _Run(cancel or threading.Event())
        with self._lock:
            if document_id in self._running:
                return self._store.get_document(document_id)
            self._running[document_id] = run
        try:
            return self._ingest(document_id, on_progress, run.cancel)
        finally:
            with self._lock:
                del self._running[document_id]
            run.ended.set()

    def _ingest(self, document_id: str, on_progress: ProgressCallback, cancel: threading.Event) -> Document | None:
        document = self._store.get_document(document_id)
        if document is None or document.status in (DocumentStatus.READY, DocumentStatus.DELETING):
            return document
        try:
            self._read(document, on_progress, cancel)
            with self._turn_at_index(cancel):
                self._embed(document, on_progress, cancel)
                self._store.set_document_status(document_id, DocumentStatus.READY)
        except _Cancelled:
            self._delete(document_id)
            return None
        except (DocumentError, IndexFailure, MemoryError) as error:
            self._fail(document, _sentence(error))
        except OSError as error:
            if not is_disk_full(error):
                raise
            self._fail(document, DISK_FULL)
        return self._store.get_document(document_id)

    def delete(self, document_id: str) -> None:
        """Removes a document's vectors, then its rows and bytes; done again at the next start if interrupted.

        A document that is being read is cancelled first.
        """
        with self._lock:
            run = self._running.get(document_id)
        if run is not None:
            run.cancel.set()
            run.ended.wait()
        self._delete(document_id)

    def _delete(self, document_id: str) -> None:
        document = self._store.get_document(document_id)
        if document is None:
            return
        self._store.set_document_status(document_id, DocumentStatus.DELETING)
        try:
            self._delete_vectors(document)
        except IndexFailure as error:
            # The words must go even if the index is broken; repair() rebuilds it without them.
            logger.warning("Vectors of a deleted document are left for repair: %s", error)
        self._before_delete(document.patient_id)
        self._store.delete_document(document_id)
        self._on_delete()

    def delete_patient(self, patient_id: str) -> None:
        """Removes all documents of a patient, and the patient's collection."""
        for document in self._store.list_documents(patient_id):
            self.delete(document.id)
        self._index.delete_patient(patient_id)

    def repair(self, on_progress: ProgressCallback = _ignore_progress) -> RepairReport:
        """Brings store and index together at the start: finishes deletions and reading, rebuilds what differs."""
        documents = self._store.list_documents()
        removed, set_aside = self._open_index({document.patient_id for document in documents})
        doomed = [document for document in documents if document.status is DocumentStatus.DELETING]
        for document in doomed:
            self.delete(document.id)
        unfinished = [document for document in documents if document.status in _UNFINISHED]
        for document in unfinished:
            self.ingest(document.id, on_progress)
        patients = sorted({document.patient_id for document in self._store.list_documents()})
        rebuilt = 0
        try:
            for patient_id in patients:
                with self._indexing:
                    rebuilt += self._rebuild_if_different(patient_id, on_progress)
        except IndexFailure as error:
            logger.warning("The vector index could not be repaired; search goes by words alone: %s", error)
        return RepairReport(
            resumed=tuple(document.name for document in unfinished),
            deleted=tuple(document.name for document in doomed),
            rebuilt_patients=rebuilt,
            removed_collections=removed,
            set_aside=set_aside,
        )

    def render_page(self, document_id: str, page_number: int, highlights: Sequence[tuple[int, int]] = ()) -> bytes:
        """PNG of a page, the given ranges of its text marked. Raises DocumentError if there is no such page."""
        document = self._store.get_document(document_id)
        if document is None:
            raise DocumentError("This document has been deleted.")
        pages = self._store.get_pages(document_id)
        if all(page.number != page_number for page in pages):
            raise DocumentError(f"{document.name} has {len(pages)} pages; there is no page {page_number}.")
        data = self._store.get_file(document_id)
        return page_image.render(document.media_type, data, pages, page_number, highlights)

    # --- reading and indexing -------------------------------------------------------------------------------------

    def _read(self, document: Document, on_progress: ProgressCallback, cancel: threading.Event) -> None:
        """File → pages, findings and passages in the store, in one transaction."""

        def report(done: int, total: int) -> None:
            on_progress("reading", done, total)
            _stop_if(cancel)

        self._store.set_document_status(document.id, DocumentStatus.READING)
        _stop_if(cancel)
        data = self._store.get_file(document.id)
        parsed = parse(data, document.name, max_pages=self._max_pages, on_page=report)
        findings: dict[int, Sequence[Finding]] = dict(find_hidden(data, parsed.media_type, parsed.pages))
        if parsed.pages and (words := self._check_metadata(read_metadata(data, parsed.media_type))):
            findings[1] = (*findings.get(1, ()), *words)
        for page in parsed.pages:
            _stop_if(cancel)
            if found := (*findings.get(page.number, ()), *self._check(page)):
                findings[page.number] = found
        passages = make_passages(document.id, document.name, parsed.pages, self._embedder.count_tokens)
        self._delete_vectors(document)  # of a reading that was cut off
        self._store.save_pages(document.id, parsed.pages, passages, findings, parsed.parser)

    def _check_metadata(self, text: str) -> list[Finding]:
        """Findings on words about the file. They never reach the model, so that nothing is kept from it: a notice."""
        found = self._safety.check_document(text).findings if text else ()
        return [replace(finding, start=0, end=0, severity=Verdict.NOTICE) for finding in found]

    def _check(self, page: Page) -> tuple[Finding, ...]:
        """The findings on a page; a check that could not run is a finding over the whole page."""
        if not page.text:
            return ()
        result = self._safety.check_document(page.text)
        if result.verdict is not Verdict.UNAVAILABLE or result.findings:
            return result.findings
        message = "This page could not be checked for injected instructions; read it before relying on it."
        return (Finding("document-check-unavailable", Verdict.UNAVAILABLE, 0, len(page.text), message),)

    @contextmanager
    def _turn_at_index(self, cancel: threading.Event) -> Iterator[None]:
        while not self._indexing.acquire(timeout=0.2):
            _stop_if(cancel)
        try:
            yield
        finally:
            self._indexing.release()

    def _embed(self, document: Document, on_progress: ProgressCallback, cancel: threading.Event) -> None:
        passages = self._store.list_document_passages(document.id)
        texts = indexed_texts(passages)
        on_progress("indexing", 0, len(passages))
        for first in range(0, len(passages), _EMBED_BATCH):
            _stop_if(cancel)
            part = slice(first, first + _EMBED_BATCH)
            self._add_vectors(document.patient_id, passages[part], texts[part])
            on_progress("indexing", min(first + _EMBED_BATCH, len(passages)), len(passages))
        _stop_if(cancel)

    def _add_vectors(self, patient_id: str, passages: Sequence[Passage], texts: Sequence[str]) -> None:
        self._index.add(patient_id, [passage.id for passage in passages], self._embedder.embed(texts))

    def _delete_vectors(self, document: Document) -> None:
        prefix = f"{document.id}:"
        present = self._index.ids(document.patient_id)
        doomed = [passage_id for passage_id in present if passage_id.startswith(prefix)]
        if doomed:
            self._index.delete(document.patient_id, doomed)

    def _fail(self, document: Document, sentence: str) -> None:
        try:
            self._delete_vectors(document)
        except IndexFailure as error:
            logger.warning("Vectors of a failed document are left for repair: %s", error)
        self._store.save_pages(document.id, [], [], {}, "")
        self._store.set_document_status(document.id, DocumentStatus.FAILED, sentence)

    # --- repair ---------------------------------------------------------------------------------------------------

    def _open_index(self, patient_ids: Collection[str]) -> tuple[int, str]:
        """Removes orphaned collections, and moves the folder aside if it is damaged; returns how many, and where to."""
        try:
            removed = self._index.delete_orphans(patient_ids)
            for patient_id in patient_ids:
                self._index.check(patient_id)
        except IndexUnreadable as error:
            aside = self._index.set_aside()
            logger.warning("The vector index is damaged and is made again: %s", error)
            return 0, str(aside or "")
        except IndexFailure as error:
            logger.warning("The vector index could not be opened; search goes by words alone: %s", error)
            return 0, ""
        return removed, ""

    def _rebuild_if_different(self, patient_id: str, on_progress: ProgressCallback) -> bool:
        passages = self._store.list_passages(patient_id)
        if self._index.ids(patient_id) == {passage.id for passage in passages}:
            return False
        self._index.delete_patient(patient_id)
        by_document: dict[str, list[Passage]] = defaultdict(list)
        for passage in passages:
            by_document[passage.document_id].append(passage)
        done = 0
        for group in by_document.values():
            texts = indexed_texts(group)
            for first in range(0, len(group), _EMBED_BATCH):
                part = slice(first, first + _EMBED_BATCH)
                self._add_vectors(patient_id, group[part], texts[part])
                done += len(group[part])
                on_progress("indexing", done, len(passages))
        return True


def _stop_if(cancel: threading.Event) -> None:
    if cancel.is_set():
        raise _Cancelled


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "This document needs more memory than there is; split it into parts."
    return str(error)
