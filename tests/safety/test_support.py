"""Does a claim stand in its passages: true statements pass, one wrong detail does not, doubt is no."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import Passage
from safety.abstention import is_abstention
from safety.support import check_support

CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("support_cases.yaml").read_text(encoding="utf-8"))
DRUGS = (
    "rivaroxaban|bisoprolol|bumetanide|atorvastatin|paracetamol|ramipril|ibuprofen|eplerenone|empagliflozin|meloxicam"
)


def passage(text: str, number: int = 0) -> Passage:
    return Passage(f"d:{number}", "d", "Letter.pdf", 1, 0, len(text), text)


def pairs(kind: str) -> list[tuple[str, str]]:
    return [(case["passage"], claim) for case in CASES for claim in case[kind]]


def one_edit(claim: str) -> Iterator[str]:
    """The claim with one number, drug, side or denial changed."""
    if number := re.search(r"(?<![\w/.-])\d+(?![\w/.-])", claim):
        yield claim[: number.start()] + str(int(number.group()) * 10 + 7) + claim[number.end() :]
    if drug := re.search(DRUGS, claim, re.IGNORECASE):
        yield claim[: drug.start()] + "tacrolimus" + claim[drug.end() :]
    for side, other in (("left", "right"), ("right", "left")):
        if re.search(rf"\b{side}\b", claim):
            yield re.sub(rf"\b{side}\b", other, claim)
            break
    if re.search(r"\bden(?:y|ies)\b", claim):
        yield re.sub(r"\bdenies\b", "has", claim)
    elif not re.search(r"\b(?:no|not|never)\b|否认|无", claim) and (verb := re.search(r"\b(?:is|was|were)\b", claim)):
        yield f"{claim[: verb.end()]} not{claim[verb.end() :]}"


def test_there_are_enough_cases() -> None:
    assert len(pairs("stands")) >= 60
    assert len(pairs("does_not")) >= 50
    assert sum(len(list(one_edit(claim))) for _, claim in pairs("stands")) >= 60


@pytest.mark.parametrize(("text", "claim"), pairs("stands"), ids=lambda value: value[:40])
def test_what_stands_is_supported_by_its_own_words(text: str, claim: str) -> None:
    support = check_support(f"{claim} [1]", (0,), [passage(text)])
    assert support.supported, support.missing
    start, end = support.evidence[0]
    assert 0 <= start < end <= len(text)
    assert text[start:end].strip() == text[start:end]


@pytest.mark.parametrize(("text", "claim"), pairs("does_not"), ids=lambda value: value[:40])
def test_what_does_not_stand_is_not_supported(text: str, claim: str) -> None:
    support = check_support(f"{claim} [1]", (0,), [passage(text)])
    assert not support.supported
    assert support.missing


@pytest.mark.parametrize(("text", "claim"), pairs("stands"), ids=lambda value: value[:40])
def test_one_edit_is_caught(text: str, claim: str) -> None:
    for edited in one_edit(claim):
        assert not check_support(edited, (0,), [passage(text)]).supported, edited


@pytest.mark.parametrize(
    ("record", "claim"),
    [
        ("Metformin 1 g twice daily.", "Metformin 1 g two times a day."),
        ("Metformin 1 g b.d.", "Metformin 1 g twice a day."),
        ("Amoxicillin 500 mg tid", "Amoxicillin 500 mg three times daily."),
        ("Take two tablets of paracetamol.", "Take 2 tablets of paracetamol."),
        ("NT-proBNP was 6,840 ng/L.", "NT-proBNP was 6840 ng/L."),
        ("Levothyroxine 75 µg daily.", "Levothyroxine 75 micrograms daily."),
        ("Oxycodone 5-10 mg as needed.", "Oxycodone 5 to 10 mg as needed."),
        ("Seen on 03/14/2025 for asthma.", "Seen on 14 March 2025 for asthma."),
        ("Seen on 2025-03-14 for asthma.", "Seen on March 14, 2025 for asthma."),
        ("Haemoglobin 112 g/L.", "Hemoglobin was 112 g/L."),
        ("She has shortness of breath.", "She has dyspnea."),
        ("No known drug allergies.", "She has no known drug allergies."),
    ],
)
def test_the_same_thing_written_otherwise_is_supported(record: str, claim: str) -> None:
    support = check_support(claim, (0,), [passage(record)])
    assert support.supported, support.missing


@pytest.mark.parametrize(
    ("record", "claim"),
    [
        ("Paracetamol 1 g four times daily.", "Paracetamol 1000 mg four times daily."),
        ("Levothyroxine 75 mcg daily.", "Levothyroxine 75 mg daily."),
        ("Troponin below 14 ng/L.", "Troponin was 14 ng/L."),
        ("Oxycodone 5-10 mg as needed.", "Oxycodone 10 mg as needed."),
        ("Weight 68 kg. Height 170 cm.", "Weight 170 kg."),
        ("Possible pneumonia.", "She has pneumonia."),
        ("Family history: father had a stroke.", "She had a stroke."),
        ("Return if chest pain develops.", "She has chest pain."),
        ("Apixaban was stopped and aspirin was started.", "Aspirin was stopped and apixaban was started."),
        ("The tonsils are enlarged.", "No known allergies."),
        ("Potassium 4.2 mmol/L.", "Sodium 4.2 mmol/L."),
        ("Asthma, diabetes and hypertension were noted.", "Asthma, diabetes, hypertension and cancer were noted."),
    ],
)
def test_a_near_miss_is_not_supported(record: str, claim: str) -> None:
    assert not check_support(claim, (0,), [passage(record)]).supported


@pytest.mark.parametrize("claim", ["", " ", "[1]", "12 34", "***", "5.8", "...", "| | |", "\u200b", "是", "It is."])
def test_a_claim_without_a_statement_is_not_supported(claim: str) -> None:
    assert not check_support(claim, (0,), [passage("12 34 5.8 It is. 是")]).supported


@pytest.mark.parametrize(
    "claim",
    [
        "Observation:",
        "The history is of typical practice practice practice practice.",
        "The history is of typical angina [2 diabetes.",
        "Potassium 4.4 mmol/L [",
        "The passages do no murmurs.",
    ],
)
def test_what_is_no_sentence_is_not_supported_whatever_its_words(claim: str) -> None:
    passage = Passage(
        "d:0",
        "d",
        "Letter.pdf",
        1,
        0,
        96,
        "Observation: typical angina, practice, diabetes, no murmurs, potassium 4.4 mmol/L. The history is.",
    )
    assert not check_support(claim, [0], [passage]).supported


@pytest.mark.parametrize(
    ("end", "stands"), [("posterior and not low", True), ("posterior and low", False), ("not low and posterior", False)]
)
def test_a_sentence_copied_word_for_word_stands_whatever_its_results_are_said_of(end: str, stands: bool) -> None:
    scan = "Ultrasound: head down, estimated fetal weight 1,180 g on the 55th centile, normal liquor volume, placenta"
    passage = Passage("p", "d", "scan.pdf", 1, 0, 132, f"{scan} posterior and not low.")
    assert check_support(f"{scan} {end}.", [0], [passage]).supported == stands


RESULTS = (
    "Blood pressure in the surgery was 158/96 mmHg. The resting ECG in the surgery was normal. Troponin is normal and "
    "potassium is high. Pulse, temperature and oxygen saturation were stable. "
    "Echocardiogram: ejection fraction 58%, mild concentric hypertrophy, normal valves."
)


@pytest.mark.parametrize(
    ("claim", "stands"),
    [
        ("Blood pressure in the surgery was normal.", False),
        ("The potassium is normal.", False),
        ("The troponin is high.", False),
        ("The resting ECG was normal.", True),
        ("Troponin is normal.", True),
        ("Potassium is high.", True),
        ("The pulse was stable.", True),
        ("Echocardiogram: ejection fraction 58%, mild concentric hypertrophy, normal valves.", True),
    ],
)
def test_a_result_belongs_to_what_it_is_said_of(claim: str, stands: bool) -> None:
    passage = Passage("d:0", "d", "Letter.pdf", 1, 0, len(RESULTS), RESULTS)
    assert check_support(claim, [0], [passage]).supported is stands


@pytest.mark.parametrize(
    ("claim", "stands"),
    [
        ("She was admitted with worsening breathlessness, orthopsor and leg swelling.", False),
        ("She was admitted with worsening breathlessness, orthopnoea and leg swelling.", True),
        ("She was hospitalized with worsening breathlessness and orthopnoea.", True),
    ],
)
def test_a_misspelt_or_invented_word_is_not_supported(claim: str, stands: bool) -> None:
    record = "She was admitted to hospital with five days of worsening breathlessness, orthopnoea and leg swelling."
    passage = Passage("d:0", "d", "Letter.pdf", 1, 0, len(record), record)
    assert check_support(claim, [0], [passage]).supported is stands


def test_nothing_is_supported_by_nothing() -> None:
    assert not check_support("She has asthma.", (0,), []).supported
    assert not check_support("She has asthma.", (0,), [passage("")]).supported


def test_a_wrong_citation_is_corrected_and_said() -> None:
    passages = [passage("Potassium 4.2 mmol/L.", 0), passage("She has asthma.", 1)]
    support = check_support("She has asthma [1].", (0,), passages)
    assert list(support.evidence) == [1]
    assert [finding.rule for finding in support.findings] == ["support.citation-corrected"]


def test_an_invented_citation_is_removed_and_said() -> None:
    support = check_support("She has asthma [9].", (8,), [passage("She has asthma.")])
    assert support.supported
    assert "support.citation-invented" in [finding.rule for finding in support.findings]


def test_a_list_may_stand_in_several_passages() -> None:
    passages = [passage("Apixaban 5 mg twice daily.", 0), passage("Bisoprolol 2.5 mg once daily.", 1)]
    claim = "She takes apixaban 5 mg twice daily and bisoprolol 2.5 mg once daily [1][2]."
    assert set(check_support(claim, (0, 1), passages).evidence) == {0, 1}


def test_words_far_apart_do_not_make_a_statement() -> None:
    text = "She has asthma. " + "The weather was fine that day. " * 5 + "Her brother visited with severe eczema."
    assert not check_support("She has asthma with severe eczema.", (0,), [passage(text)]).supported


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("The passages do not say.", True),
        ("The passages do not say [1].", True),
        ("The record does not say when it was started.", True),
        ("The record does not mention any allergies.", True),
        ("记录中没有提到。", True),
        ("病历中未记载过敏史。", True),
        ("The passages do not say, but aspirin 300 mg is usual.", False),
        ("The record does not say so take aspirin.", False),
        ("No known allergies.", False),
        ("She does not smoke.", False),
        ("", False),
    ],
)
def test_abstentions(claim: str, expected: bool) -> None:
    assert is_abstention(claim) is expected


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=120), st.lists(st.text(max_size=120), max_size=3), st.lists(st.integers(-3, 9), max_size=4))
def test_any_input_gets_an_answer(claim: str, texts: list[str], cited: list[int]) -> None:
    passages = [passage(text, number) for number, text in enumerate(texts)]
    support = check_support(claim, cited, passages)
    for index, (start, end) in support.evidence.items():
        assert 0 <= start < end <= len(texts[index])
    assert support.supported is bool(support.evidence)


@pytest.mark.parametrize(
    ("claim", "stands"),
    [
        ("The potassium was 4.1.", True),
        ("The sodium was 140.", True),
        ("The potassium was 4.3 on 2 March 2026.", True),
        ("The sodium was 4.1.", False),
        ("The potassium was 140.", False),
        ("The potassium was 4.3 on 1 March 2026.", False),
        ("The sodium was 140 on 2 March 2026.", False),
        ("The creatinine was 140.", False),
    ],
)
def test_a_number_in_a_table_belongs_to_its_column_and_row(claim: str, stands: bool) -> None:
    rows = "Date | Potassium (mmol/L) | Sodium (mmol/L)\n2026-03-01 | 4.1 | 140\n2026-03-02 | 4.3 | 139\nCreatinine: 90"
    assert check_support(claim, [0], [passage(rows)]).supported is stands


def test_a_table_that_names_nobody_is_of_what_stands_above_it() -> None:
    rows = "Potassium, mmol/L\n2026-03-01 | 4.1\n2026-03-02 | 4.3"
    assert check_support("The potassium was 4.1.", [0], [passage(rows)]).supported


def test_the_evidence_in_a_table_is_its_row() -> None:
    rows = (
        "Apixaban 5 mg tablets | One tablet twice daily | Atrial fibrillation | 18 March 2026",
        "Furosemide 40 mg tablets | One tablet twice daily | Heart failure | 18 March 2026",
        "Dapagliflozin 10 mg tablets | One tablet once daily | Heart failure | 18 March 2026",
    )
    text = "\n".join(rows)
    start, end = check_support("Furosemide 40 mg twice daily.", (0,), [passage(text)]).evidence[0]
    assert text[start:end] == rows[1]


# --- under a title ------------------------------------------------------------------------------------------------

STORY = "Why she was admitted\nShe had been taking ibuprofen 400 mg for knee pain since Christmas."
FAMILY = "Heart attack at the age of 52. Type 2 diabetes."


@pytest.mark.parametrize(
    ("section", "text", "claim"),
    [
        ("Allergies", "Penicillin: widespread urticaria.", "She is allergic to penicillin."),
        ("ALLERGIES:", "Penicillin: widespread urticaria.", "Allergies: penicillin."),
        ("Medicines stopped", "Aspirin 75 mg.", "Aspirin was stopped."),
        ("Family history", FAMILY, "Family history of type 2 diabetes."),
        ("", f"Problems\nFamily history of breast cancer\n{FAMILY}", "He had a heart attack at the age of 52."),
    ],
)
def test_a_claim_may_lean_on_the_title_its_passage_stands_under(section: str, text: str, claim: str) -> None:
    support = check_support(claim, (0,), [replace(passage(text), section=section)])
    assert support.supported, support.missing
    assert support.evidence[0][1] <= len(text)


@pytest.mark.parametrize(
    ("section", "text", "claim"),
    [
        ("Family history", FAMILY, "He had a heart attack at the age of 52."),
        ("Social and family history", FAMILY, "He has type 2 diabetes."),
        ("", f"Family history\n{FAMILY}", "He had a heart attack at the age of 52."),
        ("Medicines stopped", "Aspirin 75 mg.", "Aspirin was started."),
        ("Allergies", STORY, "She is allergic to ibuprofen."),
        ("", f"Allergies\nPenicillin: rash.\n{STORY}", "She is allergic to ibuprofen."),
    ],
)
def test_a_title_says_nothing_of_what_stands_under_another_nor_of_the_patient_what_is_the_familys(
    section: str, text: str, claim: str
) -> None:
    assert not check_support(claim, (0,), [replace(passage(text), section=section)]).supported


@pytest.mark.parametrize(
    ("text", "stands", "does_not"),
    [
        (
            "Medications: bisoprolol 5 mg od apixaban 2.5 mg bd atorvastatin 20 mg nocte",
            ["She takes apixaban 2.5 mg twice daily.", "Bisoprolol 5 mg once daily.", "Atorvastatin 20 mg at night."],
            ["Apixaban 5 mg.", "Apixaban 2.5 mg once daily.", "Bisoprolol 5 mg at night.", "Atorvastatin 2.5 mg."],
        ),
        (
            "Medications\n- 5 mg bisoprolol od\n- 2.5 mg apixaban bd\n- 20 mg atorvastatin at bedtime",
            ["Apixaban 2.5 mg twice daily.", "Bisoprolol 5 mg once daily.", "Atorvastatin 20 mg at night."],
            ["Apixaban 5 mg.", "Apixaban 2.5 mg at night.", "Bisoprolol 5 mg twice daily."],
        ),
        (
            "Apixaban - 2.5 mg - BID; Atorvastatin - 20 mg - nocte",
            ["Apixaban 2.5 mg twice daily."],
            ["Apixaban 2.5 mg at night.", "Atorvastatin 20 mg twice daily."],
        ),
        (
            "Atorvastatin 20 mg tablets. Take one at night.\nApixaban 2.5 mg tablets. Take one twice a day.",
            ["She takes atorvastatin 20 mg at night."],
            ["She takes apixaban 2.5 mg at night.", "She takes atorvastatin 20 mg twice a day."],
        ),
        (
            "目前用药：比索洛尔片5mg，qd 阿哌沙班片2.5mg，bid 阿托伐他汀片20mgqn",
            ["患者服用阿哌沙班2.5mg每日两次。", "患者服用阿托伐他汀20mg睡前。"],
            ["患者服用阿哌沙班5mg每日两次。", "患者服用阿哌沙班2.5mg睡前。", "患者服用比索洛尔5mg每日两次。"],
        ),
        (
            "Results\n1. sodium 129\n2. lactate 1.2\n3. platelets 410\n4. CRP 3\nlactate 4.4",
            ["The platelets were 410.", "The CRP was 3."],
            ["The platelets were 3.", "The sodium was 1.2.", "The CRP was 4."],
        ),
        (
            "Past surgical history: appendicectomy 1998; hip replacement, 2015; cataract surgery in 2019.",
            ["She had a hip replacement in 2015.", "Cataract surgery in 2019."],
            ["She had a hip replacement in 2019.", "Appendicectomy in 2015."],
        ),
        (
            "Past surgical history\n- Cataract surgery 2019\n- Hip replacement 2015",
            ["She had a hip replacement in 2015."],
            ["She had cataract surgery in 2015.", "She had a hip replacement in 2019."],
        ),
        (
            "3 May 2026: potassium 4.9\n21 Aug 2026: potassium 5.8",
            ["Potassium was 4.9 on 3 May 2026."],
            ["Potassium was 5.8 on 3 May 2026."],
        ),
        (
            "Test | 3 May 2026 | 21 Aug 2026\nSodium | 138 | 141\nUrea | 7 | 9\nCRP | 9 | 1\nPotassium | 4.9 | 5.8",
            ["Potassium was 5.8 on 21 Aug 2026.", "Sodium was 138 on 3 May 2026."],
            ["Potassium was 4.9 on 21 Aug 2026.", "Sodium was 141 on 3 May 2026."],
        ),
        (
            "Allergies: penicillin (rash), latex (hives), codeine (nausea).",
            ["Penicillin: rash.", "Latex: hives."],
            ["Penicillin: hives.", "Codeine causes hives.", "Latex causes nausea."],
        ),
        (
            "Family history: mother had a stroke; father had glaucoma.",
            [],
            ["Father had a stroke.", "Mother: glaucoma."],
        ),
        (
            "Started: metformin, ramipril\nStopped: warfarin\nContinued: apixaban",
            ["Warfarin was stopped.", "Metformin was started."],
            ["Apixaban was stopped.", "Warfarin was started."],
        ),
        ("Left hip: swollen\nRight wrist: bruised", ["The left hip was swollen."], ["The left hip was bruised."]),
    ],
)
def test_what_stands_beside_an_item_of_a_list_is_said_of_no_other(
    text: str, stands: list[str], does_not: list[str]
) -> None:
    assert [claim for claim in stands if not check_support(claim, (0,), [passage(text)]).supported] == []
    assert [claim for claim in does_not if check_support(claim, (0,), [passage(text)]).supported] == []


def test_a_dash_before_a_dose_is_no_sign_and_before_a_result_it_is() -> None:
    assert check_support("Apixaban 5 mg.", (0,), [passage("- 5 mg apixaban")]).supported
    assert not check_support("The base excess was 4.5.", (0,), [passage("Base excess -4.5 mmol/L.")]).supported


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("She had hives after latex.", "She has HIV."),
        ("He is HIV positive.", "He has hives."),
        ("He wears two hearing aids.", "He has AIDS."),
        ("The testes are normal.", "The tests are normal."),
    ],
)
def test_words_that_look_like_forms_of_one_another_are_not_taken_for_it(text: str, claim: str) -> None:
    assert not check_support(claim, (0,), [passage(text)]).supported
    assert check_support(text, (0,), [passage(text)]).supported


@pytest.mark.parametrize(
    "text",
    [
        "Headache: no\nRash: none reported\nFever: yes",
        "Symptom | Present\nHeadache | No\nRash | no\nFever | Yes",
        "Headache -, rash -, fever +",
        "- Headache: nil\n- Rash: No\n- Fever: yes",
    ],
)
def test_what_a_form_answers_with_no_is_denied(text: str) -> None:
    claims = ["She has a headache.", "She has a rash.", "She has no fever.", "She has a fever."]
    assert [check_support(claim, (0,), [passage(text)]).supported for claim in claims] == [False, False, False, True]


def test_what_a_chinese_form_answers_with_no_is_denied() -> None:
    form = [passage("头痛：无\n皮疹：无\n发热：有")]
    claims = ("患者有头痛。", "患者有皮疹。", "患者无发热。", "患者有发热。")
    assert [check_support(claim, (0,), form).supported for claim in claims] == [False, False, False, True]


def stands(record: str, claim: str) -> bool:
    return check_support(claim, (0,), [passage(record)]).supported


NO_ALLERGIES = (
    "Allergies - nil",
    "Allergies: nil",
    "Allergies\nNone known",
    "Allergies:\nNil",
    "No known drug allergies",
    "ALLERGIES: NKDA",
    "NKDA",
    "Allergies\n- None",
    "Allergies (none)",
    "Allergies: not known to have any",
    "Allergy status: no known allergies",
    "Allergies | none",
    "Allergen | Reaction\nNone | -",
    "Drug allergies: denies",
    "He denies any allergies",
    "过敏史：无",
    "过敏史\n无",
    "否认过敏史",
    "Allergies and intolerances: none recorded",
    "Known allergies? No",
)
BELOW = (
    "\nAspirin 75 mg daily",
    "\nMedication: aspirin 75 mg",
    "\nMedications\nAspirin 75 mg",
    "\n- Aspirin 75 mg",
    ". He takes aspirin.",
    "\n\nAspirin 75 mg od",
)


def test_a_claim_of_nothing_but_a_reaction_is_weighed_by_its_words() -> None:
    assert not stands("Allergies: none known. She takes aspirin.", "It caused a reaction.")


@pytest.mark.parametrize("denial", NO_ALLERGIES)
def test_a_denial_of_allergies_makes_no_allergy_of_the_drug_below_it(denial: str) -> None:
    claims = ("He is allergic to aspirin.", "Aspirin allergy.", "Allergies: aspirin.", "He has an aspirin allergy.")
    shown = [(below, claim) for below in BELOW for claim in claims if stands(denial + below, claim)]
    assert not shown


@pytest.mark.parametrize(
    "record",
    ["Allergies\n- aspirin: rash", "Allergies - aspirin", "ALLERGIES: ASPIRIN", "Allergen | Reaction\nAspirin | rash"],
)
def test_an_allergy_that_is_listed_stands(record: str) -> None:
    assert stands(record, "He is allergic to aspirin.")


@pytest.mark.parametrize(
    ("record", "claim"),
    [
        ("She has a cough without fever, rash or headache.", "She has no fever and no headache."),
        ("NKDA. He takes aspirin.", "He has no known allergies."),
        ("Allergies\nNone known\nHe takes aspirin.", "He has no known allergies."),
        ("患者否认头痛、腹泻及咳嗽，有胸痛。", "患者无头痛。"),
        ("患者否认头痛、腹泻及咳嗽，有胸痛。", "患者没有咳嗽。"),
        ("否认冠心病、哮喘病史，有糖尿病病史。", "患者否认冠心病病史。"),
        ("患者右侧肢体无力2天。", "右侧肢体无力2天。"),
    ],
)
def test_a_denial_stands_in_another_form(record: str, claim: str) -> None:
    assert stands(record, claim)


@pytest.mark.parametrize(
    ("record", "claim"),
    [
        ("患者否认头痛、腹泻及咳嗽，有胸痛。", "患者有头痛。"),
        ("患者否认头痛、腹泻及咳嗽，有胸痛。", "患者无胸痛。"),
        ("She has a cough without fever, rash or headache.", "She has no fever and no cough."),
    ],
)
def test_a_denial_of_something_else_does_not(record: str, claim: str) -> None:
    assert not stands(record, claim)
