from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.config import CheckpointError, ModelConfig
from tests.model.conftest import make_config
from tests.model.goldens import LOCAL

HF = json.loads((LOCAL / "c_mtp" / "config.json").read_text())
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def test_fields_come_from_the_checkpoint() -> None:
    config = ModelConfig.from_hf(LOCAL / "c_mtp")
    assert (config.hidden_size, config.num_experts, config.rotary_dim, config.num_layers) == (64, 16, 8, 5)
    assert config.eos_token_ids == (501,)


@pytest.mark.parametrize(
    "changes", [{}, {"rope_scaling": YARN}, {"eos_token_id": [1, 2]}, {"tie_word_embeddings": True}]
)
def test_what_is_written_reads_back_equal(changes: dict) -> None:
    config = ModelConfig.from_hf(HF | changes)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_yarn_stretches_the_context() -> None:
    real = HF | {"max_position_embeddings": 32768, "rope_scaling": YARN | {"original_max_position_embeddings": 32768}}
    assert ModelConfig.from_hf(real).context_length == 131072
    assert ModelConfig.from_hf(real | {"rope_scaling": None}).context_length == 32768


def test_rope_parameters_of_transformers_5_are_read() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 600000, "partial_rotary_factor": 0.25, "factor": 4.0}
    data = {k: v for k, v in HF.items() if k not in ("rope_theta", "rope_scaling", "partial_rotary_factor")}
    config = ModelConfig.from_hf(data | {"rope_parameters": rope})
    assert (config.rope_theta, config.rotary_dim) == (600000, 4)
    assert config.rope_scaling is not None
    assert config.rope_scaling.original_max_position_embeddings == 256


def test_rotary_dim_stands_in_for_the_factor() -> None:
    data = {k: v for k, v in HF.items() if k != "partial_rotary_factor"}
    assert ModelConfig.from_hf(data | {"rotary_dim": 4}).rotary_dim == 4
    assert ModelConfig.from_hf(data).rotary_dim == 16


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": ["BailingMoeForCausalLM"]}, "BailingMoeForCausalLM"),
        ({"architectures": None}, "not named"),
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"routed_scaling_factor": None}, "routed_scaling_factor is missing"),
        ({"rope_theta": None}, "rope_theta is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": 64.5}, "hidden_size is 64.5"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"num_experts": 15}, "multiple of n_group"),
        ({"topk_group": 5}, "topk_group"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"partial_rotary_factor": 0.4375}, "rotary dims"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_scaling": {"type": "yarn"}}, "factor is missing"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "rope_scaling.factor"),
        ({"rope_scaling": 4}, "rope_scaling is 4"),
        ({"use_qkv_bias": True}, "use_qkv_bias"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"score_function": "softmax"}, "score_function"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict, names: str) -> None:
    with pytest.raises(CheckpointError, match=names):
        ModelConfig.from_hf(HF | changes)


def test_missing_and_malformed_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        ModelConfig.from_hf(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        ModelConfig.from_hf(tmp_path)


def test_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        make_config().hidden_size = 1  # type: ignore[misc]
