"""Conversations and their turns."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from app.errors import InputError
from app.events import Turn, TurnStatus
from app.store.database import Database, new_id, now
from app.store.erasure import erase_deleted
from app.store.records import Conversation
from app.store.rows import add_turn_row, read_turns, write_turn
from app.store.tables import claims, conversations, deleted_documents, patients, turns
from contracts import ClaimKind

GONE = "That conversation is no longer there; reload the page."
MAX_TITLE_CHARS = 80


class Conversations(Database):
    """The part of the store that keeps conversations."""

    def add_conversation(self, patient_id: str, title: str = "") -> Conversation:
        """Raises InputError if there is no such patient."""
        time = now()
        conversation = Conversation(new_id(), patient_id, title, created_at=time, updated_at=time)
        with self.writing() as connection:
            if connection.execute(select(patients.c.id).where(patients.c.id == patient_id)).first() is None:
                raise InputError("That patient is no longer there; reload the page.")
            connection.execute(
                insert(conversations).values(
                    id=conversation.id, patient_id=patient_id, title=title, created_at=time, updated_at=time
                )
            )
        return conversation

    def get_conversation(self, conversation_id: str) -> Conversation | None:
        with self.reading() as connection:
            row = connection.execute(select(conversations).where(conversations.c.id == conversation_id)).first()
            return None if row is None else _to_conversation(row, _first_questions(connection, row.patient_id))

    def list_conversations(self, patient_id: str, query: str = "") -> list[Conversation]:
        """The patient's conversations, the one asked in last first. A query keeps those in whose title, questions and
        shown answers it stands, whatever the case."""
        with self.reading() as connection:
            rows = connection.execute(
                select(conversations)
                .where(conversations.c.patient_id == patient_id)
                .order_by(conversations.c.updated_at.desc(), conversations.c.number.desc())
            ).all()
            firsts = _first_questions(connection, patient_id)
            found = [_to_conversation(row, firsts) for row in rows]
            words = query.strip().casefold()
            if not words:
                return found
            texts = _texts(connection, patient_id)
        return [c for c in found if any(words in text for text in (c.title.casefold(), *texts.get(c.id, ())))]

    def rename_conversation(self, conversation_id: str, title: str) -> None:
        """A blank title gives the first question back its place. Raises InputError if the conversation is gone."""
        with self.writing() as connection:
            changed = connection.execute(
                update(conversations).where(conversations.c.id == conversation_id).values(title=title.strip())
            )
            if not changed.rowcount:
                raise InputError(GONE)

    def delete_conversation(self, conversation_id: str) -> None:
        with self.writing() as connection:
            connection.execute(delete(conversations).where(conversations.c.id == conversation_id))
        self.scrub()

    def add_turn(self, conversation_id: str, question: str, document_ids: Sequence[str] | None = None) -> Turn:
        """Stores the question, RUNNING, durable on return. Raises InputError if the conversation is gone."""
        turn = Turn(
            id=new_id(),
            conversation_id=conversation_id,
            question=question,
            created_at=now(),
            document_ids=None if document_ids is None else tuple(document_ids),
        )
        with self.writing() as connection:
            changed = connection.execute(
                update(conversations).where(conversations.c.id == conversation_id).values(updated_at=turn.created_at)
            )
            if not changed.rowcount:
                raise InputError(GONE)
            add_turn_row(connection, turn)
        return turn

    def save_turn(self, turn: Turn) -> bool:
        """Brings the stored turn to this state in one transaction. False, and nothing is stored, if the turn was
        deleted meanwhile: a worker must not bring it back. Words of a document deleted meanwhile are left out."""
        with self.writing() as connection:
            return write_turn(connection, erase_deleted(connection, turn))

    def get_turn(self, turn_id: str) -> Turn | None:
        with self.reading() as connection:
            return next(iter(read_turns(connection, turns.c.id == turn_id)), None)

    def get_turns(self, conversation_id: str) -> list[Turn]:
        """The turns of a conversation, oldest first."""
        with self.reading() as connection:
            return read_turns(connection, turns.c.conversation_id == conversation_id)

    def delete_turns_from(self, turn_id: str) -> None:
        """Deletes a turn and the later ones of its conversation: before an edited or repeated question is put."""
        with self.writing() as connection:
            row = connection.execute(select(turns).where(turns.c.id == turn_id)).first()
            if row is not None:
                connection.execute(
                    delete(turns).where(turns.c.conversation_id == row.conversation_id, turns.c.number >= row.number)
                )
        self.scrub()

    def recover(self) -> int:
        """At start, before any job: what was RUNNING when the program ended is INTERRUPTED and keeps its claims.
        Returns how many."""
        with self.writing() as connection:
            connection.execute(delete(deleted_documents))  # they guard running turns only
            changed = connection.execute(
                update(turns)
                .where(turns.c.status == TurnStatus.RUNNING.value)
                .values(status=TurnStatus.INTERRUPTED.value)
            )
            return changed.rowcount


def _first_questions(connection: Connection, patient_id: str) -> dict[str, str]:
    """Conversation id -> its first question."""
    first = (
        select(func.min(turns.c.number))
        .join(conversations, turns.c.conversation_id == conversations.c.id)
        .where(conversations.c.patient_id == patient_id)
        .group_by(turns.c.conversation_id)
    )
    query = select(turns.c.conversation_id, turns.c.question).where(turns.c.number.in_(first))
    return {row.conversation_id: row.question for row in connection.execute(query)}


def _texts(connection: Connection, patient_id: str) -> dict[str, list[str]]:
    """Conversation id -> questions and shown claims, case-folded. Withheld claims are never drawn, so never found."""
    of_patient = conversations.c.patient_id == patient_id
    questions = select(turns.c.conversation_id, turns.c.question.label("text")).join(conversations).where(of_patient)
    answers = (
        select(turns.c.conversation_id, claims.c.text)
        .join(turns, claims.c.turn_id == turns.c.id)
        .join(conversations, turns.c.conversation_id == conversations.c.id)
        .where(of_patient, claims.c.kind != ClaimKind.WITHHELD.value)
    )
    texts: dict[str, list[str]] = {}
    for query in (questions, answers):
        for row in connection.execute(query):
            texts.setdefault(row.conversation_id, []).append(row.text.casefold())
    return texts


def _to_conversation(row: Row, first_questions: dict[str, str]) -> Conversation:
    title = row.title or shorten(first_questions.get(row.id, ""))
    return Conversation(row.id, row.patient_id, title, row.created_at, row.updated_at)


def shorten(question: str) -> str:
    """The question on one line, cut after a word where it is longer than a title may be."""
    line = " ".join(question.split())
    if len(line) <= MAX_TITLE_CHARS:
        return line
    cut = line[: MAX_TITLE_CHARS - 1]
    head, _, _ = cut.rpartition(" ")
    return f"{head or cut}…"
