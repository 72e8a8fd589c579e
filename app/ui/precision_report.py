"""The precision report of the loaded weights: was the gate passed, the figures, and the answers that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app.errors import InputError
from app.evaluation.report import HTML_NAME, read_report
from app.ui.failures import draw_failure
from app.ui.text import count, escape, say

MAX_SHOWN = 40  # changed answers on the screen; the page beside the weights holds them all
_COLOUR = "#1f7f8b"  # the theme's primary colour, which charts do not take up by themselves
_KEY_FIGURES = ("kl_mean", "top1_agreement", "experts_overlap", "perplexity_ratio")


def draw_precision(checkpoint: Path, weights_sha256: str) -> None:
    """The section of the Model screen: the report that lies in the checkpoint's folder."""
    st.subheader(say("precision.title"), anchor=False)
    try:
        report = read_report(checkpoint)
    except InputError as error:
        draw_failure(error)
        return
    draw_precision_report(report, weights_sha256, str(checkpoint))


def draw_precision_report(report: Mapping[str, Any] | None, weights_sha256: str, folder: str = "FOLDER") -> None:
    """One report, or what to run where there is none. weights_sha256 is of the loaded weights."""
    if report is None:
        st.info(say("precision.none"))
        st.code(f"bedside eval precision --reference REFERENCE --candidate {folder}", language="bash")
        return
    if report["candidate"]["weights_sha256"] != weights_sha256:
        st.warning(say("precision.other", hash=report["candidate"]["weights_sha256"][:16]))
    _draw_headline(report)
    _draw_figures(report)
    routed = [layer for layer in report["layers"] if layer["is_moe"]]
    if routed:
        _draw_layers(routed)
    _draw_changes(report["changes"])
    st.caption(say("precision.page", name=HTML_NAME, folder=escape(folder)))


def _draw_headline(report: Mapping[str, Any]) -> None:
    reference, gate = report["reference"], report["gate"]
    against = say(
        "precision.against",
        name=escape(reference["name"]),
        precision=escape(reference["precision"]),
        date=report["created_at"][:10],
        hash=reference["weights_sha256"][:16],
    )
    if gate["passed"]:
        st.success(f"{say('precision.passed')} {against}")
    else:
        broken = [check for check in gate["checks"] if not check["passed"]]
        layers = [say("precision.layer", layer=n["layer"], reason=escape(n["reason"])) for n in gate["named_layers"]]
        st.error(" ".join([say("precision.failed", n=len(broken), of=len(gate["checks"])), against, *layers]))
    probes = report["probes"]
    if probes["items"] < probes["of"]:
        st.caption(say("precision.limited", n=probes["items"], of=probes["of"]))


def _draw_figures(report: Mapping[str, Any]) -> None:
    checks = {check["measure"]: check for check in report["gate"]["checks"]}
    with st.container(horizontal=True):
        for measure in _KEY_FIGURES:
            check = checks[measure]
            value = say("precision.unknown") if check["value"] is None else _say_value(measure, check["value"])
            st.metric(say(f"precision.{measure}"), value, help=escape(check["why"]))
        answers = report["answers"]
        st.metric(say("precision.changed"), f"{answers['clinical']} / {answers['compared']}")


def _say_value(measure: str, value: float) -> str:
    return f"{value:.1%}" if measure in ("top1_agreement", "experts_overlap") else f"{value:.3g}"


def _draw_layers(layers: Sequence[Mapping[str, Any]]) -> None:
    """Two small charts; a figure that is not a number leaves a gap."""
    x = say("precision.column.layer")
    for key in ("experts_overlap", "worst_expert_error"):
        st.caption(say(f"precision.chart.{key}"))
        y = say(f"precision.column.{key}")
        rows = [{x: str(layer["layer"]), y: layer[key]} for layer in layers if layer[key] is not None]
        st.bar_chart(rows, x=x, y=y, height=180, sort=False, color=_COLOUR)


def _draw_changes(changes: Sequence[Mapping[str, Any]]) -> None:
    with st.expander(count("precision.changes", len(changes))):
        if not changes:
            st.write(say("precision.changes.none"))
        ordered = sorted(changes, key=lambda change: -len(change["kinds"]))
        for change in ordered[:MAX_SHOWN]:
            _draw_change(change)
        if len(changes) > MAX_SHOWN:
            st.caption(say("precision.changes.more", n=len(changes) - MAX_SHOWN))


def _draw_change(change: Mapping[str, Any]) -> None:
    with st.container(border=True):
        st.markdown(f"**{escape(change['question'])}**")
        kinds = [say(f"precision.kind.{kind}") for kind in change["kinds"]]
        st.caption(" · ".join([escape(change["id"]), *kinds]))
        for column, side in zip(st.columns(3), ("reference", "candidate", "expected"), strict=True):
            with column:
                st.caption(say(f"precision.side.{side}"))
                st.write(escape(change[side]) or say("precision.no_answer"))
