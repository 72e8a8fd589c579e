"""The audit: who did what, in rows that seal each other, so that a row changed or taken out shows.

A seal is a keyed hash (HMAC-SHA256) of the row and of the seal before it: without the data folder's key none can be
made anew. The last rows taken off the end do not show by themselves: note the last seal elsewhere to see that.
"""

from __future__ import annotations

import json

from sqlalchemy import Connection, insert, select

from app.store.database import Database, now
from app.store.records import AuditEntry
from app.store.tables import audit


class Audit(Database):
    """The part of the store that is only ever added to."""

    def add_audit(self, actor: str, action: str, subject: str, detail: str) -> None:
        """Adds an entry; subject is an id, detail is words and rests encrypted."""
        with self.writing() as connection:
            self._append(connection, actor, action, subject, detail)

    def _append(self, connection: Connection, actor: str, action: str, subject: str, detail: str) -> None:
        last = connection.execute(select(audit.c.seal).order_by(audit.c.number.desc()).limit(1)).scalar() or ""
        entry = AuditEntry(now(), actor, action, subject, detail)
        connection.execute(
            insert(audit).values(
                at=entry.at, actor=actor, action=action, subject=subject, detail=detail, seal=self._seal(last, entry)
            )
        )

    def list_audit(self, action: str | None = None, subject: str | None = None) -> list[AuditEntry]:
        """The newest first; of one action or subject where given."""
        query = select(audit).order_by(audit.c.number.desc())
        if action is not None:
            query = query.where(audit.c.action == action)
        if subject is not None:
            query = query.where(audit.c.subject == subject)
        with self.reading() as connection:
            return [_entry(row) for row in connection.execute(query)]

    def is_audit_whole(self) -> bool:
        """Whether every seal fits its row and the row before."""
        last = ""
        with self.reading() as connection:
            for row in connection.execute(select(audit).order_by(audit.c.number)):
                if row.seal != self._seal(last, _entry(row)):
                    return False
                last = row.seal
        return True

    def _seal(self, last: str, entry: AuditEntry) -> str:
        row = [last, entry.at, entry.actor, entry.action, entry.subject, entry.detail]
        return self.cipher.fingerprint(json.dumps(row).encode())


def _entry(row: object) -> AuditEntry:
    return AuditEntry(*(getattr(row, name) for name in ("at", "actor", "action", "subject", "detail")))
