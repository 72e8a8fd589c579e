"""The patient's banner and the strip that says what answers, as nodes."""

from __future__ import annotations

from collections.abc import Sequence

from app.ui.element import Node, node
from app.ui.text import count, say
from contracts import ModelInfo, Patient


def patient_nodes(patient: Patient) -> list[Node]:
    """Who the patient is and what bears on every answer; allergies stand out, and not entered never reads as none."""
    problems = count("count.problem", len(patient.problems))
    medications = count("count.medication", len(patient.medications))
    lists = [_list("patient.problems", patient.problems), _list("patient.medications", patient.medications)]
    summary = node("summary", say("patient.brief", problems=problems, medications=medications))
    return [
        node(
            "section",
            node("div", node("span", display_name(patient), style="name"), *_facts(patient), style="who"),
            _allergies(patient.allergies),
            *[node("div", line, style="wide") for line in lists],
            node("details", summary, *lists, style="brief"),
            style="patient",
            aria_label=say("patient.pick"),
        )
    ]


def display_name(patient: Patient) -> str:
    return patient.name or say("patient.unnamed")


def describe(patient: Patient) -> str:
    """Name and age, to tell patients apart in a list."""
    age = "" if patient.age_years is None else f", {patient.age_years:g}"
    return f"{display_name(patient)}{age}"


def strip_nodes(info: ModelInfo, is_demo: bool) -> list[Node]:
    """What answers; a model that must not be used for care says so."""
    if is_demo and info.is_embedded:
        return [node("p", say("strip.demo", name=info.name), style="strip demo")]
    if info.is_embedded:
        return [node("p", say("strip.embedded", name=info.name), style="strip demo")]
    words = say("strip.model", name=info.name, precision=info.precision, context=f"{info.context_length:,}")
    return [node("p", words, style="strip")]


def _facts(patient: Patient) -> list[Node]:
    facts = [
        _fact("", patient.age_years, "patient.age", "age"),
        _fact("", None if patient.sex is None else say(f"sex.{patient.sex}"), None, ""),
        _fact("", patient.weight_kg, "patient.weight", "weight"),
        _fact(say("patient.egfr"), patient.egfr_ml_min, "patient.egfr.value", "egfr"),
        _fact(say("patient.qtc"), patient.qtc_ms, "patient.qtc.value", "qtc"),
    ]
    flags = {
        "patient.pregnant": patient.pregnant,
        "patient.lactating": patient.lactating,
        "patient.hepatic": patient.hepatic_impairment,
    }
    return [fact for fact in facts if fact] + [node("span", say(key), style="tag") for key, on in flags.items() if on]


def _fact(label: str, value: float | str | None, key: str | None, name: str) -> Node | None:
    if value is None:
        return None
    words = say(key, **{name: f"{value:g}"}) if key and not isinstance(value, str) else str(value)
    return node("span", node("span", label, style="label") if label else None, words, style="fact")


def _allergies(allergies: Sequence[str]) -> Node:
    if not allergies:
        return node("p", say("patient.allergies.unknown"), style="allergies unknown")
    return node("p", node("strong", say("patient.allergies"), style="label"), ", ".join(allergies), style="allergies")


def _list(key: str, items: Sequence[str]) -> Node:
    words = ", ".join(items) if items else say("patient.not_entered")
    return node("p", node("span", say(key), style="label"), words, style="list")
