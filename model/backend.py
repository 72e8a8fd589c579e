"""What runs a pass for the engine: new tokens of several sequences in, logits out.

Keys and values lie in blocks that the engine hands out by number (model.block_pool). The C++ kernels (cpu_backend), a
card's (gpu_backend) and plain torch (torch_backend) do this; backend_choice chooses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.candidates import Logits
from model.config import ModelConfig
from model.kernels.cpu_decoder import BLOCK_TOKENS, token_bytes

CACHES: Mapping[str, torch.dtype | None] = {
    "auto": None,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
MAX_CACHE_BYTES = 2 * 2**30
MAX_SEQUENCES_CACHED = 8


@dataclass(frozen=True, slots=True)
class Slice:
    """New tokens of one sequence, from `first_position` on, which its blocks have room for. num_logits: of how many
    of them, counted from the last, logits are wanted."""

    token_ids: Sequence[int]
    first_position: int
    blocks: Sequence[int]
    num_logits: int


class Backend(Protocol):
    """`name` is shown to users: which kernels run, and why not better ones. bytes_a_token: of weights, that a step of
    one token reads. cache_dtype: of keys and values. cache_layout: what the bytes of a block mean: where it is the
    same, of the same weights, the block_bytes of one process are good in another."""

    config: ModelConfig
    num_blocks: int
    name: str
    bytes_a_token: int
    cache_dtype: torch.dtype
    cache_layout: str
    block_bytes: int

    def forward(self, batch: Sequence[Slice]) -> Logits:
        """Logits [those wanted, V] f32 on the CPU, in the order of slices and of their tokens, or the largest of each
        row and where the others are; until the next call."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Makes a block hold the keys and values of another. Not to be called during a pass."""
        ...

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        """The keys and values of these blocks, block_bytes each, as they lie. No pass may write to them meanwhile."""
        ...

    def write_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        """Puts back what `read_blocks` gave. No pass may use the blocks meanwhile."""
        ...


def find_cache_dtype(cache: str, computed_in: torch.dtype) -> torch.dtype:
    """What keys and values are stored as by the C++ kernels, for one of CACHES. Raises ValueError for another."""
    if cache not in CACHES:
        raise ValueError(f"The cache is {cache!r}; use one of {', '.join(CACHES)}.")
    return CACHES[cache] or (torch.float32 if computed_in == torch.float32 else torch.bfloat16)


def count_blocks(config: ModelConfig, dtype: torch.dtype) -> int:
    """Blocks of the cache: for some sequences of full length, or what fits MAX_CACHE_BYTES; for one at least."""
    a_sequence = -(-config.context_length // BLOCK_TOKENS)
    affordable = MAX_CACHE_BYTES // _block_bytes(config, dtype)
    return max(a_sequence, min(MAX_SEQUENCES_CACHED * a_sequence, affordable)) + 1


def count_cache_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """What the cache takes in memory once all its blocks were used."""
    return count_blocks(config, dtype) * _block_bytes(config, dtype)


def _block_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    return 2 * config.num_layers * token_bytes(config, dtype) * BLOCK_TOKENS


# A block is the third index of a cache; what lies in it is the kernels' affair, so that here it is bytes.


def describe_cache(cache: Tensor, dtype: torch.dtype, config: ModelConfig) -> str:
    """dtype: of the numbers in the cache, whatever tensor holds them. Of the config a digest: the same weights at other
    positions or with another routing give other keys."""
    shape = [*cache.shape[:2], *cache.shape[3:]]
    digest = hashlib.sha256(repr(config).encode()).hexdigest()
    return f"{dtype} {'x'.join(map(str, shape))} {digest[:32]}"


def read_cache_blocks(cache: Tensor, blocks: Sequence[int]) -> bytes:
    chosen = cache[:, :, list(blocks)].movedim(2, 0).contiguous().cpu()
    return chosen.view(torch.uint8).numpy().tobytes()


def write_cache_blocks(cache: Tensor, blocks: Sequence[int], data: bytes) -> None:
    flat = torch.frombuffer(bytearray(data), dtype=cache.dtype)
    chosen = flat.view(len(blocks), *cache.shape[:2], *cache.shape[3:]).movedim(0, 2)
    cache[:, :, list(blocks)] = chosen.to(cache.device)
