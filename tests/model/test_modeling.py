"""What the goldens do not show: training, padding without cache, precision and degenerate routing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from model.kv_cache import KVCache
from tests.model.conftest import make_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


@pytest.mark.parametrize("autocast", [False, True])
def test_every_parameter_learns(autocast: bool) -> None:
    model = make_model(num_nextn_predict_layers=1).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(IDS.repeat(8, 4), output_mtp=True)
    loss = output.logits.square().mean() + output.mtp_logits.square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_few_steps_of_training_lower_the_loss() -> None:
    model = make_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = functional.cross_entropy(model(IDS).logits[0, :-1], IDS[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@torch.inference_mode()
def test_left_padding_changes_nothing_for_the_rest() -> None:
    model = make_model()
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), IDS), 1)
    mask = torch.tensor([[0] * 5 + [1] * 8])
    torch.testing.assert_close(model(padded, mask).logits[:, 5:], model(IDS).logits, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_later_tokens_do_not_change_earlier_logits() -> None:
    model = make_model()
    changed = IDS.clone()
    changed[0, -1] = 99
    torch.testing.assert_close(model(changed).logits[:, :-1], model(IDS).logits[:, :-1])
    assert not torch.allclose(model(changed).logits[:, -1], model(IDS).logits[:, -1])


@torch.inference_mode()
def test_only_the_asked_for_logits_are_computed() -> None:
    model = make_model()
    torch.testing.assert_close(model(IDS, logits_to_keep=2).logits, model(IDS).logits[:, -2:])


@torch.inference_mode()
def test_any_cut_of_the_prompt_gives_the_same_end() -> None:
    model = make_model()
    whole = model(IDS).logits[:, -1]
    for cut in range(1, 8):
        cache = KVCache(model.config)
        model(IDS[:, :cut], cache=cache)
        torch.testing.assert_close(model(IDS[:, cut:], cache=cache).logits[:, -1], whole, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_all_tokens_to_the_same_experts() -> None:
    model = make_model()
    model.model.layers[1].mlp.gate.expert_bias[:2] = 10.0
    router = model(IDS, output_router=True).router[1]
    assert router.topk_ids.sort(-1).values.tolist() == [[0, 1]] * 8
    torch.testing.assert_close(router.topk_weights.sum(-1), torch.full((8,), 2.5))


@torch.inference_mode()
def test_one_group_means_no_grouping() -> None:
    model = make_model(n_group=1, topk_group=1)
    router = model(IDS, output_router=True).router[1]
    best = router.logits.topk(2, dim=-1).indices
    assert torch.equal(router.topk_ids.sort(-1).values, best.sort(-1).values)


def test_casting_keeps_router_bias_and_rotary_exact() -> None:
    model = make_model()
    before = model.rotary.inv_freq.clone()
    model.model.layers[1].mlp.gate.expert_bias += 0.123456
    bias = model.model.layers[1].mlp.gate.expert_bias.clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.model.layers[1].mlp.gate.expert_bias, bias)
    assert torch.equal(model.rotary.inv_freq, before)


def test_mask_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_mask has shape"):
        make_model()(IDS, torch.tensor([[0, 1, 1]]))
