"""The vector index: Chroma, one collection a patient, vectors and ids only. The only file that imports chromadb.

Text never enters it, so that erasing the database's rows erases the words. One process owns the folder. It can always
be made again from the text: whatever goes wrong here is an IndexFailure, and costs search by meaning until repaired.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from retrieval.errors import DISK_FULL, IndexFailure, IndexUnreadable, is_disk_full

FloatArray = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)

_EMBEDDER = "embedder"  # key of a collection's metadata
_SPACE: Any = {"hnsw": {"space": "cosine"}}
_BATCH = 1_000
_RESERVE_BYTES = 20_000_000
_BYTES_PER_VECTOR_BYTE = 6  # measured: database, its log and the graph file together


class VectorIndex:
    """Vectors of passages under their ids, apart for each patient. Opened on first use; safe between threads."""

    def __init__(self, path: Path, embedder: str = "", url: str = "") -> None:
        """embedder: what makes the vectors. Collections of another one count as empty and are replaced.
        url: of a `chroma run` server that keeps them in place of the folder."""
        self.path = path
        self._url = url
        self._embedder = embedder
        self._revisions: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._open_client: Any = None
        self._used: set[str] = set()  # ids of collections since their files were last looked at

    def add(self, patient_id: str, ids: Sequence[str], vectors: FloatArray) -> None:
        """Stores vectors [N, D] under their ids; an id already there is replaced. Durable on return."""
        with self._guard():
            self._revisions[patient_id] += 1
            if not self._url and not self._has_room(vectors.nbytes):
                raise IndexFailure(DISK_FULL)  # before Chroma finds out: it does not recover from a half-written log
            known = self._collection(patient_id)
            collection = self._create_collection(patient_id) if known is None else known
            for first in range(0, len(ids), _BATCH):
                part = slice(first, first + _BATCH)
                collection.upsert(ids=list(ids[part]), embeddings=vectors[part])

    def delete(self, patient_id: str, ids: Iterable[str]) -> None:
        """Removes vectors by id; ids that are not there are no error. An empty collection is removed whole."""
        with self._guard():
            self._revisions[patient_id] += 1
            collection = self._collection(patient_id)
            if collection is None:
                return
            present = set(collection.get(include=[])["ids"])
            doomed = sorted(present & set(ids))
            if len(doomed) == len(present):
                self.delete_patient(patient_id)
                return
            for first in range(0, len(doomed), _BATCH):
                collection.delete(ids=doomed[first : first + _BATCH])

    def vectors(self, patient_id: str) -> tuple[list[str], FloatArray]:
        """(ids, float32 [N, D]) of all that is stored for a patient, in any order.

        Search compares a question with every one of them: exact, and at a patient's size as fast as Chroma's graph,
        whose recall at 10 fell to 0.11 in the worst case measured.
        """
        with self._guard():
            collection = self._collection(patient_id)
            found = None if collection is None else collection.get(include=["embeddings"])
        if found is None or not found["ids"]:
            return [], np.zeros((0, 0), dtype=np.float32)
        return list(found["ids"]), np.asarray(found["embeddings"], dtype=np.float32)

    def revision(self, patient_id: str) -> int:
        """Grows with every change to a patient's vectors in this process."""
        return self._revisions[patient_id]

    def ids(self, patient_id: str) -> set[str]:
        """The ids stored for a patient."""
        with self._guard():
            collection = self._collection(patient_id)
            return set() if collection is None else set(collection.get(include=[])["ids"])

    def vectors_of(self, patient_id: str, ids: Sequence[str]) -> FloatArray:
        """The stored vectors [N, D] of those ids that are there, in no order."""
        with self._guard():
            collection = self._collection(patient_id)
            found = [] if collection is None else collection.get(ids=list(ids), include=["embeddings"])["embeddings"]
        return np.asarray(found, dtype=np.float32)

    def compact(self, patient_id: str) -> None:
        """Takes deleted vectors out of the files: Chroma's graph only marks them, and its database keeps freed pages.
        The patient's collection is written anew, the database vacuumed."""
        with self._guard():
            collection = self._collection(patient_id)
            if collection is not None:
                kept = collection.get(include=["embeddings"])
                ids, vectors = list(kept["ids"]), np.asarray(kept["embeddings"], dtype=np.float32)
                self.delete_patient(patient_id)
                if ids:
                    self.add(patient_id, ids, vectors)
            if not (self.path / "chroma.sqlite3").exists():
                return
            self.close()
            with contextlib.closing(sqlite3.connect(self.path / "chroma.sqlite3", timeout=30)) as database:
                database.execute("PRAGMA secure_delete = ON")
                database.execute("VACUUM")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def delete_patient(self, patient_id: str) -> None:
        """Removes a patient's collection and its files; no error if there is none."""
        self._revisions[patient_id] += 1
        self._delete_collection(_collection_name(patient_id))

    def delete_orphans(self, patient_ids: Iterable[str]) -> int:
        """Removes the collections, and the files, of all but these patients; returns how many collections."""
        known = {_collection_name(patient_id) for patient_id in patient_ids}
        with self._guard():
            orphans = [c.name for c in self._client().list_collections() if c.name not in known]
        for name in orphans:
            self._delete_collection(name)
        self._delete_orphaned_folders()
        return len(orphans)

    def check(self, patient_id: str) -> None:
        """Reads every vector of a patient and searches once. Raises IndexFailure if the files cannot be read."""
        with self._guard():
            collection = self._collection(patient_id)
            if collection is None:
                return
            stored = collection.get(include=["embeddings"])
            if len(stored["ids"]) and len(stored["embeddings"]) != len(stored["ids"]):
                raise IndexUnreadable("The vector index has lost vectors; it is made again from the text.")
            if len(stored["ids"]):
                collection.query(query_embeddings=[stored["embeddings"][0]], n_results=1, include=["distances"])

    def set_aside(self) -> Path | None:
        """Moves an unreadable folder out of the way, so that the index starts empty; returns where it is now."""
        with self._lock:
            self.close()
            if self._url or not self.path.exists():
                return None
            aside = self.path.with_name(f"{self.path.name}.unreadable-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
            self.path.rename(aside)
            return aside

    def close(self) -> None:
        """Lets go of the files; the next use opens them again."""
        with self._lock:
            client, self._open_client = self._open_client, None
            if client is not None:
                with contextlib.suppress(*_chroma_errors()):
                    client.close()

    def _has_room(self, num_bytes: int) -> bool:
        self.path.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.path).free >= _RESERVE_BYTES + num_bytes * _BYTES_PER_VECTOR_BYTE

    def _client(self) -> Any:
        if self._open_client is None:
            import chromadb
            from chromadb.api.shared_system_client import SharedSystemClient
            from chromadb.config import Settings

            settings = Settings(anonymized_telemetry=False)
            if self._url:
                url = urlsplit(self._url)
                is_tls = url.scheme == "https"
                port = url.port or (443 if is_tls else 8000)
                self._open_client = chromadb.HttpClient(url.hostname or "", port, ssl=is_tls, settings=settings)
                return self._open_client
            self.path.mkdir(parents=True, exist_ok=True)
            path = str(self.path.resolve())
            try:
                self._open_client = chromadb.PersistentClient(path, settings=settings)
            finally:
                if self._open_client is None:
                    # Chroma keeps what failed to open under its path, and would give it out at the next attempt.
                    SharedSystemClient._identifier_to_system.pop(path, None)
        return self._open_client

    def _collection(self, patient_id: str) -> Any:
        """The patient's collection of this embedder; None if there is none."""
        from chromadb.errors import NotFoundError

        with contextlib.suppress(NotFoundError):
            collection = self._client().get_collection(_collection_name(patient_id), embedding_function=None)
            if (collection.metadata or {}).get(_EMBEDDER, "") == self._embedder:
                self._used.add(str(collection.id))
                return collection
        return None

    def _create_collection(self, patient_id: str) -> Any:
        """A new collection of this embedder, in the place of another one's."""
        name = _collection_name(patient_id)
        self._delete_collection(name)
        metadata = {_EMBEDDER: self._embedder} if self._embedder else None
        client = self._client()
        collection = client.create_collection(name, metadata=metadata, configuration=_SPACE, embedding_function=None)
        self._used.add(str(collection.id))
        return collection

    def _delete_collection(self, name: str) -> None:
        from chromadb.errors import NotFoundError

        with self._guard(), contextlib.suppress(NotFoundError):
            self._client().delete_collection(name)
        self._delete_orphaned_folders()

    def _delete_orphaned_folders(self) -> None:
        """Chroma leaves the folder of a deleted collection, vectors and all; remove those that it no longer lists."""
        if self._url:
            return  # the server's folder is not ours to touch
        with self._guard():
            graphs = set(self._graph_folders())
            for folder in self.path.iterdir():
                if folder.is_dir() and _is_uuid(folder.name) and folder not in graphs:
                    shutil.rmtree(folder)
            for folder in graphs:
                _wipe_empty_graph(folder)

    def _graph_folders(self, collection_id: str = "") -> list[Path]:
        """Where the graphs of one collection, or of all, lie."""
        database = sqlite3.connect(f"file:{self.path / 'chroma.sqlite3'}?mode=ro", uri=True)
        with contextlib.closing(database):
            rows = database.execute("SELECT id FROM segments WHERE ? IN ('', collection)", [collection_id])
            return [self.path / row[0] for row in rows]

    def _wipe_used(self) -> None:
        while self._used:
            collection_id = self._used.pop()
            if not self._url:
                for folder in self._graph_folders(collection_id):
                    _wipe_empty_graph(folder)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """One thread at a time; whatever Chroma, SQLite or the disk raise leaves as an IndexFailure."""
        with self._lock:
            try:
                yield
                self._wipe_used()
            except IndexFailure:
                raise
            except _chroma_errors() as error:
                self.close()  # a client that failed once keeps failing; the next use opens the files anew
                raise self._failure(error) from error
            except BaseException as error:
                # A panic in Chroma's Rust part derives from BaseException and has no importable name.
                if type(error).__name__ == "PanicException":
                    self.close()
                    raise self._failure(error) from error
                raise

    def _failure(self, error: BaseException) -> IndexFailure:
        if self._url:
            return IndexFailure(f"The Chroma server at {self._url} cannot be asked ({error}); start it, or see why.")
        return _failure(error, self.path)


def _chroma_errors() -> tuple[type[Exception], ...]:
    from chromadb.errors import ChromaError
    from httpx import HTTPError

    return ChromaError, HTTPError, sqlite3.Error, OSError, ValueError, TypeError, RuntimeError, AttributeError


def _failure(error: BaseException, path: Path) -> IndexFailure:
    if is_disk_full(error) or (path.exists() and shutil.disk_usage(path).free < _RESERVE_BYTES):
        return IndexFailure(DISK_FULL)
    if "disk i/o" in str(error).lower():
        return IndexFailure("The disk cannot be written (input/output error); check its space, then try again.")
    if "locked" in str(error).lower():
        return IndexFailure("The vector index is in use by another process; close the other one and start again.")
    return IndexUnreadable(f"The vector index cannot be used ({error}); restart to have it made again from the text.")


def _collection_name(patient_id: str) -> str:
    """Chroma allows few characters in a name, and a folder listing must not give patients away."""
    return "patient-" + hashlib.sha256(patient_id.encode()).hexdigest()[:40]


def _wipe_empty_graph(folder: Path) -> None:
    """Chroma writes the memory that a new graph was given, with whatever stood there before (vectors, words of other
    patients), whenever it opens a collection whose vectors are still all in its log. Nobody reads it: it holds no node.
    """
    if (folder / "index_metadata.pickle").exists():
        return
    for path in (folder / "data_level0.bin", folder / "length.bin"):
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
            memory = file.read()
            if memory.strip(b"\0"):
                file.seek(0)
                file.write(bytes(len(memory)))
                file.flush()
                os.fsync(file.fileno())


def _is_uuid(name: str) -> bool:
    try:
        uuid.UUID(name)
    except ValueError:
        return False
    return True
