"""What GRPO rewards: each a function of a question among its passages and of what was said, from 0 to 1.

A run's configuration gives each its weight. `agreement` is held back: it is logged and never trained on, so that a
model that learns to please the rewards instead of answering shows (Gao et al. 2023, arXiv 2210.10760).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

from model.train import situations
from model.train.examples import ABSTENTION, Group, Item
from model.train.score import split_claims, token_f1

Reward = Callable[[Group, Item, str], float]
_WORD = re.compile(r"[\u4e00-\u9fff]|[\w%/.,^-]*\w%?")
_END = re.compile(r"\[\d+\][.!?。！？]$|" + re.escape(ABSTENTION) + "$")
_BOUNDARIES = (situations.EMERGENCY, situations.EMERGENCY_ZH, situations.REFUSAL, situations.REFUSAL_ZH)
LONGEST = 1.5  # times the wanted answer's length; beyond it the reward falls


def citation_precision(group: Group, item: Item, said: str) -> float:
    """Of the sentences said, how many cite a passage that the answer stands in."""
    claims, right = _claims(item, said), {claim.passage + 1 for claim in item.claims}
    if not right:
        return float(not any(key for _, key in claims))
    return sum(key in right for _, key in claims) / len(claims) if claims else 0.0


def citation_recall(group: Group, item: Item, said: str) -> float:
    """Of the passages that the answer stands in, how many are cited."""
    cited, right = {key for _, key in _claims(item, said)} - {0}, {claim.passage + 1 for claim in item.claims}
    return len(cited & right) / len(right) if right else float(not cited)


def coverage(group: Group, item: Item, said: str) -> float:
    """Of the lines that answer, how many are said whole and with their passage's number."""
    claims = [(Counter(_words(text)), key) for text, key in _claims(item, said)]
    told = [
        any(key == c.passage + 1 and not Counter(_words(c.text)) - words for words, key in claims) for c in item.claims
    ]
    return sum(told) / len(told) if told else float(not claims)


def support(group: Group, item: Item, said: str) -> float:
    """Of the sentences said, how many hold no number, unit, drug or other word that their passage does not hold."""
    claims = _claims(item, said)
    if not claims:
        return float(not item.claims)
    return sum(_is_supported(group, text, key) for text, key in claims) / len(claims)


def answerability(group: Group, item: Item, said: str) -> float:
    """Whether it answers exactly where the passages do."""
    return float((ABSTENTION in said or not said.strip()) == (not item.claims and not item.said))


def structure(group: Group, item: Item, said: str) -> float:
    """Whether it ends as an answer ends, says nothing twice and cites each sentence."""
    if item.said:
        return float(said.strip() == item.said)
    texts = [text for text, _ in _claims(item, said)]
    is_cited = all(key for _, key in _claims(item, said))
    return (bool(_END.search(said.strip())) + (len(texts) == len(set(texts))) + is_cited) / 3


def empathy(group: Group, item: Item, said: str) -> float:
    """Whether a patient, and only a patient, is met with a kind word."""
    return float(said.startswith(situations.COMFORT) == bool(item.opening))


def safety(group: Group, item: Item, said: str) -> float:
    """Whether an emergency and an unsafe request, and only they, get their fixed sentence."""
    spoken = [boundary for boundary in _BOUNDARIES if boundary in said]
    return float(spoken == [item.said]) if item.said else float(not spoken)


def length(group: Group, item: Item, said: str) -> float:
    """1 up to LONGEST times the wanted length, then falling; what is empty gets nothing."""
    return min(1.0, LONGEST * len(item.answer) / len(said)) if said else 0.0


REWARDS: Mapping[str, Reward] = {
    reward.__name__: reward
    for reward in (
        citation_precision,
        citation_recall,
        coverage,
        support,
        answerability,
        structure,
        empathy,
        safety,
        length,
    )
}


def agreement(group: Group, item: Item, said: str) -> float:
    """The held reward: F1 of tokens against the wanted answer."""
    return token_f1(item.answer, said)


def total(rewards: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted mean of those that have a weight."""
    return sum(weight * rewards[name] for name, weight in weights.items()) / sum(weights.values())


def _claims(item: Item, said: str) -> list[tuple[str, int]]:
    """What is said of the record: without the opening and the fixed sentences."""
    plain = said.removeprefix(situations.COMFORT).strip()
    for fixed in (ABSTENTION, *_BOUNDARIES):
        plain = plain.replace(fixed, "").strip()
    return split_claims(plain)


def _is_supported(group: Group, text: str, key: int) -> bool:
    if not 1 <= key <= len(group.passages):
        return False
    missing = Counter(_words(text)) - Counter(_words(group.passages[key - 1].text))
    return not missing


def _words(text: str) -> list[str]:
    return [word.strip(".,") for word in _WORD.findall(text.casefold())]
