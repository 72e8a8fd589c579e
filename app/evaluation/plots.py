"""The plots of a report as SVG that takes the page's own colours, so that they read in light and dark.

Knows nothing of HTML around them. The only file that imports matplotlib, and only when a plot is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from math import log10
from typing import Any

# Colours that the style sheet replaces: what is drawn in one of these becomes the CSS variable of its name.
_INK, _BLUE, _AMBER, _RED = "#010101", "#010102", "#010103", "#010104"
_VARIABLES = {_INK: "currentColor", _BLUE: "var(--first)", _AMBER: "var(--second)", _RED: "var(--bad)"}
_SIZE = (4.8, 2.7)  # inches; narrow enough that the letters stay readable at a phone's width


def draw_plots(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(title, what it shows, SVG) of each plot."""
    limits = {check["measure"]: check["limit"] for check in report["gate"]["checks"]}
    routed = [layer for layer in report["layers"] if layer["is_moe"]]
    plots = [
        (
            "How far each token is from the reference",
            "Scored tokens by their KL divergence. The dashed line is the gate's limit for the 99th percentile.",
            plot(_draw_kl, report["kl"], limits["kl_p99"]),
        ),
        (
            "What each layer computes, given the same input",
            "Relative error of the layer and of its worst expert: a damaged layer stands out by itself. "
            "Dashed: the gate's limits.",
            plot(_draw_errors, report["layers"], limits),
        ),
        (
            "Answers that changed",
            "Of the items of each category; amber: a number, a drug, a negation or the safety verdict changed.",
            plot(_draw_changes, report["answers"]["by_category"]),
        ),
    ]
    if routed:
        described = (
            "Which experts each layer chooses",
            "Share of the experts chosen that are the reference's, layer by layer: running freely, and given the "
            "reference's own input. Dashed: the gate's limits.",
            plot(_draw_experts, routed, limits),
        )
        plots.insert(1, described)
    return plots


def plot(draw: Any, *arguments: Any) -> str:
    """What draw(axes, *arguments) draws, as an <svg> element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(colours, _INK) | {
        "svg.fonttype": "none",
        "svg.hashsalt": "bedside",
        "font.size": 10,
    }
    with rc_context(style):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, *arguments)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _to_inline(buffer.getvalue())


def _to_inline(svg: str) -> str:
    """The <svg> alone: no prolog and metadata (they name addresses), no fixed size and fonts, the page's colours."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font: (?:[\w.]+ )*?([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.strip()


def _draw_kl(axes: Any, kl: Mapping[str, Any], limit: float) -> None:
    edges = kl["log10_edges"]
    axes.bar(edges[:-1], kl["counts"], width=edges[1] - edges[0], align="edge", color=_BLUE)
    axes.axvline(log10(limit), color=_RED, linestyle="--")
    ticks = range(int(edges[0]) + 1, int(edges[-1]) + 1, 2)
    axes.set_xticks(list(ticks), [f"{10.0**tick:g}" for tick in ticks])
    axes.set_xlabel(f"KL divergence, nats ({10 ** edges[0]:g} and less in the first bar)")
    axes.set_ylabel("tokens")


def _draw_experts(axes: Any, layers: list[Mapping[str, Any]], limits: Mapping[str, float]) -> None:
    numbers = [layer["layer"] for layer in layers]
    for key, name, colour, marker in (
        ("experts_overlap", "running freely", _BLUE, "o"),
        ("router_overlap", "same input", _AMBER, "s"),
    ):
        axes.plot(numbers, _values(layers, key), color=colour, marker=marker, markersize=4, label=name)
        axes.axhline(limits[key], color=colour, linestyle="--", linewidth=1)
    axes.set_ylim(0, 1.05)
    _finish_layers(axes, numbers, "experts in common")


def _draw_errors(axes: Any, layers: list[Mapping[str, Any]], limits: Mapping[str, float]) -> None:
    numbers = [layer["layer"] for layer in layers]
    for key, limit, name, colour, marker in (
        ("error", "layer_error", "layer", _BLUE, "o"),
        ("worst_expert_error", "expert_error", "its worst expert", _AMBER, "s"),
    ):
        axes.plot(numbers, _values(layers, key), color=colour, marker=marker, markersize=4, label=name)
        axes.axhline(limits[limit], color=colour, linestyle="--", linewidth=1)
    axes.set_ylim(bottom=0)
    _finish_layers(axes, numbers, "relative error")


def _finish_layers(axes: Any, numbers: list[int], label: str) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    axes.legend(frameon=False)


def _draw_changes(axes: Any, by_category: Mapping[str, Mapping[str, int]]) -> None:
    names = [category.replace("_", " ") for category in by_category]
    for key, colour in (("changed", _BLUE), ("clinical", _AMBER)):
        axes.barh(names, [100 * counts[key] / counts["items"] for counts in by_category.values()], color=colour)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of items")


def _values(layers: list[Mapping[str, Any]], key: str) -> list[float]:
    return [float("nan") if layer[key] is None else layer[key] for layer in layers]
