"""The real embedder, once; a real vector index and a library over it, fresh for each test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from contracts import Document
from retrieval.bilingual import BilingualEmbedder
from retrieval.documents import DocumentLibrary
from retrieval.index import VectorIndex
from retrieval.reading.process import Readers
from retrieval.search import HybridRetriever
from tests.retrieval.doubles import AllowingChecker, MemoryStore


@pytest.fixture(scope="session")
def embedder() -> BilingualEmbedder:
    return BilingualEmbedder(threads=1)


@pytest.fixture(scope="session")
def readers() -> Iterator[Readers]:
    """Reading processes with a spare one kept, as the app has them."""
    readers = Readers()
    yield readers
    readers.close()


@dataclass
class Bench:
    """A library with its parts, to act on and to look into."""

    store: MemoryStore
    index: VectorIndex
    safety: AllowingChecker
    library: DocumentLibrary
    retriever: HybridRetriever

    def ready(self, patient_id: str, name: str, text: str) -> Document:
        document = self.library.ingest(self.library.add(patient_id, name, text.encode()).id)
        assert document is not None
        return document


@pytest.fixture
def bench(tmp_path: Path, embedder: BilingualEmbedder, readers: Readers) -> Iterator[Bench]:
    store, index, safety = MemoryStore(), VectorIndex(tmp_path / "chroma"), AllowingChecker()
    library = DocumentLibrary(store, index, embedder, safety, max_bytes=5_000_000, readers=readers)
    yield Bench(store, index, safety, library, HybridRetriever(store, index, embedder))
    index.close()
