"""Negated, past, possible, a relative's: on sentences of our own, and on a public set."""

from __future__ import annotations

from pathlib import Path

import pytest

from safety.assertion import Assertion, assess, scopes


@pytest.mark.parametrize(
    ("sentence", "concept", "status"),
    [
        ("She has chest pain.", "chest pain", Assertion.PRESENT),
        ("She denies chest pain.", "chest pain", Assertion.NEGATED),
        ("No fever, chills or cough.", "cough", Assertion.NEGATED),
        ("No fever but he has a cough.", "cough", Assertion.PRESENT),
        ("Blood cultures were negative.", "Blood cultures", Assertion.NEGATED),
        ("He can't breathe.", "breathe", Assertion.PRESENT),
        ("Pain not relieved by morphine.", "morphine", Assertion.PRESENT),
        ("He had a stroke years ago and is a teacher now.", "stroke", Assertion.HISTORICAL),
        ("He had a stroke years ago and is worse now.", "stroke", Assertion.PRESENT),
        ("小时候惊厥过，现在上初中了。", "惊厥", Assertion.HISTORICAL),
        ("History of stroke.", "stroke", Assertion.HISTORICAL),
        ("He had a stroke three years ago.", "stroke", Assertion.HISTORICAL),
        ("Return if you have chest pain.", "chest pain", Assertion.HYPOTHETICAL),
        ("His father had a stroke.", "stroke", Assertion.FAMILY),
        ("Family history of stroke.", "stroke", Assertion.FAMILY),
        ("My father is having a stroke.", "stroke", Assertion.PRESENT),
        ("What are the symptoms of stroke?", "stroke", Assertion.GENERAL),
        ("否认胸痛。", "胸痛", Assertion.NEGATED),
        ("突发胸痛。", "胸痛", Assertion.PRESENT),
        ("如有胸痛请就诊。", "胸痛", Assertion.HYPOTHETICAL),
        ("父亲有脑卒中。", "脑卒中", Assertion.FAMILY),
        ("爸爸去世三年了,是脑出血。", "脑出血", Assertion.FAMILY),
        # As NFKC leaves the Chinese comma: no scope goes across it.
        ("父亲有脑卒中,我胸痛。", "胸痛", Assertion.PRESENT),
        ("既往高血压,突发胸痛。", "胸痛", Assertion.PRESENT),
        ("如果头痛,按时吃药,胸痛。", "胸痛", Assertion.PRESENT),
        ("卒中史,已戒烟。", "卒中", Assertion.HISTORICAL),
        # As in telegrams of notes.
        ("Systems review negative including syncope.", "syncope", Assertion.NEGATED),
        ("Type A dissection 2012, under the aortic clinic.", "Type A dissection", Assertion.HISTORICAL),
        ("Prev cardiac arrest, battery check today.", "cardiac arrest", Assertion.HISTORICAL),
        ("PPH with last baby, Hb now 128.", "PPH", Assertion.HISTORICAL),
        ("Bleeding with last baby and now again.", "Bleeding", Assertion.PRESENT),
        ("Abruption in last pregnancy, both fine; today cervical screening.", "Abruption", Assertion.HISTORICAL),
        ("Abruption in last pregnancy; today she is bleeding.", "bleeding", Assertion.PRESENT),
        ("I had a heart attack in 2019 and today it feels the same.", "heart attack", Assertion.PRESENT),
        ("2016年脾破裂行切除,今来接种疫苗。", "脾破裂", Assertion.HISTORICAL),
        ("2016年脑梗,今又言语不清。", "言语不清", Assertion.PRESENT),
        ("胸痛(-),气促(-)", "气促", Assertion.NEGATED),
        ("偏瘫五年了,想申请补贴。", "偏瘫", Assertion.HISTORICAL),
        ("Mother: perforated ulcer.", "perforated ulcer", Assertion.FAMILY),
        ("Dad stroke at 70, here for travel jabs.", "stroke", Assertion.FAMILY),
        ("Dad has a stroke.", "stroke", Assertion.PRESENT),
        ("Retinal detachment in dad, exam clear.", "Retinal detachment", Assertion.FAMILY),
        ("He threatened to kill himself years ago.", "kill himself", Assertion.HISTORICAL),
        ("姐姐昏迷过,我没有糖尿病。", "昏迷", Assertion.FAMILY),
        ("姐姐今天昏迷过两次。", "昏迷", Assertion.PRESENT),
        ("中暑?没有,就是晒黑了。", "中暑", Assertion.NEGATED),
    ],
)
def test_status(sentence: str, concept: str, status: Assertion) -> None:
    start = sentence.index(concept)
    assert assess(sentence, start, start + len(concept)) is status


def test_negation_on_annotated_sentences(shared: Path) -> None:
    path = shared / "data/safety/negex/rsAnnotations-1-120-random-first-half.txt"
    right = alarms = missed = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
        _, concept, sentence, status, *_ = (field.strip('"') for field in line.split("\t"))
        start = sentence.upper().find(concept.upper())
        if start < 0:
            continue
        end = start + len(concept)
        is_found = any(s.status is Assertion.NEGATED and s.start <= start and end <= s.end for s in scopes(sentence))
        right += is_found and status == "Negated"
        alarms += is_found and status != "Negated"
        missed += not is_found and status == "Negated"
    assert right > 200
    assert right / (right + missed) >= 0.95
    assert right / (right + alarms) >= 0.96
