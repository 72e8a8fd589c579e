"""The tables, one comment each. Columns that hold a patient's words are Encrypted*; the rest are ids, dates and counts.

`number` counts rows in the order of arrival; `id` is random and is what the rest of the program knows. A change here
needs a file in migrations/versions; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from app.store.encryption import EncryptedBytes, EncryptedJSON, EncryptedText

ID = String(64)
metadata = MetaData(  # names for what a later migration may have to change
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row: a known text sealed with the key, by which a wrong key is noticed at the start.
key_checks = Table(
    "key_checks", metadata, Column("id", Integer, primary_key=True), Column("sealed", EncryptedText, nullable=False)
)

# A person; `data` is a contracts.Patient.
patients = Table(
    "patients",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", ID, nullable=False, unique=True),
    Column("created_at", String(32), nullable=False),
    Column("demo", Boolean, nullable=False),
    Column("data", EncryptedJSON, nullable=False),
)

# An uploaded file and how far its reading got. `fingerprint` is a keyed hash; NULL once the document is being deleted.
documents = Table(
    "documents",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", ID, nullable=False, unique=True),
    Column("patient_id", ID, ForeignKey("patients.id", ondelete="CASCADE"), nullable=False),
    Column("fingerprint", String(64)),
    Column("name", EncryptedText, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("sha256", EncryptedText, nullable=False),
    Column("status", String(16), nullable=False),
    Column("error", EncryptedText, nullable=False),
    Column("parser", Text, nullable=False),
    Column("num_pages", Integer, nullable=False),
    Column("num_pages_ocr", Integer, nullable=False),
    Column("num_pages_empty", Integer, nullable=False),
    Column("num_pages_pending", Integer, nullable=False, server_default="0"),
    Column("added_at", String(32), nullable=False),
    Column("is_confirmed", Boolean, nullable=False, server_default=false()),
    Column("warnings", EncryptedJSON),
    UniqueConstraint("patient_id", "fingerprint"),
)

# The bytes of a document, apart so that lists stay quick.
document_files = Table(
    "document_files",
    metadata,
    Column("document_id", ID, ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True),
    Column("data", EncryptedBytes, nullable=False),
)

# What was read on one page; `lines` are where a recognised page's lines stand, `facts` a contracts.PageFacts.
pages = Table(
    "pages",
    metadata,
    Column("document_id", ID, ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("text", EncryptedText, nullable=False),
    Column("method", String(16), nullable=False),
    Column("confidence", Double, nullable=False),
    Column("lines", EncryptedJSON),
    Column("facts", EncryptedJSON),
)

# A stretch of a page; its text is the page's [start:end], so the two cannot differ.
passages = Table(
    "passages",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("document_id", ID, nullable=False),
    Column("page", Integer, nullable=False),
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("method", String(16), nullable=False),
    Column("confidence", Double, nullable=False),
    ForeignKeyConstraint(["document_id", "page"], ["pages.document_id", "pages.number"], ondelete="CASCADE"),
    Index(None, "document_id", "page", "start"),
)

# What the document check found on a page.
document_findings = Table(
    "document_findings",
    metadata,
    Column("document_id", ID, primary_key=True),
    Column("page", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("rule", Text, nullable=False),
    Column("severity", String(16), nullable=False),
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("message", EncryptedText, nullable=False),
    Column("source", Text, nullable=False),
    Column("evidence", EncryptedText, nullable=False),
    ForeignKeyConstraint(["document_id", "page"], ["pages.document_id", "pages.number"], ondelete="CASCADE"),
)

# The id of each deleted document, by which an answer still being written is kept from saving its words again.
deleted_documents = Table(
    "deleted_documents",
    metadata,
    Column("id", ID, primary_key=True),
    Column("patient_id", ID, ForeignKey("patients.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("deleted_at", String(32), nullable=False),
)

# A thread of turns about one patient; `title` is "" until someone renames it.
conversations = Table(
    "conversations",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", ID, nullable=False, unique=True),
    Column("patient_id", ID, ForeignKey("patients.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("title", EncryptedText, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("updated_at", String(32), nullable=False),
)

# A question and the state of its answer; `record` is exactly what was sent to the model.
turns = Table(
    "turns",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", ID, nullable=False, unique=True),
    Column("conversation_id", ID, ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", String(32), nullable=False),
    Column("status", String(16), nullable=False),
    Column("question", EncryptedText, nullable=False),
    Column("document_ids", JSON(none_as_null=True)),
    Column("input_verdict", String(16), nullable=False),
    Column("coverage", EncryptedJSON),
    Column("usage", JSON, nullable=False),
    Column("model_name", Text, nullable=False),
    Column("error", EncryptedText, nullable=False),
    Column("record", EncryptedJSON, nullable=False),
)

# One checked sentence of an answer.
claims = Table(
    "claims",
    metadata,
    Column("turn_id", ID, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("text", EncryptedText, nullable=False),
)

# Where a claim stands. document_id is no foreign key: the row outlives its document, without the document's words.
citations = Table(
    "citations",
    metadata,
    Column("turn_id", ID, primary_key=True),
    Column("claim", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("key", Integer, nullable=False),
    Column("document_id", ID, nullable=False, index=True),
    Column("document", EncryptedText, nullable=False),
    Column("page", Integer, nullable=False),
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("quote", EncryptedText, nullable=False),
    Column("method", String(16), nullable=False),
    Column("confidence", Double, nullable=False),
    ForeignKeyConstraint(["turn_id", "claim"], ["claims.turn_id", "claims.position"], ondelete="CASCADE"),
)

# What the checks of a turn found; `claim` is -1 for the question, the passages and the model.
findings = Table(
    "findings",
    metadata,
    Column("turn_id", ID, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    Column("direction", String(16), primary_key=True),
    Column("claim", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("rule", Text, nullable=False),
    Column("severity", String(16), nullable=False),
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("message", EncryptedText, nullable=False),
    Column("source", Text, nullable=False),
    Column("evidence", EncryptedText, nullable=False),
)

# Who did what that a reviewer must find again; each row seals the one before it (app.store.audit). `detail` is words.
audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("at", String(32), nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", EncryptedText, nullable=False),
    Column("seal", String(64), nullable=False),
)

# What a clinician said of a finding, or of one that was missed. `text` is what was checked.
feedback = Table(
    "feedback",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", ID, nullable=False, unique=True),
    Column("at", String(32), nullable=False),
    Column("patient_id", ID, ForeignKey("patients.id", ondelete="CASCADE"), index=True),
    Column("rule", Text, nullable=False),
    Column("direction", String(16), nullable=False),
    Column("judgement", String(16), nullable=False),
    Column("text", EncryptedText, nullable=False),
    Column("note", EncryptedText, nullable=False),
)

# Rules that a hospital has switched off, with the reason.
rule_switches = Table(
    "rule_switches",
    metadata,
    Column("rule", String(128), primary_key=True),
    Column("at", String(32), nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", EncryptedText, nullable=False),
)
