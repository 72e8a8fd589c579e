"""What a pass must read and compute, counted from the config: no kernel is faster than these bytes over a bandwidth, or
these operations over a peak (the roofline model, Williams et al. 2009, doi 10.1145/1498765.1498785).

Knows no machine and no kernel. Bytes are bytes, times seconds, operations FLOP (a multiply-add is two).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from model.config import ModelConfig
from model.safetensors_file import SafetensorsFile

BF16 = 2.0
FP8 = 1 + 4 / 128**2  # an f32 scale for a block of 128 x 128
INT4 = 0.5 + 2 / 128  # a bf16 scale for 128 weights of a row
NF4 = 0.5 + 4 / 64  # an f32 absmax for 64 weights


@dataclass(frozen=True, slots=True)
class PartBytes:
    """Bytes of a model's weights by part, all layers together. attention: its matrices, the dense layers and the
    norms; experts: all routed ones."""

    embedding: float = 0
    attention: float = 0
    router: float = 0
    shared: float = 0
    experts: float = 0
    head: float = 0

    @property
    def total(self) -> float:
        return self.embedding + self.attention + self.router + self.shared + self.experts + self.head


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes that a weight takes, its share of the scales included."""

    attention: float
    shared: float
    experts: float
    head: float
    router: float = BF16
    embedding: float = BF16


FORMATS: Mapping[str, Widths] = {
    "bf16": Widths(BF16, BF16, BF16, BF16),
    "fp8": Widths(FP8, FP8, FP8, BF16),
    "int4": Widths(INT4, INT4, INT4, INT4),
    "int4-experts": Widths(BF16, BF16, INT4, BF16),
    "nf4": Widths(NF4, NF4, NF4, BF16),
}


def count_weights(config: ModelConfig) -> PartBytes:
    """How many weights each part has: the bytes at one byte a weight. The MTP layer takes no part in a pass."""
    D, C = config.hidden_size, config.head_dim
    heads = config.num_attention_heads
    expert = 3 * D * config.moe_intermediate_size
    num_moe = count_moe_layers(config)
    num_dense = config.num_hidden_layers - num_moe
    attention = D * (heads + 2 * config.num_key_value_heads) * C + heads * C * D
    return PartBytes(
        embedding=config.vocab_size * D,
        attention=config.num_hidden_layers * attention + num_dense * 3 * D * config.intermediate_size,
        router=num_moe * config.num_experts * D,
        shared=num_moe * config.num_shared_experts * expert,
        experts=num_moe * config.num_experts * expert,
        head=config.vocab_size * D,
    )


def count_moe_layers(config: ModelConfig) -> int:
    return sum(config.is_moe_layer(index) for index in range(config.num_hidden_layers))


def count_bytes(config: ModelConfig, widths: Widths) -> PartBytes:
    """What the parts take in memory if stored in these widths; a tied head is the embedding's."""
    weights = count_weights(config)
    names = ("embedding", "attention", "router", "shared", "experts", "head")
    sizes = PartBytes(**{name: getattr(weights, name) * getattr(widths, name) for name in names})
    return replace(sizes, head=0.0) if config.tie_word_embeddings else sizes


def measure_bytes(files: list[Path], config: ModelConfig) -> PartBytes:
    """What the parts take as stored in these safetensors files, from their headers."""
    sizes = dict.fromkeys(("embedding", "attention", "router", "shared", "experts", "head"), 0.0)
    for path in files:
        with SafetensorsFile(path) as file:
            for name, info in file.tensors.items():
                if part := find_part(name, config):
                    sizes[part] += info.num_bytes
    return PartBytes(**sizes)


def find_part(name: str, config: ModelConfig) -> str | None:
    """The part that a checkpoint's tensor belongs to; None for the MTP layer, which takes no part in a pass."""
    if name.startswith("model.layers.") and int(name.split(".")[2]) >= config.num_hidden_layers:
        return None
    for key, part in (
        (".shared_experts.", "shared"),
        (".mlp.experts", "experts"),
        (".mlp.gate.", "router"),
        ("word_embeddings", "embedding"),
        ("lm_head", "head"),
    ):
        if key in name:
            return part
    return "attention"


def count_distinct_experts(config: ModelConfig, num_tokens: int) -> float:
    """How many experts of a layer some of these tokens chose, if all experts are equally likely. Real routers have
    favourites, so that this is the most to expect."""
    E, K = config.num_experts, config.num_experts_per_tok
    return E * (1 - (1 - K / E) ** num_tokens)


def kv_bytes(config: ModelConfig, num_tokens: int, width: float = BF16) -> float:
    """Keys and values of so many tokens in all layers."""
    return 2.0 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * width * num_tokens


def decode_bytes(
    config: ModelConfig, parts: PartBytes, batch: int = 1, context: int = 0, kv_width: float = BF16
) -> float:
    """What a step of `batch` sequences, each behind `context` tokens, must read."""
    chosen = count_distinct_experts(config, batch) / config.num_experts
    head = parts.head or parts.embedding
    weights = parts.attention + parts.router + parts.shared + parts.experts * chosen + head
    return weights + batch * kv_bytes(config, context, kv_width)


def prefill_flop(config: ModelConfig, num_tokens: int) -> float:
    """What reading a prompt must compute: all products, causal attention, and the head for its last token."""
    weights = count_weights(config)
    active = weights.attention + weights.router + weights.shared
    active += weights.experts * config.num_experts_per_tok / config.num_experts
    pairs = num_tokens * (num_tokens + 1) / 2
    attention = 4.0 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * pairs
    return 2.0 * active * num_tokens + attention + 2.0 * weights.head
