"""Router health: which experts each MoE layer chose lately, and an alarm where a layer stops choosing.

A router gone wrong is silent: the text stays fluent, written by a few experts of many. `RouterHealth.observe` is the
decoder's `router_observer`; it keeps references and folds them every FOLD_TOKENS tokens, without a device
synchronisation. `snapshot()` computes the figures. Knows nothing of text, turns and pages.

Figures, per layer, over the last WINDOW_TOKENS tokens (prompt and answer alike):

- load: each expert's share of all choices; a uniform load is 1/E.
- entropy: Shannon's, of the load, on the scale that a top-K router has: (H - ln K) / (ln E - ln K). 1 is uniform;
  0 is every token going to the same K experts.
- dead: share of experts below 1 % of the uniform load. flooded: share above twice the uniform load, the largest
  capacity factor of the Switch Transformer (arXiv 2101.03961, section 2.2); beyond it that model drops tokens.
- busiest: the share of tokens that chose the busiest expert; 1.0 means that every token did.
- margin: mean distance, in the biased score (DeepSeek-V3, arXiv 2412.19437, eq. 16), between the K-th chosen expert
  and the best not chosen among the groups kept: how near another choice was. On sampled tokens.
- drift: Jensen-Shannon divergence in bits (Lin 1991) between the load and a stored baseline; 0 is equal, 1 disjoint.
"""

from __future__ import annotations

import json
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from model.config import CheckpointError, ModelConfig, read_json
from model.modeling import BailingMoeV2ForCausalLM, MoE, RouterOutput, keep_best_groups

BASELINE_FILE = "router_baseline.json"
WINDOW_TOKENS = 4096
# Folding costs some ten small tensor operations a layer; shared by 64 decode steps it is below 1 us a step and layer.
FOLD_TOKENS = 64
MARGIN_SAMPLES = 16  # tokens per fold whose margin is computed

# A verdict needs 64 choices per expert on average, T * K / E >= 64. An expert with an eighth of its fair share would
# then go unchosen by chance once in e^8 = 3,000 (Poisson), and the bias of the measured entropy, (E - 1) / (2 T K) nats
# (Miller 1955), is below 0.01. No ten-token answer comes near: 256 tokens at 16 experts and top-4, 2,048 at 256, top-8.
MIN_CHOICES_PER_EXPERT = 64
DEAD_LOAD = 0.01  # of the uniform load
FLOODED_LOAD = 2.0
# Tokens of one record are alike, so that sampling error says little of what is usual; the limits stand where the
# subject cannot bring a healthy router. The embedded model, over each page of the demo records alone: entropy at least
# 0.79, no dead expert, busiest at most 0.77, drift at most 0.08; over "5 mg. " 150 times: 0.70, 0, 0.87 and 0.13.
MIN_ENTROPY = 0.5  # the effective number of experts, exp(H), is then the geometric mean of K and E
MAX_DEAD = 0.5
MAX_BUSIEST = 0.98
MAX_DRIFT = 0.25


class RouterState(StrEnum):
    WAITING = "waiting"  # too few tokens to judge
    HEALTHY = "healthy"
    DRIFTED = "drifted"  # unlike the baseline: another subject, or other weights
    COLLAPSED = "collapsed"  # entropy, dead experts or one busiest expert: no subject explains it


@dataclass(frozen=True, slots=True)
class LayerHealth:
    """One MoE layer's figures; see the module. load is of length E. margin and drift are None where not known."""

    layer: int
    tokens: int
    load: tuple[float, ...]
    entropy: float
    dead: float
    flooded: float
    busiest: float
    margin: float | None
    drift: float | None
    state: RouterState


@dataclass(frozen=True, slots=True)
class RouterSnapshot:
    """All MoE layers in their order. num_routed counts tokens since the model was loaded; a layer is judged from
    min_tokens on."""

    layers: tuple[LayerHealth, ...]
    num_routed: int
    min_tokens: int
    has_baseline: bool

    def in_state(self, state: RouterState) -> tuple[LayerHealth, ...]:
        return tuple(layer for layer in self.layers if layer.state is state)


@runtime_checkable
class HasRouterHealth(Protocol):
    """A generator whose routers can be seen; a remote server's cannot."""

    def router_health(self, lifetime: bool = False) -> RouterSnapshot: ...


@dataclass(slots=True)
class _Totals:
    """Sums over some tokens: counts [E] i64, margin a sum over num_margins tokens; on the model's device."""

    counts: Tensor
    margin: Tensor
    num_margins: int = 0
    tokens: int = 0

    def add(self, other: _Totals) -> None:
        self.counts = self.counts + other.counts
        self.margin = self.margin + other.margin
        self.num_margins += other.num_margins
        self.tokens += other.tokens


@dataclass(slots=True)
class _Layer:
    pending: list[RouterOutput] = field(default_factory=list)
    num_pending: int = 0
    folds: deque[_Totals] = field(default_factory=deque)
    tokens_in_folds: int = 0
    lifetime: _Totals | None = None


class RouterHealth:
    """Watches the routers of one model in inference; all methods are thread-safe.

    Tensors given to `observe` are kept for up to FOLD_TOKENS tokens, so they must not be written to afterwards.
    """

    def __init__(self, model: BailingMoeV2ForCausalLM, baseline: Mapping[int, Sequence[float]] | None = None) -> None:
        self._config = model.config
        decoder = list(model.model.layers)[: model.config.num_hidden_layers]
        self._gates = {i: layer.mlp.gate for i, layer in enumerate(decoder) if isinstance(layer.mlp, MoE)}
        self._baseline = baseline or {}
        self._layers = {index: _Layer() for index in self._gates}
        self._lock = threading.Lock()

    @property
    def min_tokens(self) -> int:
        """From how many tokens on a layer is judged."""
        return math.ceil(MIN_CHOICES_PER_EXPERT * self._config.num_experts / self._config.num_experts_per_tok)

    def observe(self, layer: int, router: RouterOutput) -> None:
        """Takes note of one layer's choice for the tokens of one forward pass."""
        seen = self._layers[layer]
        with self._lock:
            seen.pending.append(router)
            seen.num_pending += len(router.topk_ids)
            if seen.num_pending >= FOLD_TOKENS:
                self._fold(layer, seen)

    def snapshot(self, lifetime: bool = False) -> RouterSnapshot:
        """The figures of now: over the window, or over everything since the model was loaded."""
        with self._lock:
            for index, layer in self._layers.items():
                self._fold(index, layer)
            sums = {index: layer.lifetime if lifetime else _sum(layer.folds) for index, layer in self._layers.items()}
            routed = max((layer.lifetime.tokens for layer in self._layers.values() if layer.lifetime), default=0)
        layers = tuple(self._describe(index, totals) for index, totals in sums.items() if totals is not None)
        return RouterSnapshot(layers, routed, self.min_tokens, bool(self._baseline))

    @torch.inference_mode()
    def _fold(self, index: int, layer: _Layer) -> None:
        if not layer.pending:
            return
        totals = self._count(index, layer.pending, layer.num_pending)
        layer.pending, layer.num_pending = [], 0
        layer.folds.append(totals)
        layer.tokens_in_folds += totals.tokens
        window = max(WINDOW_TOKENS, self.min_tokens)
        while layer.tokens_in_folds - layer.folds[0].tokens >= window:
            layer.tokens_in_folds -= layer.folds.popleft().tokens
        if layer.lifetime is None:
            layer.lifetime = _sum([totals])
        else:
            layer.lifetime.add(totals)

    def _count(self, index: int, pending: Sequence[RouterOutput], num_tokens: int) -> _Totals:
        """Work queued on the device only: bincount or .item() would wait for it at every fold."""
        ids = torch.cat([router.topk_ids for router in pending]).flatten()
        counts = torch.zeros(self._config.num_experts, dtype=torch.int64, device=ids.device)
        counts.scatter_add_(0, ids, torch.ones_like(ids))
        logits_TE = pending[-1].logits
        logits_TE = logits_TE[:: math.ceil(len(logits_TE) / MARGIN_SAMPLES)]
        margins_T = topk_margin(logits_TE, self._gates[index].expert_bias, self._config)
        if margins_T is None:
            return _Totals(counts, counts.new_zeros((), dtype=torch.float32), 0, num_tokens)
        return _Totals(counts, margins_T.sum(), len(margins_T), num_tokens)

    def _describe(self, index: int, totals: _Totals) -> LayerHealth:
        config, counts = self._config, totals.counts.tolist()
        E, K = config.num_experts, config.num_experts_per_tok
        load = tuple(n / (totals.tokens * K) for n in counts)
        baseline = self._baseline.get(index)
        figures = {
            "entropy": router_entropy(load, K),
            "dead": sum(share * E < DEAD_LOAD for share in load) / E,
            "flooded": sum(share * E > FLOODED_LOAD for share in load) / E,
            "busiest": max(load) * K,
        }
        drift = None if baseline is None else divergence(load, baseline)
        margin = totals.margin.item() / totals.num_margins if totals.num_margins else None
        state = self._judge(totals.tokens, drift, **figures)
        return LayerHealth(index, totals.tokens, load, **figures, margin=margin, drift=drift, state=state)

    def _judge(
        self, tokens: int, drift: float | None, entropy: float, dead: float, flooded: float, busiest: float
    ) -> RouterState:
        """`flooded` has no limit of its own: experts are made to have subjects, and a record has one."""
        if tokens < self.min_tokens:
            return RouterState.WAITING
        if self._can_choose and (entropy < MIN_ENTROPY or dead > MAX_DEAD or busiest > MAX_BUSIEST):
            return RouterState.COLLAPSED
        return RouterState.DRIFTED if drift is not None and drift > MAX_DRIFT else RouterState.HEALTHY

    @property
    def _can_choose(self) -> bool:
        return self._config.num_experts_per_tok < self._config.num_experts


def _sum(parts: Sequence[_Totals] | deque[_Totals]) -> _Totals | None:
    if not parts:
        return None
    return _Totals(
        torch.stack([part.counts for part in parts]).sum(0),
        torch.stack([part.margin for part in parts]).sum(),
        sum(part.num_margins for part in parts),
        sum(part.tokens for part in parts),
    )


# --- the figures ------------------------------------------------------------------------------------------------


def topk_margin(logits_TE: Tensor, expert_bias_E: Tensor, config: ModelConfig) -> Tensor | None:
    """Biased score of the K-th chosen expert less that of the best not chosen in the groups kept, [T] f32; None where
    the groups kept hold K experts only, so that there is no other choice. logits_TE are f32, before the sigmoid."""
    K = config.num_experts_per_tok
    if config.topk_group * config.experts_per_group <= K:
        return None
    biased_TE = keep_best_groups(logits_TE.sigmoid() + expert_bias_E, config)
    best = biased_TE.topk(K + 1, dim=-1).values
    return best[:, K - 1] - best[:, K]


def entropy_nats(load: Sequence[float]) -> float:
    """Shannon entropy of shares that sum to 1."""
    return -sum(share * math.log(share) for share in load if share > 0)


def router_entropy(load: Sequence[float], top_k: int) -> float:
    """Entropy of the load between 0, the same top_k experts always, and 1, uniform; 1 if all experts are always
    chosen."""
    if top_k >= len(load):
        return 1.0
    return max(0.0, (entropy_nats(load) - math.log(top_k)) / (math.log(len(load)) - math.log(top_k)))


def divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """Jensen-Shannon divergence of two loads in bits, 0..1. J. Lin, IEEE Trans. Inf. Theory 37(1), 1991."""
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return max(0.0, (entropy_nats(middle) - (entropy_nats(p) + entropy_nats(q)) / 2) / math.log(2))


# --- the baseline -----------------------------------------------------------------------------------------------


def read_baseline(folder: Path, config: ModelConfig) -> dict[int, tuple[float, ...]] | None:
    """Layer -> load from the folder's router_baseline.json; None where there is none. Raises CheckpointError for a
    file that does not fit the model."""
    path = folder / BASELINE_FILE
    if not path.exists():
        return None
    layers = read_json(path).get("layers")
    expected = {str(index) for index in range(config.num_hidden_layers) if config.is_moe_layer(index)}
    advice = "make it again with `bedside eval router --write-baseline`, or delete it."
    if not isinstance(layers, dict) or set(layers) != expected:
        raise CheckpointError(f"{path}: its layers are not the model's MoE layers; {advice}")
    for index, load in layers.items():
        if not _is_load(load, config.num_experts):
            raise CheckpointError(
                f"{path}: layer {index} must hold {config.num_experts} shares that sum to 1; {advice}"
            )
    return {int(index): tuple(map(float, load)) for index, load in layers.items()}


def _is_load(load: object, num_experts: int) -> bool:
    if not isinstance(load, list) or len(load) != num_experts:
        return False
    if not all(isinstance(share, int | float) and share >= 0 for share in load):
        return False
    return math.isclose(sum(load), 1.0, abs_tol=1e-3)


def write_baseline(folder: Path, snapshot: RouterSnapshot) -> Path:
    """Stores the loads of a snapshot beside the weights, in one replacement. Raises ValueError if too little was routed
    for a baseline, a layer has collapsed, or the folder cannot be written."""
    if snapshot.num_routed < snapshot.min_tokens:
        raise ValueError(
            f"{snapshot.num_routed:,} tokens were routed and a baseline needs {snapshot.min_tokens:,}: give more text."
        )
    if collapsed := snapshot.in_state(RouterState.COLLAPSED):
        raise ValueError(f"The router of layer {collapsed[0].layer} has collapsed: that is no baseline to hold to.")
    layers = {str(layer.layer): [round(share, 6) for share in layer.load] for layer in snapshot.layers}
    path, partial = folder / BASELINE_FILE, folder / f".{BASELINE_FILE}.partial"
    lines = ",\n".join(f'    "{index}": {json.dumps(load)}' for index, load in layers.items())
    try:
        partial.write_text(
            f'{{\n  "tokens": {snapshot.num_routed},\n  "layers": {{\n{lines}\n  }}\n}}\n', encoding="utf-8"
        )
        partial.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}.") from error
    return path
