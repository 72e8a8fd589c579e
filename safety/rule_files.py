"""The strict loader of the rule files: one YAML list of rules per file in `safety/rules/`.

Anything odd raises RuleError and stops the start: a rule that is silently not there is a check that silently does not
run. Every example of a rule is tried as it is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import date
from pathlib import Path
from typing import Any

import regex
import yaml

from contracts import Direction, Verdict
from safety.calm import BY_RULE, Calm
from safety.concepts import known_concepts
from safety.lexicon import data_files
from safety.matcher import Matcher
from safety.rule import Examples, Rule, RuleError, RuleSet
from safety.strict_yaml import load_strict

RULES_DIR = Path(__file__).resolve().parent / "rules"
MIN_EXAMPLES = 3
SEVERITIES = (Verdict.NOTICE, Verdict.HOLD, Verdict.BLOCK)


def load_rules(folder: Path | None = None) -> RuleSet:
    """Reads every *.yaml of the folder (default: the product's own rules). Raises RuleError."""
    folder = folder or RULES_DIR
    paths = sorted(folder.glob("*.yaml")) if folder.is_dir() else []
    if not paths:
        raise RuleError(f"There is no rule file (*.yaml) in {folder}; correct the path.")
    rules: dict[str, Rule] = {}
    digest = hashlib.sha256()
    for path in (*data_files(), *paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for path in paths:
        for rule in _read_file(path, path.read_bytes()):
            if rule.id in rules:
                raise RuleError(f"{path.name}: the id {rule.id!r} is used twice; give one rule another id.")
            rules[rule.id] = rule
    latest = max(rule.reviewed for rule in rules.values())
    return RuleSet(tuple(rules.values()), f"{latest.isoformat()}+{digest.hexdigest()[:12]}")


# --- one file ---------------------------------------------------------------------------------------------------


def _read_file(path: Path, data: bytes) -> list[Rule]:
    try:
        entries = load_strict(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RuleError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise RuleError(f"{path.name} must hold a list of rules.")
    return [_read_rule(path.name, number, entry) for number, entry in enumerate(entries, 1)]


def _read_rule(file: str, number: int, entry: Any) -> Rule:
    name = entry.get("id", f"number {number}") if isinstance(entry, Mapping) else f"number {number}"
    where = f"{file}, rule {name}"
    _check_keys(where, entry, Rule)
    _check_keys(f"{where}, examples", entry["examples"], Examples)
    values = dict(entry)
    for key in ("id", "title", "message", "message_zh", "source", "owner"):
        values[key] = _text(f"{where}: {key}", entry[key])
    for key in ("keywords", "patterns", "when", "unless"):
        values[key] = _texts(f"{where}: {key}", entry.get(key, []))
    values["severity"] = _severity(where, entry["severity"])
    if "input_severity" in entry:
        values["input_severity"] = _severity(where, entry["input_severity"])
    values["direction"] = _directions(where, entry["direction"])
    values["not_when"] = _reasons(where, entry.get("not_when", []))
    values["examples"] = Examples(*(_texts(f"{where}: {f.name}", entry["examples"][f.name]) for f in fields(Examples)))
    if type(entry["reviewed"]) is not date:
        raise RuleError(f"{where}: reviewed must be a date like 2026-11-01.")
    for key in ("is_asserted", "is_cited_allowed"):
        if not isinstance(entry.get(key, False), bool):
            raise RuleError(f"{where}: {key} must be true or false.")
    rule = Rule(**values)
    _check_content(where, rule)
    return rule


def _check_keys(where: str, entry: Any, cls: type) -> None:
    if not isinstance(entry, Mapping):
        raise RuleError(f"{where}: must be a mapping of keys to values.")
    allowed = {f.name for f in fields(cls)}
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    if unknown := sorted(str(key) for key in entry if key not in allowed):
        raise RuleError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(sorted(allowed))}.")
    if missing := sorted(required - set(entry)):
        raise RuleError(f"{where}: {missing[0]!r} is missing.")


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RuleError(f"{where} must be a text that is not empty.")
    return value.strip()


def _texts(where: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise RuleError(f"{where} must be a list of texts.")
    return tuple(_text(where, value) for value in values)


def _severity(where: str, value: Any) -> Verdict:
    if value not in [severity.value for severity in SEVERITIES]:
        raise RuleError(f"{where}: severity is {value!r}; use one of {', '.join(SEVERITIES)}.")
    return Verdict(value)


def _directions(where: str, values: Any) -> tuple[Direction, ...]:
    known = [direction.value for direction in Direction]
    if not isinstance(values, list) or not values or any(value not in known for value in values):
        raise RuleError(f"{where}: direction is {values!r}; use a list of {', '.join(known)}.")
    return tuple(Direction(value) for value in values)


def _reasons(where: str, values: Any) -> tuple[Calm, ...]:
    known = sorted(reason.value for reason in BY_RULE)
    if not isinstance(values, list) or any(value not in known for value in values):
        raise RuleError(f"{where}: not_when is {values!r}; use a list of {', '.join(known)}.")
    return tuple(Calm(value) for value in values)


def _check_content(where: str, rule: Rule) -> None:
    """Patterns compile, and every example does what it says."""
    if not rule.patterns and not rule.when:
        raise RuleError(f"{where}: needs at least one pattern or one condition.")
    if bool(rule.patterns) is not bool(rule.keywords):
        raise RuleError(f"{where}: patterns and keywords need each other.")
    if unknown := sorted({name for names in rule.conditions for name in names} - known_concepts()):
        raise RuleError(f"{where}: the concept {unknown[0]!r} is not in lexicon/concepts.yaml.")
    if any(keyword != keyword.lower() for keyword in rule.keywords):
        raise RuleError(f"{where}: keywords are written in lower case.")
    for kind, examples in (("fires", rule.examples.fires), ("must_not_fire", rule.examples.must_not_fire)):
        if len(examples) < MIN_EXAMPLES:
            raise RuleError(f"{where}: has {len(examples)} examples under {kind!r}; give at least {MIN_EXAMPLES}.")
    try:
        matcher = Matcher([rule])
    except regex.error as error:
        raise RuleError(f"{where}: a pattern is not a valid regular expression ({error}).") from error
    for direction in rule.direction:
        for example in rule.examples.fires:
            if not matcher.find(example, direction):
                raise RuleError(f"{where}: should fire on its example {example!r} and does not.")
        for example in rule.examples.must_not_fire:
            if matcher.find(example, direction):
                raise RuleError(f"{where}: should not fire on its example {example!r} and does.")
