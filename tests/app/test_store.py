"""The store, on SQLite and on PostgreSQL: what is put in comes back exactly, survives a restart, and goes when told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from app.errors import InputError, StorageError
from app.events import Step, Turn, TurnStatus, Usage
from app.store import Store
from app.store.tables import patients
from contracts import (
    Citation,
    Claim,
    ClaimKind,
    Coverage,
    Direction,
    Document,
    DocumentStatus,
    Fact,
    FactKind,
    Finding,
    LineBox,
    Page,
    PageBatch,
    PageFacts,
    Passage,
    Patient,
    ReadMethod,
    SectionKind,
    SectionSpan,
    Verdict,
)

OpenStore = Callable[[], Store]

PATIENT = Patient(
    name="Zoë 张伟",
    age_years=67.5,
    sex="female",
    pregnant=False,
    egfr_ml_min=38,
    allergies=("penicillin", "latex"),
    medications=("apixaban 5 mg",),
)
TEXT = "Allergic to penicillin.\nApixaban 5 mg twice daily.\nBroken font: \ud800 \x00."
HOLD = Finding("injection.override", Verdict.HOLD, 0, 8, "An instruction stands here.", "OWASP LLM01", "Allergic")


def add_ready_document(store: Store, patient_id: str, name: str = "letter.pdf", data: bytes = b"%PDF-1") -> Document:
    document = store.add_document(patient_id, name, "application/pdf", data)
    pages = [Page(1, TEXT), Page(2, "scanned words", ReadMethod.OCR, 0.91), Page(3, "", ReadMethod.EMPTY, 0.0)]
    passages = [
        Passage(f"{document.id}:0", document.id, name, 1, 0, 23, TEXT[0:23]),
        Passage(f"{document.id}:1", document.id, name, 1, 24, len(TEXT), TEXT[24:]),
        Passage(f"{document.id}:2", document.id, name, 2, 0, 7, "scanned", ReadMethod.OCR, 0.91),
    ]
    store.save_pages(document.id, PageBatch(3, "pypdfium2 5", pages, passages, {1: [HOLD]}))
    store.set_document_status(document.id, DocumentStatus.READY)
    stored = store.get_document(document.id)
    assert stored is not None
    return stored


def cite(document: Document, key: int = 1) -> Citation:
    return Citation(key, document.id, document.name, 1, 0, 8, "Allergic")


# --- patients -----------------------------------------------------------------------------------------------------


def test_a_patient_comes_back_exactly_after_a_restart(open_store: OpenStore) -> None:
    added = open_store().add_patient(PATIENT, demo=True)
    assert open_store().get_patient(added.id) == added
    assert added.demo
    assert added.patient == PATIENT


def test_patients_are_found_by_words_of_the_name_in_any_case(store: Store) -> None:
    zoe = store.add_patient(PATIENT)
    nameless = store.add_patient(Patient())
    assert store.list_patients() == [zoe, nameless]
    assert store.list_patients("张伟 ZOË") == [zoe]
    assert store.list_patients("smith") == []


def test_an_update_replaces_what_is_known(store: Store) -> None:
    added = store.add_patient(PATIENT)
    store.update_patient(added.id, replace(PATIENT, weight_kg=71))
    stored = store.get_patient(added.id)
    assert stored is not None
    assert stored.patient.weight_kg == 71
    with pytest.raises(InputError, match="no longer there"):
        store.update_patient("nobody", PATIENT)


def test_deleting_a_patient_takes_everything_of_that_patient_and_nothing_else(store: Store) -> None:
    gone, kept = store.add_patient(PATIENT), store.add_patient(Patient(name="Other"))
    add_ready_document(store, gone.id)
    kept_document = add_ready_document(store, kept.id)
    gone_turn = store.add_turn(store.add_conversation(gone.id).id, "Which allergies?")
    kept_turn = store.add_turn(store.add_conversation(kept.id).id, "Which allergies?")
    store.delete_patient(gone.id)
    assert store.list_patients() == [kept]
    assert store.list_documents() == [kept_document]
    assert store.get_turn(gone_turn.id) is None
    assert store.get_turn(kept_turn.id) == kept_turn
    assert {record.patient_id for record in store.list_findings()} == {kept.id}


# --- documents ----------------------------------------------------------------------------------------------------


def test_a_document_is_queued_with_its_bytes_and_survives_a_restart(open_store: OpenStore) -> None:
    first = open_store()
    patient = first.add_patient(PATIENT)
    data = bytes(range(256)) * 10
    added = first.add_document(patient.id, "brief – 李.pdf", "application/pdf", data)
    assert (added.status, added.size_bytes) == (DocumentStatus.QUEUED, 2560)
    again = open_store()
    assert again.list_documents(patient.id) == [added]
    assert again.get_file(added.id) == data


def test_the_same_bytes_twice_are_one_document_for_a_patient_and_two_for_two(store: Store) -> None:
    first, second = store.add_patient(PATIENT), store.add_patient(PATIENT)
    document = store.add_document(first.id, "a.txt", "text/plain", b"same")
    assert store.add_document(first.id, "b.txt", "text/plain", b"same") == document
    assert store.add_document(second.id, "a.txt", "text/plain", b"same").id != document.id


def test_pages_passages_and_findings_come_back_exactly(open_store: OpenStore) -> None:
    first = open_store()
    patient = first.add_patient(PATIENT)
    document = add_ready_document(first, patient.id)
    store = open_store()
    assert (document.num_pages, document.num_pages_ocr, document.num_pages_empty) == (3, 1, 1)
    assert document.parser == "pypdfium2 5"
    pages = store.get_pages(document.id)
    assert [page.text for page in pages] == [TEXT, "scanned words", ""]
    assert (pages[1].method, pages[1].confidence) == (ReadMethod.OCR, 0.91)
    passages = store.list_passages(patient.id)
    assert [passage.text for passage in passages] == [TEXT[0:23], TEXT[24:], "scanned"]
    assert (passages[2].document_name, passages[2].method, passages[2].confidence) == ("letter.pdf", "ocr", 0.91)
    assert store.get_document_findings(document.id) == {1: [HOLD]}


def test_findings_of_a_page_are_put_in_the_place_of_those_before(store: Store) -> None:
    document = add_ready_document(store, store.add_patient(PATIENT).id)
    notice = replace(HOLD, severity=Verdict.NOTICE)
    store.save_page_findings(document.id, 1, [notice])
    store.save_page_findings(document.id, 2, [HOLD, notice])
    store.save_page_findings(document.id, 9, [HOLD])  # no such page
    assert store.get_document_findings(document.id) == {1: [notice], 2: [HOLD, notice]}
    store.save_page_findings(document.id, 1, [])
    assert store.get_document_findings(document.id) == {2: [HOLD, notice]}


def test_a_page_read_again_replaces_what_was_read_of_it_and_no_other(store: Store) -> None:
    document = add_ready_document(store, store.add_patient(PATIENT).id)
    line = LineBox(0, 3, 0.1, 0.1, 0.3, 0.12, 0.97)
    section = SectionSpan(SectionKind.ALLERGIES, "new", 1, 0, 3, 0, 3, "2024-03-05")
    facts = PageFacts(1, (section,), (Fact(FactKind.AUTHOR, "new", 1, 0, 3),))
    again = Page(1, "new", ReadMethod.OCR, 0.97, (line,))
    store.save_pages(document.id, PageBatch(4, "pypdfium2 6", [again], warnings=["Look."]))
    store.save_page_facts(document.id, {1: facts})
    assert store.get_pages(document.id)[0] == again
    assert [page.text for page in store.get_pages(document.id)] == ["new", "scanned words", ""]
    assert [passage.text for passage in store.list_document_passages(document.id)] == ["scanned"]
    assert store.get_document_findings(document.id) == {}
    assert store.get_page_facts(document.id) == {1: facts, 2: PageFacts(2), 3: PageFacts(3)}
    stored = store.get_document(document.id)
    assert stored is not None
    assert (stored.status, stored.num_pages, stored.num_pages_ocr) == (DocumentStatus.READY, 4, 2)
    assert stored.warnings == ("Look.",)
    store.clear_pages(document.id)
    assert store.get_pages(document.id) == []


def test_only_passages_of_this_patients_ready_documents_are_listed(store: Store) -> None:
    patient, other = store.add_patient(PATIENT), store.add_patient(PATIENT)
    first = add_ready_document(store, patient.id, "1.pdf", b"1")
    second = add_ready_document(store, patient.id, "2.pdf", b"2")
    add_ready_document(store, other.id, "3.pdf", b"3")
    names = [passage.document_name for passage in store.list_passages(patient.id)]
    assert names == ["1.pdf"] * 3 + ["2.pdf"] * 3
    assert {p.document_id for p in store.list_passages(patient.id, [second.id])} == {second.id}
    assert store.list_passages(patient.id, []) == []
    store.set_document_status(first.id, DocumentStatus.FAILED, "The file is damaged.")
    assert {p.document_id for p in store.list_passages(patient.id)} == {second.id}
    assert len(store.list_document_passages(first.id)) == 3


def test_a_passage_that_is_not_its_pages_text_is_refused(store: Store) -> None:
    document = add_ready_document(store, store.add_patient(PATIENT).id)
    wrong = Passage("x", document.id, document.name, 1, 0, 3, "???")
    with pytest.raises(ValueError, match="offsets"):
        store.save_pages(document.id, PageBatch(1, "p", [Page(1, TEXT)], [wrong], {}))
    assert len(store.get_pages(document.id)) == 3


def test_a_reader_still_at_work_cannot_bring_a_document_back_that_is_being_deleted(store: Store) -> None:
    patient = store.add_patient(PATIENT)
    document = add_ready_document(store, patient.id)
    store.set_document_status(document.id, DocumentStatus.DELETING)
    store.set_document_status(document.id, DocumentStatus.READY)
    with pytest.raises(StorageError, match="no longer there"):
        store.save_pages(document.id, PageBatch(1, "p", [Page(1, TEXT)], [], {}))
    stored = store.get_document(document.id)
    assert stored is not None
    assert stored.status is DocumentStatus.DELETING
    assert store.add_document(patient.id, "letter.pdf", "application/pdf", b"%PDF-1").id != document.id


def test_a_deleted_document_is_gone(store: Store) -> None:
    patient = store.add_patient(PATIENT)
    document = add_ready_document(store, patient.id)
    store.delete_document(document.id)
    store.delete_document(document.id)
    store.set_document_status(document.id, DocumentStatus.READY)
    assert store.get_document(document.id) is None
    assert store.get_pages(document.id) == []
    assert store.list_passages(patient.id) == []
    assert store.list_findings() == []
    with pytest.raises(InputError, match="no longer there"):
        store.get_file(document.id)


def test_a_document_needs_its_patient(store: Store) -> None:
    with pytest.raises(InputError, match="patient"):
        store.add_document("nobody", "a.txt", "text/plain", b"a")
    assert store.list_documents() == []


# --- conversations and turns --------------------------------------------------------------------------------------

plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
any_text = st.text(max_size=40)  # encrypted columns keep every str, also NUL and lone surrogates
offsets = st.integers(0, 2**31 - 1)
shares = st.floats(0, 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
found = st.builds(
    Finding,
    rule=plain_text,
    severity=st.sampled_from(Verdict),
    start=offsets,
    end=offsets,
    message=any_text,
    source=plain_text,
    evidence=any_text,
)
cited = st.builds(
    Citation,
    key=offsets,
    document_id=plain_text,
    document=any_text,
    page=offsets,
    start=offsets,
    end=offsets,
    quote=any_text,
    method=st.sampled_from(ReadMethod),
    confidence=shares,
)
tuples_of = lambda items: st.lists(items, max_size=3).map(tuple)  # noqa: E731 - reads like the strategies around it
claimed = st.builds(
    Claim,
    text=any_text,
    kind=st.sampled_from(ClaimKind),
    citations=tuples_of(cited),
    verdict=st.sampled_from(Verdict),
    findings=tuples_of(found),
)
coverages = st.builds(
    Coverage,
    pages=offsets,
    pages_read=offsets,
    unreadable=offsets,
    ocr=offsets,
    whole_record=st.booleans(),
    documents=offsets,
    not_ready=tuples_of(any_text),
)
seconds = st.floats(0, 1e6)
usages = st.builds(
    Usage,
    prompt_tokens=offsets,
    completion_tokens=offsets,
    ttft_s=seconds,
    tokens_per_s=seconds,
    first_claim_s=seconds,
)
answers = st.fixed_dictionaries(
    {
        "question": any_text,
        "status": st.sampled_from(TurnStatus),
        "document_ids": st.none() | tuples_of(plain_text),
        "claims": tuples_of(claimed),
        "input_verdict": st.sampled_from(Verdict),
        "input_findings": tuples_of(found),
        "document_findings": tuples_of(found),
        "coverage": st.none() | coverages,
        "usage": usages,
        "model_name": plain_text,
        "error": any_text,
        "record": st.dictionaries(any_text, json_values, max_size=4),
    }
)


@given(first=answers, second=answers)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_turn_holds_comes_back_exactly(store: Store, first: dict[str, Any], second: dict[str, Any]) -> None:
    turn = store.add_turn(store.add_conversation(store.add_patient(PATIENT).id).id, "Which allergies?")
    for fields in (first, second):  # the second state replaces every trace of the first
        turn = replace(turn, **fields)
        assert store.save_turn(turn)
        stored = store.get_turn(turn.id)
        step = Step.QUEUED if turn.status is TurnStatus.RUNNING else Step.DONE
        assert stored == replace(turn, step=step)


def test_a_turn_stands_stored_before_anything_can_fail(open_store: OpenStore) -> None:
    first = open_store()
    conversation = first.add_conversation(first.add_patient(PATIENT).id)
    turn = first.add_turn(conversation.id, "  Which allergies? ", ["d1", "d2"])
    assert turn.status is TurnStatus.RUNNING
    assert open_store().get_turns(conversation.id) == [turn]


def test_a_restart_interrupts_what_was_running_and_keeps_its_claims(open_store: OpenStore) -> None:
    first = open_store()
    conversation = first.add_conversation(first.add_patient(PATIENT).id)
    done = replace(first.add_turn(conversation.id, "one"), status=TurnStatus.DONE, step=Step.DONE)
    running = replace(first.add_turn(conversation.id, "two"), claims=(Claim("Known.", ClaimKind.ABSTENTION),))
    first.save_turn(done)
    first.save_turn(running)
    store = open_store()
    assert store.recover() == 1
    assert store.recover() == 0
    assert store.get_turns(conversation.id) == [
        done,
        replace(running, status=TurnStatus.INTERRUPTED, step=Step.DONE),
    ]


def test_editing_a_question_drops_it_and_what_came_after(store: Store) -> None:
    conversation = store.add_conversation(store.add_patient(PATIENT).id)
    elsewhere = store.add_turn(store.add_conversation(conversation.patient_id).id, "elsewhere")
    first, second, _ = (store.add_turn(conversation.id, question) for question in ("one", "two", "three"))
    store.delete_turns_from(second.id)
    edited = store.add_turn(conversation.id, "two, better")
    assert store.get_turns(conversation.id) == [first, edited]
    assert store.get_turn(elsewhere.id) == elsewhere


def test_a_worker_cannot_bring_back_a_turn_that_was_deleted(store: Store) -> None:
    turn = store.add_turn(store.add_conversation(store.add_patient(PATIENT).id).id, "one")
    store.delete_turns_from(turn.id)
    assert not store.save_turn(replace(turn, claims=(Claim("late", ClaimKind.ANSWER),)))
    assert store.get_turn(turn.id) is None


def test_a_conversation_is_called_by_its_first_question_until_it_is_renamed(store: Store) -> None:
    conversation = store.add_conversation(store.add_patient(PATIENT).id)
    assert conversation.title == ""

    def title() -> str:
        stored = store.get_conversation(conversation.id)
        assert stored is not None
        return stored.title

    store.add_turn(conversation.id, "Which\n allergies?")
    store.add_turn(conversation.id, "And since when?")
    assert title() == "Which allergies?"
    store.rename_conversation(conversation.id, " Allergies ")
    assert title() == "Allergies"
    store.rename_conversation(conversation.id, "  ")
    assert title() == "Which allergies?"
    with pytest.raises(InputError, match="no longer there"):
        store.rename_conversation("none", "x")


def test_a_long_first_question_is_cut_after_a_word(store: Store) -> None:
    conversation = store.add_conversation(store.add_patient(PATIENT).id)
    store.add_turn(conversation.id, "potassium " * 30)
    stored = store.get_conversation(conversation.id)
    assert stored is not None
    assert len(stored.title) <= 80
    assert stored.title.endswith("potassium…")


def test_conversations_are_listed_by_their_last_question(store: Store) -> None:
    patient = store.add_patient(PATIENT)
    old, new = store.add_conversation(patient.id, "old"), store.add_conversation(patient.id, "new")
    assert [c.title for c in store.list_conversations(patient.id)] == ["new", "old"]
    store.add_turn(old.id, "again")
    assert [c.id for c in store.list_conversations(patient.id)] == [old.id, new.id]


def test_conversations_are_searched_in_titles_questions_and_shown_answers(store: Store) -> None:
    patient = store.add_patient(PATIENT)
    conversation = store.add_conversation(patient.id, "Ward round")
    turn = store.add_turn(conversation.id, "Which ALLERGIES?")
    shown = Claim("Penicillin gave a rash. 青霉素", ClaimKind.ANSWER)
    withheld = Claim("Vancomycin is fine.", ClaimKind.WITHHELD, verdict=Verdict.HOLD)
    store.save_turn(replace(turn, claims=(shown, withheld)))
    store.add_conversation(patient.id, "Other")

    def find(query: str) -> list[str]:
        return [found.id for found in store.list_conversations(patient.id, query)]

    assert find("ward") == find("allergies?") == find("PENICILLIN gave") == find("青霉") == [conversation.id]
    assert find("vancomycin") == []
    assert find("%") == []


def test_a_deleted_conversation_takes_its_turns(store: Store) -> None:
    conversation = store.add_conversation(store.add_patient(PATIENT).id)
    turn = store.add_turn(conversation.id, "one")
    store.delete_conversation(conversation.id)
    assert store.get_conversation(conversation.id) is None
    assert store.get_turn(turn.id) is None
    with pytest.raises(InputError, match="no longer there"):
        store.add_turn(conversation.id, "two")


# --- findings -----------------------------------------------------------------------------------------------------


def test_findings_of_turns_and_pages_are_listed_newest_first_with_their_place(store: Store) -> None:
    patient, other = store.add_patient(PATIENT), store.add_patient(PATIENT)
    document = add_ready_document(store, patient.id)
    turn = store.add_turn(store.add_conversation(patient.id).id, "crushing chest pain")
    notice = Finding("emergency.chest_pain", Verdict.NOTICE, 0, 19, "Call the emergency team.")
    number = Finding("grounding.number", Verdict.HOLD, 3, 4, "The dose is not in the passage.")
    claims = (Claim("ok", ClaimKind.ANSWER), Claim("50 mg", ClaimKind.WITHHELD, findings=(number,)))
    store.save_turn(replace(turn, input_findings=(notice,), claims=claims))
    records = store.list_findings()
    assert {record.finding for record in records[:2]} == {notice, number}
    by_rule = {record.finding.rule: record for record in records}
    assert by_rule["grounding.number"].claim == 1
    assert by_rule["emergency.chest_pain"].claim is None
    assert by_rule["emergency.chest_pain"].turn_id == turn.id
    page = records[2]
    assert (page.finding, page.document_id, page.document_name, page.page) == (HOLD, document.id, "letter.pdf", 1)
    assert store.list_findings(limit=1) == records[:1]
    assert store.list_findings(patient_id=other.id) == []
    assert [r.finding for r in store.list_findings(severity=Verdict.NOTICE)] == [notice]
    assert [r.finding for r in store.list_findings(direction=Direction.DOCUMENT)] == [HOLD]
    assert [r.finding for r in store.list_findings(direction=Direction.OUTPUT)] == [number]


# --- threads ------------------------------------------------------------------------------------------------------


def test_threads_read_and_write_at_once_without_losing_anything(store: Store) -> None:
    patient = store.add_patient(PATIENT)
    conversations = [store.add_conversation(patient.id) for _ in range(4)]
    errors: list[BaseException] = []

    def work(conversation_id: str) -> None:
        try:
            turn: Turn = store.add_turn(conversation_id, "Which allergies?")
            for number in range(10):
                claim = Claim(f"claim {number}", ClaimKind.ANSWER)
                turn = replace(turn, claims=(*turn.claims, claim))
                store.save_turn(turn)
                store.get_turns(conversation_id)
                store.add_document(patient.id, f"{number}.txt", "text/plain", str(number).encode())
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(conversation.id,)) for conversation in conversations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for conversation in conversations:
        assert len(store.get_turns(conversation.id)[0].claims) == 10
    assert len(store.list_documents(patient.id)) == 10


def test_a_read_sees_one_moment_whatever_is_written_meanwhile(store: Store) -> None:
    store.add_patient(PATIENT)
    with store.reading() as connection:
        before = connection.execute(select(func.count()).select_from(patients)).scalar()
        store.add_patient(PATIENT)
        assert connection.execute(select(func.count()).select_from(patients)).scalar() == before == 1
    assert len(store.list_patients()) == 2
