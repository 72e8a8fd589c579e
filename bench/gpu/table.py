"""Rows of figures: printed as they come, saved as they come, and as one short table last."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Row:
    """One figure. seconds: of a call or a step, None where it was not measured, and `note` says why. num_bytes, flop:
    what it cannot do without; of the two the one that takes longer counts. tokens: a step gives, where a rate is shown.
    error: against the reference, as norm of the difference over norm. predicted: seconds, made before."""

    name: str
    seconds: float | None = None
    num_bytes: float = 0
    flop: float = 0
    tokens: float = 0
    error: float | None = None
    limit: float | None = None  # of the error
    predicted: float | None = None
    goal: str = ""
    note: str = ""


@dataclass(slots=True)
class Report:
    """What is known so far. bandwidth bytes/s and peak FLOP/s: measured on this card first. is_dry: no figures."""

    path: Path | None
    is_dry: bool
    head: dict[str, Any]
    bandwidth: float = 0
    peak: float = 0
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        cells = [cell for cell in self.cells(row) if cell]
        print(f"{time.monotonic() - self.started:6.1f} s  {'  '.join(cells)}", flush=True)
        self.save()

    def save(self) -> None:
        """What there is, whole or not at all: a bench that is cut off has lost nothing."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) | {"share": self.share(row)} for row in self.rows]
        report = self.head | {
            "is_dry_run": self.is_dry,
            "bandwidth_gb_s": round(self.bandwidth / 1e9, 1),
            "peak_tflop_s": round(self.peak / 1e12, 1),
            "seconds": round(time.monotonic() - self.started, 1),
            "rows": rows,
        }
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)

    def floor(self, row: Row) -> float:
        """Seconds below which the card's measured bandwidth and peak do not let it."""
        by_bytes = row.num_bytes / self.bandwidth if self.bandwidth else 0.0
        return max(by_bytes, row.flop / self.peak if self.peak else 0.0)

    def share(self, row: Row) -> float | None:
        floor = self.floor(row)
        return floor / row.seconds if row.seconds and floor else None

    @property
    def failures(self) -> list[str]:
        """The rows whose error is too large, or not a number."""
        return [row.name for row in self.rows if not self._is_right(row)]

    def cells(self, row: Row) -> list[str]:
        share, seconds = self.share(row), row.seconds
        is_by_bytes = not row.flop or not self.peak or row.num_bytes * self.peak >= row.flop * self.bandwidth
        size = f"{row.num_bytes / 1e9:.3g} GB" if is_by_bytes else f"{row.flop / 1e12:.3g} TFLOP"
        return [
            row.name,
            "" if seconds is None else format_seconds(seconds),
            f"{row.tokens / seconds:,.0f} tok/s" if seconds and row.tokens else "",
            size if row.num_bytes or row.flop else "",
            f"{share:.0%} of {'bandwidth' if is_by_bytes else 'peak'}" if share is not None else "",
            "" if row.error is None else f"error {row.error:.1e}{'' if self._is_right(row) else ' WRONG'}",
            "" if row.predicted is None else f"predicted {format_seconds(row.predicted)}",
            f"goal {row.goal}" if row.goal else "",
            row.note,
        ]

    def _is_right(self, row: Row) -> bool:
        return row.limit is None or (row.error or 0.0) <= row.limit

    def print_table(self) -> None:
        if self.is_dry:
            print("\nA DRY RUN ON TINY SHAPES: that it runs is what it shows; no number in it is a figure.")
        columns = ("what", "time", "rate", "size", "share", "error", "predicted", "goal", "note")
        print_columns([columns, *(_strip(self.cells(row)) for row in self.rows)])


def _strip(cells: Sequence[str]) -> list[str]:
    """Without the words that the heads of the columns say."""
    words = {5: "error ", 6: "predicted ", 7: "goal "}
    return [cell.removeprefix(words.get(place, "")) for place, cell in enumerate(cells)]


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    used = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    widths = [max(len(row[place]) for row in rows) for place in used]
    for row in rows:
        cells = (row[place].ljust(width) for place, width in zip(used, widths, strict=True))
        print("  ".join(cells).rstrip())


def format_seconds(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError
