"""Exact figures of what was said: words, citations and abstentions, before any check. Knows nothing of models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from contracts import Passage
from model.train.examples import ABSTENTION, Group, Item

_CITED = re.compile(r"\s*\[(\d+)\]([.!?。！？])?")
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Figures:
    """Shares are 0..1. Of the answerable questions: f1 of tokens against the wanted answer; exact answers; verbatim,
    the sentences said that stand word for word in the passage they cite; cited_right, the sentences whose passage is
    one that the wanted answer cites; false_abstention. Of the unanswerable: abstention."""

    num_answerable: int
    num_unanswerable: int
    f1: float
    exact: float
    verbatim: float
    cited_right: float
    false_abstention: float
    abstention: float


def score(results: Iterable[tuple[Group, Item, str]]) -> Figures:
    """Figures of (group, item, what was said)."""
    answerable: list[tuple[Group, Item, str]] = []
    unanswerable: list[tuple[Group, Item, str]] = []
    for group, item, said in results:
        (answerable if item.claims else unanswerable).append((group, item, said))
    sentences = [
        (g, item, text, key) for g, item, said in answerable if said != ABSTENTION for text, key in split_claims(said)
    ]
    return Figures(
        num_answerable=len(answerable),
        num_unanswerable=len(unanswerable),
        f1=_mean([token_f1(item.answer, said) for _, item, said in answerable]),
        exact=_mean([item.answer == said for _, item, said in answerable]),
        verbatim=_mean([stands_in(text, key, g.passages) for g, _, text, key in sentences]),
        cited_right=_mean([key in {c.passage + 1 for c in item.claims} for _, item, _, key in sentences]),
        false_abstention=_mean([said.startswith(ABSTENTION) for _, _, said in answerable]),
        abstention=_mean([said.startswith(ABSTENTION) for _, _, said in unanswerable]),
    )


def split_claims(said: str) -> list[tuple[str, int]]:
    """(words, cited key) of each cited stretch; words after the last citation count as cited to 0: to nothing."""
    claims, start = [], 0
    for match in _CITED.finditer(said):
        claims.append((said[start : match.start()].strip(), int(match[1])))
        start = match.end()
    rest = said[start:].strip()
    return [*claims, (rest, 0)] if rest else claims


def stands_in(text: str, key: int, passages: Sequence[Passage]) -> bool:
    """Whether the words stand in the passage cited, letter by letter but for line breaks."""
    return 1 <= key <= len(passages) and " ".join(text.split()) in " ".join(passages[key - 1].text.split())


def to_dict(figures: dict[str, Figures]) -> dict[str, dict[str, float]]:
    return {kind: {name: round(value, 3) for name, value in asdict(f).items()} for kind, f in figures.items()}


def token_f1(wanted: str, said: str) -> float:
    """F1 of the tokens that both have, counted."""
    a, b = Counter(_TOKEN.findall(wanted)), Counter(_TOKEN.findall(said))
    common = sum((a & b).values())
    return 2 * common / (a.total() + b.total()) if common else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
