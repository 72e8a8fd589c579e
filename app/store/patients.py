"""The patient list."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Row, delete, insert, select, update

from app.errors import InputError
from app.store.database import Database, new_id, now
from app.store.records import PatientRecord
from app.store.tables import patients
from contracts import Patient

GONE = "That patient is no longer there; reload the page."


class Patients(Database):
    """The part of the store that keeps patients."""

    def add_patient(self, patient: Patient, demo: bool = False) -> PatientRecord:
        record = PatientRecord(new_id(), patient, now(), demo)
        with self.writing() as connection:
            connection.execute(
                insert(patients).values(
                    id=record.id, created_at=record.created_at, demo=record.demo, data=asdict(patient)
                )
            )
        return record

    def update_patient(self, patient_id: str, patient: Patient) -> None:
        """Replaces what is known of the patient. Raises InputError if there is no such patient."""
        with self.writing() as connection:
            changed = connection.execute(
                update(patients).where(patients.c.id == patient_id).values(data=asdict(patient))
            )
            if not changed.rowcount:
                raise InputError(GONE)

    def get_patient(self, patient_id: str) -> PatientRecord | None:
        with self.reading() as connection:
            row = connection.execute(select(patients).where(patients.c.id == patient_id)).first()
        return None if row is None else _to_record(row)

    def list_patients(self, query: str = "") -> list[PatientRecord]:
        """Patients whose name holds every word of the query, in the order in which they were added."""
        with self.reading() as connection:
            rows = connection.execute(select(patients).order_by(patients.c.number)).all()
        words = query.casefold().split()
        records = map(_to_record, rows)
        return [r for r in records if all(word in (r.patient.name or "").casefold() for word in words)]

    def delete_patient(self, patient_id: str) -> None:
        """Removes the patient with every document, conversation and finding. Vectors are the library's: delete the
        documents there first."""
        with self.writing() as connection:
            connection.execute(delete(patients).where(patients.c.id == patient_id))
        self.scrub()


def _to_record(row: Row) -> PatientRecord:
    return PatientRecord(row.id, Patient.from_dict(row.data), row.created_at, row.demo)
