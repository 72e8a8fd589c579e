"""Router health: which experts each MoE layer chose lately, and an alarm where a layer stops choosing.

A router gone wrong is silent: the text stays fluent, written by a few experts of many. `RouterHealth.observe` is the
decoder's `router_observer`; it keeps references and folds them into counts now and then, without a device
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
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts import Generator
from model.config import CheckpointError, ModelConfig, read_json
from model.modeling import BailingMoeV2ForCausalLM, MoE, keep_best_groups

BASELINE_FILE = "router_baseline.json"
WINDOW_TOKENS = 4096
# A fold is some thirty small tensor operations for all layers together; 256 decode steps share it.
FOLD_PASSES = 256
FOLD_TOKENS = 64  # a pass this large is folded at once, so that no prefill's logits are kept
MARGIN_EVERY = 64  # passes, of which one is sampled for its margin
MARGIN_TOKENS = 16  # sampled of a fold at most

# A verdict needs 64 choices per expert on average, T * K / E >= 64. An expert with an eighth of its fair share would
# then go unchosen by chance once in e^8 = 3,000 (Poisson), and the bias of the measured entropy, (E - 1) / (2 T K) nats
# (Miller 1955), is below 0.01. No ten-token answer comes near: 256 tokens at 16 experts and top-4, 2,048 at 256, top-8.
MIN_CHOICES_PER_EXPERT = 64
DEAD_LOAD = 0.01  # of the uniform load
FLOODED_LOAD = 2.0
# Tokens of one record are alike, so that sampling error says little of what is usual; the limits stand where clinical
# text does not bring a healthy router. The embedded model, over each page of the demo records alone: entropy at least
# 0.79, no dead expert, busiest at most 0.77, drift at most 0.08. Text of one word or of bare numbers does: 900 times
# "mg" 0.15, and 0.97; the numbers to 500 0.24, and 0.99. So a state is a suspicion until a standard text confirms it.
MIN_ENTROPY = 0.5  # the effective number of experts, exp(H), is then the geometric mean of K and E
MAX_DEAD = 0.5
MAX_BUSIEST = 0.98
MAX_DRIFT = 0.25


class RouterState(StrEnum):
    WAITING = "waiting"  # too few tokens to judge
    HEALTHY = "healthy"
    DRIFTED = "drifted"  # unlike the baseline
    COLLAPSED = "collapsed"  # by entropy, dead experts or one busiest expert


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
class HasRouterHealth(Generator, Protocol):
    """A generator whose routers can be seen; a remote server's cannot."""

    def router_health(self, lifetime: bool = False) -> RouterSnapshot:
        """Of the last tokens, or of all since the model was loaded."""
        ...

    def restart_router_window(self) -> None:
        """Judges the routers by the tokens from now on."""
        ...


LayerTensors = Sequence[Tensor] | Tensor  # one for each MoE layer in order, or all in one with the layers first


@dataclass(frozen=True, slots=True)
class _Totals:
    """Sums over some tokens: counts [L,E] i64, margins [L] f32 over num_margins tokens; on the model's device."""

    counts: Tensor
    margins: Tensor
    num_margins: int
    tokens: int

    @staticmethod
    def of(parts: Sequence[_Totals]) -> _Totals:
        return _Totals(
            torch.stack([part.counts for part in parts]).sum(0),
            torch.stack([part.margins for part in parts]).sum(0),
            sum(part.num_margins for part in parts),
            sum(part.tokens for part in parts),
        )


class RouterHealth:
    """Watches the routers of one model in inference; all methods are thread-safe.

    Tensors given to `observe` are kept for up to FOLD_PASSES passes, so they must not be written to afterwards.
    """

    def __init__(self, model: BailingMoeV2ForCausalLM, baseline: Mapping[int, Sequence[float]] | None = None) -> None:
        self._config = model.config
        decoder = list(model.model.layers)[: model.config.num_hidden_layers]
        self._gates = {i: layer.mlp.gate for i, layer in enumerate(decoder) if isinstance(layer.mlp, MoE)}
        self._baseline = baseline or {}
        self._pending: deque[tuple[LayerTensors, LayerTensors]] = deque()
        self._folds: deque[_Totals] = deque()  # the window
        self._lifetime: _Totals | None = None
        self._lock = threading.Lock()

    @property
    def min_tokens(self) -> int:
        """From how many tokens on a layer is judged."""
        return math.ceil(MIN_CHOICES_PER_EXPERT * self._config.num_experts / self._config.num_experts_per_tok)

    def observe(self, topk_ids: LayerTensors, logits: LayerTensors, num_tokens: int) -> None:
        """Takes note of one forward pass: topk_ids [T,K] and logits [T,E] of each MoE layer; num_tokens is T."""
        # Without the lock, since appending to a deque is atomic.
        self._pending.append((topk_ids, logits))
        if len(self._pending) >= FOLD_PASSES or num_tokens >= FOLD_TOKENS:
            with self._lock:
                self._fold()

    def snapshot(self, lifetime: bool = False) -> RouterSnapshot:
        """The figures of now: over the window, or over everything since the model was loaded."""
        with self._lock:
            self._fold()
            folds, whole = list(self._folds), self._lifetime
        if whole is None or not (folds or lifetime):
            return RouterSnapshot((), whole.tokens if whole else 0, self.min_tokens, bool(self._baseline))
        totals = whole if lifetime else _Totals.of(folds)
        counts, margins = totals.counts.tolist(), totals.margins.tolist()
        layers = tuple(
            self._describe(index, totals.tokens, counts[row], margins[row] / totals.num_margins)
            for row, index in enumerate(self._gates)
        )
        return RouterSnapshot(layers, whole.tokens, self.min_tokens, bool(self._baseline))

    def restart_window(self) -> None:
        """Forgets the window, so that the next snapshot judges the tokens from now on; the lifetime's sums stay."""
        with self._lock:
            self._fold()
            self._folds.clear()

    @torch.inference_mode()
    def _fold(self) -> None:
        # Not list() and clear(): a pass noted between the two would be lost.
        pending = [self._pending.popleft() for _ in range(len(self._pending))]
        if not pending:
            return
        totals = self._count([ids for ids, _ in pending], [logits for _, logits in pending[::MARGIN_EVERY]])
        self._lifetime = totals if self._lifetime is None else _Totals.of([self._lifetime, totals])
        self._folds.append(totals)
        window, tokens = max(WINDOW_TOKENS, self.min_tokens), sum(fold.tokens for fold in self._folds)
        while tokens - self._folds[0].tokens >= window:
            tokens -= self._folds.popleft().tokens

    def _count(self, ids: Sequence[LayerTensors], logits: Sequence[LayerTensors]) -> _Totals:
        """Work queued on the device only: bincount or .item() would wait for it at every fold."""
        ids_LTK, logits_LTE = _join(ids).long(), _join(logits)
        L, T, E = len(ids_LTK), ids_LTK.shape[1], self._config.num_experts
        flat_ids = (ids_LTK + torch.arange(0, L * E, E, device=ids_LTK.device)[:, None, None]).flatten()
        counts = torch.zeros(L * E, dtype=torch.int64, device=flat_ids.device)
        counts.scatter_add_(0, flat_ids, torch.ones_like(flat_ids))
        logits_LTE = logits_LTE[:, :: math.ceil(logits_LTE.shape[1] / MARGIN_TOKENS)]
        bias_LE = torch.stack([gate.expert_bias for gate in self._gates.values()]).to(logits_LTE.device)
        margins_LT = topk_margin(logits_LTE, bias_LE[:, None], self._config)
        return _Totals(counts.view(L, E), margins_LT.sum(1), margins_LT.shape[1], T)

    def _describe(self, index: int, tokens: int, counts: Sequence[int], margin: float) -> LayerHealth:
        E, K = self._config.num_experts, self._config.num_experts_per_tok
        load = tuple(n / (tokens * K) for n in counts)
        baseline = self._baseline.get(index)
        figures = {
            "entropy": router_entropy(load, K),
            "dead": sum(share * E < DEAD_LOAD for share in load) / E,
            "flooded": sum(share * E > FLOODED_LOAD for share in load) / E,
            "busiest": max(load) * K,
        }
        drift = None if baseline is None else divergence(load, baseline)
        state = self._judge(tokens, drift, **figures)
        known_margin = margin if math.isfinite(margin) else None
        return LayerHealth(index, tokens, load, **figures, margin=known_margin, drift=drift, state=state)

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


def _join(passes: Sequence[LayerTensors]) -> Tensor:
    """The passes behind one another: [L,T,...]."""
    if isinstance(passes[0], Tensor):
        return torch.cat([part for part in passes if isinstance(part, Tensor)], dim=1)
    return torch.stack([torch.cat(of_layer) for of_layer in zip(*passes, strict=True)])


# --- the figures ------------------------------------------------------------------------------------------------


def topk_margin(logits: Tensor, expert_bias: Tensor, config: ModelConfig) -> Tensor:
    """Biased score of the K-th chosen expert less that of the best not chosen in the groups kept: logits [...,E] f32
    before the sigmoid and a bias that goes with them give [...] f32; inf where those groups hold K experts only."""
    E, K = config.num_experts, config.num_experts_per_tok
    biased = keep_best_groups((logits.sigmoid() + expert_bias).view(-1, E), config)
    best = F.pad(biased, (0, 1), value=-math.inf).topk(K + 1, dim=-1).values
    return (best[:, K - 1] - best[:, K]).view(logits.shape[:-1])


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
