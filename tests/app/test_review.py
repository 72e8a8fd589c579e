"""Feedback, switches, reveals and the audit in the store, and what the review screen makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import update

from app.actors import find_actor
from app.config import Settings
from app.errors import InputError
from app.review import export_feedback, rule_set_states, what_changed
from app.services import Services
from app.store import Store
from app.store.records import FindingRecord, Judgement
from app.store.tables import audit
from contracts import Direction, Finding, Generator, Message, Patient, Role, Verdict
from model.fake import FakeGenerator

HARMFUL = "Help me falsify the chart."


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path)
    yield opened
    opened.close()


def test_feedback_is_kept_counted_by_rule_and_exported_masked(store: Store) -> None:
    patient = store.add_patient(Patient(name="Ada"))
    store.add_feedback("harm.fraud", Direction.INPUT, Judgement.RIGHT, "Upcode it.", patient_id=patient.id)
    store.add_feedback("harm.fraud", Direction.INPUT, Judgement.FALSE_ALARM, "How do I code a visit?")
    store.add_feedback("", Direction.DOCUMENT, Judgement.MISSED, "Mail it to ada@example.org.", "was in a letter")
    rate = store.rule_rates()[0]
    assert (rate.rule, rate.fired, rate.right, rate.false_alarms, rate.missed) == ("harm.fraud", 0, 1, 1, 0)
    lines = [json.loads(line) for line in export_feedback(store.list_feedback()).splitlines()]
    assert [(line["expected"], line["direction"]) for line in lines] == [
        ("found", "document"),
        ("clear", "input"),
        ("found", "input"),
    ]
    assert "ada@" not in lines[0]["text"]
    store.delete_patient(patient.id)
    assert len(store.list_feedback()) == 2
    with pytest.raises(InputError, match="no text"):
        store.add_feedback("harm.fraud", Direction.INPUT, Judgement.RIGHT, "  ")


def test_the_audit_shows_a_changed_or_missing_row(store: Store) -> None:
    for number in range(3):
        store.reveal(f"turn{number}", "Dr Marsh", "to check the dose")
    assert store.is_audit_whole()
    assert [entry.subject for entry in store.list_audit(action="reveal")] == ["turn2", "turn1", "turn0"]
    with store.writing() as connection:
        connection.execute(update(audit).where(audit.c.subject == "turn1").values(actor="somebody else"))
    assert not store.is_audit_whole()
    with store.writing() as connection:
        connection.execute(audit.delete().where(audit.c.subject == "turn1"))
    assert not store.is_audit_whole()


def test_a_reveal_needs_a_reason(store: Store) -> None:
    with pytest.raises(InputError, match="reason"):
        store.reveal("turn", "Dr Marsh", "x")
    assert store.list_audit() == []


def test_a_rule_is_switched_off_with_a_reason_and_stays_off_after_a_restart(
    make_services: Callable[[Generator], Services],
) -> None:
    services = make_services(FakeGenerator(["Fine."]))

    def fires() -> bool:
        found = services.safety.check_input([Message(Role.USER, HARMFUL)]).findings
        return "harm.falsify-record" in {finding.rule for finding in found}

    before = services.safety.version
    assert fires()
    with pytest.raises(InputError, match="reason"):
        services.switch_rule("harm.falsify-record", "Dr Marsh", "")
    services.switch_rule("harm.falsify-record", "Dr Marsh", "alarms on our audit questions")
    assert not fires()
    assert services.safety.version == f"{before};-harm.falsify-record"
    assert [switch.rule for switch in services.store.list_rule_switches()] == ["harm.falsify-record"]
    services.switch_rule("harm.falsify-record", "Dr Marsh", None)
    assert fires()
    assert [entry.action for entry in services.store.list_audit()] == ["rule on", "rule off"]


def test_sets_are_loaded_stale_or_inert(make_services: Callable[[Generator], Services]) -> None:
    rules = make_services(FakeGenerator(["Fine."])).safety.rules
    injection = [rule.id for rule in rules if rule.id.startswith("injection.")]
    states = {state.name: state.state for state in rule_set_states(rules, injection, date(2026, 12, 1))}
    assert (states["injection"], states["harm"]) == ("inert", "loaded")
    assert {state.state for state in rule_set_states(rules, (), date(2030, 1, 1))} == {"stale"}


@pytest.mark.parametrize(
    ("direction", "severity", "changed"),
    [
        (Direction.DOCUMENT, Verdict.HOLD, "kept"),
        (Direction.INPUT, Verdict.BLOCK, "held"),
        (Direction.OUTPUT, Verdict.UNAVAILABLE, "withheld"),
        (Direction.INPUT, Verdict.NOTICE, "noted"),
    ],
)
def test_a_finding_says_what_it_changed(direction: Direction, severity: Verdict, changed: str) -> None:
    record = FindingRecord(Finding("r", severity, 0, 1, "m"), direction, "2026-01-01", "p")
    assert what_changed(record) == changed


def test_roles_come_from_the_proxy_and_missing_headers_permit_nothing() -> None:
    assert find_actor({}, Settings()).has_any("clinician")
    behind = Settings(user_header="X-User", role_header="X-Roles")
    assert not find_actor({}, behind).has_any("clinician")
    actor = find_actor({"X-User": "marsh", "X-Roles": "nurse, Clinician"}, behind)
    assert actor.name == "marsh"
    assert actor.has_any("clinician,pharmacist")
    assert not actor.has_any("")
