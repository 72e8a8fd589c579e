"""The strict loader of `safety/knowledge/`: what is known of drugs, as data that a hospital may replace.

Anything odd raises RuleError and stops the start, as with the rules: knowledge that silently is not there is a check
that silently does not run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from contracts import Verdict
from safety.medication import DrugNames
from safety.rule import RuleError
from safety.strict_yaml import load_strict

KNOWLEDGE_DIR = Path(__file__).resolve().parent / "knowledge"
EFFECTS = {"interrupt": Verdict.HOLD, "show": Verdict.NOTICE}
CONDITIONS = ("pregnant", "lactating", "hepatic", "egfr_below", "age_from", "age_below", "qtc_from")
_HEAD = {"title", "source", "reviewed", "owner", "entries"}
_EXTRA = {"allergies": {"words"}, "doses": {"per_kg"}}


@dataclass(frozen=True, slots=True)
class Interaction:
    id: str
    first: frozenset[str]  # names of drugs
    second: frozenset[str]
    effect: Verdict
    why: str
    why_zh: str
    source: str


@dataclass(frozen=True, slots=True)
class CrossReaction:
    id: str
    allergy: frozenset[str]
    concerns: frozenset[str]
    effect: Verdict


@dataclass(frozen=True, slots=True)
class Caution:
    id: str
    condition: str  # one of CONDITIONS
    limit: float  # of the condition, 0 where it has none
    drugs: frozenset[str]
    effect: Verdict
    why: str
    why_zh: str


@dataclass(frozen=True, slots=True)
class DoseRange:
    """In `unit`, at once and a day; most_a_day is a week's dose where is_weekly."""

    unit: str
    least: float
    most: float
    most_a_day: float
    is_weekly: bool = False


@dataclass(frozen=True, slots=True)
class Knowledge:
    """version is the date of the latest review and a hash over all files. sources maps a file's stem to what it says of
    its sources."""

    version: str
    names: DrugNames
    classes: Mapping[str, frozenset[str]]
    allergy_words: Mapping[str, str]  # how an allergy list names a class -> the class
    interactions: tuple[Interaction, ...]
    cross_reactions: tuple[CrossReaction, ...]
    cautions: tuple[Caution, ...]
    doses: Mapping[str, DoseRange]
    doses_per_kg: Mapping[str, DoseRange]
    units: Mapping[str, Mapping[str, float]]  # unit -> smaller unit -> how many
    one_at_a_time: tuple[str, ...]  # classes
    look_alikes: Mapping[str, frozenset[str]]
    sources: Mapping[str, str]

    def factor(self, larger: str, smaller: str) -> float | None:
        """How many of the smaller unit make one of the larger; None if neither leads to the other."""
        if larger == smaller:
            return 1.0
        for unit, count in self.units.get(larger, {}).items():
            if (rest := self.factor(unit, smaller)) is not None:
                return count * rest
        return None


def load_knowledge(folder: Path | None = None) -> Knowledge:
    """Reads the folder (default: the product's own). Raises RuleError naming the file and what to change."""
    folder = folder or KNOWLEDGE_DIR
    digest = hashlib.sha256()
    files: dict[str, dict[str, Any]] = {}
    for name in (
        "classes",
        "names",
        "interactions",
        "allergies",
        "cautions",
        "doses",
        "duplicates",
        "look_alikes",
        "units",
    ):
        path = folder / f"{name}.yaml"
        try:
            data = path.read_bytes()
            files[name] = _checked(path.name, load_strict(data), _HEAD | _EXTRA.get(name, set()))
        except OSError as error:
            raise RuleError(f"{path.name} cannot be read in {folder} ({error.strerror}); restore it.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RuleError(f"{path.name} is not valid YAML: {error}") from error
        digest.update(path.name.encode() + b"\0" + data + b"\0")
    latest = max(file["reviewed"] for file in files.values())
    try:
        return _Reader(files).read(f"{latest.isoformat()}+{digest.hexdigest()[:12]}")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, RuleError):
            raise
        raise RuleError(f"A file of {folder} has an entry of the wrong form: {error!r}.") from error


def _checked(name: str, data: Any, keys: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise RuleError(f"{name} must be a mapping of {', '.join(sorted(keys))}.")
    if unknown := sorted(str(key) for key in data if key not in keys):
        raise RuleError(f"{name}: unknown key {unknown[0]!r}; the keys are {', '.join(sorted(keys))}.")
    if missing := sorted(_HEAD - set(data)):
        raise RuleError(f"{name}: {missing[0]!r} is missing.")
    if type(data["reviewed"]) is not date:
        raise RuleError(f"{name}: reviewed must be a date like 2026-11-01.")
    if not data["entries"]:
        raise RuleError(f"{name}: holds no entries.")
    return data


class _Reader:
    """Turns the files' values into Knowledge; holds them while it does."""

    def __init__(self, files: Mapping[str, dict[str, Any]]) -> None:
        self._files = files
        self._classes = {name: frozenset(map(str, drugs)) for name, drugs in files["classes"]["entries"].items()}
        aliases = {str(alias).lower(): drug for drug, names in files["names"]["entries"].items() for alias in names}
        self._aliases = aliases

    def read(self, version: str) -> Knowledge:
        files = self._files
        units = {unit: dict(parts) for unit, parts in files["units"]["entries"].items()}
        _refuse_cycles(units)
        doses = dict(self._doses(files["doses"]["entries"]))
        per_kg = {d: DoseRange(unit, 0, most, day) for d, (unit, most, day) in files["doses"]["per_kg"].items()}
        known = (
            {drug for drugs in self._classes.values() for drug in drugs} | set(files["names"]["entries"]) | set(doses)
        )
        known |= {
            drug for entry in files["cautions"]["entries"] for drug in entry["drugs"] if drug not in self._classes
        }
        classes = self._classes | {drug: frozenset({drug}) for drug in known if drug not in self._classes}
        return Knowledge(
            version=version,
            names=DrugNames.of({name: name for name in known} | self._aliases),
            classes={name: self._with_aliases(drugs) for name, drugs in classes.items()},
            allergy_words={
                w.lower(): c for c, words in files["allergies"]["words"].items() for w in self._class(c, words)
            },
            interactions=tuple(self._interaction(entry) for entry in files["interactions"]["entries"]),
            cross_reactions=tuple(self._cross_reaction(entry) for entry in files["allergies"]["entries"]),
            cautions=tuple(self._caution(entry) for entry in files["cautions"]["entries"]),
            doses=doses,
            doses_per_kg=per_kg,
            units=units,
            one_at_a_time=tuple(self._class(name, name) for name in files["duplicates"]["entries"]),
            look_alikes=_pairs(files["look_alikes"]["entries"]),
            sources={name: str(file["source"]) for name, file in files.items()},
        )

    def _class(self, name: str, value: Any) -> Any:
        if name not in self._classes:
            raise RuleError(f"There is no class {name!r} in classes.yaml.")
        return value

    def _with_aliases(self, drugs: frozenset[str]) -> frozenset[str]:
        """The drugs under the names by which they are found in a text."""
        return frozenset(self._aliases.get(drug, drug) for drug in drugs)

    def _members(self, name: str) -> frozenset[str]:
        return self._with_aliases(self._classes.get(name, frozenset({name})))

    def _effect(self, entry: Mapping[str, Any]) -> Verdict:
        if entry["effect"] not in EFFECTS:
            raise RuleError(f"{entry['id']}: effect is {entry['effect']!r}; use {' or '.join(EFFECTS)}.")
        return EFFECTS[entry["effect"]]

    def _interaction(self, entry: dict[str, Any]) -> Interaction:
        _only(entry, {"id", "between", "effect", "why", "why_zh", "source"})
        first, second = entry["between"]
        source = entry["source"]
        source = self._files["interactions"]["source"].partition("; else")[0] if source == "ONC" else source
        return Interaction(
            entry["id"], self._members(first), self._members(second), self._effect(entry), entry["why"],
            entry["why_zh"], source,
        )  # fmt: skip

    def _cross_reaction(self, entry: dict[str, Any]) -> CrossReaction:
        _only(entry, {"id", "allergy", "concerns", "effect"})
        return CrossReaction(
            entry["id"], self._members(self._class(entry["allergy"], entry["allergy"])),
            self._members(self._class(entry["concerns"], entry["concerns"])), self._effect(entry),
        )  # fmt: skip

    def _caution(self, entry: dict[str, Any]) -> Caution:
        _only(entry, {"id", "when", "drugs", "effect", "why", "why_zh"})
        condition, _, limit = entry["when"].partition(" ")
        if condition not in CONDITIONS:
            raise RuleError(f"{entry['id']}: when is {condition!r}; use one of {', '.join(CONDITIONS)}.")
        drugs = frozenset(drug for name in entry["drugs"] for drug in self._members(name))
        return Caution(
            entry["id"], condition, float(limit or 0), drugs, self._effect(entry), entry["why"], entry["why_zh"]
        )

    def _doses(self, entries: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, DoseRange]]:
        for drug, (unit, least, most, most_a_day, *how) in entries.items():
            if not 0 < least <= most <= most_a_day:
                raise RuleError(f"doses.yaml: {drug}: least, most and most a day must rise.")
            if how not in ([], ["weekly"]):
                raise RuleError(f"doses.yaml: {drug}: {how[0]!r} is not known; use weekly or nothing.")
            yield self._aliases.get(drug, drug), DoseRange(unit, least, most, most_a_day, bool(how))


def _only(entry: Mapping[str, Any], keys: set[str]) -> None:
    if set(entry) != keys:
        odd = sorted(set(entry) ^ keys)
        raise RuleError(
            f"{entry.get('id', 'an entry')}: {odd[0]!r} is unknown or missing; the keys are {sorted(keys)}."
        )


def _refuse_cycles(units: Mapping[str, Mapping[str, float]]) -> None:
    for start in units:
        path = [start]
        seen = {start}
        while path:
            for unit in units.get(path.pop(), {}):
                if unit == start:
                    raise RuleError(f"units.yaml: {start!r} is defined by itself; take the cycle out.")
                if unit not in seen:
                    seen.add(unit)
                    path.append(unit)


def _pairs(entries: Sequence[Sequence[str]]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for first, second in entries:
        found.setdefault(first, set()).add(second)
        found.setdefault(second, set()).add(first)
    return {name: frozenset(others) for name, others in found.items()}
