"""Our decoder against what the reference implementation computes, tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_model
from model.config import ModelConfig
from model.modeling import Rotary, Router
from tests.model.goldens import LOCAL, find_differences, load_goldens, run_case

SHARED_CASES = ("a_tiny", "b_yarn", "c_mtp", "d_bias_sharded", "e_leftpad", "f_decode")
LOCAL_CASES = ("c_mtp", "f_decode")


def differences_of(folder: Path) -> list[str]:
    goldens = load_goldens(folder)
    return find_differences(run_case(load_model(folder, torch.float32), goldens), goldens)


@pytest.mark.parametrize("case", LOCAL_CASES)
def test_clone_alone_proves_exactness(case: str) -> None:
    assert differences_of(LOCAL / case) == []


@pytest.mark.parametrize("case", SHARED_CASES)
def test_every_golden_tensor_is_met(case: str, shared: Path) -> None:
    assert differences_of(shared / "golden" / case) == []


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.2.attention.query_key_value.weight",
        "model.layers.3.attention.key_layernorm.weight",
        "model.layers.1.mlp.gate.expert_bias",
        "model.layers.3.mlp.experts.down_proj",
        "model.layers.4.eh_proj.weight",
    ],
)
def test_one_changed_weight_is_noticed(name: str) -> None:
    model, goldens = load_model(LOCAL / "c_mtp", torch.float32), load_goldens(LOCAL / "c_mtp")
    weight = model.state_dict()[name].flatten()
    weight[: len(weight) // 8] += 0.05
    assert find_differences(run_case(model, goldens), goldens)


def test_router_at_the_real_geometry(shared: Path) -> None:
    folder = shared / "golden" / "g_gate_256"
    goldens = load_goldens(folder)
    geometry = json.loads((folder / "config.json").read_text())
    config = ModelConfig(
        vocab_size=8,
        intermediate_size=8,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        **{name: geometry[name] for name in geometry if name not in ("norm_topk_prob", "score_function")},
    )
    router = Router(config)
    router.load_state_dict(
        {"weight": goldens["mlp.gate.weight"], "expert_bias": goldens["mlp.gate.expert_bias"]}, assign=True
    )
    with torch.inference_mode():
        output = router(goldens["hidden_states"].float())
    ours = {"logits": output.logits, "topk_ids": output.topk_ids, "topk_weights": output.topk_weights}
    assert find_differences(ours, {name: goldens[name] for name in ours}) == []


@pytest.mark.parametrize("tag", ["base32k", "yarn128k", "yarn128k_rope_type_key"])
def test_rotary_tables_at_the_real_geometry(tag: str, shared: Path) -> None:
    folder = shared / "golden" / "r_rope_real"
    fields = json.loads((folder / "config.json").read_text())[tag]
    small = json.loads((LOCAL / "c_mtp" / "config.json").read_text())
    rotary = Rotary(ModelConfig.from_hf(small | fields))
    goldens = load_goldens(folder)
    positions = goldens[f"{tag}.positions"]
    cos, sin = rotary(positions.view(1, -1))
    torch.testing.assert_close(rotary.inv_freq, goldens[f"{tag}.inv_freq"], rtol=1e-6, atol=0)
    assert rotary.attention_factor == pytest.approx(float(goldens[f"{tag}.attention_scaling"]), abs=1e-6)
    # A float32 angle near position 131,071 is itself only exact to about 4e-3.
    atol = 1e-2
    torch.testing.assert_close(cos[0, 0].repeat(1, 2), goldens[f"{tag}.cos"].view(-1, 64), rtol=0, atol=atol)
    torch.testing.assert_close(sin[0, 0].repeat(1, 2), goldens[f"{tag}.sin"].view(-1, 64), rtol=0, atol=atol)
    near = positions.flatten() < 4096
    torch.testing.assert_close(
        cos[0, 0][near].repeat(1, 2), goldens[f"{tag}.cos"].view(-1, 64)[near], rtol=0, atol=1e-4
    )
