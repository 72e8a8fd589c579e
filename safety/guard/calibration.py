"""Thresholds of the trained guard, from texts it has not seen, and the figures of its card.

The promise is made group by group (Mondrian conformal): the worst group decides. Where both promises cannot be kept
at once the guard would have to abstain on much that is harmless, and without a judge every abstention is held; so the
share of harmless texts that may be held for doubt is bounded, and what that costs in recall stands in the card.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

from safety.guard.conformal import Opinion, Thresholds, calibrate
from safety.guard.corpus import Example
from safety.guard.encoder import GuardEncoder

HEADER = """\
# Made by `bedside train guard` from texts that the heads were not trained on; see MODEL_CARD.md. Logits.
# A text is raised where it can be harmful and cannot be harmless, passed where it is the other way round; else the
# guard abstains, and the model as judge or a hold decides.
"""


@dataclass(frozen=True, slots=True)
class Promise:
    """alpha_missed of harmful texts may fall outside their set; alpha_alarmed of harmless ones, or of those of a named
    group where that is harder; at most max_doubted of harmless texts may be held for doubt."""

    alpha_missed: float
    alpha_alarmed: float
    max_doubted: float
    groups: Mapping[str, float]


PROMISES = {
    "harm": Promise(0.01, 0.003, 0.003, {"pairs": 0.02, "authored_ask": 0.05, "authored_chat": 0.05}),
    "override": Promise(0.05, 0.004, 0.004, {}),
    "errand": Promise(0.02, 0.0006, 0.0006, {"authored": 0.05}),
}


def score_examples(encoder: GuardEncoder, examples: Mapping[str, Sequence[Example]]) -> dict[str, list[float]]:
    """Target -> the logit of each of its examples; a text that several targets know is read once."""
    texts = sorted({example.text for of_target in examples.values() for example in of_target})
    places = {text: place for place, text in enumerate(texts)}
    scores = encoder.score(texts)
    return {
        target: [float(scores[target][places[e.text]]) for e in of_target] for target, of_target in examples.items()
    }


def choose_thresholds(target: str, examples: Sequence[Example], logits: Sequence[float]) -> Thresholds:
    """From the dev split. Raises ValueError if a class is too small for its promise."""
    promise = PROMISES[target]
    classes: dict[bool, list[float]] = {True: [], False: []}
    groups: dict[str, list[float]] = defaultdict(list)
    for example, logit in zip(examples, logits, strict=True):
        if example.split != "dev":
            continue
        classes[example.is_positive].append(logit)
        if not example.is_positive and example.source in promise.groups:
            groups[example.source].append(logit)
    found = calibrate(classes[True], classes[False], promise.alpha_missed, promise.alpha_alarmed)
    worst = [_upper(group, promise.groups[source]) for source, group in groups.items()]
    harmless_to = max([found.harmless_to, *worst])
    doubted_from = max([_upper(classes[False], promise.max_doubted), *worst])
    return Thresholds(round(max(found.harmful_from, doubted_from), 3), round(harmless_to, 3))


def _upper(logits: Sequence[float], share: float) -> float:
    """The logit that at most this share of texts is above; minus infinity of none."""
    return float(np.quantile(logits, 1 - share, method="higher")) if logits else -np.inf


def write_thresholds(path: Path, thresholds: Mapping[str, Thresholds]) -> None:
    lines = yaml.safe_dump({target: asdict(values) for target, values in thresholds.items()}, sort_keys=False)
    path.write_text(HEADER + lines, encoding="utf-8")


def describe(target: str, examples: Sequence[Example], logits: Sequence[float], thresholds: Thresholds) -> list[str]:
    """A line a set of the held split: how many texts are raised or held for doubt."""
    counts: dict[tuple[bool, str], list[bool]] = defaultdict(list)
    for example, logit in zip(examples, logits, strict=True):
        if example.split == "held":
            counts[not example.is_positive, example.source].append(thresholds.opinion(logit) is not Opinion.PASS)
    return [
        f"| {target} | {source} | {'harmless' if is_harmless else 'harmful'} | {np.mean(held):.1%} of {len(held)} |"
        for (is_harmless, source), held in sorted(counts.items())
    ]
