"""Search stays with the patient, finds by words and by meaning, and goes on when the vectors are gone."""

from __future__ import annotations

import logging

import pytest

from contracts import DocumentStatus
from retrieval.langchain_retriever import PassageRetriever
from tests.retrieval.conftest import Bench

CARDIOLOGY = (
    "# MEDICATIONS\nMetoprolol succinate 50 mg daily. Apixaban 5 mg twice daily.\n\n"
    "# HISTORY\nThe patient underwent coronary artery bypass grafting on 11/30/2010. "
    "Heart failure with an ejection fraction of 35%.\n\n"
    "# ALLERGIES\nPenicillin causes anaphylaxis.\n"
)
DERMATOLOGY = "# PLAN\nHydrocortisone cream for eczema of both hands. Review in six weeks.\n"
CHINESE = (
    "# 现病史\n患者因反复胸痛两年加重三天入院。\n\n# 用药\n硝苯地平控释片三十毫克每日一次。\n\n# 过敏史\n青霉素过敏。"
)


@pytest.fixture
def ward(bench: Bench) -> Bench:
    bench.ready("anna", "cardiology.txt", CARDIOLOGY)
    bench.ready("anna", "dermatology.txt", DERMATOLOGY)
    bench.ready("bert", "cardiology.txt", CARDIOLOGY.replace("Apixaban", "Warfarin") + "Bert only.")
    return bench


def best(bench: Bench, query: str, patient_id: str = "anna", **options: object) -> str:
    found = bench.retriever.search(query, patient_id, **options)  # type: ignore[arg-type]
    return found[0].passage.text if found else ""


def test_finds_by_words_by_date_and_by_meaning(ward: Bench) -> None:
    assert "Apixaban" in best(ward, "apixaban dose")
    assert "bypass" in best(ward, "operation on 2010-11-30")
    assert "eczema" in best(ward, "itchy skin treatment")


def test_never_leaves_the_patient(ward: Bench) -> None:
    own = {d.id for d in ward.store.list_documents("anna")}
    for query in ("Warfarin", "Bert only", "apixaban", "heart"):
        assert {item.passage.document_id for item in ward.retriever.search(query, "anna")} <= own
    assert ward.retriever.search("heart", "nobody") == []


def test_can_be_limited_to_documents(ward: Bench) -> None:
    skin = next(d for d in ward.store.list_documents("anna") if d.name == "dermatology.txt")
    found = ward.retriever.search("metoprolol for the heart", "anna", [skin.id])
    assert {item.passage.document_id for item in found} <= {skin.id}
    assert ward.retriever.search("metoprolol", "anna", []) == []


def test_scores_fall_and_the_limit_holds(ward: Bench) -> None:
    found = ward.retriever.search("patient medications and history", "anna", limit=2)
    assert len(found) <= 2
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    assert ward.retriever.search("   ", "anna") == []


def test_chinese_is_found_by_words(bench: Bench) -> None:
    bench.ready("li", "入院记录.txt", CHINESE)
    assert "硝苯地平" in best(bench, "硝苯地平每天吃多少？", "li")
    assert "青霉素" in best(bench, "对什么药物过敏", "li")


def test_unready_and_deleted_documents_are_not_found(ward: Bench) -> None:
    document = next(d for d in ward.store.list_documents("anna") if d.name == "cardiology.txt")
    ward.store.set_document_status(document.id, DocumentStatus.UNCONFIRMED)
    assert "Apixaban" not in best(ward, "apixaban")
    ward.store.set_document_status(document.id, DocumentStatus.READY)
    assert "Apixaban" in best(ward, "apixaban")
    ward.library.delete(document.id)
    assert "Apixaban" not in best(ward, "apixaban")


def test_nothing_of_a_record_stays_in_memory_when_told_to_forget(ward: Bench) -> None:
    assert best(ward, "apixaban")
    assert ward.retriever._prepared
    ward.retriever.forget()
    assert not ward.retriever._prepared
    assert "Apixaban" in best(ward, "apixaban")


def test_document_read_again_is_searched_anew(ward: Bench) -> None:
    document = next(d for d in ward.store.list_documents("anna") if d.name == "cardiology.txt")
    assert best(ward, "apixaban")
    ward.store.files[document.id] = CARDIOLOGY.replace("Apixaban", "Edoxaban").encode()
    ward.store.clear_pages(document.id)
    ward.store.set_document_status(document.id, DocumentStatus.QUEUED)
    ward.library.ingest(document.id)
    assert "Edoxaban" in best(ward, "edoxaban")


def test_without_vectors_words_alone_answer_and_the_log_says_so(ward: Bench, caplog: pytest.LogCaptureFixture) -> None:
    ward.index.close()
    (ward.index.path / "chroma.sqlite3").write_bytes(b"broken" * 1000)
    with caplog.at_level(logging.WARNING):
        assert "Apixaban" in best(ward, "apixaban dose")
    assert "words alone" in caplog.text


def test_vectors_missing_for_some_passages_do_not_hide_them(ward: Bench) -> None:
    ward.index.delete_patient("anna")
    assert "Apixaban" in best(ward, "apixaban dose")


def test_langchain_sees_the_passages_of_one_patient(ward: Bench) -> None:
    retriever = PassageRetriever(retriever=ward.retriever, patient_id="anna", limit=1)
    (document,) = retriever.invoke("apixaban dose")
    assert "Apixaban" in document.page_content
    assert document.metadata["document"] == "cardiology.txt"
    assert document.metadata["page"] == 1
