"""FHIR resources become readable lines, and no field of any of them is lost."""

from __future__ import annotations

import base64
import json
from typing import Any

from retrieval.reading.fhir import read_fhir


def lines(*resources: dict[str, Any]) -> list[str]:
    bundle = {
        "resourceType": "Bundle",
        "entry": [{"fullUrl": f"urn:uuid:{r.get('id', n)}", "resource": r} for n, r in enumerate(resources)],
    }
    return "\n".join(read_fhir(json.dumps(bundle).encode())).splitlines()


def concept(text: str, code: str = "") -> dict[str, Any]:
    return {"text": text, "coding": [{"system": "http://loinc.org", "code": code}] if code else []}


def test_observation_has_value_unit_range_and_date_on_one_line() -> None:
    _, line = lines(
        {
            "resourceType": "Observation",
            "status": "final",
            "code": concept("Potassium", "2823-3"),
            "effectiveDateTime": "2024-03-01",
            "valueQuantity": {"value": 5.9, "unit": "mmol/L"},
            "referenceRange": [{"low": {"value": 3.5, "unit": "mmol/L"}, "high": {"value": 5.1, "unit": "mmol/L"}}],
            "interpretation": [{"coding": [{"code": "H", "display": "High"}]}],
        }
    )
    for part in ("Potassium (2823-3)", "5.9 mmol/L", "High", "3.5 mmol/L to 5.1 mmol/L", "2024-03-01", "status: final"):
        assert part in line


def test_missing_value_says_why_and_a_note_is_kept() -> None:
    _, line = lines(
        {
            "resourceType": "Observation",
            "code": concept("Panel"),
            "component": [{"code": concept("Urea"), "dataAbsentReason": {"text": "sample haemolysed"}}],
            "note": [{"text": "repeat tomorrow", "time": "2024-03-02"}],
        }
    )
    assert "Urea data absent reason: sample haemolysed" in line
    assert "repeat tomorrow" in line


def test_components_of_a_blood_pressure_keep_their_names() -> None:
    _, line = lines(
        {
            "resourceType": "Observation",
            "code": concept("Blood pressure"),
            "component": [
                {"code": concept("Systolic"), "valueQuantity": {"value": 150, "unit": "mmHg"}},
                {"code": concept("Diastolic"), "valueQuantity": {"value": 90, "unit": "mmHg"}},
            ],
        }
    )
    assert "Systolic 150 mmHg, Diastolic 90 mmHg" in line


def test_allergy_says_how_sure_and_what_happened() -> None:
    _, line = lines(
        {
            "resourceType": "AllergyIntolerance",
            "code": concept("Penicillin"),
            "verificationStatus": {"coding": [{"code": "refuted"}]},
            "criticality": "high",
            "reaction": [{"manifestation": [concept("Anaphylaxis")], "severity": "severe"}],
        }
    )
    for part in ("Penicillin", "refuted", "high", "Anaphylaxis", "severe"):
        assert part in line


def test_medication_by_reference_is_named_and_not_given_is_said() -> None:
    text = "\n".join(
        lines(
            {"resourceType": "Medication", "id": "m1", "code": concept("Warfarin 5 mg tablet")},
            {
                "resourceType": "MedicationRequest",
                "status": "stopped",
                "doNotPerform": True,
                "medicationReference": {"reference": "Medication/m1"},
                "dosageInstruction": [
                    {
                        "text": "one tablet at night",
                        "doseAndRate": [{"doseQuantity": {"value": 5, "unit": "mg"}}],
                    }
                ],
            },
        )
    )
    line = next(line for line in text.splitlines() if line.startswith("Medication request"))
    for part in ("Warfarin 5 mg tablet", "do not perform: yes", "stopped", "one tablet at night", "5 mg"):
        assert part in line


def test_r5_codeable_reference_and_unknown_types_are_rendered() -> None:
    text = "\n".join(
        lines(
            {
                "resourceType": "MedicationStatement",
                "medication": {"concept": concept("Apixaban")},
                "effectivePeriod": {"start": "2024-01-01"},
            },
            {"resourceType": "NutritionOrder", "oralDiet": {"type": [concept("Low salt diet")]}, "status": "active"},
        )
    )
    assert "Apixaban; effective: from 2024-01-01" in text
    assert "# Nutrition order" in text
    assert "Low salt diet" in text


def test_patient_and_document_text_are_read() -> None:
    note = base64.b64encode("出院诊断：心力衰竭".encode()).decode()
    text = "\n".join(
        lines(
            {"resourceType": "Patient", "name": [{"given": ["Ann", "B."], "family": "Lee"}], "birthDate": "1950-02-03"},
            {
                "resourceType": "DocumentReference",
                "type": concept("Discharge summary"),
                "content": [{"attachment": {"contentType": "text/plain; charset=utf-8", "data": note}}],
            },
        )
    )
    assert "Ann B. Lee" in text
    assert "1950-02-03" in text
    assert "出院诊断：心力衰竭" in text


def test_observations_stand_in_order_of_time() -> None:
    days = ("2024-03-01", "2022-01-01", "2023-06-01")
    found = lines(
        *({"resourceType": "Observation", "code": concept("HbA1c"), "effectiveDateTime": day} for day in days)
    )
    assert [next(day for day in days if day in line) for line in found[1:]] == sorted(days)


def test_single_resource_with_contained_medication() -> None:
    resource = {
        "resourceType": "MedicationStatement",
        "contained": [{"resourceType": "Medication", "id": "x", "code": concept("Digoxin")}],
        "medicationReference": {"reference": "#x"},
    }
    assert "Digoxin" in read_fhir(json.dumps(resource).encode())[0]
