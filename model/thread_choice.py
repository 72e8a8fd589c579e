"""How many threads a step is computed with: learnt from the steps themselves, anew as the machine gets busy or idle.

Many threads are faster where nothing else runs, but meet at a barrier after each phase of a layer, and beside a busy
program all wait there for the one that lost its core. Steps are compared with steps of their own size only. No step is
computed for the choice's sake: each is somebody's token, and a text is the same whatever the number. Knows nothing of
kernels. Figures: bench/results/threads.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

TRIAL_STEPS = 4
TRIAL_SHARE = 0.02  # of the time: what trying the other number may take
MIN_GAIN = 1.1  # what many threads must be faster by, to be worth a core that the page could have
_MAX_OUTLIER = 4.0  # times the mean; a step that the system put aside for longer says no more
_KEPT = 7 / 8  # weight of the past in the mean of a step


@dataclass(slots=True)
class _Size:
    """What is known of steps of one size; trial: seconds of the steps so far with the number that is not chosen."""

    is_many: bool = True
    num_steps: int = 0
    mean_s: float = 0.0
    other_s: float | None = None
    trial: list[float] = field(default_factory=list)
    trial_cost_s: float = 0.0
    next_trial: float = 0.0


class ThreadChoice:
    """Chooses between two numbers of threads, the larger until the smaller proves itself. One step runs at a time."""

    def __init__(self, few: int, many: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.few, self.many = few, many
        self._clock = clock
        self._sizes: dict[int, _Size] = {}

    @contextmanager
    def step(self, num_tokens: int) -> Iterator[int]:
        """Gives the number of threads for a step of so many tokens, and times the block as that step."""
        size = self._sizes.setdefault(num_tokens.bit_length(), _Size())
        is_trial = size.num_steps >= TRIAL_STEPS and (bool(size.trial) or self._clock() >= size.next_trial)
        started = self._clock()
        yield self.many if size.is_many != is_trial else self.few
        seconds = cost_s = self._clock() - started
        if size.num_steps:
            seconds = min(seconds, _MAX_OUTLIER * size.mean_s)
        if is_trial:
            self._learn_trial(size, seconds, cost_s)
        else:
            size.mean_s = _KEPT * size.mean_s + (1 - _KEPT) * seconds if size.num_steps else seconds
            size.num_steps += 1

    def describe(self) -> str:
        """What a single token is computed with at present, and why."""
        size = self._sizes.get(1)
        if size is None or size.other_s is None:
            return f"{self.many}; {self.few} not tried yet"
        chosen, other = (self.many, self.few) if size.is_many else (self.few, self.many)
        return f"{chosen}: {size.mean_s * 1e3:.2f} ms a token; {size.other_s * 1e3:.2f} ms with {other}"

    def _learn_trial(self, size: _Size, seconds: float, cost_s: float) -> None:
        size.trial.append(seconds)
        size.trial_cost_s += cost_s
        if len(size.trial) < TRIAL_STEPS:
            return
        size.next_trial = self._clock() + size.trial_cost_s / TRIAL_SHARE
        found_s = statistics.fmean(size.trial)
        size.trial.clear()
        size.trial_cost_s = 0.0
        few_s, many_s = (found_s, size.mean_s) if size.is_many else (size.mean_s, found_s)
        is_many = many_s * MIN_GAIN < few_s
        size.mean_s, size.other_s = (many_s, few_s) if is_many else (few_s, many_s)
        size.is_many = is_many
