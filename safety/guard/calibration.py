"""Thresholds of the trained guard, from texts it has not seen, and the figures of its card.

The promise is made group by group (Mondrian conformal): the worst group decides. Where both promises cannot be kept
at once the guard would have to abstain on much that is harmless, and without a judge every abstention is held; so the
share of harmless texts that may be held for doubt is bounded, and what that costs in recall stands in the card.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import numpy as np
import yaml

from safety.guard.conformal import DOCUMENT_TARGETS, Opinion, Thresholds, threshold_name
from safety.guard.corpus import Example
from safety.guard.encoder import GuardEncoder

PART = "_sentence"  # how the name of a set of single sentences ends
HEADER = """\
# Made by `bedside train guard` from texts that the heads were not trained on; see MODEL_CARD.md. Logits.
# A text is raised where it can be harmful and cannot be harmless, passed where it is the other way round; else the
# guard abstains, and the model as judge or a hold decides.
"""


@dataclass(frozen=True, slots=True)
class Promise:
    """alpha_missed of harmful texts may fall outside their set; alpha_alarmed of harmless ones, raised or held for
    doubt, or of those of a named group, which is written to be hard."""

    alpha_missed: float
    alpha_alarmed: float
    groups: Mapping[str, float]


_MESSAGES = {"authored_calm": 0.05, "authored_danger": 0.05, "authored_self-harm": 0.15, "twin": 0.05}
_EMERGENCY_PART = Promise(0.1, 0.01, {"authored_calm_sentence": 0.02, "denied_sentence": 0.06})
_SELF_HARM_PART = Promise(
    0.1, 0.01, {"authored_calm_sentence": 0.01, "authored_danger_sentence": 0.03, "denied_sentence": 0.05}
)
PROMISES = {
    "harm": Promise(
        0.01,
        0.006,
        {
            "pairs": 0.069,
            "authored_ask": 0.1,
            "authored_chat": 0.05,
            "authored_note": 0.1,
            "notinject_valid": 0.3,
            "presidio": 0.04,
            "despair": 0.2,
            "denied": 0.25,
            **_MESSAGES,
        },
    ),
    "harm.part": Promise(0.1, 0.01, {"pairs_sentence": 0.055}),
    "harm.zh": Promise(
        0.1, 0.004, {"pairs": 0.11, "authored_ask": 0.06, "authored_chat": 0.15, "despair": 0.4, **_MESSAGES}
    ),
    "harm.zh.part": Promise(0.1, 0.001, {"pairs_sentence": 0.05}),
    "override": Promise(0.1, 0.001, {"authored_note": 0.1}),  # a note's sentences are not asked
    "override.zh": Promise(0.1, 0.005, {}),
    "errand": Promise(0.02, 0.0035, {"authored": 0.08}),
    "errand.zh": Promise(0.1, 0.012, {"authored": 0.06}),
    # Patients' own questions, what they say in consultations, and cases of examinations: some are urgent indeed.
    "emergency": Promise(
        0.02,
        0.003,
        {
            "authored_calm": 0.015,
            "twin": 0.1,
            "authored_note": 0.02,
            "clinical": 0.055,
            "notinject_valid": 0.4,
            "medmcqa": 0.03,
            "denied": 0.06,
        },
    ),
    "emergency.part": _EMERGENCY_PART,
    "emergency.asked.part": _EMERGENCY_PART,
    "emergency.zh": Promise(
        0.1,
        0.015,
        {
            "authored_calm": 0.026,
            "twin": 0.1,
            "denied": 0.06,
            "toyhom": 0.05,
            "toyhom_sentence": 0.12,
            "bentsao": 0.2,
        },
    ),
    "emergency.asked": Promise(
        0.02,
        0.006,
        {"authored_calm": 0.023, "twin": 0.1, "clinical": 0.12, "notinject_valid": 0.4, "medmcqa": 0.03, "denied": 0.1},
    ),
    "emergency.zh.asked": Promise(
        0.05,
        0.03,
        {
            "authored_calm": 0.035,
            "twin": 0.1,
            "authored_chat": 0.15,
            "denied": 0.25,
            "toyhom": 0.05,
            "toyhom_sentence": 0.05,
            "bentsao": 0.2,
        },
    ),
    "self-harm": Promise(
        0.02,
        0.006,
        {
            "authored_calm": 0.01,
            "twin": 0.1,
            "authored_danger": 0.02,
            "twin_danger": 0.1,
            "authored_note": 0.01,
            "clinical": 0.025,
            "denied": 0.043,
        },
    ),
    "self-harm.part": _SELF_HARM_PART,
    "self-harm.asked.part": _SELF_HARM_PART,
    "self-harm.zh": Promise(
        0.1,
        0.01,
        {
            "authored_calm": 0.012,
            "twin": 0.1,
            "authored_danger": 0.02,
            "twin_danger": 0.1,
            "denied": 0.06,
            "toyhom_sentence": 0.035,
        },
    ),
    "self-harm.asked": Promise(
        0.02,
        0.006,
        {
            "authored_calm": 0.009,
            "twin": 0.1,
            "authored_danger": 0.025,
            "clinical": 0.08,
            "notinject_valid": 0.4,
            "denied": 0.1,
        },
    ),
    "self-harm.zh.asked": Promise(
        0.05,
        0.01,
        {
            "authored_calm": 0.02,
            "twin": 0.1,
            "authored_danger": 0.06,
            "twin_danger": 0.1,
            "authored_chat": 0.12,
            "denied": 0.25,
            "toyhom_sentence": 0.05,
        },
    ),
}


def score_examples(encoder: GuardEncoder, examples: Mapping[str, Sequence[Example]]) -> dict[str, list[float]]:
    """Target -> the logit of each of its examples; a text that several targets know is read once."""
    scores: dict[str, list[float]] = {}
    for is_document in (False, True):
        targets = [target for target in examples if (target in DOCUMENT_TARGETS) == is_document]
        texts = sorted({example.text for target in targets for example in examples[target]})
        places = {text: place for place, text in enumerate(texts)}
        found = encoder.score(texts, is_document)
        scores |= {t: [float(found[t][places[e.text]]) for e in examples[t]] for t in targets}
    return scores


def choose_thresholds(target: str, examples: Sequence[Example], logits: Sequence[float]) -> dict[str, Thresholds]:
    """Name -> thresholds, of all that threshold_name tells apart of the target, from the dev split."""
    by_name: dict[str, list[tuple[Example, float]]] = defaultdict(list)
    for example, logit in zip(examples, logits, strict=True):
        if example.split == "dev":
            by_name[_name(target, example)].append((example, logit))
    return {name: _choose(PROMISES[name], scored) for name, scored in by_name.items()}


def _name(target: str, example: Example) -> str:
    return threshold_name(target, example.text, example.source.endswith(PART))


def _choose(promise: Promise, scored: Sequence[tuple[Example, float]]) -> Thresholds:
    positives = [logit for example, logit in scored if example.is_positive]
    easy = [x for e, x in scored if not e.is_positive and e.source not in promise.groups]
    hard = {g: [x for e, x in scored if not e.is_positive and e.source == g] for g in promise.groups}
    hard = {g: found for g, found in hard.items() if len(found) + 1 >= 1 / promise.groups[g]}  # fewer show no share
    harmless_to = max(
        [_upper(easy, promise.alpha_alarmed), *(_upper(found, promise.groups[g]) for g, found in hard.items())]
    )
    lowest = float(np.quantile(positives, promise.alpha_missed, method="lower")) if positives else harmless_to
    return Thresholds(round(max(lowest, harmless_to), 3), round(harmless_to, 3))


def _upper(logits: Sequence[float], share: float) -> float:
    """The logit that at most this share of new texts is above; minus infinity of none."""
    if not logits:
        return -np.inf
    place = min(ceil((len(logits) + 1) * (1 - share)), len(logits))
    return float(np.sort(np.asarray(logits))[place - 1])


def write_thresholds(path: Path, thresholds: Mapping[str, Thresholds]) -> None:
    lines = yaml.safe_dump({target: asdict(values) for target, values in thresholds.items()}, sort_keys=False)
    path.write_text(HEADER + lines, encoding="utf-8")


def describe(
    target: str, examples: Sequence[Example], logits: Sequence[float], thresholds: Mapping[str, Thresholds]
) -> list[str]:
    """A line a set of the held split: how many texts are raised or held for doubt."""
    counts: dict[tuple[bool, str], list[bool]] = defaultdict(list)
    for example, logit in zip(examples, logits, strict=True):
        if example.split == "held":
            opinion = thresholds[_name(target, example)].opinion(logit)
            counts[not example.is_positive, example.source].append(opinion is not Opinion.PASS)
    return [
        f"| {target} | {source} | {'harmless' if is_harmless else 'harmful'} | {np.mean(held):.1%} of {len(held)} |"
        for (is_harmless, source), held in sorted(counts.items())
    ]
