"""The store: everything that must outlive the program, in one encrypted database.

    store = Store.open(Path("var"))                                 # var/bedside.sqlite3, var/bedside.key
    store = Store.open(Path("var"), "postgresql://bedside@db/bedside")

Every call is one transaction and durable on return. Knows nothing of Streamlit, the model or the index.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import inspect

from app.errors import SettingsError, StorageError
from app.store.conversations import Conversations
from app.store.database import open_engine, plain_errors
from app.store.documents import Documents
from app.store.encryption import create_key_file, parse_key, read_key_file
from app.store.findings import Findings
from app.store.patients import Patients
from app.store.review import Review
from app.store.tables import key_checks

DATABASE_FILE = "bedside.sqlite3"
KEY_FILE = "bedside.key"


class Store(Patients, Documents, Conversations, Findings, Review):
    """Patients, documents, conversations, findings and what was said of them. One object serves every thread."""

    @classmethod
    def open(cls, data_dir: Path, database_url: str | None = None, encryption_key: str | None = None) -> Store:
        """Opens or creates the database, by default the SQLite file in data_dir.

        The key is encryption_key (32 bytes in base64) or the file bedside.key in data_dir, which the first start makes.
        Raises SettingsError for a malformed key or URL; StorageError if the database cannot be opened, is newer than
        the program, or is encrypted with a key that is not here.
        """
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"The data folder cannot be made ({error.strerror}); choose another.") from None
        url = database_url or f"sqlite:///{data_dir.resolve() / DATABASE_FILE}"
        key = parse_key(encryption_key) if encryption_key else read_key_file(data_dir / KEY_FILE)
        if key is None:
            _require_new(url)
            key = create_key_file(data_dir / KEY_FILE)
        return cls(url, key)


def _require_new(database_url: str) -> None:
    """A key must not be made for a database that was encrypted with another: what it holds would look lost."""
    engine = open_engine(database_url)
    try:
        with plain_errors():
            is_new = not inspect(engine).has_table(key_checks.name)
    finally:
        engine.dispose()
    if not is_new:
        raise SettingsError(
            f"The key file {KEY_FILE} is missing but the database is encrypted; restore the key from your backup."
        )
