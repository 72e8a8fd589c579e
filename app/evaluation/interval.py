"""How sure a share is that was counted over few trials."""

from __future__ import annotations

from math import sqrt

_Z = 1.959964  # of a two-sided 95 % interval


def wilson(share: float, number: int) -> tuple[float, float]:
    """(low, high): the 95 % interval of a share seen in `number` independent trials, all of [0, 1] for none.

    Wilson, J Am Stat Assoc 1927; 22: 209-212.
    """
    if not number:
        return 0.0, 1.0
    spread = _Z**2 / number
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * sqrt(share * (1 - share) / number + spread / (4 * number))
    return max(0.0, middle - half), min(1.0, middle + half)
