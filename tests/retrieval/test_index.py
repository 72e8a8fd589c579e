"""Vectors are kept apart by patient, leave the disk when deleted, and a broken index says so."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from retrieval.errors import IndexFailure
from retrieval.index import VectorIndex


@pytest.fixture
def index(tmp_path: Path) -> Iterator[VectorIndex]:
    index = VectorIndex(tmp_path / "chroma")
    yield index
    index.close()


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 384)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def names(count: int, document: str = "d") -> list[str]:
    return [f"{document}:{n:05d}" for n in range(count)]


def stored(index: VectorIndex, patient_id: str) -> dict[str, np.ndarray]:
    return dict(zip(*index.vectors(patient_id), strict=True))


def test_vectors_come_back_as_they_went_in_and_only_of_the_patient(index: VectorIndex) -> None:
    vectors = unit_vectors(50)
    index.add("anna", names(25), vectors[:25])
    index.add("bert", names(25, "e"), vectors[25:])
    found = stored(index, "anna")
    assert set(found) == set(names(25))
    np.testing.assert_allclose(found["d:00007"], vectors[7], atol=1e-6)
    assert index.vectors("nobody")[0] == []


def test_every_change_is_a_new_revision(index: VectorIndex) -> None:
    revisions = [index.revision("anna")]
    for change in (
        lambda: index.add("anna", names(2), unit_vectors(2)),
        lambda: index.delete("anna", names(1)),
        lambda: index.delete_patient("anna"),
    ):
        change()
        revisions.append(index.revision("anna"))
    assert len(set(revisions)) == len(revisions)
    assert index.revision("bert") == 0


def test_vectors_of_another_embedder_count_as_none_and_are_replaced(index: VectorIndex) -> None:
    index.add("anna", names(3), unit_vectors(3))
    index.close()
    other = VectorIndex(index.path, "another embedder")
    assert other.ids("anna") == set()
    other.add("anna", names(1), unit_vectors(1))
    assert other.ids("anna") == set(names(1))
    other.close()


def test_adding_again_replaces(index: VectorIndex) -> None:
    vectors = unit_vectors(4)
    index.add("anna", names(2), vectors[:2])
    index.add("anna", names(2), vectors[2:])
    assert index.ids("anna") == set(names(2))
    np.testing.assert_allclose(stored(index, "anna")["d:00000"], vectors[2], atol=1e-6)


def test_deleted_vectors_are_gone_and_the_last_takes_the_files_along(index: VectorIndex) -> None:
    index.add("anna", [*names(3), *names(3, "e")], unit_vectors(6))
    index.delete("anna", [*names(3), "not-there"])
    assert index.ids("anna") == set(names(3, "e"))
    index.delete("anna", names(3, "e"))
    assert index.ids("anna") == set()
    assert [entry.name for entry in index.path.iterdir() if entry.is_dir()] == []
    index.delete("anna", names(3))  # again: no error


def test_collections_of_unknown_patients_are_removed(index: VectorIndex) -> None:
    index.add("anna", names(3), unit_vectors(3))
    index.add("bert", names(3), unit_vectors(3))
    assert index.delete_orphans(["anna"]) == 1
    assert index.ids("bert") == set()
    assert index.ids("anna") == set(names(3))


def test_vectors_survive_closing(index: VectorIndex) -> None:
    index.add("anna", names(3), unit_vectors(3))
    index.close()
    assert VectorIndex(index.path).ids("anna") == set(names(3))


def test_unreadable_index_says_so_and_can_be_set_aside(index: VectorIndex) -> None:
    index.add("anna", names(3), unit_vectors(3))
    index.close()
    (index.path / "chroma.sqlite3").write_bytes(b"not a database " * 500)
    with pytest.raises(IndexFailure, match="made again"):
        index.check("anna")
    aside = index.set_aside()
    assert aside is not None
    assert (aside / "chroma.sqlite3").exists()
    index.add("anna", names(2), unit_vectors(2))
    assert index.ids("anna") == set(names(2))


def test_neither_patient_nor_text_stands_in_the_files(index: VectorIndex) -> None:
    index.add("anna-karenina-1873", names(3), unit_vectors(3))
    index.close()
    everything = b"".join(file.read_bytes() for file in index.path.rglob("*") if file.is_file())
    assert b"d:00001" in everything  # the scan can find what is there
    assert b"karenina" not in everything


@pytest.mark.skipif(sys.platform != "linux", reason="glibc fills the memory")
def test_no_memory_of_the_process_stands_in_the_files(tmp_path: Path) -> None:
    """What a program had in its memory before, Chroma once wrote into the files of the next patient."""
    use = f"""
import numpy as np
from retrieval.index import VectorIndex
for _ in range(2):
    index = VectorIndex(__import__("pathlib").Path({str(tmp_path)!r}))
    for patient in ("anna", "boris"):
        index.add(patient, ["1", "2"], np.ones((2, 384), dtype=np.float32))
        index.vectors(patient)
    index.close()
"""
    environment = os.environ | {"MALLOC_PERTURB_": str(0xFF ^ 0xAB)}  # fresh memory is full of AB
    subprocess.run([sys.executable, "-c", use], check=True, env=environment, cwd=Path(__file__).parents[2])
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len([file for file in files if file.name == "data_level0.bin"]) == 2
    assert not [file.name for file in files if b"\xab" * 64 in file.read_bytes()]


def test_nothing_is_reported_to_anyone(index: VectorIndex) -> None:
    index.add("anna", names(1), unit_vectors(1))
    settings = index._client()._system.settings
    assert settings.anonymized_telemetry is False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("chroma")), "run", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*command, "--path", str(tmp_path / "server")], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_vectors_can_rest_on_a_server_and_its_end_is_said(server: str, tmp_path: Path) -> None:
    index = VectorIndex(tmp_path / "unused", "words", server)
    index.add("anna", names(3), unit_vectors(3))
    index.add("bert", names(1), unit_vectors(1))
    assert index.delete_orphans(["anna"]) == 1
    assert set(VectorIndex(tmp_path / "unused", "words", server).vectors("anna")[0]) == set(names(3))
    index.delete_patient("anna")
    assert index.ids("anna") == set()
    assert not (tmp_path / "unused").exists()
    with pytest.raises(IndexFailure, match="cannot be asked"):
        VectorIndex(tmp_path / "unused", "words", "http://127.0.0.1:9").ids("anna")
