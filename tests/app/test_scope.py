"""Documents are chosen by type and date; the budget says what a question would read whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date

import pytest

from app.scope import Filed, narrow
from app.services import Services
from contracts import Generator, Patient
from model.fake import FakeGenerator

LETTER = Filed("1", "letter.pdf", ("Discharge summary",), ("2024-03-01", "2024-03-09"))
CLINIC = Filed("2", "clinic.pdf", ("Clinic letter",), ("2025-06-02",))
UNDATED = Filed("3", "scan.png")
ALL = [LETTER, CLINIC, UNDATED]


def test_types_leave_out_what_is_of_another_type_or_none() -> None:
    assert narrow(ALL) == ALL
    assert narrow(ALL, ["Clinic letter"]) == [CLINIC]


def test_dates_leave_out_only_what_surely_is_of_another_time() -> None:
    assert narrow(ALL, since=date(2025, 1, 1)) == [CLINIC, UNDATED]
    assert narrow(ALL, until=date(2024, 3, 5)) == [LETTER, UNDATED]
    assert narrow(ALL, since=date(2026, 1, 1), until=date(2026, 2, 1)) == [UNDATED]


def test_types_and_dates_are_read_from_the_pages_and_the_budget_from_the_text(
    make_services: Callable[[Generator], Services],
) -> None:
    services = make_services(FakeGenerator(["Yes."]))
    patient = services.store.add_patient(Patient(name="Ann Lee")).id
    text = "DISCHARGE SUMMARY\n\nDate: 9 March 2024\n\nApixaban 5 mg twice daily."
    first = services.library.add(patient, "one.txt", text.encode()).id
    services.library.ingest(first)
    (filed,) = services.filing.list_filed(patient, services.store.list_documents(patient))
    assert (filed.types, filed.dates) == (("Discharge summary",), ("2024-03-09",))
    budget = services.jobs.budget(patient)
    assert budget.is_whole
    assert 10 < budget.tokens < 100
    assert budget.tokens < services.jobs.budget(patient, None).room
    assert services.jobs.budget(patient, []).tokens == 0
    assert not replace(budget, room=budget.tokens - 1).is_whole


def test_pages_are_read_again_only_when_a_document_has_changed(
    make_services: Callable[[Generator], Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = make_services(FakeGenerator(["Yes."]))
    patient = services.store.add_patient(Patient(name="Ann Lee")).id
    read: list[str] = []
    get_page_facts = services.store.get_page_facts
    monkeypatch.setattr(services.store, "get_page_facts", lambda id_: read.append(id_) or get_page_facts(id_))

    def draw() -> list[str]:
        return [one.name for one in services.filing.list_filed(patient, services.store.list_documents(patient))]

    first, second = (services.library.add(patient, f"{n}.txt", f"Visit {n}. BP 120/80".encode()) for n in "12")
    services.library.ingest(first.id)
    assert draw() == draw() == ["1.txt", "2.txt"]
    assert len(read) == 2
    services.library.ingest(second.id)
    assert draw() == draw() == ["1.txt", "2.txt"]
    assert read == [first.id, second.id, second.id]
    services.library.delete(first.id)
    assert draw() == ["2.txt"]
