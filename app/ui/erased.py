"""What the scan behind a deletion found, in a sentence."""

from __future__ import annotations

import streamlit as st

from app.certificate import Certificate
from app.ui.text import count, escape, format_size, say

Notice = tuple[str, str]  # "error", "success" or "info", and the sentence
_KEPT = "erased_notice"


def in_short(certificate: Certificate) -> Notice:
    if certificate.hits:
        return "error", count("documents.erased.traces", len(certificate.hits))
    if not certificate.traces_before:
        return "info", say("documents.erased.unseen")
    size = format_size(certificate.bytes_scanned)
    return "success", say("documents.erased", files=certificate.files, size=size)


def draw_notice(notice: Notice) -> None:
    kind, words = notice
    {"error": st.error, "success": st.success, "info": st.info}[kind](escape(words))


def keep(certificate: Certificate) -> None:
    """For the next screen: the one that deleted is drawn anew."""
    st.session_state[_KEPT] = in_short(certificate)


def draw_kept() -> None:
    if notice := st.session_state.pop(_KEPT, None):
        draw_notice(notice)
