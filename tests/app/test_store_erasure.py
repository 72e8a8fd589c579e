"""Deleting a document takes its words out of the database, out of past answers, and out of the files on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.events import Turn, TurnStatus
from app.services import Services
from app.store import Store
from app.store.erasure import DELETED_DOCUMENT, REMOVED
from contracts import (
    Citation,
    Claim,
    ClaimKind,
    Coverage,
    Document,
    DocumentStatus,
    Finding,
    Page,
    PageBatch,
    Passage,
    Patient,
    Verdict,
)
from model.fake import FakeGenerator

SECRET = "Penicillin gave her anaphylaxis at Ninewells in 1987. "
OTHER = "Bisoprolol 2.5 mg once daily. "


def add_document(store: Store, patient_id: str, text: str) -> Document:
    """A ready document of forty pages that all say the text."""
    document = store.add_document(patient_id, f"{text[:10]}.txt", "text/plain", text.encode() * 4000)
    page = text * 40
    pages = [Page(number, page) for number in range(1, 41)]
    passages = [Passage(f"{document.id}:{n}", document.id, document.name, n, 0, len(page), page) for n in range(1, 41)]
    store.save_pages(
        document.id, PageBatch(1, "text 1", pages, passages, {1: [Finding("r", Verdict.HOLD, 0, 9, text, "", text)]})
    )
    store.set_document_status(document.id, DocumentStatus.READY)
    return document


def answered(store: Store, conversation_id: str, *claims: Claim, record: str = "") -> Turn:
    turn = store.add_turn(conversation_id, "Which allergies?")
    messages = {"messages": [SECRET], "passages": [f"{record}:0"]}
    turn = replace(turn, status=TurnStatus.DONE, claims=claims, record=messages if record else {})
    assert store.save_turn(turn)
    stored = store.get_turn(turn.id)
    assert stored is not None
    return stored


def claim_from(document: Document, text: str) -> Claim:
    citation = Citation(1, document.id, document.name, 1, 0, len(text), text)
    return Claim(text, ClaimKind.ANSWER, (citation,), Verdict.NOTICE, (Finding("r", Verdict.NOTICE, 0, 1, text),))


def everything_readable(store: Store, patient_id: str) -> str:
    """All that the store will say about a patient."""
    parts: list[object] = [store.list_documents(patient_id), store.list_passages(patient_id), store.list_findings()]
    parts += [store.get_turns(c.id) for c in store.list_conversations(patient_id)]
    return repr(parts)


def bytes_on_disk(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def ciphertexts(database: Path) -> list[bytes]:
    """Slices of every encrypted value at rest; slices, because SQLite spreads a long value over pages."""
    connection = sqlite3.connect(database)
    slices = []
    for table in ("document_files", "pages", "document_findings", "claims", "citations", "findings"):
        for row in connection.execute(f"SELECT * FROM {table}"):
            for value in row:
                if isinstance(value, bytes) and len(value) >= 32:
                    slices += [value[at : at + 24] for at in range(0, len(value) - 24, 700)]
    connection.close()
    return slices


def test_no_word_of_a_patient_is_readable_in_the_files(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    patient = store.add_patient(Patient(name="Margaret Ellis", allergies=("penicillin",)))
    document = add_document(store, patient.id, SECRET)
    turn = answered(store, store.add_conversation(patient.id, "Her allergies").id, record=document.id)
    store.save_turn(replace(turn, claims=(claim_from(document, SECRET),), error=SECRET))
    files = bytes_on_disk(tmp_path)
    for word in (b"Margaret", b"enicillin", b"anaphylaxis", b"Ninewells", b"allergies", document.sha256.encode()):
        assert word not in files


def test_a_deleted_documents_ciphertext_is_gone_from_the_files_and_the_files_shrink(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    patient = store.add_patient(Patient())
    document = add_document(store, patient.id, SECRET)
    answered(store, store.add_conversation(patient.id).id, claim_from(document, SECRET), record=document.id)
    before = ciphertexts(tmp_path / "bedside.sqlite3")
    size_before = len(bytes_on_disk(tmp_path))
    assert len(before) > 300
    assert all(piece in bytes_on_disk(tmp_path) for piece in before[:5])
    store.delete_document(document.id)
    after = bytes_on_disk(tmp_path)
    assert [piece for piece in before if piece in after] == []
    assert len(after) < size_before / 2


def test_answers_lose_the_words_of_a_deleted_document_and_keep_those_of_the_others(store: Store) -> None:
    patient = store.add_patient(Patient())
    gone, kept = add_document(store, patient.id, SECRET), add_document(store, patient.id, OTHER)
    abstention = Claim("The passages do not say.", ClaimKind.ABSTENTION)
    withheld = Claim(SECRET, ClaimKind.WITHHELD, verdict=Verdict.HOLD)
    conversation = store.add_conversation(patient.id)
    claims = (claim_from(gone, SECRET), claim_from(kept, OTHER), abstention, withheld)
    turn = answered(store, conversation.id, *claims, record=gone.id)
    store.delete_document(gone.id)
    assert "enicillin" not in everything_readable(store, patient.id)
    stored = store.get_turn(turn.id)
    assert stored is not None
    assert [claim.text for claim in stored.claims] == [REMOVED, OTHER, abstention.text, REMOVED]
    assert stored.claims[1:3] == claims[1:3]
    citation = stored.claims[0].citations[0]
    assert (citation.document_id, citation.document, citation.quote) == (gone.id, DELETED_DOCUMENT, "")
    assert (stored.question, stored.status) == (turn.question, turn.status)


def test_later_turns_lose_what_was_sent_for_them_since_it_repeats_earlier_answers(store: Store) -> None:
    patient = store.add_patient(Patient())
    gone, kept = add_document(store, patient.id, SECRET), add_document(store, patient.id, OTHER)
    conversation = store.add_conversation(patient.id)
    before = answered(store, conversation.id, claim_from(kept, OTHER), record=kept.id)
    answered(store, conversation.id, claim_from(gone, SECRET), record=gone.id)
    later = answered(store, conversation.id, claim_from(kept, OTHER), record=kept.id)
    elsewhere = answered(store, store.add_conversation(patient.id).id, claim_from(kept, OTHER), record=kept.id)
    store.delete_document(gone.id)
    assert store.get_turn(before.id) == before
    assert store.get_turn(elsewhere.id) == elsewhere
    stored = store.get_turn(later.id)
    assert stored is not None
    assert stored.claims == later.claims
    assert "enicillin" not in repr(stored.record)


def test_an_interrupted_answer_without_a_record_is_erased_where_it_may_have_read_the_document(store: Store) -> None:
    patient = store.add_patient(Patient())
    gone, kept = add_document(store, patient.id, SECRET), add_document(store, patient.id, OTHER)
    withheld = Claim(SECRET, ClaimKind.WITHHELD, verdict=Verdict.HOLD)
    of_all = store.add_turn(store.add_conversation(patient.id).id, "Which allergies?")
    of_kept = store.add_turn(store.add_conversation(patient.id).id, "Which allergies?", [kept.id])
    for turn in (of_all, of_kept):
        store.save_turn(replace(turn, claims=(withheld,)))
    store.recover()
    store.delete_document(gone.id)
    texts = [stored.claims[0].text for turn in (of_all, of_kept) if (stored := store.get_turn(turn.id))]
    assert texts == [REMOVED, SECRET]


def test_a_name_in_the_coverage_goes_with_its_document(store: Store) -> None:
    patient = store.add_patient(Patient())
    gone, kept = add_document(store, patient.id, SECRET), add_document(store, patient.id, OTHER)
    turn = store.add_turn(store.add_conversation(patient.id).id, "Which allergies?", [kept.id])
    store.save_turn(replace(turn, coverage=Coverage(not_ready=(gone.name, kept.name)), record={"passages": []}))
    store.delete_document(gone.id)
    stored = store.get_turn(turn.id)
    assert stored is not None
    assert stored.coverage == Coverage(not_ready=(DELETED_DOCUMENT, kept.name))


def test_an_answer_being_written_cannot_bring_deleted_words_back(store: Store) -> None:
    patient = store.add_patient(Patient())
    document = add_document(store, patient.id, SECRET)
    turn = store.add_turn(store.add_conversation(patient.id).id, "Which drug?")
    store.delete_document(document.id)
    late = replace(turn, claims=(claim_from(document, SECRET),), record={"messages": [SECRET]})
    assert store.save_turn(late)
    assert "enicillin" not in everything_readable(store, patient.id)


@pytest.mark.parametrize("erase", ["delete_conversation", "delete_turns_from", "delete_patient"])
def test_deleted_answers_leave_no_ciphertext(tmp_path: Path, erase: str) -> None:
    store = Store.open(tmp_path)
    patient = store.add_patient(Patient())
    document = add_document(store, patient.id, OTHER)
    conversation = store.add_conversation(patient.id)
    untouched = set(ciphertexts(tmp_path / "bedside.sqlite3"))
    turn = answered(store, conversation.id, claim_from(document, OTHER * 20))
    added = [piece for piece in ciphertexts(tmp_path / "bedside.sqlite3") if piece not in untouched]
    assert added
    actions: dict[str, Callable[[], None]] = {
        "delete_conversation": lambda: store.delete_conversation(conversation.id),
        "delete_turns_from": lambda: store.delete_turns_from(turn.id),
        "delete_patient": lambda: store.delete_patient(patient.id),
    }
    actions[erase]()
    files = bytes_on_disk(tmp_path)
    assert [piece for piece in added if piece in files] == []


def test_a_kill_between_delete_and_scrub_is_made_good_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path)
    document = add_document(store, store.add_patient(Patient()).id, SECRET)
    before = ciphertexts(tmp_path / "bedside.sqlite3")
    with monkeypatch.context() as patch:
        patch.setattr(store, "scrub", lambda: None)
        store.delete_document(document.id)
    on_disk = bytes_on_disk(tmp_path)
    assert any(piece in on_disk for piece in before)  # the write-ahead log still holds it
    Store.open(tmp_path)
    on_disk = bytes_on_disk(tmp_path)
    assert [piece for piece in before if piece in on_disk] == []


def test_the_whole_program_forgets_a_deleted_patient(
    make_services: Callable[[FakeGenerator], Services], add_letter: Callable[[Services], str]
) -> None:
    services = make_services(FakeGenerator(["She is allergic to penicillin, which caused a rash [1]."]))
    conversation_id = add_letter(services)
    services.jobs.ask(conversation_id, "Which allergies does she have?")
    services.jobs.wait(conversation_id)
    (patient,) = services.store.list_patients()
    services.delete_patient(patient.id)
    assert services.store.list_patients() == []
    assert services.store.list_documents() == []
    assert services.store.get_conversation(conversation_id) is None
    assert services.store.list_findings() == []


def test_the_whole_program_forgets_a_deleted_document(
    make_services: Callable[[FakeGenerator], Services], add_letter: Callable[[Services], str]
) -> None:
    generator = FakeGenerator(["She is allergic to penicillin, which caused a rash [1]."])
    services = make_services(generator)
    conversation_id = add_letter(services)
    turn = services.jobs.ask(conversation_id, "Which allergies does she have?")
    services.jobs.wait(conversation_id)
    answered_turn = services.store.get_turn(turn.id)
    assert answered_turn is not None
    assert "penicillin" in repr(answered_turn.claims)
    assert "penicillin" in repr(answered_turn.record)
    document = services.store.list_documents()[0]
    services.library.delete(document.id)
    assert "penicillin" not in everything_readable(services.store, document.patient_id)
    assert "penicillin" not in repr(services.store.get_turn(turn.id))
    assert services.store.list_documents() == []
