"""A store in memory and a checker that allows all: the two neighbours that retrieval needs, without SQL or rules."""

from __future__ import annotations

import hashlib
import pickle
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contracts import (
    CheckResult,
    ClaimCheck,
    Document,
    DocumentStatus,
    Finding,
    Message,
    Page,
    PageBatch,
    PageFacts,
    Passage,
    Patient,
    ReadMethod,
    Verdict,
)


class MemoryStore:
    """contracts.DocumentStore in dictionaries."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.documents: dict[str, Document] = {}
        self.files: dict[str, bytes] = {}
        self.pages: dict[str, list[Page]] = {}
        self.passages: dict[str, list[Passage]] = {}
        self.findings: dict[str, dict[int, list[Finding]]] = {}
        self.facts: dict[str, dict[int, PageFacts]] = {}

    def add_document(self, patient_id: str, name: str, media_type: str, data: bytes) -> Document:
        sha256 = hashlib.sha256(data).hexdigest()
        with self._lock:
            for document in self.documents.values():
                if (document.patient_id, document.sha256) == (patient_id, sha256):
                    return document
            document = Document(
                f"d{len(self.documents)}-{sha256[:8]}", patient_id, name, media_type, len(data), sha256,
                DocumentStatus.QUEUED,
            )  # fmt: skip
            self.documents[document.id] = document
            self.files[document.id] = data
            return document

    def get_document(self, document_id: str) -> Document | None:
        return self.documents.get(document_id)

    def list_documents(self, patient_id: str | None = None) -> list[Document]:
        return [d for d in self.documents.values() if patient_id in (None, d.patient_id)]

    def get_file(self, document_id: str) -> bytes:
        return self.files[document_id]

    def get_pages(self, document_id: str) -> list[Page]:
        return list(self.pages.get(document_id, []))

    def clear_pages(self, document_id: str) -> None:
        with self._lock:
            for table in (self.pages, self.passages, self.findings, self.facts):
                table.pop(document_id, None)
            self._count(document_id, 0, "", ())

    def save_pages(self, document_id: str, batch: PageBatch) -> None:
        numbers = {page.number for page in batch.pages}
        with self._lock:
            kept = [page for page in self.pages.get(document_id, []) if page.number not in numbers]
            self.pages[document_id] = sorted([*kept, *batch.pages], key=lambda page: page.number)
            others = [passage for passage in self.passages.get(document_id, []) if passage.page not in numbers]
            self.passages[document_id] = sorted([*others, *batch.passages], key=lambda p: (p.page, p.start))
            findings = self.findings.setdefault(document_id, {})
            for number in numbers:
                findings.pop(number, None)
            findings.update({number: list(found) for number, found in batch.findings.items()})
            self._count(document_id, batch.num_pages, batch.parser, batch.warnings)

    def _count(self, document_id: str, num_pages: int, parser: str, warnings: Sequence[str]) -> None:
        methods = [page.method for page in self.pages.get(document_id, [])]
        self.documents[document_id] = replace(
            self.documents[document_id],
            num_pages=num_pages,
            num_pages_ocr=methods.count(ReadMethod.OCR),
            num_pages_empty=methods.count(ReadMethod.EMPTY),
            num_pages_pending=methods.count(ReadMethod.PENDING),
            parser=parser,
            warnings=tuple(warnings),
        )

    def save_page_facts(self, document_id: str, facts: Mapping[int, PageFacts]) -> None:
        self.facts.setdefault(document_id, {}).update(facts)

    def get_page_facts(self, document_id: str) -> dict[int, PageFacts]:
        return dict(self.facts.get(document_id, {}))

    def confirm_document(self, document_id: str) -> None:
        self.documents[document_id] = replace(self.documents[document_id], is_confirmed=True)

    def set_document_status(self, document_id: str, status: DocumentStatus, error: str = "") -> None:
        with self._lock:
            self.documents[document_id] = replace(self.documents[document_id], status=status, error=error)

    def list_passages(self, patient_id: str, document_ids: Sequence[str] | None = None) -> list[Passage]:
        return [
            passage
            for document in self.list_documents(patient_id)
            if document.status.is_searched and (document_ids is None or document.id in document_ids)
            for passage in self.passages.get(document.id, [])
        ]

    def list_document_passages(self, document_id: str) -> list[Passage]:
        return list(self.passages.get(document_id, []))

    def get_document_findings(self, document_id: str) -> dict[int, list[Finding]]:
        return {number: list(found) for number, found in self.findings.get(document_id, {}).items()}

    def save_page_findings(self, document_id: str, page: int, found: Sequence[Finding]) -> None:
        with self._lock:
            if found:
                self.findings.setdefault(document_id, {})[page] = list(found)
            else:
                self.findings.get(document_id, {}).pop(page, None)

    def delete_document(self, document_id: str) -> None:
        with self._lock:
            for table in (self.documents, self.files, self.pages, self.passages, self.findings, self.facts):
                table.pop(document_id, None)


class AllowingChecker:
    """contracts.SafetyChecker that finds nothing, or what it is told to find."""

    version = "test"

    def __init__(self, document_result: CheckResult | None = None) -> None:
        self.document_result = document_result or CheckResult(Verdict.ALLOW)

    def check_input(self, messages: Sequence[Message], patient: Patient | None = None) -> CheckResult:
        return CheckResult(Verdict.ALLOW)

    def check_document(self, text: str) -> CheckResult:
        return self.document_result

    def check_claim(
        self, claim: str, cited: Sequence[int], passages: Sequence[Passage], patient: Patient | None = None
    ) -> ClaimCheck:
        return ClaimCheck(Verdict.ALLOW, supported=True)


class WordEmbedder:
    """retrieval.vectors.Embedder that needs no weights: texts of the same words get the same vector."""

    identity = "words"

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = np.zeros((len(texts), 384), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, zlib.crc32(word.encode()) % 384] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def embed_parts(
        self, texts: Sequence[str], parts: Sequence[Sequence[tuple[int, int]]]
    ) -> list[npt.NDArray[np.float32]]:
        return [self.embed([text[slice(*span)] for span in spans]) for text, spans in zip(texts, parts, strict=True)]

    def space(self, text: str) -> str:
        return ""

    def count_tokens(self, text: str) -> int:
        return len(text.split())


class FileStore(MemoryStore):
    """A MemoryStore that is on disk after every write, so that a killed process leaves it to the next."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if path.exists():
            tables = pickle.loads(path.read_bytes())
            self.documents, self.files, self.pages, self.passages, self.findings, self.facts = tables

    def _save(self) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(
            pickle.dumps((self.documents, self.files, self.pages, self.passages, self.findings, self.facts))
        )
        partial.replace(self._path)

    def add_document(self, patient_id: str, name: str, media_type: str, data: bytes) -> Document:
        document = super().add_document(patient_id, name, media_type, data)
        self._save()
        return document

    def clear_pages(self, document_id: str) -> None:
        super().clear_pages(document_id)
        self._save()

    def save_pages(self, document_id: str, batch: PageBatch) -> None:
        super().save_pages(document_id, batch)
        self._save()

    def confirm_document(self, document_id: str) -> None:
        super().confirm_document(document_id)
        self._save()

    def set_document_status(self, document_id: str, status: DocumentStatus, error: str = "") -> None:
        super().set_document_status(document_id, status, error)
        self._save()

    def delete_document(self, document_id: str) -> None:
        super().delete_document(document_id)
        self._save()
