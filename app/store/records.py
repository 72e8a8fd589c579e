"""What the store hands out besides the shared types: patients, conversations and findings with their place.

Plain values; knows nothing of SQL.
"""

from __future__ import annotations

from dataclasses import dataclass

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
