"""What the routers' monitor costs a decode step of the embedded model.

    .venv/bin/python -m bench.bench_router_health

Two figures. `paired`: the median step with the monitor against the median without, the two in turn, a step each, so
that the machine's moods meet both alike. `own`: the monitor's own time over the same steps, folds and sampled margins
included, as a share of the median step; it is the one held to the limit, since a hundredth of a step is less than what
two medians differ by on a machine that does anything else.
"""

from __future__ import annotations

import statistics
import time

import torch

from bench.report import print_report
from model.checkpoint import load_model
from model.generator import EMBEDDED
from model.kv_cache import KVCache
from model.modeling import BailingMoeV2ForCausalLM, RouterObserver
from model.router_health import LayerTensors, RouterHealth

PROMPT_TOKENS = 512
STEPS = 1024  # of each kind, in rounds that begin again from the prompt
ROUND = 128
MAX_SHARE = 0.01


class Timed:
    """An observer that sums its own time; reading the clock twice counts as its cost too."""

    def __init__(self, observer: RouterObserver) -> None:
        self.observer = observer
        self.seconds = 0.0

    def __call__(self, topk_ids: LayerTensors, logits: LayerTensors, num_tokens: int) -> None:
        started = time.perf_counter()
        self.observer(topk_ids, logits, num_tokens)
        self.seconds += time.perf_counter() - started


@torch.inference_mode()
def measure_steps(model: BailingMoeV2ForCausalLM, observers: list[RouterObserver | None], steps: int) -> list[float]:
    """Seconds of the median decode step with each observer, the observers taking turns at every step."""
    times: list[list[float]] = [[] for _ in observers]
    token = torch.tensor([[7]])
    for _ in range(steps // ROUND):
        caches = []
        for _ in observers:
            caches.append(KVCache(model.config, capacity=PROMPT_TOKENS + ROUND))
            model.router_observer = None
            model(torch.arange(100, 100 + PROMPT_TOKENS)[None], cache=caches[-1], logits_to_keep=1)
        for step in range(ROUND):
            for place in range(len(observers)):
                which = (place + step) % len(observers)  # none is always first
                model.router_observer = observers[which]
                started = time.perf_counter()
                token = model(token, cache=caches[which], logits_to_keep=1).logits[0, -1].argmax().view(1, 1)
                times[which].append(time.perf_counter() - started)
    return [statistics.median(kind) for kind in times]


def main() -> None:
    torch.set_num_threads(1)
    model = load_model(EMBEDDED).float()
    plain_s, watched_s = measure_steps(model, [None, RouterHealth(model).observe], STEPS)
    timed = Timed(RouterHealth(model).observe)
    measure_steps(model, [timed], STEPS)
    own_s = timed.seconds / STEPS
    figures = {
        "model": "embedded",
        "moe_layers": sum(model.config.is_moe_layer(i) for i in range(model.config.num_hidden_layers)),
        "steps": STEPS,
        "step_us": round(plain_s * 1e6, 1),
        "watched_step_us": round(watched_s * 1e6, 1),
        "own_us": round(own_s * 1e6, 2),
        "paired_share": round(watched_s / plain_s - 1, 4),
        "own_share": round(own_s / plain_s, 4),
    }
    print_report("router health", figures, {"own_share": MAX_SHARE})


if __name__ == "__main__":
    main()
