"""DICOM structured reports (SR) -> blocks: the patient, then the content tree, name: value. Images are refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from retrieval.errors import DocumentError
from retrieval.reading.blocks import Blocks

_MAX_DEPTH = 40
_HEADER = {
    "Patient": "PatientName",
    "Date of birth": "PatientBirthDate",
    "Sex": "PatientSex",
    "Medical record number": "PatientID",
    "Date": "ContentDate",
    "Physician": "ReferringPhysicianName",
}


def read_dicom(data: bytes) -> Blocks:
    """Raises DocumentError for DICOM that holds an image instead of a report."""
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=None)
    if "ContentSequence" not in dataset:
        kind = str(dataset.get("Modality", "unknown"))
        raise DocumentError(f"This DICOM file is no report (modality {kind}); export the report, not the images.")
    blocks = Blocks()
    blocks.add("# " + (_name(dataset) or "Structured report"))
    lines = ((label, _plain(dataset.get(tag, ""))) for label, tag in _HEADER.items())
    blocks.add("\n".join(f"{label}: {value}" for label, value in lines if value))
    for text in _contents(dataset.ContentSequence, 0):
        blocks.add(text)
    return blocks


def _contents(sequence: Any, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise DocumentError("This DICOM report is nested too deeply to be read; export it again.")
    for item in sequence:
        name, value = _name(item), _value(item)
        if str(item.get("ValueType", "")) == "CONTAINER":
            yield f"# {name}" if name else ""
        elif value:
            yield f"{name}: {value}" if name else value
        if "ContentSequence" in item:
            yield from _contents(item.ContentSequence, depth + 1)


def _name(item: Any) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].get("CodeMeaning", "")) if names else ""


def _value(item: Any) -> str:
    if measured := item.get("MeasuredValueSequence"):
        units = measured[0].get("MeasurementUnitsCodeSequence")
        unit = str(units[0].get("CodeValue", "")) if units else ""
        return f"{measured[0].get('NumericValue', '')} {unit}".strip()
    if concepts := item.get("ConceptCodeSequence"):
        return str(concepts[0].get("CodeMeaning", ""))
    for tag in ("TextValue", "PersonName", "DateTime", "Date", "Time", "UID"):
        if value := _plain(item.get(tag, "")):
            return value
    return ""


def _plain(value: Any) -> str:
    """A value as words: family^given becomes given family."""
    text = str(getattr(value, "value", value)).strip()
    if "^" in text:
        family, *given = text.split("^")
        text = " ".join(filter(None, [*given[:2], family]))
    return text
