"""Tunes the upper blocks of the encoder so that a question lies near its answer. `bedside train embedder` runs it.

InfoNCE in both directions (van den Oord et al., arXiv 1807.03748) over batches of one topic, whose other answers are
the hard negatives. Cosines are taken after the mean question and passage were subtracted: vectors of E5 lie in a
narrow cone, and what all of them share says nothing. The lower blocks stay as published, so that each text goes through
them once.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from retrieval.multilingual.corpus import Pair
from retrieval.multilingual.embedder import (
    PASSAGE_CENTRE,
    PASSAGE_PREFIX,
    QUESTION_CENTRE,
    QUESTION_PREFIX,
    make_tokenizer,
)
from retrieval.multilingual.encoder import load_encoder
from retrieval.multilingual.packed import PackedEncoder

SEED = 20261126
FIRST_TUNED = 9  # of twelve blocks
MAX_TOKENS = 192
_READ_BATCH = 16
Batch = Sequence[Pair]
OnStep = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True, slots=True)
class TuningPlan:
    epochs: int = 2
    batch: int = 64
    rate: float = 1e-4
    warmup_steps: int = 20
    temperature: float = 0.05
    long_share: float = 0.75  # how often a pair's first question, the patient's own, is asked


class TunedEncoder(nn.Module):
    """The upper blocks in float32, over texts that have been put through the lower ones."""

    def __init__(self, packed: PackedEncoder) -> None:
        super().__init__()
        self._whole = load_encoder(packed).requires_grad_(False)
        self.blocks = self._whole.encoder.layer[FIRST_TUNED:].float().requires_grad_(True)
        self._tokenizer = make_tokenizer(packed)
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._lower: dict[str, torch.Tensor] = {}  # text -> bf16 [T, D]

    def read(self, texts: Sequence[str]) -> None:
        """Puts texts, each with its prefix, through the lower blocks."""
        ids = {text: encoding.ids for text, encoding in zip(texts, self._tokenizer.encode_batch(texts), strict=True)}
        by_length = sorted(ids, key=lambda text: len(ids[text]))
        with torch.no_grad():
            for first in range(0, len(by_length), _READ_BATCH):
                batch = by_length[first : first + _READ_BATCH]
                mask = _mask([len(ids[text]) for text in batch])
                rows = nn.utils.rnn.pad_sequence([torch.tensor(ids[text]) for text in batch], batch_first=True)
                hidden = self._whole.embeddings(input_ids=rows)
                hidden = _through(self._whole.encoder.layer[:FIRST_TUNED], hidden, mask)
                for text, states in zip(batch, hidden, strict=True):
                    self._lower[text] = states[: len(ids[text])].bfloat16()

    def num_tokens(self, text: str) -> int:
        """Of a text that was read."""
        return len(self._lower[text])

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 [N, D], each row of length 1, of texts that were read."""
        states = [self._lower[text].float() for text in texts]
        mask = _mask([len(row) for row in states])
        with torch.autocast("cpu", torch.bfloat16):
            hidden = _through(self.blocks, nn.utils.rnn.pad_sequence(states, batch_first=True), mask)
        weights = mask[..., None].float()
        return normalize((hidden.float() * weights).sum(1) / weights.sum(1), dim=1)

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """As forward, of any number of texts and without gradients."""
        order = sorted(range(len(texts)), key=lambda row: self.num_tokens(texts[row]))
        vectors = torch.zeros(len(texts), self._whole.config.hidden_size)
        with torch.no_grad():
            for first in range(0, len(order), _READ_BATCH):
                rows = order[first : first + _READ_BATCH]
                vectors[rows] = self([texts[row] for row in rows])
        return vectors


@dataclass(frozen=True, slots=True)
class Tuned:
    tensors: dict[str, torch.Tensor]  # float16, as MultilingualEmbedder puts them in
    recall_before: float  # of held answers among the first ten, by cosine alone; before, centred but not tuned
    recall_after: float


def tune(packed: PackedEncoder, pairs: Sequence[Pair], plan: TuningPlan, on_step: OnStep) -> Tuned:
    """Trains on the pairs that are not held; the same seed and machine give the same.

    Takes about 0.6 GB a million characters of text, for the lower blocks' states.
    """
    torch.manual_seed(SEED)
    chooser = random.Random(SEED)
    encoder = TunedEncoder(packed)
    held, pairs = [pair for pair in pairs if pair.is_held], [pair for pair in pairs if not pair.is_held]
    encoder.read([QUESTION_PREFIX + pair.questions[0] for pair in held if pair.is_asked])
    encoder.read([PASSAGE_PREFIX + pair.answer for pair in held])
    questions = [QUESTION_PREFIX + question for pair in pairs for question in pair.questions]
    passages = [PASSAGE_PREFIX + pair.answer for pair in pairs]
    encoder.read([*questions, *passages])
    centres = encoder.encode(questions).mean(0), encoder.encode(passages).mean(0)
    recall_before = _recall(encoder, held, centres)
    steps = plan.epochs * len(list(_batches(encoder, pairs, plan, random.Random(SEED))))
    optimizer = torch.optim.AdamW(encoder.blocks.parameters(), lr=plan.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / plan.warmup_steps) * max(0.05, 1 - step / steps)
    )
    batches = (batch for _ in range(plan.epochs) for batch in _batches(encoder, pairs, plan, chooser))
    for step, batch in enumerate(batches, 1):
        loss = _loss(encoder, batch, centres, plan, chooser)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.blocks.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step, steps, loss.item())
    tensors = dict(zip((QUESTION_CENTRE, PASSAGE_CENTRE), centres, strict=True))
    for name, tensor in encoder.blocks.state_dict().items():
        number, _, rest = name.partition(".")
        tensors[f"encoder.layer.{FIRST_TUNED + int(number)}.{rest}"] = tensor
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    return Tuned(halves, recall_before, _recall(encoder, held, centres))


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Written whole or not at all."""
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def _recall(encoder: TunedEncoder, held: Sequence[Pair], centres: tuple[torch.Tensor, torch.Tensor]) -> float:
    asked = [(row, QUESTION_PREFIX + pair.questions[0]) for row, pair in enumerate(held) if pair.is_asked]
    questions = normalize(encoder.encode([text for _, text in asked]) - centres[0], dim=1)
    passages = normalize(encoder.encode([PASSAGE_PREFIX + pair.answer for pair in held]) - centres[1], dim=1)
    scores = questions @ passages.T
    right = scores[torch.arange(len(asked)), torch.tensor([row for row, _ in asked])]
    return ((scores > right[:, None]).sum(1) < 10).float().mean().item()


def _loss(
    encoder: TunedEncoder,
    batch: Batch,
    centres: tuple[torch.Tensor, torch.Tensor],
    plan: TuningPlan,
    chooser: random.Random,
) -> torch.Tensor:
    asked = [pair.questions[0 if chooser.random() < plan.long_share else -1] for pair in batch]
    questions = normalize(encoder([QUESTION_PREFIX + text for text in asked]) - centres[0], dim=1)
    passages = normalize(encoder([PASSAGE_PREFIX + pair.answer for pair in batch]) - centres[1], dim=1)
    logits = questions @ passages.T / plan.temperature
    answers = [pair.answer for pair in batch]
    same = torch.tensor([[a == b for b in answers] for a in answers]).fill_diagonal_(False)
    logits = logits.masked_fill(same, float("-inf"))  # one answer given twice is no negative
    targets = torch.arange(len(batch))
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


def _batches(encoder: TunedEncoder, pairs: Sequence[Pair], plan: TuningPlan, chooser: random.Random) -> Iterator[Batch]:
    """Pairs of one topic with answers of like length, in random order; a rest of less than half a batch is left out."""
    topics: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        topics[pair.topic].append(pair)
    batches = []
    for group in topics.values():
        chooser.shuffle(group)
        for first in range(0, len(group), 8 * plan.batch):
            near = group[first : first + 8 * plan.batch]
            near.sort(key=lambda pair: encoder.num_tokens(PASSAGE_PREFIX + pair.answer))
            batches += [near[start : start + plan.batch] for start in range(0, len(near), plan.batch)]
    batches = [batch for batch in batches if len(batch) >= plan.batch // 2]
    chooser.shuffle(batches)
    yield from batches


def _mask(lengths: Sequence[int]) -> torch.Tensor:
    """bool [N, T]: which places hold a token."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def _through(blocks: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    attended = torch.zeros(mask.shape, dtype=hidden.dtype).masked_fill(~mask, -1e4)[:, None, None]
    for block in blocks:
        output = block(hidden, attention_mask=attended)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden
