"""What a server counts and times, in Prometheus' text format 0.0.4. No label ever holds what somebody wrote."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from contracts import GenerationEnd
from model.kernels.expert_cache import ExpertCounts
from model.request import EngineLoad
from model.router_health import RouterSnapshot

_TTFT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds
_GAP_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Histogram:
    """Not thread-safe. bounds: upper ends of the buckets, ascending, in seconds; one more takes what lies above."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def samples(self, name: str) -> list[str]:
        lines, so_far = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            so_far += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {so_far}')
        return [*lines, f"{name}_sum {self._sum}", f"{name}_count {so_far}"]


class ServerMetrics:
    """All requests of one server; any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._ttft, self._gap = Histogram(_TTFT_BUCKETS), Histogram(_GAP_BUCKETS)
        self._prompt_tokens = self._completion_tokens = 0

    def count(self, outcome: str) -> None:
        """outcome: stop, length, cancelled, deadline, refused, busy or error."""
        with self._lock:
            self._outcomes[outcome] += 1

    def finish(self, end: GenerationEnd) -> None:
        with self._lock:
            self._outcomes[end.finish_reason] += 1
            self._prompt_tokens += end.prompt_tokens
            self._completion_tokens += end.completion_tokens

    def observe_text(self, seconds: float, is_first: bool) -> None:
        """seconds since the request came, or since the piece of text before."""
        with self._lock:
            (self._ttft if is_first else self._gap).observe(seconds)

    def render(self, load: EngineLoad, routers: RouterSnapshot) -> str:
        with self._lock:
            outcomes = [f'bedside_requests_total{{outcome="{key}"}} {n}' for key, n in sorted(self._outcomes.items())]
            ttft = self._ttft.samples("bedside_time_to_first_token_seconds")
            gap = self._gap.samples("bedside_inter_token_latency_seconds")
            tokens = self._prompt_tokens, self._completion_tokens
        drafted = [_by_source("drafted", draft.source, draft.num_drafted) for draft in load.drafts]
        accepted = [_by_source("accepted", draft.source, draft.num_accepted) for draft in load.drafts]
        families = [
            _family("requests_total", "counter", "Requests by how they ended", outcomes),
            _family("time_to_first_token_seconds", "histogram", "From the request to its first text", ttft),
            _family("inter_token_latency_seconds", "histogram", "Between one piece of text and the next", gap),
            _value("prompt_tokens_total", "counter", "Tokens read", tokens[0]),
            _value("completion_tokens_total", "counter", "Tokens written", tokens[1]),
            _family("drafted_tokens_total", "counter", "Tokens guessed ahead, by source", drafted),
            _family("accepted_tokens_total", "counter", "Of these, those that stayed", accepted),
            _value("requests_running", "gauge", "Requests that hold blocks of the KV cache", load.num_running),
            _value("requests_waiting", "gauge", "Requests in the queue", load.num_waiting),
            _value("kv_blocks_used", "gauge", "Blocks of the KV cache that requests hold", load.num_blocks_used),
            _value("kv_blocks", "gauge", "Blocks of the KV cache", load.num_blocks),
            *_describe_experts(load.experts),
            _layers("expert_load_entropy", "Of each MoE layer's expert load; 1 is even", routers, "entropy"),
            _layers("expert_load_busiest", "Share of tokens that chose the layer's busiest expert", routers, "busiest"),
            _layers("experts_dead", "Share of the layer's experts that hardly any token chose", routers, "dead"),
            _layers("experts_flooded", "Share of them with over twice their part of the load", routers, "flooded"),
        ]
        return "\n".join(line for family in families for line in family) + "\n"


def _describe_experts(counts: ExpertCounts | None) -> list[list[str]]:
    """Nothing where all experts are in memory."""
    if counts is None:
        return []
    outcomes = {"hit": counts.hits, "prefetched": counts.prefetched, "miss": counts.misses}
    samples = [f'bedside_experts_wanted_total{{outcome="{key}"}} {n}' for key, n in outcomes.items()]
    return [
        _family("experts_wanted_total", "counter", "Experts that layers chose, by whether they were there", samples),
        _value("expert_bytes_read_total", "counter", "Read from the disk for experts", counts.bytes_read),
        _value("expert_slots", "gauge", "Experts that fit into memory", counts.num_slots),
    ]


def _family(name: str, kind: str, meaning: str, samples: Iterable[str]) -> list[str]:
    return [f"# HELP bedside_{name} {meaning}.", f"# TYPE bedside_{name} {kind}", *samples]


def _layers(name: str, meaning: str, routers: RouterSnapshot, figure: str) -> list[str]:
    """One of LayerHealth's figures, of every MoE layer."""
    samples = [f'bedside_{name}{{layer="{layer.layer}"}} {getattr(layer, figure)}' for layer in routers.layers]
    return _family(name, "gauge", meaning, samples)


def _by_source(kind: str, source: str, value: int) -> str:
    return f'bedside_{kind}_tokens_total{{source="{source}"}} {value}'


def _value(name: str, kind: str, meaning: str, value: int) -> list[str]:
    return _family(name, kind, meaning, [f"bedside_{name} {value}"])
