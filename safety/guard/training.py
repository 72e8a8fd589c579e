"""Trains adapters and heads on all targets at once, one seed, in plain torch. `bedside train guard` runs it.

Each example counts for its own target only. Knows nothing of thresholds: those come from texts it has not seen.
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
RANK = 16
BATCH = 32
Batch = Sequence[tuple[int, Example]]  # (index of the target, example)
OnStep = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    epochs: int = 3
    adapter_rate: float = 1e-3
    head_rate: float = 3e-3
    lexical_rate: float = 2e-2
    smoothing: float = 0.01  # labels are 0.01 and 0.99


class _Adapter(nn.Module):
    """A linear layer and a low-rank step beside it, in float32; the layer itself stays as it is."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.randn(RANK, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = (x @ self.down.T.to(x.dtype)) @ self.up.T.to(x.dtype)
        result: torch.Tensor = self.layer(x) + step
        return result


class GuardModel(nn.Module):
    """MiniLM with adapters, and a head for each target."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.encoder = load_base(base).requires_grad_(False)
        self.adapters: dict[str, _Adapter] = {}
        for name, layer in adapted_layers(self.encoder).items():
            parent, _, last = name.rpartition(".")
            self.adapters[name] = _Adapter(layer)
            setattr(self.encoder.get_submodule(parent), last, self.adapters[name])
        self.direct = nn.Linear(self.encoder.config.hidden_size, len(TARGETS))
        self.lexical = nn.EmbeddingBag(NUM_BUCKETS, len(TARGETS), mode="sum")
        nn.init.zeros_(self.lexical.weight)
        self._tokenizer = load_tokenizer(base)
        self._lower: dict[str, torch.Tensor] = {}  # text -> what the blocks without adapters make of it, [T, 384]

    def read(self, texts: Sequence[str]) -> None:
        """Puts texts through the lower blocks, once for all epochs."""
        encodings = self._tokenizer.encode_batch(list(texts))
        with torch.no_grad():
            for text, encoding in zip(texts, encodings, strict=True):
                hidden = self.encoder.embeddings(input_ids=torch.tensor([encoding.ids]))
                for block in self.encoder.encoder.layer[:FIRST_ADAPTED]:
                    hidden = _hidden(block(hidden))
                self._lower[text] = hidden[0]

    def length(self, text: str) -> int:
        """Tokens of a text that was read."""
        return len(self._lower[text])

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 [N, targets]: logits of texts that were read and have equally many tokens."""
        hidden = torch.stack([self._lower[text] for text in texts])
        for block in self.encoder.encoder.layer[FIRST_ADAPTED:]:
            hidden = _hidden(block(hidden))
        vectors = hidden.mean(1)
        rows = [torch.from_numpy(hashed_ngrams(text)) for text in texts]
        offsets = torch.tensor([0, *(len(row) for row in rows[:-1])]).cumsum(0)
        sizes = torch.tensor([max(len(row), 1) for row in rows], dtype=torch.float32)
        logits: torch.Tensor = (
            self.direct(vectors.float()) + self.lexical(torch.cat(rows), offsets) / sizes.sqrt()[:, None]
        )
        return logits

    def save(self, path: Path) -> None:
        """Adapters and heads as float16."""
        tensors = {f"{name}.{part}": getattr(a, part) for name, a in self.adapters.items() for part in ("down", "up")}
        for number, target in enumerate(TARGETS):
            tensors[f"direct.{target}"] = self.direct.weight[number]
            tensors[f"bias.{target}"] = self.direct.bias[number : number + 1]
            tensors[f"lexical.{target}"] = self.lexical.weight[:, number]
        save_file({n: np.ascontiguousarray(t.detach().numpy().astype(np.float16)) for n, t in tensors.items()}, path)


def fit(base: Path, examples: Batch, plan: TrainingPlan, on_step: OnStep) -> GuardModel:
    """Trains on the examples; the same seed and machine give the same weights."""
    torch.manual_seed(SEED)
    chooser = random.Random(SEED)
    model = GuardModel(base)
    model.read(list({example.text for _, example in examples}))
    steps = plan.epochs * len(list(_batches(model, examples, random.Random(SEED))))
    optimizer = _optimizer(model, plan)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / 50) * max(0.02, 1 - step / steps)
    )
    batches = (batch for _ in range(plan.epochs) for batch in _batches(model, examples, chooser))
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
    return (losses * weights).sum() / weights.sum()


def _batches(model: GuardModel, examples: Batch, chooser: random.Random) -> Iterator[Batch]:
    """Every example once, in batches of texts of one length, in random order: nothing is padded."""
    by_length: dict[int, list[tuple[int, Example]]] = defaultdict(list)
    for pair in examples:
        by_length[model.length(pair[1].text)].append(pair)
    batches = []
    for group in by_length.values():
        chooser.shuffle(group)
        batches += [group[first : first + BATCH] for first in range(0, len(group), BATCH)]
    chooser.shuffle(batches)
    yield from batches


def _hidden(output: Any) -> torch.Tensor:
    """A block's hidden states, which some versions give alone and some first in a tuple."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
