"""Whether a document names the patient under whom it was put: name, birth date and record number held side by side.

Compared are values that stand behind a label ("Patient:", "DOB:"), never names in prose. What a picture's recognition
may have misread by a letter is no difference, nor is what only one side says.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from contracts import Fact, FactKind, Patient

_OCR_SIMILARITY = 0.8  # of a name; a misread letter in ten
_AGE_TOLERANCE = 1.5  # years by which an age, typed some time ago, may differ from a birth date


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A fact of the document that is not the patient's; expected is what the patient's data say."""

    fact: Fact
    expected: str

    def __str__(self) -> str:
        label = {
            FactKind.PATIENT_NAME: "name",
            FactKind.BIRTH_DATE: "birth date",
            FactKind.RECORD_NUMBER: "record number",
        }[self.fact.kind]
        return f"the {label} on page {self.fact.page} is {self.fact.value}, the patient's is {self.expected}"


def find_mismatches(facts: Sequence[Fact], patient: Patient, today: date | None = None) -> list[Mismatch]:
    """The first difference of each kind. One wrong name or birth date is enough, for a page of another patient may have
    come into the file; of record numbers, of which a form may hold several, one must agree."""
    found: list[Mismatch] = []
    for kind in (FactKind.PATIENT_NAME, FactKind.BIRTH_DATE, FactKind.RECORD_NUMBER):
        expected = _expected(kind, patient)
        of_kind = [fact for fact in facts if fact.kind is kind] if expected else []
        different = [fact for fact in of_kind if not _agrees(fact, patient, today or date.today())]
        if different and (kind is not FactKind.RECORD_NUMBER or len(different) == len(of_kind)):
            found.append(Mismatch(different[0], expected))
    return found


def _expected(kind: FactKind, patient: Patient) -> str:
    if kind is FactKind.PATIENT_NAME:
        return patient.name or ""
    if kind is FactKind.RECORD_NUMBER:
        return patient.record_number or ""
    return patient.birth_date or (f"{patient.age_years:g} years of age" if patient.age_years is not None else "")


def _agrees(fact: Fact, patient: Patient, today: date) -> bool:
    if fact.kind is FactKind.PATIENT_NAME:
        return is_same_name(fact.value, patient.name or "")
    if fact.kind is FactKind.RECORD_NUMBER:
        return _digits(fact.value) == _digits(patient.record_number or "")
    if patient.birth_date:
        return patient.birth_date in (fact.value, _swapped(fact.value))
    return any(
        abs((today - date.fromisoformat(value)).days / 365.25 - 0.5 - (patient.age_years or 0)) <= _AGE_TOLERANCE
        for value in (fact.value, _swapped(fact.value))
        if value
    )


def is_same_name(one: str, other: str) -> bool:
    """Whether two ways of writing a name can be the same person's: any order, initials, titles and accents aside. At
    least two words must agree, or all of the shorter name."""
    first, second = _name_words(one), _name_words(other)
    if not first or not second:
        return True
    if len(first) > len(second):
        first, second = second, first
    remaining = list(second)
    num_equal = 0
    for word in first:
        match = next((candidate for candidate in remaining if _is_same_word(word, candidate)), None)
        if match is not None:
            remaining.remove(match)
            num_equal += 1
    if num_equal == len(first):
        return True
    is_close = (
        difflib.SequenceMatcher(None, " ".join(sorted(first)), " ".join(sorted(second))).ratio() >= _OCR_SIMILARITY
    )
    return is_close or (num_equal >= 2 and len(first) >= 3)


def _is_same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    return (len(one) == 1 or len(other) == 1) and one[0] == other[0]


def _name_words(name: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", name.casefold())
    letters = "".join(character for character in plain if not unicodedata.combining(character))
    words = re.findall(r"[^\W\d_]+", letters)
    return [word for word in words if word not in ("mr", "mrs", "ms", "miss", "dr", "prof", "sir", "dame", "jr", "sr")]


def _digits(number: str) -> str:
    return re.sub(r"[\W_]+", "", number).upper().lstrip("0")


def _swapped(iso: str) -> str:
    """The date with day and month exchanged, as the other side of the ocean would read it; "" if there is none."""
    year, month, day = iso.split("-")
    return f"{year}-{day}-{month}" if int(day) <= 12 else ""
