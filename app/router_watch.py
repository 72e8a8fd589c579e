"""What an alarm of the routers' monitor does to answers, and how it becomes a finding.

The monitor sees the text that was read and written, and odd text (one word over and over, bare numbers) can look like a
collapse. So a suspicion is put to a self-test first: the demo records are read, and only what shows there too is an
alarm. Otherwise anyone who uploads such a file could stop the model for everybody.

A collapsed router then fails closed: on ordinary text nothing but a fault explains it, and no check of a claim sees
what a failing model leaves out. Nothing more is generated, and answers are the record's own sentences, until the
program has been started again: without new tokens the alarm cannot end by itself, which is meant. Drift is smaller, and
may come of another precision: answers go on, each with a notice.

An alarm is recorded for each layer when it starts (router-collapse-layer-3), with the turn in which it was seen. Later
turns carry one finding (router-alarm-lasts), so that it stays on record which answers were given meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from app.router_run import run_self_test
from contracts import Finding, Generator, Verdict
from model.router_health import HasRouterHealth, LayerHealth, RouterSnapshot, RouterState

_LOG = logging.getLogger(__name__)
LASTS = "router-alarm-lasts"
SOURCE = "arXiv 2101.03961; arXiv 2412.19437"
COLLAPSED = (
    "The model is out of order: its router has collapsed in {layers}. Until that is mended, answers are sentences of "
    "the record. Tell whoever runs Bedside: compare the weights’ hash on the Model page with the publisher’s, start "
    "Bedside again, and run “bedside eval precision”."
)
DRIFTED = (
    "The model routes ordinary text unlike its reference, in {layers}: its weights may not be the right ones. Read the "
    "sources closely. Tell whoever runs Bedside: compare the weights’ hash on the Model page with the publisher’s, and "
    "run “bedside eval precision”."
)
_RULES = {
    RouterState.COLLAPSED: ("router-collapse-layer-{layer}", Verdict.HOLD, COLLAPSED),
    RouterState.DRIFTED: ("router-drift-layer-{layer}", Verdict.NOTICE, DRIFTED),
}


@dataclass(frozen=True, slots=True)
class RouterAlarm:
    """The alarms at one moment: findings are those to keep with the turn, none while all is well."""

    findings: tuple[Finding, ...] = ()
    holds: bool = False  # whether the model must not write


class RouterWatch:
    """Remembers which alarms are on, so that each is recorded once; thread-safe."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._known: set[tuple[int, RouterState]] = set()
        self._lock = threading.Lock()

    def look(self) -> RouterAlarm:
        """The alarms of now; a generator without routers of its own has none. Runs the self-test on a new suspicion."""
        if not isinstance(self._generator, HasRouterHealth):
            return RouterAlarm()
        with self._lock:
            snapshot = self._generator.router_health()
            if not _alarms(snapshot) <= self._known:
                _LOG.warning("a router looks wrong on the last %d tokens: self-test", snapshot.layers[0].tokens)
                tested = run_self_test(self._generator)
                # A test that saw too few tokens clears nobody.
                snapshot = tested if tested.layers and not tested.in_state(RouterState.WAITING) else snapshot
            present = _alarms(snapshot)
            started, self._known = present - self._known, present
        by_state = {state: layers for state in _RULES if (layers := snapshot.in_state(state))}
        findings = [
            _to_finding(layer, layers)
            for layers in by_state.values()
            for layer in layers
            if (layer.layer, layer.state) in started
        ]
        for finding in findings:
            _LOG.error("%s: %s", finding.rule, finding.evidence)
        if by_state and not findings:
            state, layers = next(iter(by_state.items()))
            findings = [Finding(LASTS, Verdict.NOTICE, 0, 0, _message(state, layers), SOURCE, name_layers(layers))]
        return RouterAlarm(tuple(findings), RouterState.COLLAPSED in by_state)


def _alarms(snapshot: RouterSnapshot) -> set[tuple[int, RouterState]]:
    return {(layer.layer, state) for state in _RULES for layer in snapshot.in_state(state)}


def name_layers(layers: Sequence[LayerHealth]) -> str:
    """E.g. "layer 3" or "layers 1, 3"."""
    numbers = ", ".join(str(layer.layer) for layer in layers)
    return f"layer {numbers}" if len(layers) == 1 else f"layers {numbers}"


def _message(state: RouterState, layers: Sequence[LayerHealth]) -> str:
    return _RULES[state][2].format(layers=name_layers(layers))


def _to_finding(layer: LayerHealth, layers: Sequence[LayerHealth]) -> Finding:
    """layers are all that are in the same state: the message names them together, the rule this one."""
    rule, severity, _ = _RULES[layer.state]
    drift = "" if layer.drift is None else f", drift {layer.drift:.2f}"
    evidence = f"layer {layer.layer}: entropy {layer.entropy:.2f}, {layer.dead:.0%} dead, busiest {layer.busiest:.0%}"
    message = _message(layer.state, layers)
    return Finding(rule.format(layer=layer.layer), severity, 0, 0, message, SOURCE, evidence + drift)
