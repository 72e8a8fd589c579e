"""What is planned, refused, stopped, suspected or somebody else's is not said to be so."""

from __future__ import annotations

import pytest

from contracts import Passage
from safety.support import check_support

RECORDS: list[tuple[str, list[str], list[str]]] = [  # a record, what it does not bear, what it says
    (
        "Plan: start apixaban 5 mg twice daily.",
        ["She takes apixaban 5 mg twice daily.", "She was started on apixaban."],
        ["The plan is to start apixaban 5 mg twice daily."],
    ),
    (
        "Consider starting ramipril 2.5 mg daily.",
        ["She takes ramipril 2.5 mg daily.", "Ramipril 2.5 mg daily was started."],
        ["Consider starting ramipril 2.5 mg daily."],
    ),
    (
        "Plan: CT head on Monday.",
        ["CT head was done on Monday.", "A CT head on Monday was normal."],
        ["CT head is planned on Monday.", "CT head on Monday."],
    ),
    (
        "Plan\n- laparoscopic cholecystectomy\n- stop aspirin",
        ["She had a laparoscopic cholecystectomy.", "Aspirin was stopped."],
        ["The plan is to stop aspirin."],
    ),
    (
        "She was offered surgery but declined it.",
        ["She had surgery.", "She agreed to surgery."],
        ["She declined surgery."],
    ),
    (
        "She declined the influenza vaccine.",
        ["She had the influenza vaccine.", "The influenza vaccine was given."],
        ["She declined the influenza vaccine."],
    ),
    (
        "If the potassium rises above 5.5, stop spironolactone.",
        [
            "Spironolactone was stopped.",
            "The potassium is above 5.5.",
            "Spironolactone was stopped because the potassium rose above 5.5.",
        ],
        ["Stop spironolactone if the potassium rises above 5.5."],
    ),
    (
        "Differential diagnosis: pulmonary embolism, pneumonia.",
        ["She has a pulmonary embolism.", "She has pneumonia."],
        ["The differential diagnosis includes pulmonary embolism."],
    ),
    ("?PE. CTPA requested.", ["She has a PE.", "CTPA showed PE."], ["CTPA was requested."]),
    (
        "Impression: likely viral infection, no evidence of pneumonia.",
        ["She has pneumonia.", "She has a viral infection."],
        ["A viral infection is likely.", "There is no evidence of pneumonia."],
    ),
    ("Rule out myocardial infarction.", ["She had a myocardial infarction."], []),
    (
        "Risk of bleeding explained. Risk of stroke 4% a year.",
        ["She had bleeding.", "She had a stroke."],
        ["The risk of stroke is 4% a year."],
    ),
    ("Screened for diabetes.", ["She has diabetes."], ["She was screened for diabetes."]),
    (
        "Previously took warfarin, now on apixaban.",
        ["She takes warfarin.", "She is on warfarin."],
        ["She previously took warfarin.", "She is now on apixaban."],
    ),
    ("Aspirin was stopped in 2020.", ["She takes aspirin.", "She is on aspirin."], ["Aspirin was stopped in 2020."]),
    (
        "Amoxicillin was withheld because of the rash.",
        ["She takes amoxicillin.", "She was given amoxicillin."],
        ["Amoxicillin was withheld."],
    ),
    ("History of asthma as a child, now resolved.", ["She has asthma."], ["She had asthma as a child."]),
    ("Referred to cardiology for possible pacemaker.", ["She has a pacemaker."], ["She was referred to cardiology."]),
    ("Her neighbour has tuberculosis.", ["She has tuberculosis."], ["Her neighbour has tuberculosis."]),
    ("Advised to avoid ibuprofen.", ["She takes ibuprofen."], ["She was advised to avoid ibuprofen."]),
    (
        "Do not give metoclopramide.",
        ["She was given metoclopramide.", "Give metoclopramide."],
        ["Do not give metoclopramide."],
    ),
    (
        "Awaiting MRI spine.",
        ["MRI spine was done.", "MRI spine showed no compression."],
        ["She is awaiting an MRI spine."],
    ),
    (
        "Penicillin allergy excluded by testing in 2019.",
        ["She is allergic to penicillin."],
        ["Penicillin allergy was excluded in 2019."],
    ),
    ("Due for colonoscopy in May.", ["She had a colonoscopy in May."], ["Colonoscopy is due in May."]),
    ("拟行冠状动脉造影。", ["已行冠状动脉造影。", "冠状动脉造影显示狭窄。"], ["拟行冠状动脉造影。"]),
    ("考虑肺栓塞可能。", ["患者有肺栓塞。", "确诊肺栓塞。"], ["考虑肺栓塞可能。"]),
    ("建议停用阿司匹林。", ["阿司匹林已停用。"], ["建议停用阿司匹林。"]),
    ("既往服用华法林，现改为利伐沙班。", ["患者目前服用华法林。"], ["现改为利伐沙班。"]),
    (
        "Continue apixaban 5 mg twice daily. Plan: colonoscopy in June.",
        ["She had a colonoscopy."],
        ["She takes apixaban 5 mg twice daily.", "A colonoscopy is planned in June."],
    ),
    (
        "Amoxicillin was withheld because of the rash; clarithromycin was given.",
        ["She was given amoxicillin."],
        ["She was given clarithromycin.", "Amoxicillin was withheld because of the rash."],
    ),
    (
        "Warfarin was stopped and apixaban 5 mg twice daily was started.",
        ["She takes warfarin."],
        ["Apixaban 5 mg twice daily was started.", "Warfarin was stopped."],
    ),
]


def supported(record: str, claim: str) -> bool:
    return check_support(claim, (0,), [Passage("d:0", "d", "Letter.pdf", 1, 0, len(record), record)]).supported


@pytest.mark.parametrize(("record", "claim"), [(record, claim) for record, wrong, _ in RECORDS for claim in wrong])
def test_it_is_not_said_to_be_so(record: str, claim: str) -> None:
    assert not supported(record, claim)


@pytest.mark.parametrize(("record", "claim"), [(record, claim) for record, _, true in RECORDS for claim in true])
def test_as_the_record_says_it_it_stands(record: str, claim: str) -> None:
    assert supported(record, claim)
