"""What the program still does after its start, said on the screens until it is over."""

from __future__ import annotations

import streamlit as st

from app.services import Services
from app.ui.poll import poll
from app.ui.text import escape, say

_POLL_S = 1.0


def draw_preparing(services: Services) -> None:
    """A line while the start's background work goes on; the screen is drawn again when it is over, and for each demo
    patient that it brings."""
    if not services.status()["ready"]:
        num_patients = len(services.store.list_patients())
        poll(lambda: _draw(services, num_patients), _POLL_S)


def _draw(services: Services, num_patients: int) -> bool:
    status = services.status()
    if status["ready"]:
        return True
    st.info(say("app.preparing", message=escape(status["message"])), icon=":material/hourglass_top:")
    return len(services.store.list_patients()) != num_patients
