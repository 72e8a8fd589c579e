"""The loader: the product's rules load and do what their examples say; anything odd stops the start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts import Direction, Verdict
from safety import lexicon
from safety.matcher import Matcher
from safety.rule import Rule, RuleError
from safety.rule_files import RULES_DIR, load_rules

RULES = load_rules().rules

GOOD: dict[str, Any] = {
    "id": "test.rule",
    "title": "A rule",
    "severity": "hold",
    "direction": ["document"],
    "keywords": ["banana"],
    "patterns": ["yellow banana"],
    "message": "A banana was seen; eat it.",
    "message_zh": "发现香蕉。",
    "source": "Fruit guideline, 2020",
    "reviewed": "2026-01-02",
    "owner": "Kitchen",
    "examples": {
        "fires": ["a yellow banana", "Yellow  banana!", "one yellow\nbanana"],
        "must_not_fire": ["a green banana", "yellow", "an apple"],
    },
}


def write(folder: Path, *rules: Any, name: str = "some.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    text = yaml.safe_dump(list(rules), allow_unicode=True).replace("'2026-01-02'", "2026-01-02")
    (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_example_does_what_it_says(rule: Rule) -> None:
    matcher = Matcher([rule])
    for direction in rule.direction:
        for example in rule.examples.fires:
            assert [f.rule for f in matcher.find(example, direction)] != [], example
        for example in rule.examples.must_not_fire:
            assert matcher.find(example, direction) == [], example


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_explains_itself_in_both_languages(rule: Rule) -> None:
    assert rule.message.endswith(".")
    assert any("\u4e00" <= character <= "\u9fff" for character in rule.message_zh)
    assert any(character.isdigit() for character in rule.source) or "List" in rule.source or "TOXBASE" in rule.source
    finding = Matcher([rule]).find(rule.examples.fires[0], rule.direction[0])[0]
    assert finding.source == rule.source
    assert finding.message in (rule.message, rule.message_zh)


def test_an_emergency_never_withholds_a_question() -> None:
    for rule in RULES:
        if rule.id.startswith("emergency."):
            assert (rule.severity, rule.direction) == (Verdict.NOTICE, (Direction.INPUT,))


def test_a_good_rule_loads(tmp_path: Path) -> None:
    (rule,) = load_rules(write(tmp_path / "rules", GOOD)).rules
    assert rule.severity is Verdict.HOLD
    assert Matcher([rule]).find("A yellow banana.", Direction.DOCUMENT)[0].rule == "test.rule"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(colour="red"), "unknown key 'colour'"),
        (lambda r: r.pop("source"), "'source' is missing"),
        (lambda r: r.pop("examples"), "'examples' is missing"),
        (lambda r: r["examples"].update(maybe=["x"]), "unknown key 'maybe'"),
        (lambda r: r["examples"].update(fires=["a yellow banana"]), "at least 3"),
        (lambda r: r["examples"].update(must_not_fire=[]), "at least 3"),
        (lambda r: r["examples"]["fires"].append("an apple"), "should fire"),
        (lambda r: r["examples"]["must_not_fire"].append("the yellow banana"), "should not fire"),
        (lambda r: r.update(severity="allow"), "severity is 'allow'"),
        (lambda r: r.update(severity="unavailable"), "severity is 'unavailable'"),
        (lambda r: r.update(input_severity="mild"), "severity is 'mild'"),
        (lambda r: r.update(direction=["sideways"]), "direction is"),
        (lambda r: r.update(direction="document"), "direction is"),
        (lambda r: r.update(patterns=["(unclosed"]), "not a valid regular expression"),
        (lambda r: r.update(patterns=[]), "at least one pattern"),
        (lambda r: r.update(patterns="yellow banana"), "must be a list"),
        (lambda r: r.update(keywords=[]), "need each other"),
        (lambda r: r.update(when=["chest-pain + yellow-banana"]), "'yellow-banana' is not in lexicon/concepts.yaml"),
        (lambda r: r.update(keywords=["Banana"]), "lower case"),
        (lambda r: r.update(message=" "), "not empty"),
        (lambda r: r.update(reviewed="soon"), "must be a date"),
        (lambda r: r.update(is_asserted="yes"), "true or false"),
        (lambda r: r.update(not_when=["figure"]), "not_when is ['figure']; use a list of lasting, over, slight"),
    ],
)
def test_an_odd_rule_stops_the_start_and_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    rule = {**GOOD, "examples": {key: list(value) for key, value in GOOD["examples"].items()}}
    change(rule)
    with pytest.raises(RuleError, match=r"some\.yaml, rule test\.rule") as error:
        load_rules(write(tmp_path / "rules", rule))
    assert said in str(error.value)


def test_the_same_id_in_two_files_stops_the_start(tmp_path: Path) -> None:
    write(tmp_path / "rules", GOOD)
    with pytest.raises(RuleError, match="used twice"):
        load_rules(write(tmp_path / "rules", GOOD, name="other.yaml"))


@pytest.mark.parametrize(
    "text", ["", "{}", "- just a text", "- id: [unclosed", "a: 1\nb: 2", "- id: a\n  id: b", "\x80\x81"]
)
def test_a_file_that_holds_no_rules_stops_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "some.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(RuleError, match=r"some\.yaml"):
        load_rules(tmp_path)


def test_a_wrong_path_stops_the_start(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RuleError, match="no rule file"):
            load_rules(folder)


def test_the_version_changes_with_a_single_character(tmp_path: Path) -> None:
    first = load_rules(write(tmp_path / "rules", GOOD)).version
    assert first.startswith("2026-01-02+")
    assert load_rules(write(tmp_path / "rules", {**GOOD, "title": "A rule!"})).version != first


@pytest.mark.parametrize("name", ["cues.yaml", "concepts.yaml", "drugs.txt"])
def test_the_version_changes_with_the_words_that_verdicts_hang_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first = load_rules(write(tmp_path / "rules", GOOD)).version
    shutil.copytree(lexicon.FOLDER, tmp_path / "lexicon")
    monkeypatch.setattr(lexicon, "FOLDER", tmp_path / "lexicon")
    assert load_rules(tmp_path / "rules").version == first
    with (tmp_path / "lexicon" / name).open("a", encoding="utf-8") as file:
        file.write("# one more word\n")
    assert load_rules(tmp_path / "rules").version != first


def test_the_rules_of_the_product_cover_what_they_must() -> None:
    ids = {rule.id for rule in load_rules(RULES_DIR).rules}
    needed = "acute-coronary stroke anaphylaxis sepsis meningitis self-harm ectopic pre-eclampsia pulmonary-embolism"
    assert {f"emergency.{name}" for name in needed.split()} <= ids
    assert {"injection.override", "injection.forged-turn", "harm.falsify-record", "claim.false-reassurance"} <= ids
