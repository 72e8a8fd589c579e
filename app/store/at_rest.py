"""What a document looks like in the database's files: the sealed bytes of its rows, for the scan after an erasure."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Column, LargeBinary, select, type_coerce

from app.store.database import Database
from app.store.tables import document_files, document_findings, documents, pages

_SEALED: tuple[tuple[Column[str], tuple[Column[object], ...]], ...] = (
    (documents.c.id, (documents.c.name, documents.c.sha256)),
    (document_files.c.document_id, (document_files.c.data,)),
    (pages.c.document_id, (pages.c.text, pages.c.lines, pages.c.facts)),
    (document_findings.c.document_id, (document_findings.c.message, document_findings.c.evidence)),
)


def sealed_values(database: Database, document_id: str) -> Iterator[bytes]:
    """Each encrypted value of the document's rows as it lies in the database."""
    with database.reading() as connection:
        for key, columns in _SEALED:
            query = select(*(type_coerce(column, LargeBinary) for column in columns)).where(key == document_id)
            for row in connection.execute(query):
                yield from (bytes(value) for value in row if value is not None)
