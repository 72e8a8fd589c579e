"""Consult: the conversation about a patient beside the pages it rests on. Reads widgets, asks app, draws turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from app.demo import suggest_questions
from app.events import Turn
from app.services import Services
from app.store.records import PatientRecord
from app.ui import session
from app.ui.banner import display_name, patient_nodes, strip_nodes
from app.ui.dialog import dialog
from app.ui.element import draw
from app.ui.evidence import draw_pane, get_active, open_evidence, show_dialog
from app.ui.failures import FAILURES, draw_failure
from app.ui.patient_form import add_patient, delete_patient, edit_patient
from app.ui.poll import poll
from app.ui.preparing import draw_preparing
from app.ui.scope import draw_budget, draw_scope
from app.ui.screens import enter
from app.ui.sidebar import draw_history, draw_patients
from app.ui.text import escape, say
from app.ui.turn import Reveal, turn_node
from contracts import Document

_POLL_S = 0.2
_DRAFT, _ERROR = "question_draft", "question_error"
_TO_REVEAL, _REVEALED = "to_reveal", "revealed"  # a turn's id; the ids of turns revealed in this session


def main() -> None:
    services = enter()
    record = draw_patients(services)
    draw_preparing(services)
    st.session_state.pop(session.EVIDENCE_CHANGED, None)  # this run draws it
    if record is None:
        if services.status()["ready"]:
            _draw_no_patient(services)
        return
    draw_history(services, record.id)
    _draw_banner(services, record)
    conversation_id = session.get_conversation_id()
    # The job first: a turn that ends in between is then read from the store, complete.
    live = services.jobs.live(conversation_id) if conversation_id else None
    turns = services.store.get_turns(conversation_id) if conversation_id else []
    if live:
        turns = [*[turn for turn in turns if turn.id != live.id], live]
    documents = services.store.list_documents(record.id)

    chat, evidence = st.columns([11, 9], gap="medium")
    with chat, st.container(key="chat"):
        _draw_turns(services, turns, is_live=live is not None)
        if not turns:
            _draw_empty(services, record, documents)
        elif not live:
            _draw_actions(services, turns[-1])
    with evidence:
        draw_pane(services, turns)
    _draw_input(services, record, documents, is_live=live is not None)
    if st.session_state.pop(session.EVIDENCE_DIALOG, False):
        show_dialog(services, turns)
    elif turn_id := st.session_state.pop(_TO_REVEAL, None):
        _reveal(services, turn_id)


# --- above the chat ---------------------------------------------------------------------------------------------


def _draw_no_patient(services: Services) -> None:
    st.title(say("patient.none"), anchor=False)
    st.write(say("patient.none.hint"))
    if st.button(say("patient.new"), type="primary", icon=":material/person_add:", key="patient_first"):
        add_patient(services)


def _draw_banner(services: Services, record: PatientRecord) -> None:
    with st.container(key="banner", horizontal=True, wrap=False, vertical_alignment="top"):
        draw(patient_nodes(record.patient), key=f"banner_{record.id}")
        chosen = st.menu_button(
            say("patient.menu"),
            ["patient.edit", "patient.delete"],
            format_func=say,
            key="patient_menu",
            icon=":material/edit:",
        )
    if chosen == "patient.edit":
        edit_patient(services, record)
    if chosen == "patient.delete":
        delete_patient(services, record)
    draw(strip_nodes(services.generator.info, services.settings.is_demo), key="strip")


def _draw_empty(services: Services, record: PatientRecord, documents: list[Document]) -> None:
    st.subheader(say("ask.empty.title", name=escape(display_name(record.patient))), anchor=False)
    st.write(say("ask.empty.hint"))
    if not documents:
        st.info(say("ask.no_documents"))
        st.page_link("pages/documents.py", label=say("ask.go_upload"), icon=":material/upload_file:")
        return
    if not any(document.status.is_searched for document in documents):
        st.info(say("ask.reading_documents"))
    own = suggest_questions(record.patient.name) if record.demo else ()
    questions = own or tuple(say(f"ask.suggest.{number}") for number in range(1, 6))
    st.caption(say("ask.suggestions"))
    with st.container(horizontal=True, gap="xsmall", key="suggestions"):
        for number, question in enumerate(questions):
            if st.button(escape(question), key=f"suggestion_{number}"):
                _ask(services, record.id, question, None)


# --- the turns --------------------------------------------------------------------------------------------------


def _draw_turns(services: Services, turns: list[Turn], is_live: bool) -> None:
    if not turns:
        return
    key = f"turns_{turns[0].conversation_id}"
    if not is_live:
        _draw(services, turns, key, follow=True)
        return
    _draw(services, turns[:-1], key)
    poll(lambda: _draw_live(services, turns[-1]), _POLL_S)


def _draw_live(services: Services, turn: Turn) -> bool:
    """Draws the turn as far as it has come; whether the rest of the screen has to follow."""
    live = services.jobs.live(turn.conversation_id)
    _draw(services, [live or services.store.get_turn(turn.id) or turn], key="live_turn", follow=True)
    return live is None or st.session_state.pop(session.EVIDENCE_CHANGED, False)


def _draw(services: Services, turns: Sequence[Turn], key: str, follow: bool = False) -> None:
    may_reveal = session.get_actor(services).has_any(services.settings.reveal_roles)
    unrevealed = Reveal.ON_REQUEST if may_reveal else Reveal.NO
    revealed = st.session_state.get(_REVEALED, ())
    nodes = [
        turn_node(turn, get_active(turn.id), Reveal.SHOWN if may_reveal and turn.id in revealed else unrevealed)
        for turn in turns
    ]
    draw(nodes, key=key, on_press=_act_on_press, follow=follow)


def _act_on_press(pressed: Mapping[str, Any]) -> None:
    if "reveal" in pressed:
        st.session_state[_TO_REVEAL] = pressed["reveal"]
    else:
        open_evidence(pressed["turn"], pressed["at"], pressed["narrow"])


@dialog(say("reveal.title"))
def _reveal(services: Services, turn_id: str) -> None:
    """Asks why; only a reason that is stored opens what was withheld, and only for this session."""
    with st.form("reveal_form", border=False):
        st.write(say("reveal.warning"))
        reason = st.text_input(say("reveal.reason"))
        if not st.form_submit_button(say("reveal.send"), type="primary"):
            return
    actor = session.get_actor(services)
    if not actor.has_any(services.settings.reveal_roles):
        return
    try:
        services.store.reveal(turn_id, actor.name, reason)
    except FAILURES as error:
        draw_failure(error)
        return
    st.session_state[_REVEALED] = {*st.session_state.get(_REVEALED, ()), turn_id}
    st.rerun()


def _draw_actions(services: Services, turn: Turn) -> None:
    with st.container(horizontal=True, gap="small"):
        if turn.document_ids is not None and st.button(
            say("ask.widen"), icon=":material/manage_search:", type="tertiary", key="widen"
        ):
            _again(services.jobs.widen, turn)
        if st.button(say("ask.regenerate"), icon=":material/refresh:", type="tertiary", key="regenerate"):
            _again(services.jobs.regenerate, turn)
        if st.button(say("ask.edit"), icon=":material/edit:", type="tertiary", key="edit_question"):
            _edit(services, turn)


def _again(answer: Callable[[str], Turn], turn: Turn) -> None:
    try:
        answer(turn.id)
    except FAILURES as error:
        st.session_state[_ERROR] = str(error)
    st.rerun()


@dialog(say("ask.edit.title"))
def _edit(services: Services, turn: Turn) -> None:
    with st.form("edit_form", border=False):
        question = st.text_area(say("ask.edit.title"), turn.question, label_visibility="collapsed")
        st.caption(say("ask.edit.hint"))
        if not st.form_submit_button(say("ask.edit.send"), type="primary"):
            return
    try:
        services.jobs.edit(turn.id, question)
    except FAILURES as error:
        draw_failure(error)
        return
    st.rerun()


# --- asking -----------------------------------------------------------------------------------------------------


def _draw_input(services: Services, record: PatientRecord, documents: list[Document], is_live: bool) -> None:
    with st.bottom:
        if error := st.session_state.pop(_ERROR, None):
            st.error(escape(error))
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            chosen = draw_scope(services, record.id, documents)
            draw_budget(services, record.id, chosen)
            if is_live and st.button(say("ask.stop"), icon=":material/stop_circle:", key="stop_answer"):
                services.jobs.stop(str(session.get_conversation_id()))
        if draft := st.session_state.pop(_DRAFT, None):
            st.session_state["question"] = draft
        question = st.chat_input(say("ask.placeholder"), key="question")
    if question:
        _ask(services, record.id, question, chosen)


def _ask(services: Services, patient_id: str, question: str, document_ids: tuple[str, ...] | None) -> None:
    """Asks in the open conversation, or in a new one; a question that cannot be asked stays in the input."""
    conversation_id = session.get_conversation_id()
    try:
        if conversation_id is None:
            conversation_id = services.store.add_conversation(patient_id).id
            session.open_conversation(conversation_id)
        services.jobs.ask(conversation_id, question, document_ids)
    except FAILURES as error:
        st.session_state[_ERROR] = str(error)
        st.session_state[_DRAFT] = question
    st.rerun()


main()
