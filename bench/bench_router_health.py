"""What the routers' monitor costs of the embedded model's decode time.

    .venv/bin/python -m bench.bench_router_health

Two figures. `paired_share`: the median over rounds of decode time with the monitor against without, the two in turn, so
that the machine's moods meet both alike. `own_share`: the monitor's own time, folds and sampled margins included, as a
share of the decode time; it is the one held to the limit, since on a machine that does anything else two rounds differ
by more than a hundredth.
"""

from __future__ import annotations

import statistics
import time

import torch

from bench.report import print_report
from contracts import SamplingParams
from model.backend_choice import make_backend
from model.checkpoint import load_model
from model.engine import Engine
from model.generator import EMBEDDED
from model.modeling import BailingMoeV2ForCausalLM, RouterObserver
from model.request import TokenEvent
from model.router_health import LayerTensors, RouterHealth

PROMPT_IDS = list(range(100, 612))
ROUNDS = 8
STEPS = 512  # a round
MAX_SHARE = 0.01


class Timed:
    """An observer that sums its own time; reading the clock counts as its cost too."""

    def __init__(self, observer: RouterObserver) -> None:
        self.observer = observer
        self.seconds = 0.0

    def __call__(self, topk_ids: LayerTensors, logits: LayerTensors, num_tokens: int) -> None:
        started = time.perf_counter()
        self.observer(topk_ids, logits, num_tokens)
        self.seconds += time.perf_counter() - started


def measure_decode(engine: Engine, timed: Timed | None = None) -> tuple[float, float]:
    """Seconds of STEPS decode steps, and of the monitor in them."""
    events = engine.stream(PROMPT_IDS, SamplingParams(max_tokens=STEPS + 1))
    for event in events:
        if isinstance(event, TokenEvent):
            break
    own_s, started = timed.seconds if timed else 0.0, time.perf_counter()
    num_tokens = sum(isinstance(event, TokenEvent) for event in events)
    seconds = time.perf_counter() - started
    assert num_tokens == STEPS
    return seconds, timed.seconds - own_s if timed else 0.0


def measure(model: BailingMoeV2ForCausalLM) -> dict[str, float]:
    engine = Engine(make_backend(model, 1), [])
    measure_decode(engine)
    plain, watched, own = [], [], []
    timed = Timed(RouterHealth(model).observe)
    for number in range(ROUNDS):
        for is_watched in (True, False) if number % 2 else (False, True):
            model.router_observer = timed if is_watched else None
            seconds, own_s = measure_decode(engine, timed if is_watched else None)
            (watched if is_watched else plain).append(seconds)
            if is_watched:
                own.append(own_s / seconds)
    pairs = [with_it / without - 1 for with_it, without in zip(watched, plain, strict=True)]
    return {
        "step_us": round(statistics.median(plain) / STEPS * 1e6, 1),
        "watched_step_us": round(statistics.median(watched) / STEPS * 1e6, 1),
        "paired_share": round(statistics.median(pairs), 4),
        "own_us": round(timed.seconds / STEPS / ROUNDS * 1e6, 2),
        "own_share": round(statistics.median(own), 4),
    }


def main() -> None:
    torch.set_num_threads(1)
    model = load_model(EMBEDDED).float()
    figures = {
        "model": EMBEDDED.name,
        "moe_layers": sum(model.config.is_moe_layer(i) for i in range(model.config.num_hidden_layers)),
        "steps": ROUNDS * STEPS,
        **measure(model),
    }
    print_report("router health", figures, {"own_share": MAX_SHARE})


if __name__ == "__main__":
    main()
