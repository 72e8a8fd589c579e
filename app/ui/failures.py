"""What the layers raise with a sentence for the clinician; anything else is a fault of ours and goes to the log."""

from __future__ import annotations

import streamlit as st

from app.errors import BedsideError
from app.ui.text import escape
from contracts import GenerationError
from retrieval.errors import IndexFailure

# PatientError, DocumentError, ContextLengthError, CheckpointError and RuleError are ValueErrors.
FAILURES: tuple[type[Exception], ...] = (BedsideError, GenerationError, ValueError, OSError, IndexFailure)


def draw_failure(error: Exception) -> None:
    st.error(escape(str(error)))
