"""A document is taken in whole or not at all, can be cancelled and deleted; every start repairs what was cut off."""

from __future__ import annotations

import threading

import pytest

from bench.small_files import archive, picture
from contracts import CheckResult, Document, DocumentStatus, Finding, Passage, Patient, ReadMethod, Verdict
from retrieval.documents import DocumentLibrary, rebuild_vectors
from retrieval.errors import DocumentError, IndexFailure
from retrieval.vectors import row_ids
from tests.retrieval.conftest import Bench
from tests.retrieval.pdfs import noise_of, pdf_of, pdf_with_scans, yellow_box

NOTE = "# MEDICATIONS\nMetoprolol 50 mg daily.\n\n# ALLERGIES\nPenicillin causes anaphylaxis.\n"
VISIT = "# VISIT {0}\nSeen on day {0} for heart failure; weight {0} kg, no oedema. "
LONG_NOTE = "\n\n".join(VISIT.format(n) * 8 for n in range(40))


def assert_consistent(bench: Bench, patient_id: str = "anna") -> None:
    assert bench.index.ids(patient_id) == row_ids(bench.store.list_passages(patient_id))


def test_document_becomes_ready_and_can_be_asked(bench: Bench) -> None:
    document = bench.ready("anna", "note.txt", NOTE)
    assert document.status is DocumentStatus.READY
    assert (document.num_pages, document.parser, document.error) == (1, "bedside", "")
    assert "anaphylaxis" in bench.retriever.search("penicillin allergy", "anna")[0].passage.text
    assert_consistent(bench)


def test_progress_counts_pages_read_pages_checked_then_passages(bench: Bench) -> None:
    calls: list[tuple[str, int, int]] = []
    document = bench.library.add("anna", "note.txt", LONG_NOTE.encode())
    bench.library.ingest(document.id, lambda *call: calls.append(call))
    order = ["reading", "checking", "indexing"]
    assert sorted(calls, key=lambda call: order.index(call[0])) == calls
    assert {step for step, _, _ in calls} == set(order)
    assert calls[-1][1] == calls[-1][2] == len(bench.store.list_passages("anna"))
    assert all(0 <= done <= total for _, done, total in calls)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("../note.txt", b"x", "path separator"),
        ("note.txt", b"", "empty"),
        ("note.pdf", b"text", "text file"),
        ("note.txt", b"x" * 5_000_001, "limit is 5 MB"),
        ("note.xyz", b"text", "not supported"),
    ],
)
def test_bad_upload_is_refused_before_anything_is_stored(bench: Bench, name: str, data: bytes, sentence: str) -> None:
    with pytest.raises(DocumentError, match=sentence):
        bench.library.add("anna", name, data)
    assert bench.store.list_documents() == []


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(pdf_of([["x"]], password="p"), "password"), (pdf_of([["x"]])[:-40], "cut off")],
)
def test_unreadable_document_fails_with_its_sentence_and_harms_no_other(
    bench: Bench, data: bytes, sentence: str
) -> None:
    bench.ready("anna", "note.txt", NOTE)
    document = bench.library.ingest(bench.library.add("anna", "bad.pdf", data).id)
    assert document is not None
    assert document.status is DocumentStatus.FAILED
    assert sentence in document.error
    assert bench.store.list_document_passages(document.id) == []
    assert bench.retriever.search("penicillin", "anna")
    assert_consistent(bench)


def test_same_file_twice_is_one_document(bench: Bench) -> None:
    first = bench.ready("anna", "note.txt", NOTE)
    again = bench.ready("anna", "copy.txt", NOTE)
    assert first.id == again.id
    assert bench.ready("bert", "note.txt", NOTE).id != first.id


def test_picture_without_words_is_counted_as_unreadable(bench: Bench) -> None:
    document = bench.library.ingest(bench.library.add("anna", "scan.pdf", noise_of()).id)
    assert document is not None
    assert (document.num_pages, document.num_pages_empty, document.num_pages_pending) == (1, 1, 0)
    assert bench.store.get_pages(document.id)[0].method is ReadMethod.EMPTY
    assert document.warnings == ("1 of 1 pages could not be read: page 1.",)


def test_findings_are_kept_by_page_and_a_check_that_failed_is_one(bench: Bench) -> None:
    finding = Finding("injected", Verdict.BLOCK, 0, 5, "An instruction stands in the document.")
    bench.safety.document_result = CheckResult(Verdict.BLOCK, (finding,))
    document = bench.ready("anna", "note.txt", NOTE)
    assert bench.store.get_document_findings(document.id) == {1: [finding]}
    bench.safety.document_result = CheckResult(Verdict.UNAVAILABLE)
    document = bench.ready("anna", "other.txt", NOTE + "more")
    (unchecked,) = bench.store.get_document_findings(document.id)[1]
    assert unchecked.severity is Verdict.UNAVAILABLE
    assert unchecked.end == len(bench.store.get_pages(document.id)[0].text)


def test_words_are_found_before_the_check_has_run_but_kept_from_the_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = bench.library.add("anna", "note.txt", NOTE.encode())
    found_before: list[Passage] = []

    def stop(text: str) -> CheckResult:
        found_before.extend(bench.retriever.search("metoprolol", "anna"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.safety, "check_document", stop)
        with pytest.raises(KeyboardInterrupt):
            bench.library.ingest(document.id)
    assert found_before
    (waiting,) = bench.store.get_document_findings(document.id)[1]
    assert waiting.severity.withholds
    assert (waiting.start, waiting.end) == (0, len(bench.store.get_pages(document.id)[0].text))
    bench.library.repair()  # the next start goes on with the check
    assert bench.store.get_document_findings(document.id) == {}


@pytest.mark.parametrize("step", ["reading", "checking", "indexing"])
def test_cancelled_document_is_removed_whole(bench: Bench, step: str) -> None:
    bench.ready("anna", "note.txt", NOTE)
    cancel = threading.Event()
    document = bench.library.add("anna", "long.txt", LONG_NOTE.encode())
    ended = bench.library.ingest(document.id, lambda now, done, total: now == step and done and cancel.set(), cancel)
    assert ended is None
    assert bench.store.get_document(document.id) is None
    assert_consistent(bench)
    assert bench.retriever.search("penicillin", "anna")


def test_deleting_a_document_that_is_being_read_stops_the_reading(bench: Bench) -> None:
    document = bench.library.add("anna", "long.txt", LONG_NOTE.encode())
    started, ended = threading.Event(), threading.Event()

    def read() -> None:
        assert bench.library.ingest(document.id, lambda *call: started.set()) is None
        ended.set()

    worker = threading.Thread(target=read)
    worker.start()
    assert started.wait(60)
    bench.library.delete(document.id)
    worker.join()
    assert ended.is_set()
    assert bench.store.get_document(document.id) is None
    assert bench.index.ids("anna") == set()


def test_documents_read_side_by_side_and_during_a_repair_are_all_indexed(bench: Bench) -> None:
    documents = [bench.library.add("anna", f"{n}.txt", (NOTE + VISIT.format(n) * 30).encode()) for n in range(4)]
    workers = [threading.Thread(target=bench.library.ingest, args=(document.id,)) for document in documents]
    workers.append(threading.Thread(target=bench.library.repair))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {document.status for document in bench.store.list_documents()} == {DocumentStatus.READY}
    assert len({id_.split(":")[0] for id_ in bench.index.ids("anna")}) == 4
    assert_consistent(bench)


def test_deleted_document_leaves_neither_words_nor_vectors(bench: Bench) -> None:
    kept = bench.ready("anna", "note.txt", NOTE)
    doomed = bench.ready("anna", "long.txt", LONG_NOTE)
    bench.library.delete(doomed.id)
    bench.library.delete(doomed.id)
    assert [document.id for document in bench.store.list_documents()] == [kept.id]
    assert all(id_.startswith(kept.id) for id_ in bench.index.ids("anna"))
    assert_consistent(bench)
    bench.library.delete_patient("anna")
    assert bench.store.list_documents() == []
    assert bench.index.ids("anna") == set()


def test_repair_finishes_what_was_cut_off(bench: Bench) -> None:
    queued = bench.library.add("anna", "queued.txt", NOTE.encode())
    indexing = bench.ready("anna", "indexing.txt", NOTE + "indexing")
    bench.index.delete("anna", [f"{indexing.id}:00001-000#0"])
    bench.store.set_document_status(indexing.id, DocumentStatus.INDEXING)
    deleting = bench.ready("anna", "deleting.txt", NOTE + "deleting")
    bench.store.set_document_status(deleting.id, DocumentStatus.DELETING)
    failed = bench.library.add("anna", "failed.pdf", pdf_of([["x"]], password="p"))
    bench.library.ingest(failed.id)

    report = bench.library.repair()
    assert set(report.resumed) == {"queued.txt", "indexing.txt"}
    assert report.deleted == ("deleting.txt",)
    status = {document.id: document.status for document in bench.store.list_documents()}
    assert status == {
        queued.id: DocumentStatus.READY,
        indexing.id: DocumentStatus.READY,
        failed.id: DocumentStatus.FAILED,
    }
    assert_consistent(bench)
    assert bench.library.repair() == type(report)()  # nothing left to do


def test_repair_rebuilds_what_differs_and_removes_orphans(bench: Bench) -> None:
    document = bench.ready("anna", "note.txt", NOTE)
    bench.ready("bert", "note.txt", NOTE)
    bench.index.delete("anna", [f"{document.id}:00001-000#0"])
    bench.store.documents = {key: d for key, d in bench.store.documents.items() if d.patient_id != "bert"}
    report = bench.library.repair()
    assert report.rebuilt_patients == 1
    assert report.removed_collections == 1
    assert_consistent(bench)
    assert bench.index.ids("bert") == set()


def test_repair_sets_an_unreadable_index_aside_and_makes_it_again(bench: Bench) -> None:
    bench.ready("anna", "note.txt", NOTE)
    bench.ready("bert", "note.txt", NOTE + "bert")
    bench.index.close()
    (bench.index.path / "chroma.sqlite3").write_bytes(b"broken" * 1000)
    report = bench.library.repair()
    assert "unreadable" in report.set_aside
    assert report.rebuilt_patients == 2
    assert_consistent(bench, "anna")
    assert_consistent(bench, "bert")


def test_words_of_a_document_go_even_if_the_index_is_broken(bench: Bench) -> None:
    document = bench.ready("anna", "note.txt", NOTE)
    bench.index.close()
    (bench.index.path / "chroma.sqlite3").write_bytes(b"broken" * 1000)
    bench.library.delete(document.id)
    assert bench.store.list_documents() == []
    bench.library.repair()
    assert bench.index.ids("anna") == set()


def test_fault_of_the_store_is_raised_not_hidden(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise PermissionError("the database is read-only")

    document = bench.library.add("anna", "note.txt", NOTE.encode())
    monkeypatch.setattr(bench.store, "save_pages", fail)
    with pytest.raises(PermissionError):
        bench.library.ingest(document.id)


def test_failed_document_can_be_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise IndexFailure("The disk is full.")

    document = bench.library.add("anna", "note.txt", NOTE.encode())
    with monkeypatch.context() as patch:
        patch.setattr(bench.index, "add", fail)
        failed = bench.library.ingest(document.id)
        assert failed is not None
        assert (failed.status, failed.error) == (DocumentStatus.FAILED, "The disk is full.")
    ready = bench.library.ingest(document.id)
    assert ready is not None
    assert ready.status is DocumentStatus.READY
    assert_consistent(bench)


def marked(library: DocumentLibrary, document: Document, words: str, text: str) -> bool:
    start = text.index(words)
    return yellow_box(library.render_page(document.id, 1, [(start, start + len(words))])) is not None


def test_cited_page_is_drawn_with_the_quote_marked(bench: Bench) -> None:
    note = bench.ready("anna", "note.txt", NOTE)
    assert marked(bench.library, note, "Penicillin", bench.store.get_pages(note.id)[0].text)
    pdf = bench.library.ingest(bench.library.add("anna", "a.pdf", pdf_of([["Aspirin 81 mg daily."]])).id)
    assert pdf is not None
    assert marked(bench.library, pdf, "81 mg", bench.store.get_pages(pdf.id)[0].text)
    with pytest.raises(DocumentError, match="no page 9"):
        bench.library.render_page(note.id, 9)
    with pytest.raises(DocumentError, match="deleted"):
        bench.library.render_page("nothing", 1)


# --- whose it is ----------------------------------------------------------------------------------------------------

LETTER = "Patient: Margaret Ellis\nDate of birth: 1950-03-04\nMRN: A-4711\n\nALLERGIES\nPenicillin: anaphylaxis.\n"


@pytest.mark.parametrize(
    ("patient", "difference"),
    [
        (Patient(name="John Smith"), "The name on page 1 is Margaret Ellis, the patient's is John Smith."),
        (Patient(birth_date="1951-03-04"), "The birth date on page 1 is 1950-03-04, the patient's is 1951-03-04."),
        (Patient(age_years=30), "The birth date on page 1 is 1950-03-04, the patient's is 30 years of age."),
        (Patient(record_number="B-1"), "The record number on page 1 is A-4711, the patient's is B-1."),
    ],
)
def test_file_of_another_patient_is_not_searched_until_a_person_confirms_it(
    bench: Bench, patient: Patient, difference: str
) -> None:
    bench.library._get_patient = lambda patient_id: patient
    document = bench.ready("anna", "letter.txt", LETTER)
    assert (document.status, document.error) == (DocumentStatus.UNCONFIRMED, difference)
    assert bench.retriever.search("penicillin", "anna") == []
    assert bench.index.ids("anna") == set()
    bench.library.repair()
    assert bench.retriever.search("penicillin", "anna") == []
    bench.library.confirm(document.id)
    ready = bench.library.ingest(document.id)
    assert ready is not None
    assert (ready.status, ready.is_confirmed) == (DocumentStatus.READY, True)
    assert bench.retriever.search("penicillin", "anna")
    assert_consistent(bench)


@pytest.mark.parametrize(
    "patient",
    [
        Patient(),
        Patient(name="ELLIS, Margaret"),
        Patient(name="Mrs Margaret J. Ellis", birth_date="1950-04-03", record_number="a 4711"),
        Patient(name="M. Ellis", record_number="A4711"),
    ],
)
def test_same_patient_written_otherwise_is_no_mismatch(bench: Bench, patient: Patient) -> None:
    bench.library._get_patient = lambda patient_id: patient
    assert bench.ready("anna", "letter.txt", LETTER).status is DocumentStatus.READY


def test_scan_of_another_patient_is_noticed_when_it_is_recognised(bench: Bench) -> None:
    bench.library._get_patient = lambda patient_id: Patient(name="John Smith")
    document = bench.library.ingest(bench.library.add("anna", "scan.png", picture("PNG")).id)
    assert document is not None
    assert document.status is DocumentStatus.UNCONFIRMED
    assert bench.store.list_passages("anna") == []


# --- versions -------------------------------------------------------------------------------------------------------


def test_newer_version_replaces_the_older_which_can_be_restored(bench: Bench) -> None:
    older = bench.ready("anna", "note.txt", NOTE)
    newer = bench.ready("anna", "note.txt", NOTE.replace("50 mg", "25 mg"))
    assert status_of(bench, older, newer) == [DocumentStatus.REPLACED, DocumentStatus.READY]
    assert {p.document_id for p in bench.store.list_passages("anna")} == {newer.id}
    assert_consistent(bench)
    bench.library.restore(older.id)
    bench.library.ingest(older.id)
    assert status_of(bench, older, newer) == [DocumentStatus.READY, DocumentStatus.REPLACED]
    assert "50 mg" in bench.retriever.search("metoprolol", "anna")[0].passage.text
    assert_consistent(bench)
    again = bench.library.add("anna", "note.txt", NOTE.replace("50 mg", "25 mg").encode())
    assert again.id == newer.id
    bench.library.ingest(again.id)
    assert status_of(bench, older, newer) == [DocumentStatus.REPLACED, DocumentStatus.READY]


def test_a_restoring_that_is_cancelled_leaves_all_as_it_was(bench: Bench) -> None:
    older = bench.ready("anna", "note.txt", NOTE)
    newer = bench.ready("anna", "note.txt", NOTE.replace("50 mg", "25 mg"))
    bench.library.restore(older.id)
    cancel = threading.Event()
    cancel.set()
    bench.library.ingest(older.id, cancel=cancel)
    assert status_of(bench, older, newer) == [DocumentStatus.REPLACED, DocumentStatus.READY]
    assert "25 mg" in bench.retriever.search("metoprolol", "anna")[0].passage.text
    assert_consistent(bench)


def test_another_document_of_the_same_name_replaces_nothing(bench: Bench) -> None:
    first = bench.ready("anna", "scan.txt", NOTE)
    second = bench.ready("anna", "scan.txt", "Chest X-ray of 2024-03-01: no consolidation, heart size normal.")
    assert status_of(bench, first, second) == [DocumentStatus.READY, DocumentStatus.READY]


def status_of(bench: Bench, *documents: Document) -> list[DocumentStatus]:
    return [bench.store.documents[document.id].status for document in documents]


# --- pictures and what was cut off ------------------------------------------------------------------------------------


def test_text_is_searched_while_pictures_are_recognised_and_a_restart_goes_on_there(bench: Bench) -> None:
    document = bench.library.add("anna", "record.pdf", pdf_with_scans([NOTE], [LETTER, LETTER]))
    seen: list[tuple[DocumentStatus, list[str]]] = []

    def stop_at_the_second_picture(step: str, done: int, total: int) -> None:
        if step == "recognising" and done == 0:
            found = [scored.passage.text for scored in bench.retriever.search("metoprolol", "anna")]
            seen.append((bench.store.documents[document.id].status, found))
        if step == "recognising" and done == 1:
            bench.library.interrupt()

    bench.library.ingest(document.id, stop_at_the_second_picture)
    ((status, found),) = seen
    assert status is DocumentStatus.RECOGNISING
    assert "Metoprolol" in found[0]
    cut_off = bench.store.documents[document.id]
    assert (cut_off.status, cut_off.num_pages_ocr, cut_off.num_pages_pending) == (DocumentStatus.RECOGNISING, 1, 1)

    bench.library._is_interrupted = False
    calls: list[tuple[str, int, int]] = []
    ready = bench.library.ingest(document.id, lambda *call: calls.append(call))
    assert ready is not None
    assert (ready.status, ready.num_pages_ocr, ready.num_pages_pending) == (DocumentStatus.READY, 2, 0)
    assert ("recognising", 1, 1) in calls
    assert "reading" not in {step for step, _, _ in calls}
    assert "rapidocr" in ready.parser
    passages = bench.store.list_passages("anna")
    assert {(p.page, p.method) for p in passages} >= {(1, ReadMethod.TEXT), (2, ReadMethod.OCR), (3, ReadMethod.OCR)}
    assert all(0.5 < p.confidence < 1 for p in passages if p.method is ReadMethod.OCR)
    assert_consistent(bench)


def test_files_inside_an_archive_become_documents_of_their_own(bench: Bench) -> None:
    packed = archive(
        {"a/note.txt": NOTE.encode(), "bad.pdf": b"text", "inner.zip": archive({"b.txt": b"Aspirin 81 mg."})}
    )
    added = bench.library.add_all("anna", "record.zip", packed)
    names = [item.name if isinstance(item, Document) else item[0] for item in added]
    assert names == ["record.zip › note.txt", "record.zip › bad.pdf", "record.zip › inner.zip › b.txt"]
    assert isinstance(added[1], tuple)
    assert "the file is a text file" in str(added[1][1])
    assert len(bench.store.list_documents("anna")) == 2


def test_vectors_are_made_anew_from_the_text_alone(bench: Bench) -> None:
    bench.ready("anna", "note.txt", NOTE)
    before = bench.index.ids("anna")
    bench.index.delete("anna", sorted(before)[:1])
    bench.index.add("anna", ["stale:00001-000#0"], bench.retriever._embedder.embed(["stale"]))
    rebuild_vectors(bench.store, bench.index, bench.retriever._embedder, "anna")
    assert bench.index.ids("anna") == before
