"""The gate: limits in precision_gate.yaml, held against a report's figures; a failure names the layers behind it.

Knows nothing of models and of how the figures were measured.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

GATE_FILE = Path(__file__).resolve().parent / "precision_gate.yaml"
MEASURES = (
    "kl_mean", "kl_p99", "top1_agreement", "perplexity_ratio", "experts_overlap", "router_overlap", "expert_error",
    "layer_error", "embedding_error", "head_kl", "changed_number", "changed_drug", "changed_negation",
    "changed_verdict",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Threshold:
    """One limit; exactly one of at_most and at_least is set."""

    measure: str
    unit: str
    why: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def limit(self) -> float:
        limit = self.at_most if self.at_most is not None else self.at_least
        assert limit is not None
        return limit

    def holds(self, value: float | None) -> bool:
        """Whether a figure keeps the limit. One that could not be measured, or is not a number, does not."""
        if value is None or not math.isfinite(value):
            return False
        return value <= self.limit if self.at_most is not None else value >= self.limit


@dataclass(frozen=True, slots=True)
class Gate:
    thresholds: tuple[Threshold, ...]
    version: str

    def get(self, measure: str) -> Threshold:
        return next(threshold for threshold in self.thresholds if threshold.measure == measure)


def load_gate(path: Path = GATE_FILE) -> Gate:
    """Reads the limits: each of MEASURES once. Raises ValueError naming file and entry."""
    data = path.read_bytes()
    try:
        entries = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path.name} must hold a list of thresholds.")
    thresholds = tuple(_read_threshold(path.name, number, entry) for number, entry in enumerate(entries, 1))
    named = [threshold.measure for threshold in thresholds]
    if wrong := [measure for measure in MEASURES if named.count(measure) != 1]:
        raise ValueError(f"{path.name}: {wrong[0]} must have exactly one threshold, not {named.count(wrong[0])}.")
    return Gate(thresholds, hashlib.sha256(data).hexdigest()[:12])


def _read_threshold(file: str, number: int, entry: Any) -> Threshold:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{file}, entry {number}: must be a mapping of keys to values.")
    where = f"{file}, entry {number} ({entry.get('measure')})"
    known = [field.name for field in fields(Threshold)]
    if unknown := sorted(str(key) for key in entry if key not in known):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(known)}.")
    if entry.get("measure") not in MEASURES:
        raise ValueError(f"{where}: measure must be one of {', '.join(MEASURES)}.")
    if missing := [key for key in ("unit", "why") if not isinstance(entry.get(key), str) or not entry[key].strip()]:
        raise ValueError(f"{where}: {missing[0]} must be a text that is not empty.")
    limits = [entry[key] for key in ("at_most", "at_least") if key in entry]
    if len(limits) != 1 or isinstance(limits[0], bool) or not isinstance(limits[0], int | float):
        raise ValueError(f"{where}: give one number as at_most or at_least.")
    return Threshold(**entry)


def judge(gate: Gate, figures: Mapping[str, float | None], layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{passed, version, checks, named_layers}: each limit with its value, and where it failed the layers to look at."""
    checks = [
        {
            "measure": threshold.measure,
            "value": figures[threshold.measure],
            "limit": threshold.limit,
            "direction": "at most" if threshold.at_most is not None else "at least",
            "unit": threshold.unit,
            "why": threshold.why,
            "passed": threshold.holds(figures[threshold.measure]),
        }
        for threshold in gate.thresholds
    ]
    passed = all(check["passed"] for check in checks)
    named = [] if passed else name_layers(gate, layers)
    return {"passed": passed, "version": gate.version, "checks": checks, "named_layers": named}


def name_layers(gate: Gate, layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """[{layer, reason}] of the layers whose own measures break a limit; if none does, the one with the lowest
    expert-set agreement, where the loss shows most."""
    named = [{"layer": layer["layer"], "reason": reason} for layer in layers for reason in _faults(gate, layer)]
    if named:
        return named
    routed = [layer for layer in layers if layer["experts_overlap"] is not None]
    if not routed:
        return []
    lowest = min(routed, key=lambda layer: float(layer["experts_overlap"]))
    agreement = f"{lowest['experts_overlap']:.1%}"
    reason = f"lowest expert-set agreement ({agreement}); no layer is damaged by itself, the loss is spread"
    return [{"layer": lowest["layer"], "reason": reason}]


def _faults(gate: Gate, layer: Mapping[str, Any]) -> list[str]:
    """What is wrong with a layer by itself: given the reference's own input."""
    faults = []
    is_routed = layer["is_moe"]
    if is_routed and not gate.get("router_overlap").holds(layer["router_overlap"]):
        faults.append(f"its router chooses other experts on the same input (agreement {_say(layer['router_overlap'])})")
    if is_routed and not gate.get("expert_error").holds(layer["worst_expert_error"]):
        error, usual = _say(layer["worst_expert_error"]), _say(layer["expert_error"])
        faults.append(f"expert {layer['worst_expert']} is damaged (relative error {error}, its neighbours {usual})")
    if not faults and not gate.get("layer_error").holds(layer["error"]):
        faults.append(f"its output is off on the same input (relative error {_say(layer['error'])})")
    return faults


def _say(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}"
