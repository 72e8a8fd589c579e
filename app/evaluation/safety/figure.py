"""The parts of a figure: counts with their interval, the goal they are held against, and the errors worth reading.

Knows nothing of any one figure. An example of a whole one is `figures/negation.py`.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from app.evaluation.interval import wilson
from contracts import CheckResult, Message, Role
from safety.checker import RuleSafetyChecker


class DataMissing(RuntimeError):  # noqa: N818 - no fault: the figure is left out and says so
    """The public set that a figure is measured on is not on this machine."""


@dataclass(frozen=True, slots=True)
class Error:
    """A miss or a false alarm. weight orders them: the worst comes first."""

    text: str
    why: str
    weight: float = 0.0

    @classmethod
    def of_set(cls, name: str, number: int, why: str) -> Error:
        """An item of a public set: named by its place, as its words may not be passed on. why quotes none of them."""
        return cls(f"{name} #{number}", why)


def unread(error: Error, split: str, number: int) -> Error:
    """The error, of the latest split, which is to stay unread, by its number in its list alone."""
    return Error.of_set(split, number, error.why) if split == "latest" else error


@dataclass(frozen=True, slots=True)
class Rate:
    """hits of total, to be at least (or at most) the goal. errors: the items on the wrong side."""

    name: str
    hits: int
    total: int
    goal: float
    is_at_least: bool
    errors: tuple[Error, ...] = ()

    @property
    def value(self) -> float:
        return self.hits / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the rate."""
        return wilson(self.value, self.total)

    @property
    def is_reached(self) -> bool:
        return bool(self.total) and (self.value >= self.goal if self.is_at_least else self.value <= self.goal)


def recall(name: str, total: int, missed: Sequence[Error], goal: float) -> Rate:
    """Of total items that must be found, those that were not."""
    return Rate(name, total - len(missed), total, goal, is_at_least=True, errors=tuple(missed))


def alarms(name: str, total: int, false: Sequence[Error], goal: float) -> Rate:
    """Of total items that must not be found, those that were."""
    return Rate(name, len(false), total, goal, is_at_least=False, errors=tuple(false))


@dataclass(frozen=True)
class Bench:
    """What a figure is measured with: the checker as the product builds it, and the folder of public sets."""

    checker: RuleSafetyChecker
    sets: Path | None = None

    def file(self, name: str) -> Path:
        """A file of the public sets. Raises DataMissing."""
        path = self.sets / name if self.sets else None
        if path is None or not path.exists():
            raise DataMissing(f"needs {name} of the public sets (--sets)")
        return path

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a *.jsonl.xz of the public sets. Raises DataMissing."""
        with lzma.open(self.file(name), "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def ask(self, text: str) -> CheckResult:
        """What the checker says to a question that stands alone."""
        return self.checker.check_input([Message(Role.USER, text)])

    @cached_property
    def notes(self) -> list[str]:
        """Clinical notes of the public sets."""
        notes = [row["note"] for name in _NOTES for row in self.rows(name)]
        charts = [row["text"][:20_000] for row in self.rows("ccda/rendered.jsonl.xz")]
        return [note for note in (*notes, *charts) if len(note) > 40]


_NOTES = ("aci_bench/encounters.jsonl.xz", "mts_dialog/train.jsonl.xz")


@dataclass(frozen=True, slots=True)
class Figure:
    """name is what --figure takes; data says what it is measured on and who has seen it; peer the best known value."""

    name: str
    title: str
    data: str
    peer: str
    run: Callable[[Bench], Sequence[Rate]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A figure as it came out. missing says why it was not measured."""

    figure: Figure
    rates: tuple[Rate, ...] = ()
    missing: str = ""
    seconds: float = 0.0

    @property
    def is_reached(self) -> bool:
        return not self.missing and all(rate.is_reached for rate in self.rates)
