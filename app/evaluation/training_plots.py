"""What a training run has logged, as one page of plots: losses, the experts' load, rewards and the latest samples."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.errors import InputError
from app.evaluation.plots import plot

_STYLE = ":root{color-scheme:light dark;--first:#2f6fb0;--second:#b7791f;--bad:#b3261e}" + (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "figure{margin:2rem 0}dt{font-weight:600}dd{margin:0 0 .5rem 1rem}"
)
_COLOURS = ("#010102", "#010103", "#010104", "#010101")  # of app.evaluation.plots
_WINDOW = 25  # steps of which the mean is drawn
_PLOTS = (
    ("Loss", "nats a token, mean of 25 steps", ("answer_loss", "language_loss", "mtp_loss")),
    ("Busiest expert", "times an even share; 1 is perfect balance", ("max_load",)),
    ("Reward", "0 to 1; the held reward is never trained on", ("reward", "held_agreement")),
    ("Divergence from the model it began with", "nats a token", ("kl",)),
)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a run's log. Raises InputError if there is none."""
    if not path.is_file():
        raise InputError(f"{path} is not there; train first.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_run(name: str, entries: Sequence[Mapping[str, Any]], warning: str = "") -> str:
    """The page, whole in itself."""
    steps = [entry for entry in entries if "step" in entry]
    parts = [f"<h1>Training run {html.escape(name)}</h1>", f"<p>{len(steps):,} steps.</p>"]
    if warning:
        parts.append(f"<p><strong>{html.escape(warning)}</strong></p>")
    for title, caption, names in _PLOTS:
        shown = [key for key in names if any(key in step for step in steps)]
        if shown:
            parts.append(
                f"<figure><h2>{title}</h2>{plot(_draw, steps, shown)}<figcaption>{caption}</figcaption></figure>"
            )
    samples = [entry for entry in entries if "said" in entry][-12:]
    if samples:
        told = (
            f"<dt>{html.escape(s['question'])}</dt><dd>{html.escape(s['said'])}<br><small>wanted: "
            f"{html.escape(s['wanted'])}</small></dd>"
            for s in samples
        )
        parts.append(f"<h2>Latest samples</h2><dl>{''.join(told)}</dl>")
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Training</title><style>{_STYLE}</style>' + (
        f"<body>{''.join(parts)}</body></html>"
    )


def _draw(axes: Any, steps: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for name, colour in zip(names, _COLOURS, strict=False):
        points = [(step["step"], step[name]) for step in steps if name in step]
        means = [
            sum(value for _, value in points[max(0, end - _WINDOW) : end]) / min(end, _WINDOW)
            for end in range(1, len(points) + 1)
        ]
        axes.plot([number for number, _ in points], means, color=colour, label=name.replace("_", " "))
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
