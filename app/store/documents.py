"""Documents, their bytes, pages, passages and findings: `contracts.DocumentStore` over SQL."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import ColumnElement, Connection, Row, bindparam, delete, func, insert, select, update

from app.errors import InputError, StorageError
from app.store.database import Database, new_id, now
from app.store.erasure import erase_from_turns
from app.store.page_rows import facts_from_row, facts_to_json, page_from_row, page_to_row
from app.store.rows import finding_from_row, finding_to_row, from_row
from app.store.tables import deleted_documents, document_files, document_findings, documents, pages, passages, patients
from contracts import Document, DocumentStatus, Finding, Page, PageBatch, PageFacts, Passage, ReadMethod

GONE = "That document is no longer there; upload it again if it is still needed."
_SEARCHED = [status.value for status in DocumentStatus if status.is_searched]


class Documents(Database):
    """The part of the store that keeps documents. A document being deleted never comes back to another status, so that
    a reader that was still busy with it cannot revive it."""

    def add_document(self, patient_id: str, name: str, media_type: str, data: bytes) -> Document:
        """Stores the bytes as QUEUED. The same bytes twice for a patient give the document already there, unless that
        one is being deleted."""
        fingerprint = self.cipher.fingerprint(data)
        with self.writing() as connection:
            if connection.execute(select(patients.c.id).where(patients.c.id == patient_id)).first() is None:
                raise InputError("That patient is no longer there; reload the page.")
            same = (documents.c.patient_id == patient_id) & (documents.c.fingerprint == fingerprint)
            row = connection.execute(select(documents).where(same)).first()
            if row is not None:
                return _to_document(row)
            document = Document(
                id=new_id(),
                patient_id=patient_id,
                name=name,
                media_type=media_type,
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                status=DocumentStatus.QUEUED,
                added_at=now(),
            )
            row_values = asdict(document) | {"status": document.status.value, "fingerprint": fingerprint}
            connection.execute(insert(documents).values(row_values))
            connection.execute(insert(document_files).values(document_id=document.id, data=data))
        return document

    def get_document(self, document_id: str) -> Document | None:
        with self.reading() as connection:
            row = connection.execute(select(documents).where(documents.c.id == document_id)).first()
        return None if row is None else _to_document(row)

    def list_documents(self, patient_id: str | None = None) -> list[Document]:
        """Documents in the order in which they were added; of every patient if None."""
        query = select(documents).order_by(documents.c.number)
        if patient_id is not None:
            query = query.where(documents.c.patient_id == patient_id)
        with self.reading() as connection:
            return [_to_document(row) for row in connection.execute(query)]

    def get_file(self, document_id: str) -> bytes:
        """The bytes as uploaded; InputError if the document is gone."""
        with self.reading() as connection:
            query = select(document_files.c.data).where(document_files.c.document_id == document_id)
            row = connection.execute(query).first()
        if row is None:
            raise InputError(GONE)
        return row.data

    def get_pages(self, document_id: str) -> list[Page]:
        query = select(pages).where(pages.c.document_id == document_id).order_by(pages.c.number)
        with self.reading() as connection:
            return [page_from_row(row) for row in connection.execute(query)]

    def get_page_facts(self, document_id: str) -> dict[int, PageFacts]:
        """Page number -> what was noticed on that page."""
        query = select(pages.c.number, pages.c.facts).where(pages.c.document_id == document_id)
        with self.reading() as connection:
            return {row.number: facts_from_row(row.number, row.facts) for row in connection.execute(query)}

    def save_page_facts(self, document_id: str, facts: Mapping[int, PageFacts]) -> None:
        """Keeps what was noticed on pages that are there, by number."""
        rows = [{"of_page": number, "new": facts_to_json(noticed)} for number, noticed in facts.items()]
        if not rows:
            return
        is_page = (pages.c.document_id == document_id) & (pages.c.number == bindparam("of_page"))
        with self.writing() as connection:
            connection.execute(update(pages).where(is_page).values(facts=bindparam("new")), rows)

    def clear_pages(self, document_id: str) -> None:
        """Removes the pages of a document with their passages, findings and facts."""
        with self.writing() as connection:
            connection.execute(delete(pages).where(pages.c.document_id == document_id))
            _write_counts(connection, document_id, num_pages=0, parser="", warnings=[])

    def save_pages(self, document_id: str, batch: PageBatch) -> None:
        """Puts pages in with their passages and findings, each in the place of what was read of it before, and the
        document's counts with them; one transaction. Does not touch the status. Raises StorageError if the
        document was deleted meanwhile, ValueError for a passage that is not its page's text[start:end]."""
        _require_verbatim(batch)
        with self.writing() as connection:
            _replace_pages(connection, document_id, batch)
            _write_counts(
                connection,
                document_id,
                num_pages=batch.num_pages,
                parser=batch.parser,
                warnings=list(batch.warnings),
            )

    def confirm_document(self, document_id: str) -> None:
        """Keeps that a person said that the document belongs to its patient."""
        with self.writing() as connection:
            connection.execute(update(documents).where(documents.c.id == document_id).values(is_confirmed=True))

    def set_document_status(self, document_id: str, status: DocumentStatus, error: str = "") -> None:
        """Does nothing for a document that is being deleted or gone."""
        values: dict[str, str | None] = {"status": status.value, "error": error}
        if status is DocumentStatus.DELETING:
            values["fingerprint"] = None  # the same bytes uploaded now are a new document
        with self.writing() as connection:
            connection.execute(
                update(documents)
                .where(documents.c.id == document_id, documents.c.status != DocumentStatus.DELETING.value)
                .values(**values)
            )

    def list_passages(self, patient_id: str, document_ids: Sequence[str] | None = None) -> list[Passage]:
        """Passages of the documents that are searched, in reading order: document by time added, page, start."""
        where = (documents.c.patient_id == patient_id) & documents.c.status.in_(_SEARCHED)
        if document_ids is not None:
            where &= documents.c.id.in_(document_ids)
        return self._list_passages(where)

    def list_document_passages(self, document_id: str) -> list[Passage]:
        """Passages of one document whatever its status, in reading order."""
        return self._list_passages(documents.c.id == document_id)

    def _list_passages(self, where: ColumnElement[bool]) -> list[Passage]:
        with self.reading() as connection:
            names = {
                row.id: row.name for row in connection.execute(select(documents.c.id, documents.c.name).where(where))
            }
            # Only what is needed: each further column would be opened, page by page, for every question.
            columns = (pages.c.document_id, pages.c.number, pages.c.text)
            query = select(*columns).join(documents, pages.c.document_id == documents.c.id).where(where)
            texts = {(row.document_id, row.number): row.text for row in connection.execute(query)}
            rows = connection.execute(
                select(passages)
                .join(documents, passages.c.document_id == documents.c.id)
                .where(where)
                .order_by(documents.c.number, passages.c.page, passages.c.start)
            ).all()
        return [_to_passage(row, names[row.document_id], texts[row.document_id, row.page]) for row in rows]

    def get_document_findings(self, document_id: str) -> dict[int, list[Finding]]:
        """Page number -> findings of the document check on that page."""
        query = (
            select(document_findings)
            .where(document_findings.c.document_id == document_id)
            .order_by(document_findings.c.page, document_findings.c.position)
        )
        by_page: defaultdict[int, list[Finding]] = defaultdict(list)
        with self.reading() as connection:
            for row in connection.execute(query):
                by_page[row.page].append(finding_from_row(row))
        return dict(by_page)

    def save_page_findings(self, document_id: str, page: int, found: Sequence[Finding]) -> None:
        """Puts findings in the place of those that the page has. Does nothing for a page that is gone."""
        of_page = (document_findings.c.document_id == document_id) & (document_findings.c.page == page)
        is_page = (pages.c.document_id == document_id) & (pages.c.number == page)
        with self.writing() as connection:
            connection.execute(delete(document_findings).where(of_page))
            if found and connection.execute(select(pages.c.number).where(is_page)).first():
                connection.execute(insert(document_findings), _finding_rows(document_id, {page: found}))

    def delete_document(self, document_id: str) -> None:
        """Removes the rows, the bytes and the words that past answers took from the document (app.store.erasure)."""
        with self.writing() as connection:
            row = connection.execute(select(documents.c.patient_id).where(documents.c.id == document_id)).first()
            if row is not None:
                connection.execute(delete(documents).where(documents.c.id == document_id))
                connection.execute(
                    insert(deleted_documents).values(id=document_id, patient_id=row.patient_id, deleted_at=now())
                )
                erase_from_turns(connection, row.patient_id, document_id)
        self.scrub()


def _require_verbatim(batch: PageBatch) -> None:
    texts = {page.number: page.text for page in batch.pages}
    for passage in batch.passages:
        if passage.text != texts.get(passage.page, "")[passage.start : passage.end]:
            raise ValueError(f"passage {passage.id} is not the text of page {passage.page} at its offsets")


def _replace_pages(connection: Connection, document_id: str, batch: PageBatch) -> None:
    numbers = [page.number for page in batch.pages]
    # Passages and findings go with them.
    connection.execute(delete(pages).where(pages.c.document_id == document_id, pages.c.number.in_(numbers)))
    page_rows = [{"document_id": document_id, **page_to_row(page)} for page in batch.pages]
    columns = ("id", "page", "start", "end", "confidence")
    passage_rows = [
        {name: getattr(passage, name) for name in columns}
        | {"document_id": document_id, "method": passage.method.value}
        for passage in batch.passages
    ]
    finding_rows = _finding_rows(document_id, batch.findings)
    for table, rows in ((pages, page_rows), (passages, passage_rows), (document_findings, finding_rows)):
        if rows:
            connection.execute(insert(table), rows)


def _finding_rows(document_id: str, by_page: Mapping[int, Sequence[Finding]]) -> list[dict[str, object]]:
    return [
        {"document_id": document_id, "page": page, "position": position, **finding_to_row(finding)}
        for page, found in by_page.items()
        for position, finding in enumerate(found)
    ]


def _write_counts(
    connection: Connection, document_id: str, num_pages: int, parser: str, warnings: Sequence[str]
) -> None:
    query = select(pages.c.method, func.count()).where(pages.c.document_id == document_id).group_by(pages.c.method)
    counts = {row[0]: row[1] for row in connection.execute(query)}
    changed = connection.execute(
        update(documents)
        .where(documents.c.id == document_id, documents.c.status != DocumentStatus.DELETING.value)
        .values(
            parser=parser,
            num_pages=num_pages,
            num_pages_ocr=counts.get(ReadMethod.OCR.value, 0),
            num_pages_empty=counts.get(ReadMethod.EMPTY.value, 0),
            num_pages_pending=counts.get(ReadMethod.PENDING.value, 0),
            warnings=warnings,
        )
    )
    if not changed.rowcount:
        raise StorageError(GONE)


def _to_document(row: Row) -> Document:
    return from_row(Document, row, status=DocumentStatus(row.status), warnings=tuple(row.warnings or ()))


def _to_passage(row: Row, document_name: str, page_text: str) -> Passage:
    text = page_text[row.start : row.end]
    return from_row(
        Passage, row, document_name=document_name, text=text, method=ReadMethod(row.method), context="", section=""
    )
