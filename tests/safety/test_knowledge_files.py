"""The knowledge loads whole or not at all, and what a hospital changes counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from contracts import Patient, Verdict
from safety.checker import RuleSafetyChecker
from safety.knowledge_files import KNOWLEDGE_DIR, load_knowledge
from safety.rule import RuleError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(KNOWLEDGE_DIR, tmp_path / "knowledge"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_every_file_names_its_source_review_and_owner() -> None:
    knowledge = load_knowledge()
    assert set(knowledge.sources) == {path.stem for path in KNOWLEDGE_DIR.glob("*.yaml")}
    assert len(knowledge.doses) > 200
    assert len([i for i in knowledge.interactions if i.effect is Verdict.HOLD]) >= 15


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("units.yaml", "mcg: {ng: 1000}", "mcg: {g: 0.000001}", "is defined by itself"),
        ("units.yaml", "mg: {mcg: 1000}", "mg: {mg: 1}", "is defined by itself"),
        ("units.yaml", "owner: Pharmacy", "owner: Pharmacy\ncolour: red", "unknown key 'colour'"),
        ("classes.yaml", "owner: Pharmacy\n", "", "'owner' is missing"),
        ("doses.yaml", "reviewed: 2026-11-20", "reviewed: soon", "reviewed must be a date"),
        ("doses.yaml", "amlodipine: [mg, 2.5, 10, 10]", "amlodipine: [mg, 25, 10, 10]", "must rise"),
        (
            "doses.yaml",
            "amlodipine: [mg, 2.5, 10, 10]",
            "amlodipine: [mg, 2.5, 10, 10, monthly]",
            "'monthly' is not known",
        ),
        ("doses.yaml", "amlodipine: [mg, 2.5, 10, 10]", "amlodipine: [mg]", "wrong form"),
        ("interactions.yaml", "effect: interrupt, why", "effect: shout, why", "use interrupt or show"),
        ("interactions.yaml", "why_zh: ", "warum: ", "unknown or missing"),
        ("cautions.yaml", "when: pregnant, drugs", "when: tired, drugs", "use one of pregnant"),
        ("allergies.yaml", "concerns: penicillin,", "concerns: penicilin,", "no class 'penicilin'"),
        ("names.yaml", "entries:", "entries: [", "not valid YAML"),
        ("names.yaml", "entries:", "- x", "not valid YAML"),
    ],
)
def test_anything_odd_stops_the_start(folder: Path, file: str, old: str, new: str, says: str) -> None:
    edit(folder / file, old, new)
    with pytest.raises(RuleError, match=says):
        load_knowledge(folder)


def test_a_missing_file_stops_the_start(folder: Path) -> None:
    (folder / "allergies.yaml").unlink()
    with pytest.raises(RuleError, match=r"allergies\.yaml cannot be read"):
        RuleSafetyChecker(knowledge_dir=folder)


def test_a_hospital_can_replace_what_is_known_and_the_version_says_so(folder: Path) -> None:
    edit(folder / "doses.yaml", "amlodipine: [mg, 2.5, 10, 10]", "amlodipine: [mg, 2.5, 5, 5]")
    ours, theirs = RuleSafetyChecker(), RuleSafetyChecker(knowledge_dir=folder)
    assert ours.check_output("Amlodipine 10 mg daily.").verdict is Verdict.ALLOW
    assert theirs.check_output("Amlodipine 10 mg daily.").verdict is Verdict.HOLD
    assert ours.version != theirs.version


def test_units_convert_over_several_steps_and_only_where_they_lead() -> None:
    knowledge = load_knowledge()
    assert knowledge.factor("g", "mcg") == 1e6
    assert knowledge.factor("mcg", "g") is None
    assert knowledge.factor("mg", "unit") is None


def test_what_is_not_known_is_silent() -> None:
    checker = RuleSafetyChecker()
    assert checker.check_output("Give imaginab 900 mg daily.", Patient(pregnant=True)).verdict is Verdict.ALLOW
