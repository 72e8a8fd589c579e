"""What is kept: patients, documents, conversations. `Store` is the one door to the database."""

from app.store.records import Conversation, FindingRecord, PatientRecord
from app.store.store import Store

__all__ = ["Conversation", "FindingRecord", "PatientRecord", "Store"]
