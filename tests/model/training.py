"""What the training tests share: a tiny shape, four sentences to learn from, a prompt of the product's form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contracts import Message, Passage, Patient, Role
from model.config import ModelConfig
from model.train.config import TrainConfig
from model.train.corpora import Text

SENTENCES = (
    "The femoral artery supplies the thigh with oxygenated blood.",
    "Warfarin inhibits the synthesis of vitamin K dependent clotting factors.",
    "Patients with nephrotic syndrome lose protein through damaged glomeruli.",
    "Sickle cell anaemia is inherited in an autosomal recessive pattern.",
)
TEXTS = {"openstax": [Text("openstax", str(i), (s, *SENTENCES[:i]), f"#{i}") for i, s in enumerate(SENTENCES)]}
TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 5,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
    "n_group": 2, "topk_group": 1, "partial_rotary_factor": 0.5, "max_position_embeddings": 1024,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 4, "tie_word_embeddings": True, "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-6, "rope_theta": 600000, "first_k_dense_replace": 1, "num_shared_experts": 1,
}  # fmt: skip


def render(
    question: str, passages: Sequence[Passage], history: Sequence[tuple[str, str]] = (), patient: Patient | None = None
) -> list[Message]:
    """A prompt of the product's shape: passages in the first user turn, then the turns before, then the question."""
    blocks = [f"[{i}] {p.document_name}, page {p.page}\n{p.text}" for i, p in enumerate(passages, 1)]
    questions = [q for q, _ in history] + [question]
    messages = [Message(Role.SYSTEM, "Answer from the passages.")]
    for index, text in enumerate(questions):
        messages.append(Message(Role.USER, "\n\n".join([*(blocks if index == 0 else []), f"Question: {text}"])))
        if index < len(history):
            messages.append(Message(Role.ASSISTANT, history[index][1]))
    return messages


def make_model_config(**changes: object) -> ModelConfig:
    names = {"architectures": ["BailingMoeV2ForCausalLM"], "model_type": "bailing_moe_v2"}
    return ModelConfig.from_hf({**names, **TINY, **changes})


def make_config(folder: Path, **changes: Any) -> TrainConfig:
    """A run of seconds; `model` among the changes holds changes of the shape."""
    settings: dict[str, Any] = {
        "num_pools": 2, "groups_per_pool": 16, "items_per_group": 4, "tokens_per_batch": 2048,
        "max_sequence_tokens": 900, "threads": 1, "precision": "float32", "sizes": ((0.0, 0.0),),
        "num_tokenizer_groups": 60, "sample_every_pools": 100,
    }  # fmt: skip
    model = make_model_config(**changes.pop("model", {}))
    return TrainConfig(model=model, output_dir=folder, data_dir=folder, **(settings | changes))
