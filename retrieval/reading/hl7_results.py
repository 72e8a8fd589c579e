"""HL7 v2 messages with results (ORU^R01) -> blocks: the patient, then each report with its observations as a table."""

from __future__ import annotations

import re
from typing import Any

from retrieval.errors import DocumentError
from retrieval.reading.blocks import Blocks
from retrieval.reading.text import decode

_HEADINGS = ("Test", "Value", "Unit", "Reference range", "Flag", "Status", "Date")
_TEXTS = ("TX", "FT", "ST")  # types of observation that may hold a report's prose
_MIN_PROSE_CHARS = 60
_ESCAPES = {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\", ".br": "\n", ".sp": "\n", "H": "", "N": ""}


def read_hl7(data: bytes) -> Blocks:
    """Raises DocumentError for a message of another kind: orders and admissions hold no results."""
    import hl7

    text = decode(data.strip(b"\x0b\x1c\r\n "))
    messages = [
        hl7.parse("MSH" + part.strip().replace("\n", "\r"))
        for part in re.split(r"(?m)^MSH(?=\|)", text or "")
        if part.strip()
    ]
    results = [message for message in messages if _has(message, "OBX")]
    if not results:
        raise DocumentError("This HL7 message holds no results (no OBX segment); export the results as ORU^R01.")
    blocks = Blocks()
    for message in results:
        _add_message(message, blocks)
    return blocks


def _add_message(message: Any, blocks: Blocks) -> None:
    rows: list[tuple[str, ...]] = []

    def flush() -> None:
        if rows:
            blocks.add_table([_HEADINGS, *rows])
            rows.clear()

    for segment in message:
        kind = str(segment[0])
        if kind == "PID":
            blocks.add(_patient(segment))
        elif kind == "OBR":
            flush()
            blocks.add("# " + " ".join(filter(None, (_name(segment, 4) or "Report", _date(_field(segment, 7))))))
            if author := _person(_field(segment, 32) or _field(segment, 16)):
                blocks.add(f"Physician: {author}")
        elif kind == "OBX":
            value = _value(segment)
            if _field(segment, 2) in _TEXTS and len(value) >= _MIN_PROSE_CHARS:
                flush()
                blocks.add(f"{_name(segment, 3)}: {value}")
            else:
                rows.append(_observation(segment, value))
        elif kind == "NTE":
            flush()
            blocks.add(_unescape(_field(segment, 3)))
    flush()


def _observation(segment: Any, value: str) -> tuple[str, ...]:
    unit = _field(segment, 6).split("^")
    return (
        _name(segment, 3),
        value,
        _unescape(unit[0]),
        _unescape(_field(segment, 7)),
        _field(segment, 8),
        _field(segment, 11),
        _date(_field(segment, 14)),
    )


def _patient(segment: Any) -> str:
    parts = {
        "Patient": _person(_field(segment, 5), family_at=0),
        "Date of birth": _date(_field(segment, 7)),
        "Sex": _field(segment, 8),
        "Medical record number": _field(segment, 3).split("~")[0].split("^")[0],
    }
    return "\n".join(f"{label}: {value}" for label, value in parts.items() if value)


def _has(message: Any, kind: str) -> bool:
    return any(str(segment[0]) == kind for segment in message)


def _field(segment: Any, number: int) -> str:
    return str(segment[number]).strip() if len(segment) > number else ""


def _name(segment: Any, number: int) -> str:
    """The text of a coded element: code^text^system."""
    parts = _field(segment, number).split("^")
    return _unescape(parts[1] if len(parts) > 1 and parts[1] else parts[0])


def _value(segment: Any) -> str:
    parts = [_unescape(part.split("^")[1] if _is_coded(part) else part) for part in _field(segment, 5).split("~")]
    return "\n".join(part.replace("^", " ").strip() for part in parts)


def _is_coded(part: str) -> bool:
    pieces = part.split("^")
    return len(pieces) > 2 and bool(pieces[1])


def _person(field: str, family_at: int = 1) -> str:
    """A name: family^given^middle, after an identifier where the field has one."""
    parts = field.split("~")[0].split("^")
    if family_at and len(parts) < 3:
        return _unescape(" ".join(filter(None, parts)))
    family, given = parts[family_at : family_at + 1], parts[family_at + 1 : family_at + 3]
    return _unescape(" ".join(filter(None, [*given, *(part.split("&")[0] for part in family)])))


def _date(value: str) -> str:
    match = re.match(r"(\d{4})(\d\d)(\d\d)(?:(\d\d)(\d\d))?", value)
    if not match:
        return value
    year, month, day, hour, minute = match.groups()
    return f"{year}-{month}-{day}" + (f" {hour}:{minute}" if hour and f"{hour}{minute}" != "0000" else "")


def _unescape(text: str) -> str:
    return re.sub(r"\\(\.?[A-Za-z]+)\d*\\", lambda match: _ESCAPES.get(match[1], " "), text).strip()
