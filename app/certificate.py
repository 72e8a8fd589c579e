"""Proof of an erasure: every byte of the data folder is searched for what stood there of a document.

Looked for are the document's own strings in the encodings in which a program writes text, slices of its bytes, the
sealed values of its rows as they lay in the database, and the bytes of its vectors. The same search is made before the
erasure: one that finds nothing then could not find anything after it either.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from app.config import Settings
from app.errors import InputError
from app.store import Store
from app.store.at_rest import sealed_values
from contracts import Document, Passage
from retrieval.documents import DocumentLibrary
from retrieval.errors import IndexFailure
from retrieval.index import FloatArray

ELSEWHERE = "The database lies on another server; its files were not scanned."
_MIN_BYTES = 16  # of a string: shorter ones stand anywhere by chance
_SLICE_BYTES = 24
_MAX_LINES = 300  # of a document's text that are looked for, spread evenly
_MAX_SLICES = 200  # of its bytes, and of each sealed value
_KEY_BYTES = 8
_WINDOW = 64 * 2**20
_LOG = logging.getLogger(__name__)
_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "gb18030")


class Kept(Protocol):
    """What an erasure needs of app.services.Services."""

    settings: Settings
    store: Store
    library: DocumentLibrary

    def vectors(self, patient_id: str, passages: Sequence[Passage]) -> FloatArray: ...

    def delete_patient(self, patient_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Hit:
    """A place in the data folder where something of the document still stands."""

    file: str
    offset: int
    kind: str  # "text", "file", "sealed" or "vector"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was erased and what the scan found. traces_before: how many of the patterns stood in the files before."""

    erased_at: str
    document_ids: tuple[str, ...]
    patient_id: str
    patterns: int
    traces_before: int
    files: int
    bytes_scanned: int
    hits: tuple[Hit, ...]
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is left, and the scan could see what there was."""
        return not self.hits and self.traces_before > 0

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the scan did and found, for people."""
        places = (f"Left: {hit.kind} in {hit.file} at byte {hit.offset:,}." for hit in self.hits)
        return (
            f"Scanned {self.files} files, {self.bytes_scanned:,} bytes, for {self.patterns:,} traces.",
            f"Found before: {self.traces_before:,}; found after: {len(self.hits)}.",
            *places,
            *filter(None, [self.note]),
        )


Patterns = dict[bytes, str]
T = TypeVar("T")


def erase(
    services: Kept, document_ids: Sequence[str] = (), patient_id: str = "", actor: str = "", reason: str = ""
) -> Certificate:
    """Erases documents, or a patient with all there is, scans the data folder, gives the certificate. The audit keeps
    it too: an entry for each document, or for the patient, by `actor` and with the reason given.

    Raises InputError if there is no such document or patient.
    """
    documents = _documents(services, document_ids, patient_id)
    folder = services.settings.data_dir
    patterns: Patterns = {}
    for document in documents:
        patterns |= _patterns(services, document)
    patterns = _without_kept(services, documents, patterns)
    before, _, _ = scan(folder, patterns)
    if patient_id:
        services.delete_patient(patient_id)
    else:
        for document in documents:
            services.library.delete(document.id)
    hits, num_files, num_bytes = scan(folder, patterns)
    for hit in hits:
        _LOG.error("an erased document has left a trace (%s) at byte %d of %s", hit.kind, hit.offset, hit.file)
    certificate = Certificate(
        erased_at=datetime.now(UTC).isoformat(timespec="seconds"),
        document_ids=tuple(document.id for document in documents),
        patient_id=patient_id,
        patterns=len(patterns),
        traces_before=len(before),
        files=num_files,
        bytes_scanned=num_bytes,
        hits=tuple(hits),
        note=ELSEWHERE if services.settings.database_url else "",
    )
    detail = " ".join(filter(None, (reason, *certificate.sentences)))
    for subject in [patient_id] if patient_id else certificate.document_ids:
        services.store.add_audit(actor, "erase", subject, detail)
    return certificate


def scan(folder: Path, patterns: Patterns) -> tuple[list[Hit], int, int]:
    """(hits, at most one a pattern and file; number of files; number of bytes) over every file below a folder."""
    by_key: dict[int, list[bytes]] = {}
    for pattern in patterns:
        by_key.setdefault(int.from_bytes(pattern[:_KEY_BYTES], "little"), []).append(pattern)
    keys = np.array(sorted(by_key), dtype=np.uint64)
    hits: list[Hit] = []
    num_files = num_bytes = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        num_files, num_bytes = num_files + 1, num_bytes + size
        if size >= _MIN_BYTES and len(keys):
            found = {pattern: offset for offset, pattern in _find(path, size, keys, by_key)}
            name = str(path.relative_to(folder))
            hits += [Hit(name, offset, patterns[pattern]) for pattern, offset in found.items()]
    return hits, num_files, num_bytes


def _find(path: Path, size: int, keys: Any, by_key: dict[int, list[bytes]]) -> Iterator[tuple[int, bytes]]:
    """(offset, pattern) wherever a pattern stands in a file: by its first eight bytes at every offset, then whole."""
    longest = max(len(pattern) for group in by_key.values() for pattern in group)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for start in range(0, size, _WINDOW):
            window = data[start : start + _WINDOW + longest]
            for shift in range(_KEY_BYTES):
                count = (len(window) - shift) // _KEY_BYTES
                words = np.frombuffer(window, dtype="<u8", count=count, offset=shift)
                for index in np.flatnonzero(np.isin(words, keys)):
                    offset = shift + int(index) * _KEY_BYTES
                    for pattern in by_key[int(words[index])]:
                        if window.startswith(pattern, offset):
                            yield start + offset, pattern


# --- what is looked for -------------------------------------------------------------------------------------------


def _documents(services: Kept, document_ids: Sequence[str], patient_id: str) -> list[Document]:
    if patient_id:
        if services.store.get_patient(patient_id) is None:
            raise InputError(f"There is no patient {patient_id}; `bedside erase` takes an id.")
        return services.store.list_documents(patient_id)
    found = [services.store.get_document(document_id) for document_id in document_ids]
    missing = [document_id for document_id, document in zip(document_ids, found, strict=True) if document is None]
    if missing:
        raise InputError(f"There is no document {missing[0]}; `bedside erase` takes an id.")
    return [document for document in found if document]


def _patterns(services: Kept, document: Document) -> Patterns:
    patterns: Patterns = {}
    lines = [line.strip() for page in services.store.get_pages(document.id) for line in page.text.splitlines()]
    for text in [document.name, document.sha256, *_spread([line for line in lines if line], _MAX_LINES)]:
        patterns |= dict.fromkeys(_encoded(text), "text")
    data = services.store.get_file(document.id)
    patterns |= dict.fromkeys([*_slices(data), hashlib.sha256(data).digest()], "file")
    for value in sealed_values(services.store, document.id):
        patterns |= dict.fromkeys(_slices(value), "sealed")
    try:
        vectors = services.vectors(document.patient_id, services.store.list_document_passages(document.id))
    except IndexFailure:
        return patterns
    return patterns | dict.fromkeys((vector.tobytes()[:_SLICE_BYTES] for vector in vectors), "vector")


def _without_kept(services: Kept, erased: Sequence[Document], patterns: Patterns) -> Patterns:
    """The patterns that are the erased documents' own: a sentence, and so a vector, may stand in another one too."""
    ids = {document.id for document in erased}
    kept: set[bytes] = set()
    for document in services.store.list_documents():
        if document.id not in ids:
            kept |= _patterns(services, document).keys()
    return {pattern: kind for pattern, kind in patterns.items() if pattern not in kept}


def _encoded(text: str) -> Iterator[bytes]:
    forms = [text.encode(encoding, "ignore") for encoding in _ENCODINGS]
    if not text.isascii():
        forms.append(json.dumps(text).strip('"').encode("ascii"))
    yield from (form[:200] for form in forms if len(form) >= _MIN_BYTES)


def _slices(data: bytes) -> Iterator[bytes]:
    """Pieces of bytes that say something: a run of one value stands in many files."""
    for start in _spread(range(0, max(len(data) - _SLICE_BYTES, 0) + 1, _SLICE_BYTES), _MAX_SLICES):
        piece = data[start : start + _SLICE_BYTES]
        if len(piece) >= _MIN_BYTES and len(set(piece)) >= 8:
            yield piece


def _spread(items: Sequence[T], most: int) -> Iterator[T]:
    """At most that many of the items, from first to last at equal distances."""
    step = max(len(items) / most, 1)
    return (items[int(number * step)] for number in range(int(len(items) / step)))
