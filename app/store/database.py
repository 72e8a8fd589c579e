"""The connection below the store: engine, durable transactions, plain errors, migrations, and scrubbing after deletes.

SQLite (WAL) or PostgreSQL. Knows nothing of what the tables mean.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import SettingsError, StorageError
from app.store.encryption import Cipher, attach_cipher
from app.store.tables import key_checks

_LOG = logging.getLogger(__name__)

DISK_FULL = "The disk is full: free space and try again; nothing was changed."
BUSY = "The database is busy; try again in a moment. Nothing was changed."
NO_CONNECTION = "The database cannot be reached; start it or correct the database address. Nothing was changed."

MIGRATIONS = Path(__file__).with_name("migrations")
BUSY_TIMEOUT_MS = 15_000
MAX_IDLE_LOG_BYTES = 4 * 2**20  # what the write-ahead log keeps of the disk after one large upload
WRITER_LOCK = 0x6265_6473_6964_65  # any fixed number: PostgreSQL's advisory lock that makes writers queue
KEY_CHECK = "bedside"


class Database:
    """An open, migrated database. Safe to share between threads: each call uses a connection of its own."""

    def __init__(self, database_url: str | URL, key: bytes) -> None:
        """Opens and migrates. Raises SettingsError for a URL of another kind, StorageError if the database cannot be
        reached, was written by a newer program, or belongs to another key."""
        self.engine = open_engine(database_url)
        self.cipher = Cipher(key)
        attach_cipher(self.engine, self.cipher)
        try:
            with self.writing() as connection:
                migrate(connection)
                self._check_key(connection)
            self.scrub()  # a kill between a delete and its scrubbing leaves the words in the write-ahead log
        except BaseException:
            self.engine.dispose()
            raise

    def close(self) -> None:
        """Gives back every connection; the store cannot be used afterwards without opening new ones."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view of the data."""
        with plain_errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction, durable at the end of the block and undone on any error. Writers queue, so that what a
        transaction read still holds when it writes."""
        writer = self.engine.execution_options(is_writer=True)
        with plain_errors(), writer.connect() as connection, connection.begin():
            yield connection

    def scrub(self) -> None:
        """Removes what deleted rows left in SQLite's files: freed pages are given back to the disk, and the write-ahead
        log, which still held the old ones, is emptied. Where that cannot be done yet (a full disk, a long read), the
        log says so and the next delete or start does it.

        PostgreSQL keeps dead rows until its own vacuum; they are ciphertext there as well.
        """
        if self.engine.dialect.name != "sqlite":
            return
        connection = self.engine.raw_connection()  # both run outside a transaction
        try:
            cursor = connection.cursor()
            cursor.executescript("PRAGMA incremental_vacuum")  # execute() would give back one page only
            is_blocked, _, _ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            cursor.close()
            reason = "a long read" if is_blocked else ""
        except sqlite3.Error as error:
            reason = str(error)
        finally:
            connection.close()
        if reason:
            _LOG.warning("deleted data may stand in the database's files until the next delete or start (%s)", reason)

    def _check_key(self, connection: Connection) -> None:
        rows = connection.execute(select(key_checks.c.sealed)).all()  # decrypting is the check
        if not rows:
            connection.execute(insert(key_checks).values(id=1, sealed=KEY_CHECK))


def open_engine(database_url: str | URL) -> Engine:
    """The engine for a sqlite or postgresql URL, with the settings that make a commit survive a kill and a power loss.
    Raises SettingsError for any other URL, without repeating it: it may hold a password."""
    try:
        url = make_url(database_url)
    except ArgumentError:
        raise SettingsError("The database address is malformed; write postgresql://user@host/name.") from None
    kind = url.get_backend_name()
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise SettingsError("The database address names no file; write sqlite:////folder/file.sqlite3.")
        create_private_file(Path(url.database))
        # hide_parameters: an error message must not carry a patient's words into a log.
        engine = create_engine(url.set(drivername="sqlite"), hide_parameters=True)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if kind == "postgresql":
        engine = create_engine(url.set(drivername="postgresql+psycopg"), hide_parameters=True, pool_pre_ping=True)
        event.listen(engine, "begin", _begin_postgresql)
        return engine
    raise SettingsError(f"The database address begins with {kind!r}; Bedside stores in sqlite or postgresql.")


def create_private_file(path: Path) -> None:
    """An empty database file that its owner alone may read; SQLite gives its logs the same rights."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StorageError(
            f"The database file {path.name} cannot be opened ({error.strerror}); check the data folder."
        ) from None


def _prepare_sqlite(dbapi_connection: sqlite3.Connection, _record: object) -> None:
    dbapi_connection.isolation_level = None  # begin explicitly: sqlite3 itself would leave reads outside transactions
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    if cursor.execute("PRAGMA page_count").fetchone() == (0,):
        cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")  # possible in an empty file only, and before WAL
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # WAL alone syncs at checkpoints: a power loss would lose turns
    cursor.execute("PRAGMA foreign_keys = ON")
    # Zeroes deleted cells; freed pages are cut off by scrub(). ON would write every freed page once more, for which a
    # nearly full disk has no room: then not even a delete could free any.
    cursor.execute("PRAGMA secure_delete = FAST")
    cursor.execute(f"PRAGMA journal_size_limit = {MAX_IDLE_LOG_BYTES}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    is_writer = connection.get_execution_options().get("is_writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get("is_writer", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
    else:  # as SQLite reads: a turn and its claims from one moment
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns the driver's errors into a StorageError of one sentence."""
    try:
        yield
    except IntegrityError:
        raise StorageError("What this belongs to was deleted meanwhile; reload the page.") from None
    except PoolTimeout:
        raise StorageError(BUSY) from None
    except DBAPIError as error:
        raise StorageError(describe(error)) from error


def describe(error: DBAPIError) -> str:
    """The sentence for a person: what failed and what to do."""
    reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
    if getattr(error.orig, "sqlstate", None) == "53100" or "disk is full" in reason:
        return DISK_FULL
    if "locked" in reason:
        return BUSY
    if error.connection_invalidated or "connect" in reason:
        return NO_CONNECTION
    return f"The database refused ({reason}); check the disk and try again. Nothing was changed."


def migrate(connection: Connection) -> None:
    """Brings the tables to this program's revision, all in the caller's transaction. Does nothing if they are there;
    raises StorageError if the database is newer than the program."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise StorageError(
            f"The database was written by a newer Bedside (revision {current}); start that version again."
        )
    if current != scripts.get_current_head():
        command.upgrade(config, "head")


def new_id() -> str:
    return uuid.uuid4().hex


def now() -> str:
    """The time, ISO 8601 in UTC; later times sort behind earlier ones."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
