"""Findings of every turn and document, for the Safety review page."""

from __future__ import annotations

from sqlalchemy import literal, select

from app.store.database import Database
from app.store.records import FindingRecord
from app.store.rows import NO_CLAIM, finding_from_row
from app.store.tables import conversations, document_findings, documents, findings, turns
from contracts import Direction, Verdict


class Findings(Database):
    """The part of the store that looks across turns and documents."""

    def list_findings(
        self,
        limit: int = 200,
        patient_id: str | None = None,
        severity: Verdict | None = None,
        direction: Direction | None = None,
    ) -> list[FindingRecord]:
        """The newest findings first; of one patient, severity or direction where given. Findings on an uploaded page
        and on passages put before the model both have the direction DOCUMENT."""
        of_turns = (
            select(findings, turns.c.created_at, turns.c.conversation_id, conversations.c.patient_id)
            .join(turns, findings.c.turn_id == turns.c.id)
            .join(conversations, turns.c.conversation_id == conversations.c.id)
            .order_by(turns.c.number.desc(), findings.c.claim, findings.c.position)
            .limit(limit)
        )
        of_documents = (
            select(document_findings, documents.c.added_at, documents.c.patient_id, documents.c.name)
            .join(documents, document_findings.c.document_id == documents.c.id)
            .order_by(documents.c.number.desc(), document_findings.c.page, document_findings.c.position)
            .limit(limit)
        )
        if patient_id is not None:
            of_turns = of_turns.where(conversations.c.patient_id == patient_id)
            of_documents = of_documents.where(documents.c.patient_id == patient_id)
        if severity is not None:
            of_turns = of_turns.where(findings.c.severity == severity.value)
            of_documents = of_documents.where(document_findings.c.severity == severity.value)
        if direction is not None:
            of_turns = of_turns.where(findings.c.direction == direction.value)
            of_documents = of_documents.where(literal(direction is Direction.DOCUMENT))
        with self.reading() as connection:
            records = [
                FindingRecord(
                    finding=finding_from_row(row),
                    direction=Direction(row.direction),
                    found_at=row.created_at,
                    patient_id=row.patient_id,
                    conversation_id=row.conversation_id,
                    turn_id=row.turn_id,
                    claim=None if row.claim == NO_CLAIM else row.claim,
                )
                for row in connection.execute(of_turns)
            ]
            records += [
                FindingRecord(
                    finding=finding_from_row(row),
                    direction=Direction.DOCUMENT,
                    found_at=row.added_at,
                    patient_id=row.patient_id,
                    document_id=row.document_id,
                    document_name=row.name,
                    page=row.page,
                )
                for row in connection.execute(of_documents)
            ]
        return sorted(records, key=lambda record: record.found_at, reverse=True)[:limit]
