"""Identifiers of persons: found by pattern, checksum and name, masked, and not confused with drugs and eponyms."""

from __future__ import annotations

import pytest

from safety.identifiers import chinese_id, find_identifiers, iban, luhn, mask, nhs


def kinds(text: str) -> list[tuple[str, str]]:
    return [(found.kind, text[found.start : found.end]) for found in find_identifiers(text)]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("Write to ada.byron@example.org today.", "email", "ada.byron@example.org"),
        ("SSN 078-05-1120.", "ssn", "078-05-1120"),
        ("Card 4556 7375 8689 9855 on file", "card", "4556 7375 8689 9855"),
        ("IBAN GB82 WEST 1234 5698 7654 32", "iban", "GB82 WEST 1234 5698 7654 32"),
        ("NHS number 943 476 5919", "nhs", "943 476 5919"),
        ("Call 020 7946 0018 before noon", "phone", "020 7946 0018"),
        ("Tel: +1-743-438-6774x62406", "phone", "+1-743-438-6774x62406"),
        ("MRN: 00384712", "record number", "00384712"),
        ("seen from 10.218.6.131 at", "ip", "10.218.6.131"),
        ("身份证 11010519491231002X", "id", "11010519491231002X"),
        ("姓名：王小明，女", "name", "王小明"),
        ("患者孙国庆因腹痛入院。", "name", "孙国庆"),
        ("请上官月医生会诊。", "name", "上官月"),
    ],
)
def test_structured_identifiers_are_found(text: str, kind: str, value: str) -> None:
    assert (kind, value) in kinds(text)


@pytest.mark.parametrize(
    "text",
    ["Potassium 4.1, sodium 138.", "BP 120/80, 5 mg at 08:00", "03/05/2024", "Version 1.2.3.4", "12345678901234567"],
)
def test_clinical_numbers_are_no_identifiers(text: str) -> None:
    assert [kind for kind, _ in kinds(text) if kind != "ip"] == []


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (luhn, "4556737586899855", "4556737586899856"),
        (iban, "GB82WEST12345698765432", "GB82WEST12345698765433"),
        (nhs, "9434765919", "9434765918"),
        (chinese_id, "11010519491231002X", "110105194912310021"),
    ],
)
def test_checksums_tell_a_wrong_digit(check: object, good: str, bad: str) -> None:
    assert check(good)  # type: ignore[operator]
    assert not check(bad)  # type: ignore[operator]


def test_names_are_found_and_masked() -> None:
    text = "Dear Mrs Okafor, your son Daniel Smith was seen. Yours, Dr. Helen Marsh"
    assert mask(text).count("[name]") == 3
    assert not any(name in mask(text) for name in ("Okafor", "Daniel", "Marsh"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Handover from Amara to Ludo at 19:00.", "Amara"),
        ("Handover from Amara to Ludo at 19:00.", "Ludo"),
        ("Partner Anneke has the keys.", "Anneke"),
    ],
)
def test_a_name_is_found_by_what_stands_before_it(text: str, name: str) -> None:
    assert ("name", name) in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "Mother denies smoking. Handover from ICU to ward 4.",
        "Parkinson disease was diagnosed.",
        "Positive Babinski reflex.",
        "Takes Warfarin.",
        "患者高血压十年，江苏人。",
        "病人常规检查无异常。",
    ],
)
def test_eponyms_and_drugs_are_no_names(text: str) -> None:
    assert mask(text) == text
