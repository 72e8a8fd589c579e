"""The library of a patient's documents: add, read and index, confirm, restore, delete, repair, draw.

Each document walks QUEUED → READING → INDEXING → (RECOGNISING →) READY, or ends FAILED with a sentence; one that names
another patient waits UNCONFIRMED for a person. Bytes, pages and passages rest in the store; vectors in the index, which
can always be made again from the store. Knows nothing of jobs or screens: progress goes out by a callback, cancel comes
in as an event.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from contracts import (
    Document,
    DocumentStatus,
    DocumentStore,
    Patient,
    ProgressCallback,
    SafetyChecker,
)
from retrieval import page_image
from retrieval.errors import DISK_FULL, DocumentError, IndexFailure, IndexUnreadable, is_disk_full
from retrieval.index import VectorIndex
from retrieval.ingest import EMBED_BATCH, Ingest, IngestCancelled, Parts, Unconfirmed, is_version_of
from retrieval.parsers import MAX_PAGES
from retrieval.reading.archive import MAX_DEPTH
from retrieval.reading.formats import FORMATS, MAX_NAME_CHARS, check_name, sniff
from retrieval.reading.process import Readers, ReadingCancelled
from retrieval.vectors import Embedder, embed_passages, indexed_passages, row_ids

logger = logging.getLogger(__name__)

MAX_BYTES = 200_000_000
_KEPT_BY_READER = (DocumentStatus.READY, DocumentStatus.REPLACED, DocumentStatus.DELETING)


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
        readers: Readers | None = None,
        get_patient: Callable[[str], Patient | None] = lambda patient_id: None,
    ) -> None:
        """before_delete is called with the patient's id once no search finds the document any more and before its rows
        go, so that whoever keeps something made of it on disk removes that; if it raises, the next start tries again.
        on_delete is called after each deletion, so that whoever keeps passages in memory can drop them. get_patient
        tells whom documents are held against; nobody, and every document passes."""
        self._store = store
        self._index = index
        self._max_bytes = max_bytes
        self._before_delete = before_delete or (lambda patient_id: None)
        self._on_delete = on_delete
        self._get_patient = get_patient
        self._readers = readers or Readers()
        self._lock = threading.Lock()
        self._running: dict[str, _Run] = {}
        self._is_interrupted = False
        self._indexing = threading.Lock()
        self._embedder = embedder
        self._parts = Parts(store, index, embedder, safety, self._readers, max_pages, self._indexing)

    def interrupt(self) -> None:
        """Ends all reading at its next step; what is stored stays, and a later ingest() goes on there."""
        self._is_interrupted = True
        with self._lock:
            runs = list(self._running.values())
        for run in runs:
            run.cancel.set()

    def close(self) -> None:
        """Ends the reading processes that wait for work."""
        self._readers.close()

    # --- adding ---------------------------------------------------------------------------------------------------

    def add(self, patient_id: str, name: str, data: bytes) -> Document:
        """Stores a file as QUEUED, durably; the same bytes again give the document already there.

        Raises DocumentError, before anything is stored, for a bad name, an empty file, one over the limit, or one
        whose bytes are not what its name says.
        """
        document = self._store.add_document(patient_id, name, self._check_file(name, data), data)
        if document.status is DocumentStatus.REPLACED:  # an older version was uploaded again: it is the newest now
            self.restore(document.id)
            return self._store.get_document(document.id) or document
        return document

    def add_all(self, patient_id: str, name: str, data: bytes) -> list[Document | tuple[str, DocumentError]]:
        """Stores a file, or each of the files inside it: an archive's, or a mail and what is attached to it. What
        cannot be taken in is given with its name and the reason, and hinders no other. Raises DocumentError if the
        file itself cannot be taken."""
        return list(self._add_all(patient_id, name, data, 0))

    def _add_all(
        self, patient_id: str, name: str, data: bytes, depth: int
    ) -> Iterator[Document | tuple[str, DocumentError]]:
        known = FORMATS[self._check_file(name, data)]
        if known.read or known.count_pages:
            yield self.add(patient_id, name, data)
        if not known.unpack:
            return
        if depth >= MAX_DEPTH:
            raise DocumentError("This archive lies too deep inside others; unpack them and upload the files.")
        for inner_name, inner in self._readers.unpack(data, sniff(data, name)):
            shown = f"{name} › {inner_name}"
            if len(shown) > MAX_NAME_CHARS:
                shown = inner_name
            try:
                yield from self._add_all(patient_id, shown, inner, depth + 1)
            except DocumentError as error:
                yield shown, error

    def _check_file(self, name: str, data: bytes) -> str:
        check_name(name)
        if len(data) > self._max_bytes:
            size, limit = len(data) / 1e6, self._max_bytes / 1e6
            raise DocumentError(f"This file is {size:,.1f} MB; the limit is {limit:,.0f} MB; split it or compress it.")
        return sniff(data, name)

    # --- reading --------------------------------------------------------------------------------------------------

    def ingest(
        self,
        document_id: str,
        on_progress: ProgressCallback = _ignore_progress,
        cancel: threading.Event | None = None,
    ) -> Document | None:
        """Reads, checks and indexes a document; returns it READY, FAILED or UNCONFIRMED, or None if it was cancelled
        and removed. One that was cut off goes on where it was; an older version that was being restored is put back.

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
        if document is None or document.status in _KEPT_BY_READER:
            return document
        patient = self._get_patient(document.patient_id)
        try:
            Ingest(self._parts, document, patient, on_progress, cancel).run()
            self._store.set_document_status(document_id, DocumentStatus.READY)
            self._replace_older(document)
        except (IngestCancelled, ReadingCancelled):
            if self._is_interrupted:
                return self._store.get_document(document_id)
            if replaced := self._replaced_by_restoring(document):
                return self._put_back(document, replaced)
            self._delete(document_id)
            return None
        except Unconfirmed as error:
            self._forget_vectors(document)
            self._store.set_document_status(document_id, DocumentStatus.UNCONFIRMED, str(error))
        except (DocumentError, IndexFailure, MemoryError) as error:
            self._fail(document, _sentence(error))
        except OSError as error:
            if not is_disk_full(error):
                raise
            self._fail(document, DISK_FULL)
        return self._store.get_document(document_id)

    def confirm(self, document_id: str) -> None:
        """Keeps that a person said that the document belongs to its patient; ingest() then takes it in."""
        self._store.confirm_document(document_id)
        self._store.set_document_status(document_id, DocumentStatus.QUEUED)

    # --- versions -------------------------------------------------------------------------------------------------

    def versions(self, document: Document) -> list[Document]:
        """The other documents of the same patient and name, oldest first."""
        others = self._store.list_documents(document.patient_id)
        return [other for other in others if other.name == document.name and other.id != document.id]

    def restore(self, document_id: str) -> None:
        """Makes an older version the one that is searched, and the one searched now an older one; ingest() then indexes
        it anew from its stored pages."""
        document = self._store.get_document(document_id)
        if document is None or document.status is not DocumentStatus.REPLACED:
            return
        for other in self.versions(document):
            if other.status.is_searched:
                self._set_replaced(other)
        self._store.set_document_status(document_id, DocumentStatus.QUEUED)

    def _replaced_by_restoring(self, document: Document) -> Document | None:
        """The version that gave way to this one, which was read long ago and is only indexed anew; None if it is not
        being restored. A new upload leaves the version before it searched until it is itself READY."""
        now = self._store.get_document(document.id) or document
        others = self.versions(document)
        is_whole = now.num_pages > 0 and now.num_pages == len(self._store.get_pages(document.id))
        if is_whole and others and all(other.status is DocumentStatus.REPLACED for other in others):
            return others[-1]
        return None

    def _put_back(self, document: Document, replaced: Document) -> Document | None:
        """Ends a restoring as if it had not begun: what gave way is indexed again, what was to come back is kept."""
        self._set_replaced(document)
        self._store.set_document_status(replaced.id, DocumentStatus.QUEUED)
        self.ingest(replaced.id)
        return self._store.get_document(document.id)

    def _replace_older(self, document: Document) -> None:
        pages = self._store.get_pages(document.id)
        for other in self.versions(document):
            if other.status is DocumentStatus.READY and is_version_of(pages, self._store.get_pages(other.id)):
                self._set_replaced(other)

    def _set_replaced(self, document: Document) -> None:
        self._store.set_document_status(document.id, DocumentStatus.REPLACED)
        self._forget_vectors(document)
        self._before_delete(document.patient_id)  # what was prepared of it must not answer any more
        self._on_delete()

    # --- deleting -------------------------------------------------------------------------------------------------

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
        self._forget_vectors(document)  # the words must go even if the index is broken; repair() rebuilds it
        self._before_delete(document.patient_id)
        self._store.delete_document(document_id)
        self._compact(document.patient_id)
        self._on_delete()

    def delete_patient(self, patient_id: str) -> None:
        """Removes all documents of a patient, and the patient's collection."""
        for document in self._store.list_documents(patient_id):
            self.delete(document.id)
        self._index.delete_patient(patient_id)
        self._compact(patient_id)

    def _compact(self, patient_id: str) -> None:
        try:
            with self._indexing:
                self._index.compact(patient_id)
        except IndexFailure as error:
            logger.warning("Deleted vectors may stand in the index's files until the next deletion: %s", error)

    def repair(
        self, on_progress: ProgressCallback = _ignore_progress, resume: Callable[[str], object] | None = None
    ) -> RepairReport:
        """Brings store and index together at the start: finishes deletions and reading, rebuilds what differs. With
        `resume`, documents that were cut off are handed to it by id instead of being read here and now."""
        documents = self._store.list_documents()
        removed, set_aside = self._open_index({document.patient_id for document in documents})
        doomed = [document for document in documents if document.status is DocumentStatus.DELETING]
        for document in doomed:
            self.delete(document.id)
        patients = sorted({document.patient_id for document in self._store.list_documents()})
        rebuilt = 0
        try:
            for patient_id in patients:
                with self._indexing:
                    rebuilt += self._rebuild_if_different(patient_id, on_progress)
        except IndexFailure as error:
            logger.warning("The vector index could not be repaired; search goes by words alone: %s", error)
        unfinished = [document for document in documents if document.status.is_unfinished]
        for document in unfinished:
            resume(document.id) if resume else self.ingest(document.id, on_progress)
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
        return page_image.render(self._readers, document.media_type, data, pages, page_number, highlights)

    def _delete_vectors(self, document: Document) -> None:
        prefix = f"{document.id}:"
        present = self._index.ids(document.patient_id)
        doomed = [passage_id for passage_id in present if passage_id.startswith(prefix)]
        if doomed:
            self._index.delete(document.patient_id, doomed)

    def _forget_vectors(self, document: Document) -> None:
        try:
            self._delete_vectors(document)
        except IndexFailure as error:
            logger.warning("Vectors of a document that is not searched are left for repair: %s", error)

    def _fail(self, document: Document, sentence: str) -> None:
        self._forget_vectors(document)
        self._store.clear_pages(document.id)
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
        if self._index.ids(patient_id) == row_ids(self._store.list_passages(patient_id)):
            return False
        rebuild_vectors(self._store, self._index, self._embedder, patient_id, on_progress)
        return True


def rebuild_vectors(
    store: DocumentStore,
    index: VectorIndex,
    embedder: Embedder,
    patient_id: str,
    on_progress: ProgressCallback = _ignore_progress,
) -> None:
    """Makes a patient's vectors anew from the stored text. Raises IndexFailure if they cannot be written."""
    index.delete_patient(patient_id)
    items = indexed_passages(store.list_passages(patient_id))
    for first in range(0, len(items), EMBED_BATCH):
        part = items[first : first + EMBED_BATCH]
        index.add(patient_id, *embed_passages(embedder, part))
        on_progress("indexing", first + len(part), len(items))


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "This document needs more memory than there is; split it into parts."
    return str(error)
