"""Below the chat: which documents a question is put to, and how much of the model's room they take."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app.scope import Filed, narrow
from app.services import Services
from app.ui.element import draw, node
from app.ui.failures import FAILURES
from app.ui.text import count, say
from contracts import Document


def draw_scope(services: Services, patient_id: str, documents: Sequence[Document]) -> tuple[str, ...] | None:
    """The documents to search, perhaps none; None is all of them."""
    filed = services.filing.list_filed(patient_id, documents)
    if not filed:
        return None
    key = f"scope_{patient_id}"
    present = {one.id for one in filed}
    st.session_state[key] = [name for name in st.session_state.get(key, []) if name in present]
    chosen = _choose(filed, key)
    is_part = len(chosen) < len(filed)
    label = say("ask.scope.some", chosen=len(chosen), n=len(filed)) if is_part else count("ask.scope.all", len(filed))
    with st.popover(label, icon=":material/folder_open:", type="tertiary", key=f"{key}_open"):
        _draw_choices(filed, key)
        if not chosen:
            st.warning(say("ask.scope.none"))
    return tuple(one.id for one in chosen) if is_part else None


def draw_budget(services: Services, patient_id: str, document_ids: Sequence[str] | None) -> None:
    """A bar of the model's room that the documents take, and whether they are read whole or searched."""
    try:
        budget = services.jobs.budget(patient_id, document_ids)
    except FAILURES:  # a model's server that does not answer says so where the question is put
        return
    if not budget.tokens:
        return
    words = say(
        "ask.budget.whole" if budget.is_whole else "ask.budget.part",
        tokens=f"{budget.tokens:,}",
        room=f"{budget.room:,}",
    )
    label = say("ask.budget.label", percent=round(100 * budget.tokens / max(budget.room, 1)))
    bar = node("progress", value=str(min(budget.tokens, budget.room)), max=str(max(budget.room, 1)), aria_label=label)
    style = "budget" if budget.is_whole else "budget over"
    draw([node("div", bar, node("span", words), style=style)], key=f"budget_{patient_id}")


def _choose(filed: Sequence[Filed], key: str) -> list[Filed]:
    """By what the widgets of _draw_choices hold."""
    named = st.session_state[key]
    candidates = [one for one in filed if not named or one.id in named]
    types, since, until = (st.session_state.get(f"{key}_{name}") for name in ("types", "since", "until"))
    return narrow(candidates, types or (), since, until)


def _draw_choices(filed: Sequence[Filed], key: str) -> None:
    names = {one.id: one.name for one in filed}
    st.multiselect(
        say("ask.scope.label"), list(names), format_func=names.__getitem__, placeholder=say("ask.scope.hint"), key=key
    )
    if types := sorted({kind for one in filed for kind in one.types}):
        st.multiselect(say("ask.scope.types"), types, placeholder=say("ask.scope.types.hint"), key=f"{key}_types")
    if any(one.dates for one in filed):
        since, until = st.columns(2)
        since.date_input(say("ask.scope.since"), None, min_value="1900-01-01", key=f"{key}_since")
        until.date_input(say("ask.scope.until"), None, min_value="1900-01-01", key=f"{key}_until")
        st.caption(say("ask.scope.dates"))
