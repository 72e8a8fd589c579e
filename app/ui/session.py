"""What one browser session holds: which patient and which conversation are open, and the way to the services.

The address carries their ids, which say nothing about a patient, so that a refresh finds both again.
"""

from __future__ import annotations

import streamlit as st

from app.actors import Actor, find_actor
from app.loading import ServicesLoader
from app.services import Services, build_services
from app.store.records import PatientRecord

PATIENT, CONVERSATION = "patient_id", "conversation_id"
EVIDENCE, EVIDENCE_CHANGED, EVIDENCE_DIALOG = "evidence", "evidence_changed", "evidence_dialog"


@st.cache_resource(show_spinner=False)
def get_loader() -> ServicesLoader:
    """What builds the program's services, once for all sessions; it begins with the first."""
    loader = ServicesLoader(build_services)
    loader.start()
    return loader


def get_actor(services: Services) -> Actor:
    """Who is at this screen."""
    return find_actor(st.context.headers, services.settings)


def restore(services: Services) -> None:
    """Opens what the address names when the session begins, or the first patient; what is gone is closed."""
    store, state = services.store, st.session_state
    if PATIENT not in state:
        state[PATIENT] = st.query_params.get("patient")
        state[CONVERSATION] = st.query_params.get("conversation")
    conversation = store.get_conversation(state[CONVERSATION]) if state[CONVERSATION] else None
    if conversation:
        state[PATIENT] = conversation.patient_id
    else:
        state[CONVERSATION] = None
    if not (state[PATIENT] and store.get_patient(state[PATIENT])):
        patients = store.list_patients()
        state[PATIENT] = patients[0].id if patients else None
    _write_address()


def open_patient(patient_id: str | None) -> None:
    """Shows this patient, without a conversation."""
    st.session_state[PATIENT] = patient_id
    open_conversation(None)


def open_conversation(conversation_id: str | None) -> None:
    """Shows this conversation; None is a new one, stored with its first question."""
    st.session_state[CONVERSATION] = conversation_id
    st.session_state.pop(EVIDENCE, None)
    _write_address()


def get_patient(services: Services) -> PatientRecord | None:
    patient_id = st.session_state[PATIENT]
    return services.store.get_patient(patient_id) if patient_id else None


def get_conversation_id() -> str | None:
    conversation_id: str | None = st.session_state[CONVERSATION]
    return conversation_id


def _write_address() -> None:
    wanted = {"patient": st.session_state[PATIENT], "conversation": st.session_state[CONVERSATION]}
    address = {key: value for key, value in wanted.items() if value}
    if st.query_params.to_dict() != address:
        st.query_params.from_dict(address)
