"""From a logit to what may be said of it: raised, passed, or neither.

Class-conditional conformal prediction (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005): of new
texts like those of the calibration, at most a share alpha of each class falls outside its own set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

TARGETS = ("harm", "override", "errand", "emergency", "self-harm")
DOCUMENT_TARGETS = ("errand",)  # the others are of questions
_HAN = re.compile("[\u3400-\u9fff]")


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


# What is told before it is asked ("we have no children yet", "the swab count was short") scores as high alone as a
# request, and a short order ("Total it for me.") as despair; so a sentence of a longer text has thresholds of its own.
_BY_PART = {"harm", "harm.zh", "emergency", "emergency.asked", "self-harm", "self-harm.asked"}
# A danger that is asked about ("should I wait, she can't lift her arm?") scores lower than one that is told, and still
# far above what is asked for knowledge.
_BY_FORM = {"emergency", "self-harm"}
_ASKED = re.compile(r"(?:[^.!?。！？]|\.(?=\d))*[?？]\W*")  # one sentence, and a question


def has_han(text: str) -> bool:
    """Whether there is Chinese in it."""
    return bool(_HAN.search(text))


def num_han(text: str) -> int:
    """How many Chinese characters."""
    return len(_HAN.findall(text))


def threshold_name(target: str, text: str, is_part: bool = False) -> str:
    """Which thresholds a text is held against, or a sentence that is a part of one: Chinese has its own, as the encoder
    reads English, and so has a single question."""
    name = f"{target}.zh" if has_han(text) else target
    if target in _BY_FORM and _ASKED.fullmatch(text):
        name += ".asked"
    return f"{name}.part" if is_part and name in _BY_PART else name
