"""C-CDA documents (XML) -> blocks: the patient, then each section's title and narrative in document order.

Read by defusedxml: a document type, an entity or a reference to anything outside is refused, never followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retrieval.errors import DocumentError
from retrieval.reading.blocks import Blocks

_V3 = "{urn:hl7-org:v3}"


def read_ccda(data: bytes) -> Blocks:
    """Raises DocumentError for XML that is damaged, refers outside, or is no clinical document."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        root = fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        raise DocumentError("This XML file defines entities or refers to other files, which is not read.") from error
    except (ParseError, ValueError, LookupError) as error:
        raise DocumentError("This XML file is damaged; export the record again as C-CDA.") from error
    if root.tag != f"{_V3}ClinicalDocument":
        raise DocumentError("This XML file is no clinical document (C-CDA); export the record as C-CDA or FHIR JSON.")
    blocks = Blocks()
    blocks.add("# " + (_text(root.find(f"{_V3}title")) or "Clinical document"))
    blocks.add(_header(root))
    for section in root.iter(f"{_V3}section"):
        blocks.add("# " + (_text(section.find(f"{_V3}title")) or "Section"))
        narrative = section.find(f"{_V3}text")
        if narrative is not None:
            _add_narrative(narrative, blocks)
    return blocks


def _header(root: Any) -> str:
    lines: list[str] = []
    role = root.find(f"{_V3}recordTarget/{_V3}patientRole")
    if role is not None:
        numbers = [item.get("extension", "") for item in role.findall(f"{_V3}id")]
        patient = role.find(f"{_V3}patient")
        name = _person(patient.find(f"{_V3}name")) if patient is not None else ""
        lines += [f"Patient: {name}"] if name else []
        if patient is not None:
            lines += [f"Date of birth: {value}" for value in _values(patient, "birthTime")]
            gender = patient.find(f"{_V3}administrativeGenderCode")
            lines += [f"Sex: {gender.get('displayName') or gender.get('code')}"] if gender is not None else []
        lines += [f"Medical record number: {number}" for number in numbers[:1] if number]
    lines += [f"Date: {value}" for value in _values(root, "effectiveTime")]
    author = root.find(f"{_V3}author/{_V3}assignedAuthor/{_V3}assignedPerson/{_V3}name")
    lines += [f"Author: {_person(author)}"] if author is not None and _person(author) else []
    return "\n".join(lines)


def _values(parent: Any, tag: str) -> Iterator[str]:
    element = parent.find(f"{_V3}{tag}")
    digits = element.get("value", "") if element is not None else ""
    if len(digits) >= 8 and digits[:8].isdigit():
        yield f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}"


def _person(name: Any) -> str:
    if name is None:
        return ""
    parts = [_text(part) for tag in ("given", "family") for part in name.findall(f"{_V3}{tag}")]
    return " ".join(filter(None, parts)) or _text(name)


def _text(element: Any) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())


def _add_narrative(element: Any, blocks: Blocks) -> None:
    """Paragraphs, lists and tables of a narrative block (CDA R2, 4.3.5), in order."""
    blocks.add(" ".join((element.text or "").split()))
    for child in element:
        tag = str(child.tag).removeprefix(_V3)
        if tag == "table":
            rows = [
                [_text(cell) for cell in row if str(cell.tag) in (f"{_V3}td", f"{_V3}th")]
                for row in child.iter(f"{_V3}tr")
            ]
            blocks.add_table(rows)
        elif tag == "list":
            blocks.add("\n".join(f"- {_text(item)}" for item in child.findall(f"{_V3}item") if _text(item)))
        elif len(child) and child.find(f".//{_V3}table") is not None:
            _add_narrative(child, blocks)
        else:
            blocks.add(_text(child))
        blocks.add(" ".join((child.tail or "").split()))
