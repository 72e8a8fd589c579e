"""A precision report as one self-contained HTML page: no script, nothing fetched, light and dark, paper and phone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.evaluation.plots import draw_plots

TEMPLATE = "precision_report.html.jinja"
MEASURE_NAMES = {
    "kl_mean": "KL divergence, mean",
    "kl_p99": "KL divergence, 99th percentile",
    "top1_agreement": "Same likeliest token",
    "perplexity_ratio": "Perplexity, candidate to reference",
    "experts_overlap": "Experts in common, running freely",
    "router_overlap": "Experts in common, same input",
    "expert_error": "Error of the worst expert",
    "layer_error": "Error of the worst layer",
    "embedding_error": "Error of the embeddings",
    "head_kl": "KL divergence of the head",
    "changed_number": "Answers with another number",
    "changed_drug": "Answers with another drug",
    "changed_negation": "Answers with another negation",
    "changed_verdict": "Answers with another verdict",
}
_SHARES = ("top1_agreement", "experts_overlap", "router_overlap")


def render_page(report: Mapping[str, Any]) -> str:
    """The page of a report as `compare_checkpoints` gives it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = say_figure
    template = environment.get_template(TEMPLATE)
    return template.render(report=report, plots=draw_plots(report), names=MEASURE_NAMES)


def describe_gate(report: Mapping[str, Any]) -> str:
    """The gate for a shell: a line for each limit, then the layers named, then pass or fail."""
    gate = report["gate"]
    lines = [
        f"{'pass' if check['passed'] else 'FAIL'}  {MEASURE_NAMES[check['measure']]}: "
        f"{say_figure(check['value'], check['measure'])} "
        f"({check['direction']} {say_figure(check['limit'], check['measure'])})"
        for check in gate["checks"]
    ]
    lines += [f"layer {named['layer']}: {named['reason']}" for named in gate["named_layers"]]
    probes, answers = report["probes"], report["answers"]
    lines.append(f"{answers['changed']} of {answers['compared']} answers changed ({probes['of']} items in the set).")
    return "\n".join([*lines, "The gate is passed." if gate["passed"] else "The gate is not passed."])


def say_figure(value: float | None, measure: str = "") -> str:
    """A figure for a person: shares in per cent, the rest in three digits."""
    if value is None:
        return "not a number"
    if measure in _SHARES or measure.startswith("changed_"):
        return f"{value:.1%}"
    return f"{value:.3g}"
