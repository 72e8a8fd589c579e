"""The synthetic patients of demo mode: who they are, their record's files and questions to begin with.

The files are made by `scripts/make_demo_records.py`. Knows nothing of the store: whoever seeds it goes the same way as
any upload.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from contracts import Patient

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class DemoPatient:
    patient: Patient
    files: tuple[Path, ...]
    questions: tuple[str, ...]  # each can be answered from the record


def load_demo_patients() -> list[DemoPatient]:
    """The demo patients, in the order in which they are listed."""
    entries = json.loads((FOLDER / "patients.json").read_text(encoding="utf-8"))
    return [
        DemoPatient(
            Patient.from_dict(entry["patient"]),
            tuple(FOLDER / "records" / name for name in entry["files"]),
            tuple(entry["questions"]),
        )
        for entry in entries
    ]


def suggest_questions(name: str | None) -> tuple[str, ...]:
    """The questions of the demo patient of that name; none for anybody else."""
    return next((demo.questions for demo in load_demo_patients() if demo.patient.name == name), ())
