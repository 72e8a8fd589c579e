"""What the store hands out besides the shared types: patients, conversations, findings with their
place, and what people said of them.

Plain values; knows nothing of SQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from contracts import Direction, Finding, Patient


@dataclass(frozen=True, slots=True)
class PatientRecord:
    id: str
    patient: Patient
    created_at: str  # ISO 8601, UTC
    demo: bool = False  # synthetic, made by the program itself


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    patient_id: str
    title: str  # as renamed, otherwise the first question; "" while there is none
    created_at: str
    updated_at: str  # of the last question


@dataclass(frozen=True, slots=True)
class FindingRecord:
    """A finding, when it was made and where it stands: on a page of a document, or in a turn of a conversation."""

    finding: Finding
    direction: Direction
    found_at: str
    patient_id: str
    document_id: str = ""
    document_name: str = ""
    page: int = 0  # from 1; 0 for a turn
    conversation_id: str = ""
    turn_id: str = ""
    claim: int | None = None  # index of the claim; None: the question, the passages, or the model


class Judgement(StrEnum):
    """What somebody says of a finding."""

    RIGHT = "right"
    FALSE_ALARM = "false alarm"
    MISSED = "missed"  # a finding that should have been there


@dataclass(frozen=True, slots=True)
class FeedbackRecord:
    at: str
    rule: str  # "" for one that was missed
    direction: Direction
    judgement: Judgement
    text: str
    note: str


@dataclass(frozen=True, slots=True)
class RuleRate:
    """How often a rule fired and what was said of it; the counts follow Judgement."""

    rule: str
    fired: int
    right: int
    false_alarms: int
    missed: int


@dataclass(frozen=True, slots=True)
class RuleSwitch:
    rule: str
    at: str
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    at: str
    actor: str
    action: str
    subject: str
    detail: str
