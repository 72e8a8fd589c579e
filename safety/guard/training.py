"""Trains adapters and heads on all targets at once, one seed, in plain torch. `bedside train guard` runs it.

Each example counts for its own target only. The two sides of a minimal pair come in one batch, and beside the usual
loss the harmful side has to lie above the legitimate one by a margin (RankNet's loss, Burges et al., ICML 2005): only
the act tells them apart. Knows nothing of thresholds: those come from texts it has not seen.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safety.guard import weights_file
from safety.guard.conformal import TARGETS
from safety.guard.corpus import Example
from safety.guard.encoder import Base, adapted_layers, to_ids
from safety.guard.features import NUM_BUCKETS, hashed_ngrams

SEED = 20261126
_NEAR = 16  # so many batches in random order are sorted by length, to be padded little
Batch = Sequence[tuple[int, Example]]  # (index of the target, example)
OnStep = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    epochs: int = 3
    batch: int = 48
    rank: int = 32
    first_adapted: int = 2  # block; those below stay as published
    adapter_rate: float = 1e-3
    head_rate: float = 3e-3
    lexical_rate: float = 2e-2
    smoothing: float = 0.01  # labels are 0.01 and 0.99
    dropout: float = 0.1  # of the vectors
    pair_weight: float = 1.0  # of the loss between the sides of a pair
    margin: float = 2.0  # logits


PLANS = {
    "minilm": TrainingPlan(),
    "e5": TrainingPlan(batch=192, rank=16, first_adapted=0, adapter_rate=1.5e-3),
    "mpnet": TrainingPlan(batch=192, rank=16, first_adapted=0, adapter_rate=1.5e-3, pair_weight=3.0),
}


def one_more(plan: TrainingPlan) -> TrainingPlan:
    """One round at half the rates: for texts that came after weights were trained."""
    rates = {name: getattr(plan, name) / 2 for name in ("adapter_rate", "head_rate", "lexical_rate")}
    return replace(plan, epochs=1, **rates)


class _Adapter(nn.Module):
    """A linear layer and beside it a low-rank step, whose factors are float32."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = nn.functional.linear(x, self.down.to(x.dtype))
        step: torch.Tensor = self.layer(x) + nn.functional.linear(low, self.up.to(x.dtype))
        return step


class GuardModel(nn.Module):
    """An encoder with adapters, and a head for each target."""

    def __init__(self, base: Base, plan: TrainingPlan) -> None:
        super().__init__()
        self._tokenizer, encoder = base.open()
        self.encoder = encoder.requires_grad_(False).to(torch.bfloat16)  # it is only read; CPUs and GPUs are fast in it
        self._plan = plan
        self.adapters: dict[str, _Adapter] = {}
        for name, layer in adapted_layers(self.encoder, plan.first_adapted).items():
            parent, _, last = name.rpartition(".")
            self.adapters[name] = _Adapter(layer, plan.rank)
            setattr(self.encoder.get_submodule(parent), last, self.adapters[name])
        self.direct = nn.Linear(self.encoder.config.hidden_size, len(TARGETS))
        self.lexical = nn.EmbeddingBag(NUM_BUCKETS, len(TARGETS), mode="sum")
        nn.init.zeros_(self.lexical.weight)
        self._read: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # text -> its tokens, its n-grams

    def read(self, texts: Sequence[str]) -> None:
        """Takes texts apart, once for all epochs."""
        for text, ids in zip(texts, to_ids(self._tokenizer, texts), strict=True):
            self._read[text] = torch.tensor(ids), torch.from_numpy(hashed_ngrams(text))

    def length(self, text: str) -> int:
        """Tokens of a text that was read."""
        return len(self._read[text][0])

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 [N, targets]: logits of texts that were read."""
        device = self.direct.weight.device
        ids, grams = zip(*(self._read[text] for text in texts), strict=True)
        tokens = nn.utils.rnn.pad_sequence(list(ids), batch_first=True).to(device)
        mask = (torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in ids])[:, None]).to(device)
        hidden = self.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.float()
        vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors = nn.functional.dropout(vectors, self._plan.dropout, self.training)
        offsets = torch.tensor([0, *(len(row) for row in grams[:-1])]).cumsum(0)
        sizes = torch.tensor([max(len(row), 1) for row in grams], dtype=torch.float32)
        lexical = self.lexical(torch.cat(grams).to(device), offsets.to(device)) / sizes.sqrt().to(device)[:, None]
        logits: torch.Tensor = self.direct(vectors) + lexical
        return logits

    def save(self, path: Path) -> None:
        """Adapters and heads, in safety.guard.weights_file's form."""
        weights_file.save({name: t.detach().float().cpu().numpy() for name, t in self._tensors().items()}, path)

    def load(self, path: Path) -> None:
        """What `save` wrote. Raises OSError, KeyError, RuntimeError if the file is missing or of another shape."""
        saved = weights_file.load(path)
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(torch.from_numpy(saved[name]))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """What is trained, by the names in the file; views of the parameters."""
        tensors = {f"{name}.{part}": getattr(a, part) for name, a in self.adapters.items() for part in ("down", "up")}
        for number, target in enumerate(TARGETS):
            tensors[f"direct.{target}"] = self.direct.weight[number]
            tensors[f"bias.{target}"] = self.direct.bias[number : number + 1]
            tensors[f"lexical.{target}"] = self.lexical.weight[:, number]
        return tensors


def fit(
    base: Base,
    examples: Batch,
    plan: TrainingPlan,
    on_step: OnStep,
    device: str = "cpu",
    start: Path | None = None,
) -> GuardModel:
    """Trains on the examples, from weights that were saved if `start` names some; the same seed and machine give the
    same weights."""
    torch.manual_seed(SEED)
    chooser = random.Random(SEED)
    model = GuardModel(base, plan)
    if start is not None:
        model.load(start)
    model.read(list({example.text for _, example in examples}))
    model.to(device).train()
    steps = plan.epochs * len(list(_batches(model, examples, plan.batch, random.Random(SEED))))
    optimizer = _optimizer(model, plan)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / 50) * max(0.02, 1 - step / steps)
    )
    batches = (batch for _ in range(plan.epochs) for batch in _batches(model, examples, plan.batch, chooser))
    for step, batch in enumerate(batches, 1):
        loss = _loss(model, batch, plan)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        schedule.step()
        on_step(step, steps, loss.item())
    return model.eval()


def _optimizer(model: GuardModel, plan: TrainingPlan) -> torch.optim.Optimizer:
    adapters = [p for adapter in model.adapters.values() for p in (adapter.down, adapter.up)]
    groups: list[dict[str, Any]] = [
        {"params": adapters, "lr": plan.adapter_rate},
        {"params": model.direct.parameters(), "lr": plan.head_rate},
        {"params": model.lexical.parameters(), "lr": plan.lexical_rate, "weight_decay": 1e-3},
    ]
    return torch.optim.AdamW(groups, weight_decay=0.01)


def _loss(model: GuardModel, batch: Batch, plan: TrainingPlan) -> torch.Tensor:
    device = model.direct.weight.device
    targets = torch.tensor([target for target, _ in batch], device=device)
    labels = torch.tensor([float(example.is_positive) for _, example in batch], device=device)
    weights = torch.tensor([example.weight for _, example in batch], device=device)
    logits = model([example.text for _, example in batch]).gather(1, targets[:, None])[:, 0]
    smooth = labels * (1 - 2 * plan.smoothing) + plan.smoothing
    losses = nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    sides = _sides(batch)
    if sides and plan.pair_weight:
        harmful, legitimate = (logits[torch.tensor(places, device=device)] for places in zip(*sides, strict=True))
        apart = nn.functional.softplus(plan.margin - (harmful - legitimate)).mean()
        loss = loss + plan.pair_weight * len(sides) / len(batch) * apart
    return loss


def _sides(batch: Batch) -> list[tuple[int, int]]:
    """The places of the harmful and the legitimate side of each pair that is here whole."""
    places: dict[str, dict[bool, int]] = defaultdict(dict)
    for place, (_, example) in enumerate(batch):
        if example.pair:
            places[example.pair][example.is_positive] = place
    return [(sides[True], sides[False]) for sides in places.values() if len(sides) == 2]


def _batches(model: GuardModel, examples: Batch, size: int, chooser: random.Random) -> Iterator[Batch]:
    """Every example once, in random order, in batches of texts of like length; the sides of a pair stay together."""
    units: dict[str, list[tuple[int, Example]]] = defaultdict(list)
    for number, (target, example) in enumerate(examples):
        units[example.pair or str(number)].append((target, example))
    shuffled = list(units.values())
    chooser.shuffle(shuffled)
    batches = []
    for first in range(0, len(shuffled), _NEAR * size):
        near = shuffled[first : first + _NEAR * size]
        near.sort(key=lambda unit: max(model.length(example.text) for _, example in unit))
        batch: list[tuple[int, Example]] = []
        for unit in near:
            batch += unit
            if len(batch) >= size:
                batches.append(batch)
                batch = []
        batches += [batch] if batch else []
    chooser.shuffle(batches)
    yield from batches
