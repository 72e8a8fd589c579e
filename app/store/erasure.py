"""What deleting a document takes out of the answers that were given from it.

Erasure wins over history: a turn keeps its question, its place and how it ended, and loses every word that came, or may
have come, from the deleted document. Knows turns and their rows, nothing of files or vectors.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace

from sqlalchemy import Connection, select

from app.events import Turn
from app.store.rows import read_turns, write_turn
from app.store.tables import conversations, deleted_documents, documents, turns
from contracts import Citation, Claim, ClaimKind, Coverage, Finding

REMOVED = "[removed with its document]"
DELETED_DOCUMENT = "[deleted document]"


def erase_from_turns(connection: Connection, patient_id: str, document_id: str) -> None:
    """Rewrites every turn of the patient that rests on the document, and every later one of the same conversation:
    what was sent to the model for those repeats the earlier answers."""
    names = _document_names(connection, patient_id)
    threads = connection.execute(select(conversations.c.id).where(conversations.c.patient_id == patient_id))
    for thread in threads.all():
        is_touched = False
        for turn in read_turns(connection, turns.c.conversation_id == thread.id):
            is_touched = is_touched or rests_on(turn, document_id)
            erased = erase_document(turn, document_id, names) if is_touched else _erase_names(turn, names)
            if erased != turn:
                write_turn(connection, erased)


def erase_deleted(connection: Connection, turn: Turn) -> Turn:
    """The turn without the words of documents that were deleted while it was being answered."""
    query = (
        select(deleted_documents.c.id, deleted_documents.c.patient_id)
        .join(conversations, conversations.c.patient_id == deleted_documents.c.patient_id)
        .where(conversations.c.id == turn.conversation_id, deleted_documents.c.deleted_at >= turn.created_at)
    )
    for row in connection.execute(query).all():
        turn = erase_document(turn, row.id, _document_names(connection, row.patient_id))
    return turn


def rests_on(turn: Turn, document_id: str) -> bool:
    """Whether the turn cites the document or had it put before the model. Without a record that says, it may have."""
    if any(citation.document_id == document_id for claim in turn.claims for citation in claim.citations):
        return True
    if turn.record:
        return document_id in json.dumps(turn.record)
    return turn.document_ids is None or document_id in turn.document_ids


def erase_document(turn: Turn, document_id: str, names: Collection[str]) -> Turn:
    """The turn without the document's words. Claims that cite it read REMOVED, as do those that cite nothing (withheld
    ones), since their words may be its; its citations stay as markers without a quote; the record of what was sent
    goes. names are those of the patient's remaining documents."""
    return replace(
        _erase_names(turn, names),
        claims=tuple(_erase_claim(claim, document_id) for claim in turn.claims),
        document_findings=tuple(_erase_finding(finding) for finding in turn.document_findings),
        record={"erased": REMOVED} if turn.record else turn.record,
    )


def _erase_names(turn: Turn, names: Collection[str]) -> Turn:
    if turn.coverage is None:
        return turn
    not_ready = tuple(name if name in names else DELETED_DOCUMENT for name in turn.coverage.not_ready)
    coverage: Coverage = replace(turn.coverage, not_ready=not_ready)
    return replace(turn, coverage=coverage)


def _erase_claim(claim: Claim, document_id: str) -> Claim:
    cites = any(citation.document_id == document_id for citation in claim.citations)
    if not cites and (claim.citations or claim.kind is ClaimKind.ABSTENTION):
        return claim
    return replace(
        claim,
        text=REMOVED,
        citations=tuple(_erase_citation(citation, document_id) for citation in claim.citations),
        findings=tuple(_erase_finding(finding) for finding in claim.findings),
    )


def _erase_citation(citation: Citation, document_id: str) -> Citation:
    if citation.document_id != document_id:
        return citation
    return replace(citation, document=DELETED_DOCUMENT, quote="")


def _erase_finding(finding: Finding) -> Finding:
    return replace(finding, message=REMOVED, evidence="")


def _document_names(connection: Connection, patient_id: str) -> set[str]:
    query = select(documents.c.name).where(documents.c.patient_id == patient_id)
    return {row.name for row in connection.execute(query)}
