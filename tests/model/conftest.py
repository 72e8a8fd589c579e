"""A small checkpoint folder with random weights and a byte-level tokenizer of its own, like a real one's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from model.checkpoint import save_checkpoint
from model.config import ModelConfig
from model.modeling import BailingMoeV2ForCausalLM

SPECIALS = ["<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|role_end|>"]
TOOL_TOKENS = ["<tool_call>", "</tool_call>"]
TEMPLATE = """<role>SYSTEM</role>
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{% endif %}detailed thinking off<|role_end|>
{%- for message in messages %}
{%- if message.role == 'user' %}<role>HUMAN</role>{{ message.content }}<|role_end|>
{%- elif message.role == 'assistant' %}<role>ASSISTANT</role>{{ message.content }}<|role_end|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"""
CORPUS = [
    "Take 5 mg of apixaban twice daily.",
    "detailed thinking off",
    "SYSTEM HUMAN ASSISTANT role",
    "头痛三天 38.5°C",
]


@pytest.fixture(autouse=True)
def seed() -> None:
    """A test that fails must fail again."""
    torch.manual_seed(0)


def make_config(**changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "partial_rotary_factor": 0.5,
        "max_position_embeddings": 512,
        "eos_token_ids": (1,),
    }
    return ModelConfig(**(values | changes))  # type: ignore[arg-type]


def make_model(seed: int = 0, **changes: object) -> BailingMoeV2ForCausalLM:
    """A tiny random model. Its weights are larger than new ones, so that its answers are not all alike."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BailingMoeV2ForCausalLM(make_config(initializer_range=0.2, **changes)).eval()


def make_fast_tokenizer() -> Tokenizer:
    fast = Tokenizer(models.BPE())
    fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(CORPUS * 3, trainer)
    fast.add_tokens([AddedToken(token, special=False) for token in TOOL_TOKENS])
    return fast


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; do not write into it."""
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(make_model(), folder, torch.float32)
    make_fast_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|role_end|>", "bos_token": "<|startoftext|>", "chat_template": TEMPLATE})
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 4]}))
    return folder
