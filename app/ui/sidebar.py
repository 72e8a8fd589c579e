"""The sidebar of Consult and Documents: which patient, and which conversation about that patient."""

from __future__ import annotations

import streamlit as st

from app.services import Services
from app.store.records import Conversation, PatientRecord
from app.ui import session
from app.ui.banner import describe
from app.ui.dialog import dialog
from app.ui.failures import FAILURES, draw_failure
from app.ui.patient_form import add_patient
from app.ui.text import escape, say

_PICKED = "patient_pick"


def draw_patients(services: Services) -> PatientRecord | None:
    """The patient picker; gives the patient who is open."""
    records = {record.id: record for record in services.store.list_patients()}
    with st.sidebar:
        if records:
            st.session_state[_PICKED] = st.session_state[session.PATIENT]
            st.selectbox(
                say("patient.pick"),
                list(records),
                format_func=lambda patient_id: describe(records[patient_id].patient),
                placeholder=say("patient.pick.hint"),
                key=_PICKED,
                on_change=_open_picked,
            )
        if st.button(say("patient.new"), icon=":material/person_add:", width="stretch", key="patient_new"):
            add_patient(services)
    return session.get_patient(services)


def _open_picked() -> None:
    session.open_patient(st.session_state[_PICKED])


def draw_history(services: Services, patient_id: str) -> None:
    """The patient's conversations: searched, opened, renamed, deleted."""
    with st.sidebar:
        st.subheader(say("history.title"), anchor=False)
        if st.button(say("history.new"), icon=":material/edit_square:", width="stretch", key="conversation_new"):
            session.open_conversation(None)
        query = st.text_input(
            say("history.search"),
            key=f"history_search_{patient_id}",
            placeholder=say("history.search"),
            icon=":material/search:",
            label_visibility="collapsed",
        )
        conversations = services.store.list_conversations(patient_id, query)
        if not conversations:
            st.caption(say("history.no_match", query=escape(query)) if query.strip() else say("history.none"))
        with st.container(gap=None, key="history"):
            for conversation in conversations:
                _draw_conversation(services, conversation)


def _draw_conversation(services: Services, conversation: Conversation) -> None:
    title = conversation.title or say("history.untitled")
    is_open = conversation.id == session.get_conversation_id()
    with st.container(horizontal=True, wrap=False, gap="xsmall", vertical_alignment="center"):
        st.button(
            escape(title),
            key=f"{'open' if is_open else 'conversation'}_{conversation.id}",
            type="secondary" if is_open else "tertiary",
            width="stretch",
            on_click=session.open_conversation,
            args=(conversation.id,),
        )
        chosen = st.menu_button(
            say("history.menu", title=escape(title)),  # for those who hear it; style.py leaves only the icon to see
            ["history.rename", "history.delete"],
            format_func=say,
            key=f"menu_{conversation.id}",
            type="tertiary",
            icon=":material/more_vert:",
        )
    if chosen == "history.rename":
        _rename(services, conversation)
    if chosen == "history.delete":
        _delete(services, conversation)


@dialog(say("history.rename.title"))
def _rename(services: Services, conversation: Conversation) -> None:
    with st.form("rename_form", border=False):
        title = st.text_input(say("history.rename.label"), conversation.title, max_chars=80)
        if not st.form_submit_button(say("action.save"), type="primary"):
            return
    try:
        services.store.rename_conversation(conversation.id, title)
    except FAILURES as error:
        draw_failure(error)
        return
    st.rerun()


@dialog(say("history.delete.title"))
def _delete(services: Services, conversation: Conversation) -> None:
    title = conversation.title or say("history.untitled")
    st.write(say("history.delete.confirm", title=escape(title)))
    with st.container(horizontal=True):
        if st.button(say("action.delete"), type="primary", key="conversation_delete_confirm"):
            services.jobs.stop(conversation.id)
            services.store.delete_conversation(conversation.id)
            if session.get_conversation_id() == conversation.id:
                session.open_conversation(None)
            st.rerun()
        if st.button(say("action.cancel"), key="conversation_delete_cancel"):
            st.rerun()
