"""An erasure is proved by a scan that could see what there was, and sees nothing of it after."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from app.certificate import erase, scan
from app.cli import app as cli
from app.errors import InputError
from app.services import Services
from app.store.tables import documents
from contracts import Patient
from model.fake import FakeGenerator

LETTER = "Penicillin gave her anaphylaxis at Ninewells in 1987; she carries an adrenaline pen since then.\n\n" * 30
OTHER = "Bisoprolol 2.5 mg once daily for rate control, started by the cardiology clinic in Dundee.\n\n" * 30

Make = Callable[[FakeGenerator], Services]


@pytest.fixture
def services(make_services: Make) -> Services:
    return make_services(FakeGenerator(["She is allergic to penicillin [1]."]))


def add(services: Services, patient_id: str, name: str, text: str) -> str:
    document = services.library.ingest(services.library.add(patient_id, name, text.encode()).id)
    assert document is not None
    assert document.status == "ready", document.error
    return document.id


def test_an_erased_document_leaves_no_byte_and_the_others_stay(services: Services) -> None:
    patient = services.store.add_patient(Patient(name="Margaret Ellis"))
    gone = add(services, patient.id, "allergy letter of 1987.txt", LETTER)
    kept = add(services, patient.id, "cardiology letter.txt", OTHER)
    conversation = services.store.add_conversation(patient.id)
    services.jobs.ask(conversation.id, "Which allergies does she have?")
    services.jobs.wait(conversation.id)
    certificate = erase(services, [gone])
    assert certificate.hits == ()
    assert certificate.traces_before > 50
    assert certificate.passed
    assert certificate.files >= 3
    assert [document.id for document in services.store.list_documents()] == [kept]
    assert services.retriever.search("bisoprolol", patient.id)


def test_every_kind_of_trace_is_found_while_the_document_is_there(services: Services) -> None:
    from app.certificate import _patterns

    patient = services.store.add_patient(Patient(name="Margaret Ellis"))
    document = services.store.get_document(add(services, patient.id, "allergy letter of 1987.txt", LETTER))
    assert document is not None
    patterns = _patterns(services, document)
    assert set(patterns.values()) == {"text", "file", "sealed", "vector"}
    hits, _, _ = scan(services.settings.data_dir, patterns)
    assert {hit.kind for hit in hits} == {"sealed", "vector"}  # the words themselves rest encrypted
    leak = services.settings.data_dir / "leak.log"
    leak.write_bytes(b"x" * 70_000_001 + "she carries an adrenaline pen since then.".encode("utf-16-le"))
    needle = {"she carries an adrenaline pen since then.".encode("utf-16-le"): "text"}
    (hit,), _, _ = scan(services.settings.data_dir, needle)
    assert (hit.file, hit.offset) == ("leak.log", 70_000_001)


def test_an_erased_patient_leaves_no_byte(services: Services) -> None:
    patient = services.store.add_patient(Patient(name="Margaret Ellis"))
    add(services, patient.id, "letter.txt", LETTER)
    certificate = erase(services, patient_id=patient.id)
    assert certificate.passed
    assert services.store.list_patients() == []
    with pytest.raises(InputError, match="no patient"):
        erase(services, patient_id=patient.id)
    with pytest.raises(InputError, match="no document"):
        erase(services, ["nothing"])


def test_a_document_past_its_time_goes_with_a_certificate_in_the_audit(services: Services) -> None:
    patient = services.store.add_patient(Patient(name="Margaret Ellis"))
    old = add(services, patient.id, "allergy letter of 1987.txt", LETTER)
    with services.store.writing() as connection:
        connection.execute(update(documents).where(documents.c.id == old).values(added_at="2024-01-31T08:00:00+00:00"))
    kept = add(services, patient.id, "cardiology letter.txt", OTHER)
    services.erase_expired()
    assert len(services.store.list_documents()) == 2  # no time is set: documents are kept
    services.settings = replace(services.settings, retention_days=30)
    services.erase_expired()
    assert [document.id for document in services.store.list_documents()] == [kept]
    (entry,) = services.store.list_audit("erase")
    assert (entry.actor, entry.subject) == ("retention period", old)
    assert re.fullmatch(r"Kept for 30 days\. Scanned .* Found before: [1-9]\d*; found after: 0\.", entry.detail)
    assert services.store.is_audit_whole()


def test_the_shell_erases_and_prints_the_certificate(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = services.store.add_patient(Patient(name="Margaret Ellis"))
    document_id = add(services, patient.id, "letter.txt", LETTER)
    services.close()
    monkeypatch.setenv("BEDSIDE_DATA_DIR", str(services.settings.data_dir))
    result = CliRunner().invoke(cli, ["erase", "--document", document_id, "--json"])
    assert result.exit_code == 0, result.output
    certificate = json.loads(result.stdout.splitlines()[-1])
    assert certificate["passed"]
    assert certificate["document_ids"] == [document_id]
    assert certificate["hits"] == []
