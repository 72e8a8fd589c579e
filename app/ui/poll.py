"""Drawing again and again while something goes on in the background."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app.ui.dialog import refresh


def poll(draw: Callable[[], bool], every_s: float) -> None:
    """Draws now and every `every_s` seconds; once draw() says that it is over, the whole script runs again."""
    is_first = True

    @st.fragment(run_every=every_s)
    def tick() -> None:
        nonlocal is_first
        is_over = draw()
        # The first call belongs to a run of the whole script: another begun within it could mix up what both draw.
        if is_over and not is_first:
            refresh()
        is_first = False

    tick()
