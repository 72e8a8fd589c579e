"""Opening the store: keys, migrations, foreign addresses, a full disk. What cannot work says so and changes nothing."""

from __future__ import annotations

import base64
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event, text

from app.errors import SettingsError, StorageError
from app.store import Store
from app.store.database import DISK_FULL
from app.store.encryption import Cipher, create_key_file, read_key_file
from app.store.tables import metadata
from contracts import Claim, ClaimKind, Page, PageBatch, Patient

OpenStore = Callable[[], Store]
KEY = base64.b64encode(bytes(range(32))).decode()


# --- key ----------------------------------------------------------------------------------------------------------


def test_the_first_start_makes_files_that_only_their_owner_can_read(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    Store.open(folder).add_patient(Patient(name="A"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"bedside.key", "bedside.sqlite3"} <= set(modes)


def test_a_lost_key_is_named_and_none_is_made_in_its_place(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "bedside.key").rename(tmp_path / "backup")
    with pytest.raises(SettingsError, match=r"key file bedside\.key is missing"):
        Store.open(tmp_path)
    assert not (tmp_path / "bedside.key").exists()
    (tmp_path / "backup").rename(tmp_path / "bedside.key")
    assert Store.open(tmp_path).list_patients() == []


def test_another_key_is_refused_at_the_start(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    with pytest.raises(StorageError, match="cannot be decrypted with this key"):
        Store.open(tmp_path, encryption_key=KEY)


@pytest.mark.parametrize("content", [b"", b"too short", base64.b64encode(b"x" * 31), b"\xff\xfe"])
def test_a_damaged_key_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bedside.key").write_bytes(content)
    with pytest.raises(SettingsError, match="key"):
        Store.open(tmp_path)


def test_a_key_may_come_from_a_setting_and_then_no_file_is_made(tmp_path: Path) -> None:
    added = Store.open(tmp_path, encryption_key=KEY).add_patient(Patient(name="A"))
    assert Store.open(tmp_path, encryption_key=KEY).list_patients() == [added]
    assert not (tmp_path / "bedside.key").exists()


def test_a_key_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bedside.key"
    key = create_key_file(path)
    assert create_key_file(path) == key == read_key_file(path)
    assert [file.name for file in tmp_path.iterdir()] == ["bedside.key"]


def test_a_changed_byte_is_noticed_and_equal_values_look_different() -> None:
    cipher = Cipher(bytes(32))
    sealed = cipher.seal(b"dose 5 mg")
    assert cipher.open(sealed) == b"dose 5 mg"
    assert cipher.seal(b"dose 5 mg") != sealed
    for position in (0, 12, len(sealed) - 1):
        damaged = bytearray(sealed)
        damaged[position] ^= 1
        with pytest.raises(StorageError, match="cannot be decrypted"):
            cipher.open(bytes(damaged))


# --- migrations ---------------------------------------------------------------------------------------------------


def test_the_migrations_make_exactly_the_tables_of_the_program(store: Store) -> None:
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_opening_again_changes_nothing(open_store: OpenStore) -> None:
    patient = open_store().add_patient(Patient(name="A"))
    assert open_store().list_patients() == open_store().list_patients() == [patient]


def test_opening_writes_nothing_so_that_it_works_on_a_full_disk(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.add_patient(Patient(name="A"))
    store.close()
    before = (tmp_path / "bedside.sqlite3").read_bytes()
    Store.open(tmp_path).close()
    assert (tmp_path / "bedside.sqlite3").read_bytes() == before


def test_a_database_of_a_newer_program_is_left_alone(open_store: OpenStore) -> None:
    store = open_store()
    with store.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match=r"newer Bedside \(revision 9999\)"):
        open_store()


def test_a_start_that_fails_midway_through_the_migration_leaves_an_empty_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "_check_key", fail)
    with pytest.raises(KeyboardInterrupt):
        Store.open(tmp_path)
    with closing(sqlite3.connect(tmp_path / "bedside.sqlite3")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    monkeypatch.undo()
    assert Store.open(tmp_path).list_patients() == []


# --- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://root:hunter2@host/db", "mysql"),
        ("not a url hunter2", "malformed"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_an_address_of_another_kind_is_refused_without_repeating_a_password(
    tmp_path: Path, url: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as error:
        Store.open(tmp_path, url)
    assert "hunter2" not in str(error.value)


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be reached") as error:
        Store.open(tmp_path, f"postgresql://bedside:hunter2@/db?host={tmp_path}")
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "bedside.sqlite3"
    file.write_bytes(b"a letter, not a database\n" * 200)
    with pytest.raises(StorageError, match="not a database"):
        Store.open(tmp_path, encryption_key=KEY)
    assert file.read_bytes() == b"a letter, not a database\n" * 200


def test_a_data_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="data folder"):
        Store.open(tmp_path / "file" / "data")


# --- a full disk --------------------------------------------------------------------------------------------------


@contextmanager
def disk_full(store: Store, spare_pages: int) -> Iterator[None]:
    """SQLite's own limit: the file may grow by so many pages of 4 KiB and no more."""

    def limit(connection: Any, *_: object) -> None:
        (used,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {used + spare_pages}")

    def unlimit(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1073741823")

    event.listen(store.engine, "checkout", limit)
    try:
        yield
    finally:
        event.remove(store.engine, "checkout", limit)
        event.listen(store.engine, "checkout", unlimit)


def test_a_full_disk_is_one_sentence_and_everything_before_is_kept(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    patient = store.add_patient(Patient(name="A"))
    document = store.add_document(patient.id, "a.txt", "text/plain", b"first")
    store.save_pages(document.id, PageBatch(1, "text 1", [Page(1, "first")], [], {}))
    turn = store.add_turn(store.add_conversation(patient.id).id, "Which allergies?")
    store.save_turn(replace(turn, claims=(Claim("None recorded.", ClaimKind.ABSTENTION),)))
    stored = store.get_turn(turn.id)
    assert stored is not None

    with disk_full(store, spare_pages=2):
        with pytest.raises(StorageError) as upload:
            store.add_document(patient.id, "b.pdf", "application/pdf", os.urandom(200_000))
        with pytest.raises(StorageError) as indexing:
            store.save_pages(
                document.id, PageBatch(1, "text 2", [Page(n, "word " * 5000) for n in range(1, 20)], [], {})
            )
        with pytest.raises(StorageError) as answering:
            store.save_turn(replace(stored, claims=tuple(Claim("x" * 5000, ClaimKind.ANSWER) for _ in range(20))))
    assert str(upload.value) == str(indexing.value) == str(answering.value) == DISK_FULL

    for again in (store, Store.open(tmp_path)):
        assert [d.id for d in again.list_documents(patient.id)] == [document.id]
        assert again.get_pages(document.id) == [Page(1, "first")]
        assert again.get_turn(turn.id) == stored
    assert store.add_document(patient.id, "b.pdf", "application/pdf", os.urandom(200_000)).size_bytes == 200_000


def test_an_error_message_carries_no_words_of_a_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store.open(tmp_path)
    with store.writing() as connection:
        connection.execute(text("DROP TABLE patients"))
    with pytest.raises(StorageError) as error:
        store.add_patient(Patient(name="Margaret Ellis"))
    assert "Margaret" not in f"{error.value} {error.value.__cause__} {caplog.text}"


# --- durability ---------------------------------------------------------------------------------------------------


def test_a_commit_reaches_the_disk_before_it_returns(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    with store.reading() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        ]
    assert settings == ["wal", 2, 1, 2]  # FULL; FAST


def test_what_was_saved_survives_a_process_that_dies_at_once(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from app.store import Store; from contracts import Patient\n"
        "Store.open(Path(sys.argv[1])).add_patient(Patient(name='A')); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).resolve().parents[2]
    died = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=False)
    assert died.returncode == -9
    assert [record.patient.name for record in Store.open(tmp_path).list_patients()] == ["A"]
