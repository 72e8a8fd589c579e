"""How the model's routers choose, live: a line and a small histogram per layer, and what to do about an alarm."""

from __future__ import annotations

import streamlit as st

from app.router_watch import COLLAPSED, DRIFTED, name_layers
from app.services import Services
from app.ui.poll import poll
from app.ui.text import escape, say
from model.router_health import HasRouterHealth, LayerHealth, RouterSnapshot, RouterState

_EVERY_S = 5.0


def draw_router_health(services: Services) -> None:
    """Draws the monitor, and again every few seconds while the page is open."""
    st.subheader(say("routers.title"), anchor=False)
    generator = services.generator
    if not isinstance(generator, HasRouterHealth):
        st.caption(say("routers.none"))
        return
    snapshot_of = generator.router_health

    def draw() -> bool:
        _draw_snapshot(snapshot_of())
        return False

    poll(draw, every_s=_EVERY_S)


def _draw_snapshot(snapshot: RouterSnapshot) -> None:
    if not snapshot.layers:
        st.info(say("routers.empty"))
        return
    if collapsed := snapshot.in_state(RouterState.COLLAPSED):
        st.error(escape(COLLAPSED.format(layers=name_layers(collapsed))), title=say("routers.alarm"))
    if drifted := snapshot.in_state(RouterState.DRIFTED):
        st.warning(escape(DRIFTED.format(layers=name_layers(drifted))), title=say("routers.notice"))
    tokens = max(layer.tokens for layer in snapshot.layers)
    st.caption(
        say("routers.lead", window=f"{tokens:,}", all=f"{snapshot.num_routed:,}", least=f"{snapshot.min_tokens:,}")
    )
    highest = max(max(layer.load) for layer in snapshot.layers)
    histogram = st.column_config.BarChartColumn(
        say("routers.load"), help=say("routers.load.help"), y_min=0, y_max=highest
    )
    st.dataframe(
        [_row(layer) for layer in snapshot.layers],
        hide_index=True,
        column_config={say("routers.load"): histogram},
        alt=say("routers.title"),
    )
    st.caption(say("routers.legend"))
    if not snapshot.has_baseline:
        st.caption(say("routers.no_baseline"))


def _row(layer: LayerHealth) -> dict[str, object]:
    return {
        say("routers.layer"): layer.layer,
        say("routers.state"): say(f"routers.state.{layer.state.value}"),
        say("routers.load"): layer.load,
        say("routers.entropy"): f"{layer.entropy:.3f}",
        say("routers.dead"): f"{layer.dead:.0%}",
        say("routers.flooded"): f"{layer.flooded:.0%}",
        say("routers.busiest"): f"{layer.busiest:.0%}",
        say("routers.margin"): say("routers.unknown") if layer.margin is None else f"{layer.margin:.4f}",
        say("routers.drift"): say("routers.unknown") if layer.drift is None else f"{layer.drift:.3f}",
    }
