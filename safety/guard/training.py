"""Trains adapters and heads on all targets at once, one seed, in plain torch. `bedside train guard` runs it.

Each example counts for its own target only. The two sides of a minimal pair come in one batch, and beside the usual
loss the harmful side has to lie above the legitimate one by a margin (RankNet's loss, Burges et al., ICML 2005): only
the act tells them apart. Knows nothing of thresholds: those come from texts it has not seen.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from safety.guard.conformal import TARGETS
from safety.guard.corpus import Example
from safety.guard.encoder import FIRST_ADAPTED, adapted_layers, load_base, load_tokenizer
from safety.guard.features import NUM_BUCKETS, hashed_ngrams

SEED = 20261126
_NEAR = 16  # so many batches in random order are sorted by length, to be padded little
_READ = 64  # texts of one length that are read at once
Batch = Sequence[tuple[int, Example]]  # (index of the target, example)
OnStep = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    epochs: int = 3
    batch: int = 48
    rank: int = 32
    adapter_rate: float = 1e-3
    head_rate: float = 3e-3
    lexical_rate: float = 2e-2
    smoothing: float = 0.01  # labels are 0.01 and 0.99
    dropout: float = 0.1  # of what goes into the adapters, and of the vectors
    pair_weight: float = 0.5  # of the loss between the sides of a pair
    margin: float = 2.0  # logits


class _Adapter(nn.Module):
    """A linear layer and a low-rank step beside it, in float32; the layer itself stays as it is."""

    def __init__(self, layer: nn.Linear, rank: int, dropout: float) -> None:
        super().__init__()
        self.layer, self.dropout = layer, dropout
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = nn.functional.dropout(x, self.dropout, self.training)
        step = (seen @ self.down.T.to(x.dtype)) @ self.up.T.to(x.dtype)
        result: torch.Tensor = self.layer(x) + step
        return result


class GuardModel(nn.Module):
    """MiniLM with adapters, and a head for each target."""

    def __init__(self, base: Path, plan: TrainingPlan) -> None:
        super().__init__()
        self._tokenizer = load_tokenizer(base)
        self.encoder = load_base(base).requires_grad_(False)
        self._plan = plan
        self.adapters: dict[str, _Adapter] = {}
        for name, layer in adapted_layers(self.encoder).items():
            parent, _, last = name.rpartition(".")
            self.adapters[name] = _Adapter(layer, plan.rank, plan.dropout)
            setattr(self.encoder.get_submodule(parent), last, self.adapters[name])
        self.direct = nn.Linear(self.encoder.config.hidden_size, len(TARGETS))
        self.lexical = nn.EmbeddingBag(NUM_BUCKETS, len(TARGETS), mode="sum")
        nn.init.zeros_(self.lexical.weight)
        self._lower: dict[str, torch.Tensor] = {}  # text -> what the blocks without adapters make of it, [T, D]

    def read(self, texts: Sequence[str]) -> None:
        """Puts texts through the lower blocks, once for all epochs."""
        by_length: dict[int, list[tuple[str, list[int]]]] = defaultdict(list)
        for text, encoding in zip(texts, self._tokenizer.encode_batch(list(texts)), strict=True):
            by_length[len(encoding.ids)].append((text, encoding.ids))
        alike = [group[first : first + _READ] for group in by_length.values() for first in range(0, len(group), _READ)]
        with torch.no_grad():
            for group in alike:
                hidden = self.encoder.embeddings(input_ids=torch.tensor([ids for _, ids in group]))
                for block in self.encoder.encoder.layer[:FIRST_ADAPTED]:
                    hidden = _hidden(block(hidden))
                self._lower |= {text: states.clone() for (text, _), states in zip(group, hidden, strict=True)}

    def length(self, text: str) -> int:
        """Tokens of a text that was read."""
        return len(self._lower[text])

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 [N, targets]: logits of texts that were read."""
        hidden = nn.utils.rnn.pad_sequence([self._lower[text] for text in texts], batch_first=True)
        lengths = torch.tensor([self.length(text) for text in texts])
        mask = torch.arange(hidden.shape[1]) < lengths[:, None]
        attended = torch.zeros(mask.shape, dtype=hidden.dtype).masked_fill(~mask, -1e4)[:, None, None]
        for block in self.encoder.encoder.layer[FIRST_ADAPTED:]:
            hidden = _hidden(block(hidden, attention_mask=attended))
        vectors = (hidden.float() * mask[..., None]).sum(1) / lengths[:, None]
        vectors = nn.functional.dropout(vectors, self._plan.dropout, self.training)
        rows = [torch.from_numpy(hashed_ngrams(text)) for text in texts]
        offsets = torch.tensor([0, *(len(row) for row in rows[:-1])]).cumsum(0)
        sizes = torch.tensor([max(len(row), 1) for row in rows], dtype=torch.float32)
        lexical = self.lexical(torch.cat(rows), offsets) / sizes.sqrt()[:, None]
        logits: torch.Tensor = self.direct(vectors) + lexical
        return logits

    def save(self, path: Path) -> None:
        """Adapters and heads as float16."""
        tensors = {f"{name}.{part}": getattr(a, part) for name, a in self.adapters.items() for part in ("down", "up")}
        for number, target in enumerate(TARGETS):
            tensors[f"direct.{target}"] = self.direct.weight[number]
            tensors[f"bias.{target}"] = self.direct.bias[number : number + 1]
            tensors[f"lexical.{target}"] = self.lexical.weight[:, number]
        halves = {n: np.ascontiguousarray(t.detach().numpy().astype(np.float16)) for n, t in tensors.items()}
        save_file(halves, path)


def fit(base: Path, examples: Batch, plan: TrainingPlan, on_step: OnStep) -> GuardModel:
    """Trains on the examples; the same seed and machine give the same weights."""
    torch.manual_seed(SEED)
    chooser = random.Random(SEED)
    model = GuardModel(base, plan)
    model.read(list({example.text for _, example in examples}))
    model.train()
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
    targets = torch.tensor([target for target, _ in batch])
    labels = torch.tensor([float(example.is_positive) for _, example in batch])
    weights = torch.tensor([example.weight for _, example in batch])
    logits = model([example.text for _, example in batch]).gather(1, targets[:, None])[:, 0]
    smooth = labels * (1 - 2 * plan.smoothing) + plan.smoothing
    losses = nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    sides = _sides(batch)
    if sides and plan.pair_weight:
        harmful, legitimate = (logits[torch.tensor(places)] for places in zip(*sides, strict=True))
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


def _hidden(output: Any) -> torch.Tensor:
    """A block's hidden states, which some versions give alone and some first in a tuple."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
