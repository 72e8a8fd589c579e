"""The four screens and their order; what each begins with."""

from __future__ import annotations

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from app.services import Services
from app.ui import session
from app.ui.erased import draw_kept
from app.ui.text import say


def navigate() -> StreamlitPage:
    """Draws the menu of screens and gives the one that the address names."""
    return st.navigation(
        [
            st.Page("pages/consult.py", title=say("page.consult"), icon=":material/forum:", default=True),
            st.Page("pages/documents.py", title=say("page.documents"), icon=":material/folder_open:"),
            st.Page("pages/safety_review.py", title=say("page.safety"), icon=":material/health_and_safety:"),
            st.Page("pages/model_status.py", title=say("page.model"), icon=":material/memory:"),
        ]
    )


def enter() -> Services:
    """The services for a screen that streamlit_app.py has begun.

    Until its first st.navigation, Streamlit takes pages/ for its old multipage mode, and an address such as /documents
    right after the start would run the screen without the entry: then navigate, which ends that mode, and begin again.
    """
    services = session.get_loader().services
    if services is None or session.PATIENT not in st.session_state:
        navigate()
        st.rerun()
    draw_kept()
    return services
