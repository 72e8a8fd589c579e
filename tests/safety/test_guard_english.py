"""The encoder of English questions is put together from its packages, and only if it is the one published."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from safety.guard import english

FILES = {"model.safetensors": b"weights", "config.json": b"{}", "tokenizer.json": b"{}", "README.md": b"left"}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to unpack into, and a small archive in five parts where the packages would be."""
    archive = BytesIO()
    with ZipFile(archive, "w") as zipped:
        for name, content in FILES.items():
            zipped.writestr(f"{english.NAME}/{name}", content)
    step = len(archive.getvalue()) // len(english.PARTS) + 1
    for number, package in enumerate(english.PARTS):
        (tmp_path / package).write_bytes(archive.getvalue()[number * step : (number + 1) * step])
    monkeypatch.setattr(english, "_part", lambda package: tmp_path / package)
    monkeypatch.setattr(english, "BESIDE", tmp_path / "base")
    monkeypatch.setattr(english, "OF_USER", tmp_path / "of-user")
    monkeypatch.setattr(english, "SHA256", hashlib.sha256(FILES["model.safetensors"]).hexdigest())
    return tmp_path / "base"


def test_it_is_unpacked_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = english.find_english()
    assert folder.parent == base
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        name: content for name, content in FILES.items() if name != "README.md"
    }
    monkeypatch.setattr(english, "_part", lambda package: pytest.fail("read again"))
    assert english.find_english() == folder


def test_weights_that_were_not_published_are_refused_and_leave_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(english, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not those published; run `make setup`"):
        english.find_english()
    assert list(base.iterdir()) == []


def test_parts_of_something_else_are_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / english.PARTS[-1]).write_bytes(b"")  # where the directory of the archive lies
    with pytest.raises(ValueError, match="do not fit together"):
        english.find_english()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(english, "BESIDE", tmp_path)
    monkeypatch.setattr(english, "OF_USER", tmp_path)
    monkeypatch.setattr(english, "PARTS", ["no-such-package"])
    with pytest.raises(FileNotFoundError, match="no-such-package is not installed; run `make setup`"):
        english.find_english()
