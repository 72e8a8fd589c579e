"""Doses, other drugs and the patient: what is wrong is found, what is right or warned against is not."""

from __future__ import annotations

import pytest

from contracts import Message, Patient, Role, Verdict
from safety.checker import RuleSafetyChecker
from safety.knowledge_files import load_knowledge
from safety.medication import find_doses, find_mentions

NAMES = load_knowledge().names
CHILD = Patient(age_years=4, weight_kg=16)


@pytest.fixture(scope="module")
def checker() -> RuleSafetyChecker:
    return RuleSafetyChecker()


@pytest.mark.parametrize(
    ("text", "patient", "rule", "verdict"),
    [
        ("Amlodipine 50 mg daily.", None, "dose.high", Verdict.HOLD),
        ("Amlodipine 15 mg daily.", None, "dose.high", Verdict.NOTICE),
        ("Levothyroxine 100 mg daily.", None, "dose.high", Verdict.HOLD),
        ("Bisoprolol 5 mcg daily.", None, "dose.low", Verdict.HOLD),
        ("Paracetamol 1 g every 2 hours.", None, "dose.high", Verdict.HOLD),
        ("Insulin glargine 10 mg at night.", None, "dose.unit", Verdict.HOLD),
        ("Methotrexate 10 mg daily.", None, "dose.weekly", Verdict.HOLD),
        ("Give paracetamol 1 g now.", CHILD, "dose.child", Verdict.HOLD),
        ("Gentamicin 15 mg/kg once daily.", CHILD, "dose.child", Verdict.HOLD),
        ("Vincristine 2 mg intrathecal.", None, "route.intrathecal", Verdict.BLOCK),
        ("Start Biaxin.", Patient(medications=("Zocor 40 mg nightly",)), "interaction.onc-statin-cyp3a4", Verdict.HOLD),
        ("Warfarin with ibuprofen.", None, "interaction.anticoagulant-nsaid-warfarin", Verdict.NOTICE),
        ("Start ramipril.", Patient(medications=("lisinopril",)), "duplicate", Verdict.NOTICE),
        ("Start hydralazine.", Patient(medications=("hydroxyzine 25 mg",)), "look-alike", Verdict.NOTICE),
        ("Give Augmentin.", Patient(allergies=("Penicillin (rash)",)), "allergy", Verdict.HOLD),
        ("Give ceftriaxone 1 g.", Patient(allergies=("penicillins",)), "allergy", Verdict.NOTICE),
        ("Give cefalexin 500 mg.", Patient(allergies=("amoxicillin",)), "allergy", Verdict.HOLD),
        ("Give Bactrim.", Patient(allergies=("sulfa drugs",)), "allergy", Verdict.HOLD),
        ("Start lisinopril.", Patient(pregnant=True), "caution.pregnancy-ras", Verdict.HOLD),
        ("She is pregnant; start valproate.", None, "caution.pregnancy-teratogen", Verdict.HOLD),
        ("Give codeine 30 mg.", Patient(lactating=True), "caution.lactation-stop", Verdict.HOLD),
        ("Continue metformin.", Patient(egfr_ml_min=21), "caution.renal-30-stop", Verdict.HOLD),
        ("Start duloxetine.", Patient(hepatic_impairment=True), "caution.hepatic-stop", Verdict.HOLD),
        ("Give diphenhydramine.", Patient(age_years=80), "caution.beers-avoid", Verdict.NOTICE),
        ("Give aspirin.", Patient(age_years=9), "caution.child-aspirin", Verdict.HOLD),
        ("Give ondansetron 4 mg.", Patient(qtc_ms=520), "caution.qtc-long", Verdict.HOLD),
        ("华法林 30 毫克 每日一次。", None, "dose.high", Verdict.HOLD),
        ("给予青霉素。", Patient(allergies=("青霉素",)), "allergy", Verdict.HOLD),
    ],
)
def test_what_is_wrong_is_found(
    checker: RuleSafetyChecker, text: str, patient: Patient | None, rule: str, verdict: Verdict
) -> None:
    result = checker.check_output(text, patient)
    finding = next(finding for finding in result.findings if finding.rule == rule)
    assert finding.severity is verdict
    assert finding.source
    assert 0 <= finding.start < finding.end <= len(text)


@pytest.mark.parametrize(
    ("text", "patient"),
    [
        ("Amlodipine 5 mg daily.", None),
        ("Paracetamol 4 g daily in divided doses.", None),
        ("Methotrexate 15 mg once a week.", None),
        ("Give paracetamol 240 mg now.", CHILD),
        ("Digoxin level 1.2 ng/mL.", None),
        ("Morphine 10 mg/mL ampoules.", None),
        ("Avoid clarithromycin.", Patient(medications=("simvastatin",))),
        ("Stop simvastatin, then start clarithromycin.", Patient(medications=("simvastatin",))),
        ("She is allergic to penicillin.", Patient(allergies=("penicillin",))),
        ("Lisinopril is contraindicated.", Patient(pregnant=True)),
        ("Metformin was stopped in 2019.", Patient(egfr_ml_min=20)),
        ("Start lisinopril.", Patient(pregnant=False)),
        ("Give azithromycin.", Patient(allergies=("penicillin",))),
        ("停用青霉素。", Patient(allergies=("青霉素",))),
    ],
)
def test_what_is_right_or_warned_against_is_not(checker: RuleSafetyChecker, text: str, patient: Patient | None) -> None:
    assert checker.check_output(text, patient).verdict is Verdict.ALLOW


def test_a_question_about_a_prescription_is_never_stopped(checker: RuleSafetyChecker) -> None:
    question = [Message(Role.USER, "Can I give clarithromycin 500 mg?")]
    result = checker.check_input(question, Patient(medications=("simvastatin 40 mg",)))
    assert result.verdict is Verdict.NOTICE


def test_two_drugs_she_already_takes_are_shown_not_withheld(checker: RuleSafetyChecker) -> None:
    patient = Patient(medications=("simvastatin", "clarithromycin"))
    assert checker.check_output("She takes simvastatin.", patient).verdict is Verdict.NOTICE
    assert checker.check_output("Simvastatin with clarithromycin.", patient).verdict is Verdict.HOLD


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Metformin 500 mg twice daily.", [("metformin", 500.0, "mg", 2.0, False)]),
        ("5 mg of apixaban", [("apixaban", 5.0, "mg", None, False)]),
        ("Paracetamol 3 g daily.", [("acetaminophen", 3.0, "g", 1.0, True)]),
        ("Morphine 5-10 mg every 4 hours.", [("morphine", 10.0, "mg", 6.0, False)]),
        ("Alendronate 70 mg once a week.", [("alendronate", 70.0, "mg", 1 / 7, False)]),
        ("Warfarin was given.", []),
        ("Start aspirin, 5 mg bisoprolol.", [("bisoprolol", 5.0, "mg", None, False)]),
        ("Stop warfarin 5 mg apixaban 2.5 mg", []),
    ],
)
def test_doses_are_read(text: str, expected: list[tuple[object, ...]]) -> None:
    doses = find_doses(text, find_mentions(text, NAMES))
    assert [(d.mention.drug, d.amount, d.unit, d.times_a_day, d.is_total) for d in doses] == expected


@pytest.mark.parametrize(
    "text",
    [
        "Bisoprolol 5 mg\nApixaban 50 mg\nMetformin 500 mg",
        "Bisoprolol 5 mg apixaban 50 mg metformin 500 mg",
        "Bisoprolol 5 mg PO apixaban 50 mg PO metformin 500 mg PO",
        "5 mg bisoprolol 50 mg apixaban 500 mg metformin",
        "比索洛尔5mg 阿哌沙班50mg 二甲双胍500mg",
    ],
)
def test_each_dose_of_a_list_belongs_to_its_own_drug(checker: RuleSafetyChecker, text: str) -> None:
    doses = [
        (dose.mention.drug, dose.amount) for dose in find_doses(text, find_mentions(text, checker.knowledge.names))
    ]
    assert doses == [("bisoprolol", 5.0), ("apixaban", 50.0), ("metformin", 500.0)]
    found = checker.check_output(text).findings
    assert [(f.rule, text[f.start : f.end].replace(" ", "")) for f in found] == [("dose.high", "50mg")]
