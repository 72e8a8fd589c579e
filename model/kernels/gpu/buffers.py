"""What the kernels work in: blocks of keys and values, and scratch space, allocated once and never by a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kernels.cpu_decoder import BLOCK_TOKENS

CACHE_KINDS = {"bf16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
SCALE_BYTES = torch.float32.itemsize
STEP_ROWS = 64  # of a step of answers at most: there a row's result is a matter of the row, not of how many there are
MULTIPROCESSORS = 132  # of an H100 or H200
MAX_SPLITS = 64


def make_cache(num_layers: int, num_blocks: int, num_kv_heads: int, head_dim: int, kind: str, device: str) -> Tensor:
    """[L, 2, num_blocks, G, page] of CACHE_KINDS[kind]: a layer's `pages` is cache[layer], keys before values.

    A page is the BLOCK_TOKENS vectors [BLOCK_TOKENS, C] of one head; with int8 and fp8 their f32 scales follow, one a
    vector, in the same bytes. Block 0 is as good as any other.
    """
    dtype = CACHE_KINDS[kind]
    page = BLOCK_TOKENS * (head_dim + (0 if kind == "bf16" else SCALE_BYTES))
    return torch.zeros(num_layers, 2, num_blocks, num_kv_heads, page, dtype=dtype, device=device)


@dataclass(frozen=True, slots=True)
class AttentionScratch:
    """Partial results of decode attention: parts f32 [n, C] and bounds f32 [n, 2], n = tokens x heads x splits;
    arrivals i32 [tokens x kv heads], all 0 between calls."""

    parts: Tensor
    bounds: Tensor
    arrivals: Tensor


def make_attention_scratch(
    max_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, device: str
) -> AttentionScratch:
    """For decode steps of up to max_tokens rows."""
    places = max_tokens * count_splits(num_kv_heads) * num_heads
    return AttentionScratch(
        torch.empty(places, head_dim, dtype=torch.float32, device=device),
        torch.empty(places, 2, dtype=torch.float32, device=device),
        torch.zeros(max_tokens * num_kv_heads, dtype=torch.int32, device=device),
    )


def make_head_arrivals(num_heads: int, device: str) -> Tensor:
    """For `project`, i32 [8 n]: how much of each of the n heads of q, k and v is there, for each tile of tokens."""
    return torch.zeros(num_heads * STEP_ROWS // 8, dtype=torch.int32, device=device)


def count_splits(num_kv_heads: int) -> int:
    """Into how many parts a sequence is cut at most, so that one alone fills the chip. The same beside others: the sums
    of a row would not be the same to the bit otherwise."""
    return min(max(2 * MULTIPROCESSORS // num_kv_heads, 1), MAX_SPLITS)


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen, and how many shared ones stand behind the routed ones in a stack."""

    num_experts: int
    num_groups: int
    top_groups: int
    top_k: int
    scale: float
    num_shared: int

    @classmethod
    def from_config(cls, config: ModelConfig, num_shared: int) -> Routing:
        """num_shared: 0 where the shared expert is computed apart from the routed ones."""
        return cls(
            config.num_experts,
            config.n_group,
            config.topk_group,
            config.num_experts_per_tok,
            config.routed_scaling_factor,
            num_shared,
        )

    @property
    def num_slots(self) -> int:
        """Experts of a token, the shared ones included: K + shared."""
        return self.top_k + self.num_shared


@dataclass(frozen=True, slots=True)
class ExpertScratch:
    """Space for `experts`: inner bf16 [pairs, F] between gate-up and down. order i32 [n] and owners i32 [n / 8]: pairs
    (token x slots + slot) sorted by expert, each expert's run filled up with -1 to whole blocks, and each block's
    expert, -1 behind the last."""

    inner: Tensor
    order: Tensor
    owners: Tensor


def make_expert_scratch(max_tokens: int, num_slots: int, num_experts: int, width: int, device: str) -> ExpertScratch:
    """For up to max_tokens rows; num_experts and num_slots with shared ones; width: F, of a dense layer its own."""
    pairs = max_tokens * num_slots
    num_places = pairs + min(pairs, num_experts) * (MAX_EXPERT_BLOCK - 1) + MAX_EXPERT_BLOCK
    return ExpertScratch(
        torch.empty(pairs, width, dtype=torch.bfloat16, device=device),
        torch.empty(num_places, dtype=torch.int32, device=device),
        torch.empty(num_places // MIN_EXPERT_BLOCK + 1, dtype=torch.int32, device=device),
    )


MIN_EXPERT_BLOCK, MAX_EXPERT_BLOCK = 8, 128  # tokens of one expert that are multiplied together


LOGITS_CHUNK = 1024  # logits, or of them what is left, that a program takes the largest of


def make_keys(max_rows: int, vocab_size: int, k: int, device: str) -> Tensor:
    """Scratch of top_logits, i64: the largest of each chunk of each row, and of those again."""
    return torch.empty(2, max_rows, -(-vocab_size // LOGITS_CHUNK) * k, dtype=torch.int64, device=device)
