"""Sampling from the largest logits alone: the very token that all of them give, or all of them are asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracts import SamplingParams
from model.candidates import CandidateRow, Candidates
from model.sampler import Sampler, SamplerError

V, K = 500, 64


def make_row(row_logits: Tensor) -> tuple[CandidateRow, list[int]]:
    """The row, and a list that grows when all logits are asked for."""
    values, ids = row_logits.sort(descending=True, stable=True)
    asked: list[int] = []

    def read() -> Tensor:
        asked.append(1)
        return row_logits

    return CandidateRow(values[:K], ids[:K], bool(row_logits.isfinite().all()), read), asked


@pytest.mark.parametrize(
    ("params", "suffices"),
    [
        (SamplingParams(temperature=0), True),
        (SamplingParams(temperature=0, repetition_penalty=1.3), True),
        (SamplingParams(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05, seed=3), True),
        (SamplingParams(temperature=1.5, top_k=64, seed=1), True),
        (SamplingParams(temperature=1.5, top_k=65, seed=1), False),
        (SamplingParams(temperature=0.8, top_p=0.9, seed=1), False),
        (SamplingParams(temperature=0, repetition_penalty=0.8), False),
    ],
)
def test_the_token_is_the_same(params: SamplingParams, suffices: bool) -> None:
    whole, few = (Sampler(params, [1, 2, 3], V) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    num_asked = 0
    for _ in range(50):
        row_logits = 3 * torch.randn(V, generator=generator)
        row, asked = make_row(row_logits)
        assert few.sample(row) == whole.sample(row_logits)
        num_asked += len(asked)
    assert num_asked == (0 if suffices else 50)


def test_a_penalty_that_sinks_candidates_below_the_others_asks_for_all() -> None:
    params = SamplingParams(temperature=1.0, top_k=20, repetition_penalty=2.0, seed=5)
    row_logits = torch.linspace(1.0, 1.9, V)
    seen = row_logits.topk(50).indices.tolist()
    whole, few = (Sampler(params, seen, V) for _ in range(2))
    row, asked = make_row(row_logits)
    assert few.sample(row) == whole.sample(row_logits)
    assert asked


def test_what_is_not_finite_is_never_sampled_from() -> None:
    row_logits = torch.randn(V)
    row_logits[row_logits.argmin()] = float("nan")
    row = CandidateRow(torch.ones(K), torch.arange(K), False, lambda: row_logits)
    with pytest.raises(SamplerError, match="not finite"):
        Sampler(SamplingParams(temperature=0), [], V).sample(row)


def test_scores_are_of_all_logits() -> None:
    params = SamplingParams(temperature=0, logprobs=3)
    row_logits = torch.randn(V)
    row, asked = make_row(row_logits)
    sampler = Sampler(params, [], V)
    assert sampler.score(row, 7) == sampler.score(row_logits, 7)
    assert asked


def test_rows_are_cut_as_a_tensors_are() -> None:
    logits = torch.randn(5, V)
    values, ids = logits.sort(-1, descending=True)
    candidates = Candidates(values[:, :K], ids[:, :K], torch.ones(5, dtype=torch.bool), logits)
    part = candidates[2:4]
    assert len(part) == 2
    assert [torch.equal(row.read(), row_logits) for row, row_logits in zip(part, logits[2:4], strict=True)] == [
        True
    ] * 2
    assert torch.equal(part.read(), logits[2:4])
