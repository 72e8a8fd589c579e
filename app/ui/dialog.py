"""Dialogs that stay open until they are answered or dismissed.

Streamlit closes a dialog, and loses what was typed in it, whenever the whole script runs again. So what finishes in the
background asks `refresh()`, which waits for the dialog.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Literal, ParamSpec

import streamlit as st

_OPEN = "dialog_open"

P = ParamSpec("P")


def dialog(
    title: str, width: Literal["small", "medium", "large"] = "small"
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Makes a dialog of a drawing function, as st.dialog does."""

    def decorate(draw: Callable[P, None]) -> Callable[P, None]:
        show = st.dialog(title, width=width, on_dismiss="rerun")(draw)

        @wraps(draw)
        def open_dialog(*args: P.args, **kwargs: P.kwargs) -> None:
            st.session_state[_OPEN] = True
            show(*args, **kwargs)

        return open_dialog

    return decorate


def begin_run() -> None:
    """To be called when the whole script begins: from here on no dialog is open."""
    st.session_state[_OPEN] = False


def refresh() -> None:
    """Runs the whole script again to show what has finished, unless that would close a dialog."""
    if not st.session_state.get(_OPEN, False):
        st.rerun()
