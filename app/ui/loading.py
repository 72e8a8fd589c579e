"""What every screen shows until the program is ready: how far the checkpoint is read, or why it was not."""

from __future__ import annotations

import time

import streamlit as st

from app.loading import LoadState, LoadStatus, ServicesLoader
from app.services import Services
from app.ui.failures import FAILURES
from app.ui.load_words import describe_load
from app.ui.poll import poll
from app.ui.session import get_loader
from app.ui.text import escape, say

PATIENCE_S = 3.0  # a start this short, as the built-in model's is, shows no more than a spinner
_POLL_S = 0.5


def load_services() -> Services | None:
    """The services; None while there are none, and then this has drawn why, and runs the script again when they are."""
    loader = get_loader()
    if loader.services is None:
        with st.spinner(say("loading.title", name=_name(loader.status))):
            loader.wait(max(0.0, loader.started + PATIENCE_S - time.monotonic()))
    if loader.services is None:
        poll(lambda: _draw(loader), _POLL_S)
    return loader.services


def _draw(loader: ServicesLoader) -> bool:
    """Draws the load; whether it is over and the screens can be drawn instead."""
    status = loader.status
    if status.state is LoadState.LOADING:
        _draw_progress(loader, status)
    elif status.state is LoadState.CANCELLED:
        st.info(say("loading.cancelled.hint"), title=say("loading.cancelled"))
        st.button(say("loading.again"), type="primary", key="load_again", on_click=loader.start)
    elif status.error is not None:
        st.error(_explain(status.error), title=say("app.failed"))
        st.write(say("loading.failed.hint"))
        st.button(say("loading.retry"), type="primary", key="load_retry", on_click=loader.start)
    return status.state is LoadState.READY


def _draw_progress(loader: ServicesLoader, status: LoadStatus) -> None:
    progress = status.progress
    st.title(say("loading.title", name=_name(status)), anchor=False)
    words = " · ".join(describe_load(progress)) if progress else say("loading.begun")
    share = progress.bytes_done / progress.bytes_total if progress and progress.bytes_total else 0.0
    st.progress(min(share, 1.0), text=escape(words))
    st.caption(say("loading.wait"))
    label = say("loading.cancelling" if status.is_cancelling else "loading.cancel")
    st.button(label, key="load_cancel", disabled=status.is_cancelling, on_click=loader.cancel)


def _name(status: LoadStatus) -> str:
    if status.settings is None:
        return say("loading.any")
    if status.settings.uses_embedded_model:
        return say("loading.embedded")
    return escape(status.settings.checkpoint.resolve().name)


def _explain(error: Exception) -> str:
    if isinstance(error, FAILURES):
        return escape(str(error))
    return say("loading.unexpected", error=escape(f"{type(error).__name__}: {error}"))
