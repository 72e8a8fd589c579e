from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model import compare
from model.checkpoint import load_model
from model.compare import ModelComparison, TokenSequence, compare_to, kl_divergence, overlap, record_trace
from model.generator import EMBEDDED
from model.modeling import BailingMoeV2ForCausalLM
from tests.model.conftest import make_model

SEQUENCES = [
    TokenSequence(tuple(range(5, 45)), scored_from=30),
    TokenSequence(tuple(range(300, 100, -3)), group="en"),
    TokenSequence(tuple(range(7, 390, 7)), group="zh"),
]


@pytest.fixture
def compared(tmp_path: Path) -> Callable[[Callable[[BailingMoeV2ForCausalLM], object]], ModelComparison]:
    """Holds a tiny model, changed by the function, against itself unchanged."""

    def run(change: Callable[[BailingMoeV2ForCausalLM], object]) -> ModelComparison:
        trace = record_trace(make_model(), SEQUENCES, tmp_path)
        candidate = make_model()
        with torch.no_grad():
            change(candidate)
        return compare_to(trace, candidate)

    return run


def test_a_model_is_no_distance_from_itself(compared: Callable) -> None:
    same = compared(lambda model: None)
    num_scored = sum(len(s.token_ids) - s.scored_from for s in SEQUENCES)
    assert same.kl.shape == (num_scored,)
    assert not same.kl.any()
    assert (same.top1_agreement, same.head_kl, same.embedding_error) == (1, 0, 0)
    assert all(reference == candidate > 1 for reference, candidate in same.perplexity.values())
    assert set(same.perplexity) == {"en", "zh"}
    assert same.kl_means == {"": 0, "en": 0, "zh": 0}
    assert [layer.error for layer in same.layers] == [0, 0, 0]
    assert [layer.experts_equal for layer in same.layers] == [None, 1, 1]


def test_bf16_is_a_small_distance_from_f32(tmp_path: Path) -> None:
    trace = record_trace(load_model(EMBEDDED, torch.float32), SEQUENCES, tmp_path)
    rounded = compare_to(trace, load_model(EMBEDDED, torch.bfloat16))
    assert 0 < rounded.kl.mean() < 0.05
    assert rounded.top1_agreement > 0.9
    assert rounded.kl_means[""] == pytest.approx(rounded.kl[: len(SEQUENCES[0].token_ids) - 30].mean())
    # Of plain text; of its later layers some add nothing there, which has no relative error.
    assert 0 < rounded.layers[0].error < 0.1
    assert all(layer.worst_expert_error < 0.02 for layer in rounded.layers[1:])


def test_a_scaled_expert_is_found_in_its_layer(compared: Callable) -> None:
    broken = compared(lambda model: model.model.layers[1].mlp.experts.down_proj[6].mul_(4))
    first, second = broken.layers[1:]
    assert (first.worst_expert, second.worst_expert_error) == (6, 0)
    assert first.worst_expert_error == pytest.approx(3, rel=1e-3)
    assert (first.expert_error, first.router_overlap, second.error) == (0, 1, 0)
    assert broken.kl.mean() > 0.001


def test_an_expert_that_no_token_chooses_is_tried_too(tmp_path: Path) -> None:
    reference, candidate = make_model(), make_model()
    for model in (reference, candidate):
        model.model.layers[2].mlp.gate.expert_bias[3] = -100
    trace = record_trace(reference, SEQUENCES, tmp_path)
    with torch.no_grad():
        candidate.model.layers[2].mlp.experts.down_proj[3] *= 4
    found = compare_to(trace, candidate)
    assert not found.kl.any()
    assert (found.layers[2].worst_expert, round(found.layers[2].worst_expert_error)) == (3, 3)


def test_a_permuted_router_is_found_in_its_layer(compared: Callable) -> None:
    def permute(model: BailingMoeV2ForCausalLM) -> None:
        weight = model.model.layers[1].mlp.gate.weight
        weight.copy_(weight.roll(1, 0))

    first, second = compared(permute).layers[1:]
    assert first.router_overlap < 0.5
    assert first.experts_overlap == pytest.approx(first.router_overlap)
    assert second.router_overlap == 1  # the reference's own input: nothing is inherited
    assert second.experts_overlap < 1


def test_a_wrong_attention_or_head_is_found_too(compared: Callable) -> None:
    attention = compared(lambda model: model.model.layers[2].attention.dense.weight.neg_())
    assert [layer.error > 0.1 for layer in attention.layers] == [False, False, True]
    assert attention.head_kl == 0
    norm = compared(lambda model: model.model.norm.weight.mul_(3))
    assert norm.head_kl > 0.1
    assert not any(layer.error for layer in norm.layers)


def test_weights_that_are_no_numbers_are_never_good(compared: Callable) -> None:
    broken = compared(lambda model: model.model.layers[1].mlp.shared_experts.down_proj.weight.fill_(float("nan")))
    assert math.isnan(broken.kl.mean())
    assert [math.isnan(layer.error) for layer in broken.layers] == [False, True, False]


def test_another_shape_of_model_is_refused(tmp_path: Path) -> None:
    trace = record_trace(make_model(), SEQUENCES, tmp_path)
    with pytest.raises(ValueError, match="different models"):
        compare_to(trace, make_model(num_experts=16))


def test_a_disk_that_is_too_small_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**6, 10**6, 100_000)
    monkeypatch.setattr(compare.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="TMPDIR"):
        record_trace(make_model(), SEQUENCES, tmp_path)
    assert not list(tmp_path.iterdir())


def test_measures_are_what_they_are_called() -> None:
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert kl_divergence(p.log(), q.log()).item() == pytest.approx(expected)
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    assert overlap(ids, torch.tensor([[4, 3, 2, 1], [1, 2, 7, 8]])).tolist() == [1.0, 0.5]
