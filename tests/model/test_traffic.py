"""Bytes a token: counted against the sum of the matrices that a token passes through."""

from __future__ import annotations

from dataclasses import replace

import torch

from model.config import ModelConfig
from model.generator import EMBEDDED
from model.modeling import BailingMoeV2ForCausalLM
from model.traffic import bytes_a_token


def expected_weights(config: ModelConfig) -> int:
    hidden, width = config.hidden_size, config.moe_intermediate_size
    heads, groups, head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    attention = (heads + 2 * groups) * head * hidden + hidden * heads * head + 2 * head
    experts = 3 * hidden * width * (config.num_experts_per_tok + config.num_shared_experts)
    router = config.num_experts * hidden + config.num_experts  # with the bias
    num_dense = config.first_k_dense_replace
    layers = config.num_hidden_layers * (attention + 2 * hidden)
    layers += (config.num_hidden_layers - num_dense) * (experts + router)
    layers += num_dense * 3 * hidden * config.intermediate_size
    return layers + config.vocab_size * hidden + 2 * hidden  # the head, a row of the embedding, the final norm


def test_a_token_reads_its_experts_one_row_of_the_embedding_and_all_else() -> None:
    config = ModelConfig.from_hf(EMBEDDED)
    with torch.device("meta"):
        model = BailingMoeV2ForCausalLM(config)
    assert bytes_a_token(model) == 4 * expected_weights(config)
    assert bytes_a_token(model.bfloat16()) < 0.51 * 4 * expected_weights(config)


def test_a_layer_for_drafts_does_not_count() -> None:
    config = ModelConfig.from_hf(EMBEDDED)
    with torch.device("meta"):
        plain = BailingMoeV2ForCausalLM(replace(config, num_nextn_predict_layers=0))
        drafting = BailingMoeV2ForCausalLM(replace(config, num_nextn_predict_layers=1))
    assert bytes_a_token(drafting) == bytes_a_token(plain)
