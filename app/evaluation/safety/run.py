"""Finds the figures, measures them, and puts them into words. Knows nothing of any one figure."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any

from app.errors import InputError
from app.evaluation.safety import figures
from app.evaluation.safety.figure import Bench, DataMissing, Figure, Outcome, Rate

MAX_ERRORS = 20  # of each rate, the worst first
MAX_TEXT = 300  # characters of an error that are kept


def find_figures(names: Sequence[str] = ()) -> list[Figure]:
    """All figures, or those named, in order of their files. Raises InputError for a name that is none."""
    modules = [importlib.import_module(f"{figures.__name__}.{m.name}") for m in pkgutil.iter_modules(figures.__path__)]
    known = {module.FIGURE.name: module.FIGURE for module in modules if hasattr(module, "FIGURE")}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"There is no figure {unknown[0]!r}; there are {', '.join(known)}.")
    return [figure for name, figure in known.items() if not names or name in names]


def measure(chosen: Iterable[Figure], bench: Bench, on_start: Callable[[str], None]) -> Iterator[Outcome]:
    """Runs the figures one by one; one whose data are not here says so instead of counting."""
    for figure in chosen:
        on_start(figure.name)
        started = perf_counter()
        try:
            rates = tuple(figure.run(bench))
        except DataMissing as error:
            yield Outcome(figure, missing=str(error))
        else:
            yield Outcome(figure, rates, seconds=perf_counter() - started)


# --- in words ---------------------------------------------------------------------------------------------------


def describe(outcomes: Sequence[Outcome]) -> str:
    """A line per rate: value, interval, goal."""
    lines = [f"{'figure':52} {'value':>8}  {'95 % interval':>17}  {'goal':>9}  counts"]
    for outcome in outcomes:
        if outcome.missing:
            lines.append(f"{outcome.figure.name:52} not measured: {outcome.missing}")
        for rate in outcome.rates:
            low, high = rate.interval
            mark = "" if rate.is_reached else "  NOT REACHED"
            lines.append(
                f"{f'{outcome.figure.name}: {rate.name}':52} {rate.value:8.2%}  {low:7.2%} – {high:7.2%}  "
                f"{goal_of(rate):>9}  {rate.hits:,} of {rate.total:,}{mark}"
            )
    return "\n".join(lines)


def goal_of(rate: Rate) -> str:
    return f"{'≥' if rate.is_at_least else '≤'} {rate.goal * 100:g} %"


def as_markdown(outcomes: Sequence[Outcome], version: str) -> str:
    """The figures as a table, then the worst errors of each."""
    lines = ["# Figures of the safety layer", "", f"Made by `bedside eval safety`; rule set {version}.", ""]
    lines += ["| figure | measured | 95 % interval | goal | counts | best known |", "|---|---|---|---|---|---|"]
    for outcome in outcomes:
        for rate in outcome.rates:
            low, high = rate.interval
            value = f"{rate.value:.2%}" if rate.is_reached else f"**{rate.value:.2%}**"
            lines.append(
                f"| {outcome.figure.title}: {rate.name} | {value} | {low:.2%} – {high:.2%} | {goal_of(rate)} | "
                f"{rate.hits:,} of {rate.total:,} | {outcome.figure.peer} |"
            )
        if outcome.missing:
            lines.append(f"| {outcome.figure.title} | not measured: {outcome.missing} | | | | {outcome.figure.peer} |")
    for outcome in outcomes:
        lines += ["", f"## {outcome.figure.title}", "", outcome.figure.data]
        for rate in outcome.rates:
            if rate.errors:
                lines += ["", f"Wrong of “{rate.name}” ({len(rate.errors):,}), the worst first:", ""]
                lines += [f"- {_one_line(e.text)} — {_one_line(e.why)}" for e in _worst(rate)]
    return "\n".join([*lines, ""])


def as_json(outcomes: Sequence[Outcome], version: str) -> dict[str, Any]:
    return {
        "rules": version,
        "reached": all(outcome.is_reached for outcome in outcomes),
        "figures": [
            {
                "name": outcome.figure.name,
                "title": outcome.figure.title,
                "data": outcome.figure.data,
                "peer": outcome.figure.peer,
                "missing": outcome.missing or None,
                "seconds": round(outcome.seconds, 2),
                "rates": [_rate_as_json(rate) for rate in outcome.rates],
            }
            for outcome in outcomes
        ],
    }


def _rate_as_json(rate: Rate) -> dict[str, Any]:
    return {
        "name": rate.name,
        "hits": rate.hits,
        "total": rate.total,
        "value": round(rate.value, 5),
        "interval": [round(end, 5) for end in rate.interval],
        "goal": goal_of(rate),
        "reached": rate.is_reached,
        "errors": [{"text": _one_line(error.text), "why": _one_line(error.why)} for error in _worst(rate)],
    }


def _worst(rate: Rate) -> list[Any]:
    return sorted(rate.errors, key=lambda error: -error.weight)[:MAX_ERRORS]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_TEXT]
