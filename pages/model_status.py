"""Model: what answers, what it is made of and runs on, and how to put a real checkpoint in its place."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import streamlit as st

from app.config import Settings
from app.services import Services
from app.ui.drafts import describe_drafts
from app.ui.element import draw, node
from app.ui.precision_report import draw_precision
from app.ui.router_health import draw_router_health
from app.ui.screens import enter
from app.ui.text import say

_LOAD_COMMAND = "BEDSIDE_CHECKPOINT=/path/to/checkpoint make run"
_SECRETS = ("database_url", "server_key")  # the first may hold a password


def main() -> None:
    services = enter()
    info = services.generator.info
    st.title(say("model.title"), anchor=False)
    facts = {
        "model.name": info.name,
        "model.parameters": f"{info.num_parameters:,}" if info.num_parameters else "",  # a server does not say
        "model.precision": info.precision,
        "model.kernels": info.kernels,
        **({"model.threads": services.threads} if services.threads else {}),  # where there is a choice
        "model.context": say("model.context.value", n=f"{info.context_length:,}"),
        "model.hash": info.weights_sha256,
        "model.rules": services.safety.version,
        "model.memory": _describe_memory(),
        "model.drafts": describe_drafts(services.generator),
    }
    if (counts := services.expert_counts) is not None:
        facts["model.experts"] = say(
            "model.experts.value", share=f"{counts.share_in_memory:.0%}", gb=f"{counts.bytes_read / 1e9:,.1f}"
        )
    with st.container(border=True):
        _draw_facts({say(key): value for key, value in facts.items()}, key="model_facts")
    if info.details:
        with st.expander(say("model.details")):
            _draw_facts({name: str(value) for name, value in info.details.items()}, key="model_details")
    if info.weights_sha256:  # a report is about weights that are known
        draw_precision(services.settings.checkpoint, info.weights_sha256)
    if info.is_embedded:
        st.subheader(say("model.embedded.title"), anchor=False)
        st.write(say("model.embedded.card"))
    draw_router_health(services)
    st.subheader(say("model.load.title"), anchor=False)
    st.write(say("model.load.hint"))
    st.code(_LOAD_COMMAND, language="bash")
    _draw_settings(services)


def _draw_settings(services: Services) -> None:
    st.subheader(say("model.settings"), anchor=False)
    st.caption(say("model.settings.hint"))
    names = [field.name for field in fields(Settings) if field.name not in _SECRETS]
    with st.expander(say("model.settings")):
        values = {f"BEDSIDE_{name.upper()}": str(getattr(services.settings, name)) for name in names}
        _draw_facts(values, key="settings_facts")


def _draw_facts(facts: Mapping[str, str], key: str) -> None:
    pairs = [pair for name, value in facts.items() for pair in (node("dt", name), node("dd", value or "–"))]
    draw([node("dl", *pairs, style="facts")], key=key)


def _describe_memory() -> str:
    """Resident memory now, where the system tells it, and at its highest."""
    # ru_maxrss counts bytes on macOS, kibibytes elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return say("model.memory.peak", peak=f"{peak:,.0f}")
    used = int(statm.read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 1e6
    return say("model.memory.value", used=f"{used:,.0f}", peak=f"{max(used, peak):,.0f}")


main()
