"""What words mean to each other: a small model that finds the line a question asks for, learned apart from the decoder.

A token's meaning is a vector of its own and of the token before it, through one gated layer; a line's is the weighted
mean of its tokens so far, a passage's likewise; a question asks for the line with the nearest vector, or for none if
all stay under a threshold. `reader.py` writes exactly this into the decoder. Learned alone it takes a hundredth of the
decoder's work: first from a teacher's vectors of words and sentences, if there is one (distillation, Hinton et al.
2015), then from generated questions, among them some whose passage is taken away.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.train.lines import Lines, split_lines

MEANING, CONTEXT, VECTOR, GATED = 84, 32, 90, 640
POOLED = 8.0  # what a line counts against its last token
SLOPE_RATE, SLOPE_PHASE = 0.0157, 0.5  # how the nearer part of a passage counts more, in radians a token
SHARP = 30.0  # of a line's cosine while learning
REMOVED = 0.25  # share of answerable questions whose passages are taken away
_OFF = -1e9


class Matcher(nn.Module):
    """Shape suffixes: B groups, S tokens of a group's passages, M meaning, V vector, Q questions."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()

        def matrix(rows: int, columns: int, std: float) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(rows, columns))

        scale = 1 / math.sqrt(MEANING)
        self.embedding = matrix(vocab_size, MEANING, scale)
        self.before = matrix(MEANING, MEANING, 0.02)
        self.gate, self.up = matrix(GATED, MEANING, 1.5 * scale), matrix(GATED, MEANING, 1.5 * scale)
        self.down = matrix(MEANING, GATED, 0.0)
        self.weight, self.weight_far = nn.Parameter(torch.zeros(MEANING)), nn.Parameter(torch.zeros(MEANING))
        self.context = matrix(CONTEXT, MEANING, scale)
        self.slope = nn.Parameter(torch.tensor(2.0))
        self.key = nn.Parameter(torch.eye(VECTOR, MEANING) + 0.02 * torch.randn(VECTOR, MEANING))
        self.query = nn.Parameter(torch.eye(VECTOR, MEANING) + 0.02 * torch.randn(VECTOR, MEANING))
        self.key_context = matrix(VECTOR, CONTEXT, 0.0)
        self.limit = nn.Parameter(torch.tensor(0.0))

    @property
    def threshold(self) -> Tensor:
        """In (0, 1): what a cosine must exceed, for a question of a long vector."""
        return self.limit.sigmoid()

    def mean_of_line(self, ids_BS: Tensor, line_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Meanings of tokens, and the same with their line's mean so far: [B,S,M] each. line: which tokens belong
        together."""
        before_BS = F.pad(ids_BS[:, :-1], (1, 0))
        x = self.embedding[ids_BS]
        has_before = torch.ones_like(ids_BS, dtype=x.dtype)
        has_before[:, 0] = 0
        x = x + (self.embedding[before_BS] * has_before[..., None]) @ self.before.T
        meaning = x + (F.silu(x @ self.gate.T) * (x @ self.up.T)) @ self.down.T
        mean = self._mean(meaning, meaning @ self.weight, line_BS)
        return meaning, (meaning + POOLED * mean) / (1 + POOLED)

    def keys(self, ids_BS: Tensor, line_BS: Tensor, passage_BS: Tensor) -> Tensor:
        """[B,S,V]"""
        meaning, line = self.mean_of_line(ids_BS, line_BS)
        place = torch.arange(ids_BS.shape[1])
        nearness = self.slope * torch.cos(SLOPE_RATE * (place[:, None] - place[None]) + SLOPE_PHASE)
        passage = self._mean(meaning, meaning @ self.weight_far, passage_BS, nearness)
        return line @ self.key.T + passage @ self.context.T @ self.key_context.T

    def logits(self, query_QV: Tensor, key_QSV: Tensor) -> Tensor:
        """[Q,1+S] in [-1, 1]: that there is none, and each token's line so far. Both vectors have one more dim, of 1,
        so that a short one, which says little, is like nothing."""
        query_norm = (query_QV.square().sum(-1, keepdim=True) + 1).rsqrt()
        key_norm = (key_QSV.square().sum(-1, keepdim=True) + 1).rsqrt()
        cosine = torch.einsum("qv,qsv->qs", query_QV * query_norm, key_QSV * key_norm)
        return torch.cat((query_norm * self.threshold, cosine), dim=1)

    @staticmethod
    def _mean(meaning_BSM: Tensor, weight_BS: Tensor, group_BS: Tensor, bias_SS: Tensor | float = 0.0) -> Tensor:
        """Of the tokens so far that are of the same group, by the softmax of their weights."""
        S = group_BS.shape[1]
        is_same = (group_BS[:, :, None] == group_BS[:, None, :]) & torch.ones(S, S, dtype=torch.bool).tril()
        scores = (weight_BS[:, None, :] + bias_SS).expand(-1, S, -1).masked_fill(~is_same, _OFF)
        return scores.softmax(-1) @ meaning_BSM


@dataclass(frozen=True, slots=True)
class Asked:
    """Passages in tokens, and questions with the lines that answer them (none: they are not answered there)."""

    ids: tuple[int, ...]
    lines: Lines
    questions: tuple[tuple[tuple[int, ...], frozenset[int]], ...]


def distil(matcher: Matcher, ids: Sequence[Sequence[int]], vectors: Tensor, epochs: int, rng: random.Random) -> float:
    """Learns to be near a teacher's vectors [N,D] of texts (ids: their tokens); returns the last epoch's loss."""
    centred = vectors - vectors.mean(0)
    axes = torch.linalg.svd(centred[::3], full_matrices=False).Vh[:MEANING]
    wanted = F.normalize(centred @ axes.T, dim=-1)
    optimizer = torch.optim.Adam(matcher.parameters(), lr=4e-3)
    by_length = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    batches = [by_length[start : start + 128] for start in range(0, len(ids), 128)]
    total = 0.0
    for _ in range(epochs):
        rng.shuffle(batches)
        total = 0.0
        for batch in batches:
            mean = F.normalize(
                _last_means(matcher, [ids[i] for i in batch], [[0] * len(ids[i]) for i in batch]), dim=-1
            )
            cosine = mean @ wanted[batch].T
            loss = 1 - cosine.diagonal().mean() + 0.2 * F.cross_entropy(15 * cosine, torch.arange(len(batch)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() / len(batches)
    return total


def learn(
    matcher: Matcher,
    tokens: Sequence[str],
    make: Callable[[int], Sequence[Asked]],
    num_steps: int,
    rng: random.Random,
    log: Callable[[dict[str, float]], None] = lambda _: None,
    rate: float = 2e-3,
) -> None:
    """num_steps batches of make(step), a cross-entropy over the lines and none. tokens: the text of each id."""
    optimizer = torch.optim.Adam(matcher.parameters(), betas=(0.9, 0.98))
    mean = 0.0
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / 50 + 0.02) * (1 - step / num_steps) ** 0.8
        logits, wanted = ask(matcher, tokens, make(step), rng, REMOVED)
        log_p = (SHARP * logits).log_softmax(-1)
        loss = -log_p.masked_fill(~wanted, _OFF).logsumexp(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(matcher.parameters(), 1.0)
        optimizer.step()
        mean = loss.item() if not step else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 49:
            log({"step": step + 1, "loss": round(mean, 4), "threshold": round(matcher.threshold.item(), 3)})


def ask(
    matcher: Matcher, tokens: Sequence[str], batch: Sequence[Asked], rng: random.Random, removed: float
) -> tuple[Tensor, Tensor]:
    """Logits [Q,1+S] of every question, and where the right answer is."""
    S = max(len(asked.ids) for asked in batch)
    ids, line, passage = (torch.full((len(batch), S), filler) for filler in (0, -1, 0))
    is_open = torch.zeros(len(batch), S, dtype=torch.bool)
    questions, rows, gold, allowed = [], [], [], []
    for row, asked in enumerate(batch):
        size = len(asked.ids)
        ids[row, :size], line[row, :size] = torch.tensor(asked.ids), torch.tensor(asked.lines.line)
        passage[row, :size] = torch.tensor(asked.lines.passage)
        is_open[row, :size] = (passage[row, :size] > 0) & ~torch.tensor(asked.lines.is_heading)
        for question, lines in asked.questions:
            is_gold = torch.isin(line[row], torch.tensor(sorted(lines), dtype=torch.long)) & is_open[row]
            may = is_open[row]
            if rng.random() < removed:
                may = may & ~torch.isin(passage[row], passage[row][is_gold])
            questions.append(question)
            rows.append(row)
            gold.append(is_gold & may)
            allowed.append(may)
    keys = matcher.keys(ids, line, passage)
    parts = [split_lines([tokens[id_] for id_ in question]).line for question in questions]
    queries = _last_means(matcher, questions, parts) @ matcher.query.T
    logits = matcher.logits(queries, keys[rows])
    logits = torch.cat((logits[:, :1], logits[:, 1:].masked_fill(~torch.stack(allowed), -9.0)), dim=1)
    wanted = torch.stack(gold)
    return logits, torch.cat((~wanted.any(1, keepdim=True), wanted), dim=1)


@torch.no_grad()
def calibrate(matcher: Matcher, tokens: Sequence[str], groups: Sequence[Asked], share: float) -> None:
    """Sets the threshold so that it holds back an answer to this share of questions whose passages are taken away."""
    best = []
    for asked in groups:
        logits, wanted = ask(matcher, tokens, [asked], random.Random(0), 1.0)
        best.append((logits[:, 1:].amax(1) / logits[:, 0] * matcher.threshold)[wanted[:, 0]])
    matcher.limit.copy_(torch.cat(best).quantile(share).clamp(0.01, 0.99).logit())


def _last_means(matcher: Matcher, texts: Sequence[Sequence[int]], lines: Sequence[Sequence[int]]) -> Tensor:
    """[N,M] of each text's last line."""
    S = max(map(len, texts))
    ids, line = (torch.full((len(texts), S), filler) for filler in (0, -1))
    for row, (text, numbers) in enumerate(zip(texts, lines, strict=True)):
        ids[row, : len(text)], line[row, : len(text)] = torch.tensor(text), torch.tensor(numbers)
    _, mean = matcher.mean_of_line(ids, line)
    return mean[torch.arange(len(texts)), torch.tensor([len(text) - 1 for text in texts])]


def score_lines(logits: Tensor, wanted: Tensor) -> Iterator[str]:
    """Of each question: "right", "wrong", "says nothing" or, where nothing is to be said, "abstains" or "invents"."""
    for best, right in zip(logits.argmax(1).tolist(), wanted, strict=True):
        if right[0]:
            yield "invents" if best else "abstains"
        else:
            yield "right" if right[best] else "wrong" if best else "says nothing"
