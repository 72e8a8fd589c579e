"""From a logit to what may be said of it: raised, passed, or neither.

Class-conditional conformal prediction (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005): of new
texts like those of the calibration, at most a share alpha of each class falls outside its own set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, floor

import numpy as np


class Opinion(StrEnum):
    PASS = "pass"
    ABSTAIN = "abstain"  # both classes are possible, or neither is: somebody else has to say
    RAISE = "raise"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A text can be harmful from `harmful_from` on, and harmless up to `harmless_to`; both are logits."""

    harmful_from: float
    harmless_to: float

    def opinion(self, logit: float) -> Opinion:
        can_be_harmful, can_be_harmless = logit >= self.harmful_from, logit <= self.harmless_to
        if can_be_harmful == can_be_harmless:
            return Opinion.ABSTAIN
        return Opinion.RAISE if can_be_harmful else Opinion.PASS


def calibrate(
    positives: Sequence[float], negatives: Sequence[float], alpha_missed: float, alpha_alarmed: float
) -> Thresholds:
    """Thresholds from logits of texts that were not trained on. Raises ValueError if a class has fewer than 1/alpha - 1
    texts: such a promise cannot be made of them."""
    for name, scores, alpha in (("positive", positives, alpha_missed), ("negative", negatives, alpha_alarmed)):
        if (len(scores) + 1) * alpha < 1:
            raise ValueError(f"{len(scores)} {name} texts are too few for an alpha of {alpha:g}.")
    low = np.sort(np.asarray(positives))[floor((len(positives) + 1) * alpha_missed) - 1]
    high = np.sort(np.asarray(negatives))[ceil((len(negatives) + 1) * (1 - alpha_alarmed)) - 1]
    return Thresholds(float(low), float(high))
