"""What was said, taken apart and compared. Knows nothing of models."""

from __future__ import annotations

import re
from collections import Counter

_CITED = re.compile(r"\s*\[(\d+)\]([.!?。！？])?")
_TOKEN = re.compile(r"\w+|[^\w\s]")


def split_claims(said: str) -> list[tuple[str, int]]:
    """(words, cited key) of each cited stretch; words after the last citation count as cited to 0: to nothing."""
    claims, start = [], 0
    for match in _CITED.finditer(said):
        claims.append((said[start : match.start()].strip(), int(match[1])))
        start = match.end()
    rest = said[start:].strip()
    return [*claims, (rest, 0)] if rest else claims


def token_f1(wanted: str, said: str) -> float:
    """F1 of the tokens that both have, counted."""
    a, b = Counter(_TOKEN.findall(wanted)), Counter(_TOKEN.findall(said))
    common = sum((a & b).values())
    return 2 * common / (a.total() + b.total()) if common else 0.0
