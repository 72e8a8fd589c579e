"""FHIR JSON (R4 and R5) -> blocks of readable lines, one line a resource, grouped under headings.

Elements are written by their shape (a concept, a quantity, a period ...), so that every field of every resource type
is rendered, known or not: only the order and the names of headings come from tables. Knows nothing of pages.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from retrieval.errors import DocumentError

JsonObject = Mapping[str, Any]

# Section heading of a resource type, in the order in which a record is read.
_HEADINGS = {
    "Patient": "Patient",
    "AllergyIntolerance": "Allergies and intolerances",
    "Condition": "Conditions",
    "MedicationRequest": "Medication requests",
    "MedicationStatement": "Medications",
    "MedicationAdministration": "Medications given",
    "Observation": "Observations",
    "DiagnosticReport": "Diagnostic reports",
    "Procedure": "Procedures",
    "Immunization": "Immunizations",
    "Encounter": "Encounters",
    "DocumentReference": "Documents",
}
# What a line of the type opens with; every other field follows under its own name.
_LEADING_FIELDS = {
    "Patient": ("name", "gender", "birthDate", "deceased"),
    "AllergyIntolerance": ("code", "clinicalStatus", "verificationStatus", "criticality", "reaction"),
    "Condition": ("code", "clinicalStatus", "verificationStatus", "severity", "onset", "abatement"),
    "MedicationRequest": ("doNotPerform", "medication", "status", "intent", "dosageInstruction", "authoredOn"),
    "MedicationStatement": ("medication", "status", "adherence", "dosage", "effective"),
    "MedicationAdministration": ("medication", "status", "dosage", "effective", "occurence"),
    "Observation": ("code", "value", "component", "interpretation", "referenceRange", "effective", "status"),
    "DiagnosticReport": ("code", "status", "effective", "conclusion"),
    "Procedure": ("code", "status", "performed", "occurrence"),
    "Immunization": ("vaccineCode", "status", "occurrence"),
    "Encounter": ("type", "class", "status", "period", "actualPeriod", "reasonCode"),
    "DocumentReference": ("type", "description", "date", "status"),
}
_UNLABELLED = frozenset({"name", "code", "medication", "vaccineCode", "value"})
_CHOICE = ("value", "onset", "abatement", "medication", "effective", "performed", "occurrence", "occurence", "deceased")
_DATES = ("effective", "onset", "performed", "occurrence", "authoredOn", "recordedDate", "date", "period", "issued")
# Bookkeeping that says nothing of the patient; `text` repeats the other fields as HTML.
_SKIPPED_NAMES = (
    "resourceType id meta implicitRules language text contained subject patient identifier extension "
    "modifierExtension fullUrl link photo"
)
_SKIPPED = frozenset(_SKIPPED_NAMES.split())


def read_fhir(data: bytes) -> list[str]:
    """Blocks of text: a heading and its lines. Raises DocumentError for invalid JSON and for JSON that is not FHIR."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise DocumentError(f"This file is not valid JSON{where}; export the record again as FHIR JSON.") from error
    if not isinstance(root, dict) or not isinstance(root.get("resourceType"), str):
        raise DocumentError(
            "This JSON is not a FHIR resource (it has no resourceType); export the record as FHIR JSON."
        )
    entries = list(_entries(root))
    names = _reference_names(entries)
    sections: dict[str, list[JsonObject]] = defaultdict(list)
    for _, resource in entries:
        sections[resource["resourceType"]].append(resource)
    order = list(_HEADINGS)
    blocks: list[str] = []
    for kind in sorted(sections, key=lambda kind: order.index(kind) if kind in order else len(order)):
        resources = sorted(sections[kind], key=_date)
        lines = [_line(resource, names) for resource in resources]
        blocks.append("\n".join([f"# {_HEADINGS.get(kind, _words(kind).capitalize())}", *lines]))
        for resource in resources:
            blocks.extend(_attachments(resource))
    return blocks


def _entries(root: JsonObject, url: str = "") -> Iterator[tuple[set[str], JsonObject]]:
    """(the ways to refer to it, resource) of every resource in the file: bundles opened, contained ones included."""
    if root["resourceType"] != "Bundle":
        yield {url, f"{root['resourceType']}/{root.get('id', '')}"}, root
        for inner in _dicts(root.get("contained")):
            if isinstance(inner.get("resourceType"), str):
                yield {f"#{inner.get('id', '')}"}, inner
        return
    for entry in _dicts(root.get("entry")):
        resource = entry.get("resource")
        if isinstance(resource, dict) and isinstance(resource.get("resourceType"), str):
            yield from _entries(resource, str(entry.get("fullUrl", "")))


def _dicts(value: Any) -> list[JsonObject]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _reference_names(entries: list[tuple[set[str], JsonObject]]) -> dict[str, str]:
    """What a reference inside the file stands for: a medication's or a practitioner's name."""
    names: dict[str, str] = {}
    for references, resource in entries:
        name = _render(resource.get("code") or resource.get("name") or resource.get("description"), {})
        names.update({reference: name for reference in references if reference and name})
    return names


def _date(resource: JsonObject) -> str:
    for key, value in resource.items():
        if key.startswith(_DATES):
            value = value.get("start", "") if isinstance(value, dict) else value
            if isinstance(value, str):
                return value
    return ""


def _line(resource: JsonObject, names: Mapping[str, str]) -> str:
    kind = resource["resourceType"]
    leading = _LEADING_FIELDS.get(kind, ())
    parts: list[str] = []
    rest = {_field(key): key for key in resource if key not in _SKIPPED and not key.startswith("_")}
    for field in [*(name for name in leading if name in rest), *(name for name in rest if name not in leading)]:
        value = _render(resource[rest[field]], names)
        if value:
            parts.append(value if field in _UNLABELLED else f"{_words(field)}: {value}")
    if kind == "Patient":
        parts += [f"medical record number: {number}" for number in _record_numbers(resource)]
    return f"{_words(kind).capitalize()}: {'; '.join(parts) or 'no further details'}"


def _record_numbers(patient: JsonObject) -> Iterator[str]:
    """Identifiers of the type MR (HL7 table 0203): what a hospital files the patient under."""
    for identifier in _dicts(patient.get("identifier")):
        kind = identifier.get("type")
        codes = _dicts(kind.get("coding")) if isinstance(kind, dict) else []
        if any(coding.get("code") == "MR" for coding in codes) and isinstance(identifier.get("value"), str):
            yield identifier["value"]


def _field(key: str) -> str:
    """valueQuantity -> value: the name of a field whose type is part of its key."""
    return next((name for name in _CHOICE if re.fullmatch(name + "[A-Z].*", key)), key)


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _render(value: Any, names: Mapping[str, str]) -> str:
    """Any FHIR element as text, by its shape."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(filter(None, (_render(item, names) for item in value)))
    if not isinstance(value, dict):
        return " ".join(str(value).split())
    for has, write in _SHAPES:
        if has & value.keys():
            return write(value, names)
    return _fields(value, names)


def _fields(value: JsonObject, names: Mapping[str, str]) -> str:
    """Every field of an element under its name; a text needs none."""
    parts: list[str] = []
    for key, item in value.items():
        text = "" if key in ("id", "extension", "modifierExtension") else _render(item, names)
        if text:
            parts.append(text if key == "text" else f"{_words(_field(key))}: {text}")
    return ", ".join(parts)


def _concept(value: JsonObject, names: Mapping[str, str]) -> str:
    texts = [value.get("text"), *(coding.get("display") for coding in _dicts(value.get("coding")))]
    codes = [str(coding["code"]) for coding in _dicts(value.get("coding")) if coding.get("code")]
    name = next((str(text) for text in texts if text), "")
    if not name:
        return ", ".join(codes)
    return f"{name} ({', '.join(codes)})" if codes and codes[0].lower() != name.lower() else name


def _coding(value: JsonObject, names: Mapping[str, str]) -> str:
    return str(value.get("display") or value.get("code") or "")


def _quantity(value: JsonObject, names: Mapping[str, str]) -> str:
    unit = value.get("unit") or value.get("code") or value.get("currency") or ""
    number = value.get("value", "")
    return f"{value.get('comparator', '')}{number} {unit}".strip() if not isinstance(number, dict | list) else ""


def _range(value: JsonObject, names: Mapping[str, str]) -> str:
    low, high = _render(value.get("low"), names), _render(value.get("high"), names)
    bounds = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}" if high else ""
    return " ".join(filter(None, (bounds, str(value.get("text", "")))))


def _ratio(value: JsonObject, names: Mapping[str, str]) -> str:
    return f"{_render(value.get('numerator'), names)} / {_render(value.get('denominator'), names)}"


def _period(value: JsonObject, names: Mapping[str, str]) -> str:
    start, end = value.get("start"), value.get("end")
    return f"{start} to {end}" if start and end else f"from {start}" if start else f"until {end}"


def _reference(value: JsonObject, names: Mapping[str, str]) -> str:
    if "concept" in value:  # R5 CodeableReference
        return _render(value["concept"], names)
    target = value.get("reference")
    if isinstance(target, dict):
        return _reference(target, names)
    return str(value.get("display") or names.get(str(target)) or target or "")


def _human_name(value: JsonObject, names: Mapping[str, str]) -> str:
    given = value.get("given")
    parts = [*(given if isinstance(given, list) else [given]), value.get("family")]
    return str(value.get("text") or " ".join(str(part) for part in parts if part))


def _address(value: JsonObject, names: Mapping[str, str]) -> str:
    line = value.get("line")
    parts = [
        *(line if isinstance(line, list) else [line]),
        value.get("city"),
        value.get("state"),
        value.get("postalCode"),
    ]
    return str(value.get("text") or " ".join(str(part) for part in parts if part))


def _attachment(value: JsonObject, names: Mapping[str, str]) -> str:
    return " ".join(str(value[key]) for key in ("title", "contentType", "creation") if value.get(key))


def _dosage(value: JsonObject, names: Mapping[str, str]) -> str:
    rest = {key: item for key, item in value.items() if key not in ("text", "sequence")}
    return ", ".join(filter(None, (str(value.get("text", "")), _fields(rest, names))))


def _observed(value: JsonObject, names: Mapping[str, str]) -> str:
    """A component of an observation: "systolic 120 mmHg"; what is missing or abnormal follows."""
    rest = {key: item for key, item in value.items() if key != "code" and not key.startswith("value")}
    measured = [item for key, item in value.items() if key.startswith("value")]
    parts = (_render(value.get("code"), names), _render(measured, names), _fields(rest, names))
    return " ".join(filter(None, parts))


_Shape = tuple[frozenset[str], Callable[[JsonObject, Mapping[str, str]], str]]
# The first shape of which a value has a key; a key that belongs to two shapes stands with the more telling one.
_SHAPES: tuple[_Shape, ...] = tuple(
    (frozenset(keys.split()), write)
    for keys, write in (
        ("coding", _concept),
        ("family given", _human_name),
        ("doseAndRate timing asNeededBoolean route patientInstruction", _dosage),
        ("contentType url data", _attachment),
        ("valueQuantity valueCodeableConcept valueString valueInteger valueBoolean dataAbsentReason", _observed),
        ("reference concept", _reference),
        ("numerator denominator", _ratio),
        ("low high", _range),
        ("start end", _period),
        ("line city postalCode", _address),
        ("display", _coding),
        ("value", _quantity),
        ("system", _coding),
    )
)


def _attachments(resource: JsonObject) -> Iterator[str]:
    """The text inside a document reference or a report; other attachments are named on the resource's line."""
    contents = [item.get("attachment") for item in _dicts(resource.get("content"))]
    for attachment in [*contents, *_dicts(resource.get("presentedForm"))]:
        if not isinstance(attachment, dict) or not isinstance(attachment.get("data"), str):
            continue
        if str(attachment.get("contentType", "text/plain")).startswith("text/plain"):
            try:
                yield base64.b64decode(attachment["data"]).decode("utf-8", "replace")
            except binascii.Error:
                continue
