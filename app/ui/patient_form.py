"""The form for a new patient or an old one: units beside each field, ranges checked by contracts.Patient."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from app.certificate import erase
from app.services import Services
from app.store.records import PatientRecord
from app.ui import session
from app.ui.banner import display_name
from app.ui.dialog import dialog
from app.ui.erased import keep
from app.ui.failures import FAILURES, draw_failure
from app.ui.text import escape, say
from contracts import PATIENT_RANGES, SEXES, Patient, PatientError

_CHOICES: Mapping[str, bool | None] = {"choice.unknown": None, "choice.yes": True, "choice.no": False}
_FLAGS = {"pregnant": "form.pregnant", "lactating": "form.lactating", "hepatic_impairment": "form.hepatic"}
_NUMBERS = {
    "age_years": "form.age",
    "weight_kg": "form.weight",
    "height_cm": "form.height",
    "egfr_ml_min": "form.egfr",
    "qtc_ms": "form.qtc",
}
_LISTS = {"allergies": "form.allergies", "medications": "form.medications", "problems": "form.problems"}


@dialog(say("patient.new"), width="medium")
def add_patient(services: Services) -> None:
    patient = _draw_form(Patient())
    if patient is None:
        return
    try:
        session.open_patient(services.store.add_patient(patient).id)
    except FAILURES as error:
        draw_failure(error)
        return
    st.rerun()


@dialog(say("patient.edit"), width="medium")
def edit_patient(services: Services, record: PatientRecord) -> None:
    patient = _draw_form(record.patient)
    if patient is None:
        return
    try:
        services.store.update_patient(record.id, patient)
        services.jobs.prepare(record.id)  # what the model was told of the patient is no longer true
    except FAILURES as error:
        draw_failure(error)
        return
    st.rerun()


@dialog(say("patient.delete"))
def delete_patient(services: Services, record: PatientRecord) -> None:
    st.write(say("patient.delete.confirm", name=f"**{escape(display_name(record.patient))}**"))
    with st.container(horizontal=True):
        if st.button(say("patient.delete"), type="primary", key="patient_delete_confirm"):
            try:
                certificate = erase(services, patient_id=record.id, actor=session.get_actor(services).name)
            except FAILURES as error:
                draw_failure(error)
                return
            session.open_patient(None)
            keep(certificate)
            st.rerun()
        if st.button(say("action.cancel"), key="patient_delete_cancel"):
            st.rerun()


def _draw_form(patient: Patient) -> Patient | None:
    """The patient as entered, once the form is sent and everything in it can be right."""
    with st.form("patient_form", border=False):
        name = st.text_input(say("form.name"), patient.name or "", max_chars=200)
        born, filed = st.columns(2)
        birth_date = born.text_input(say("form.birth_date"), patient.birth_date or "", max_chars=10)
        record_number = filed.text_input(say("form.record_number"), patient.record_number or "", max_chars=40)
        left, middle, right = st.columns(3)
        with left:
            index = SEXES.index(patient.sex or "unknown")
            sex = st.selectbox(say("form.sex"), SEXES, index=index, format_func=lambda choice: say(f"sex.{choice}"))
            numbers = {field: _number(patient, field) for field in ("age_years", "weight_kg")}
        with middle:
            numbers |= {field: _number(patient, field) for field in ("height_cm", "egfr_ml_min", "qtc_ms")}
        with right:
            flags = {field: _flag(patient, field) for field in _FLAGS}
        lists = {field: st.text_area(say(key), "\n".join(getattr(patient, field))) for field, key in _LISTS.items()}
        if not st.form_submit_button(say("form.save"), type="primary"):
            return None
        try:
            if not name.strip():
                raise PatientError(say("form.needs_name"))
            return Patient.from_dict(
                {"name": name.strip(), "sex": sex, **flags}
                | {"birth_date": birth_date.strip() or None, "record_number": record_number.strip() or None}
                | {field: _read_number(field, text) for field, text in numbers.items()}
                | {field: _read_lines(text) for field, text in lists.items()}
            )
        except PatientError as error:
            st.error(escape(_in_words(str(error))))
            return None


def _in_words(message: str) -> str:
    """The message with the form's label in place of the field's name."""
    labels = {field: say(key) for field, key in {**_NUMBERS, **_FLAGS, "birth_date": "form.birth_date"}.items()}
    return " ".join(labels.get(word, word) for word in message.split())


def _number(patient: Patient, field: str) -> str:
    """A text field, as Streamlit's number input would clamp a value out of range without a word."""
    value = getattr(patient, field)
    low, high, _ = PATIENT_RANGES[field]
    hint = say("form.range", low=low, high=high)
    return st.text_input(say(_NUMBERS[field]), "" if value is None else f"{value:g}", placeholder=hint, max_chars=12)


def _read_number(field: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text.strip().replace(",", "."))
    except ValueError as error:
        raise PatientError(say("form.number", label=say(_NUMBERS[field]), value=text)) from error


def _flag(patient: Patient, field: str) -> bool | None:
    keys = list(_CHOICES)
    index = list(_CHOICES.values()).index(getattr(patient, field))
    return _CHOICES[st.selectbox(say(_FLAGS[field]), keys, index=index, format_func=say)]


def _read_lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())
