"""Keys and values of one request, contiguous per layer and grown by blocks.

For training and for tests against the reference; the engine's cache is paged, see model.backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import ModelConfig

BLOCK_TOKENS = 256


class KVCache:
    """Room for `capacity` tokens at first; more is taken as needed. Tensors are [B,G,P,C] (see model.modeling)."""

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int = 1,
        capacity: int = BLOCK_TOKENS,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        shape = (batch_size, config.num_key_value_heads, _round_up(capacity), config.head_dim)
        self._keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self._values = [torch.empty_like(keys) for keys in self._keys]
        self._num_cached = 0

    @property
    def num_cached_tokens(self) -> int:
        return self._num_cached

    @property
    def num_bytes(self) -> int:
        """Memory taken, used or not."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    def append(self, layer: int, k_BGSC: Tensor, v_BGSC: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values behind the cached ones; returns views of all, valid until the next append."""
        start, end = self._num_cached, self._num_cached + k_BGSC.shape[2]
        if end > self._keys[layer].shape[2]:
            self._grow(layer, end)
        self._keys[layer][:, :, start:end] = k_BGSC
        self._values[layer][:, :, start:end] = v_BGSC
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def advance(self, num_tokens: int) -> None:
        self._num_cached += num_tokens

    def get(self, layer: int) -> tuple[Tensor, Tensor]:
        """The cached keys and values of a layer."""
        return self._keys[layer][:, :, : self._num_cached], self._values[layer][:, :, : self._num_cached]

    def free(self) -> None:
        """Gives the memory back; the cache must not be used afterwards."""
        self._keys.clear()
        self._values.clear()

    def _grow(self, layer: int, needed: int) -> None:
        # Half as much again, so that a long answer copies its cache a few times, not once a block.
        old_keys, old_values = self._keys[layer], self._values[layer]
        size = _round_up(max(needed, old_keys.shape[2] * 3 // 2))
        shape = (*old_keys.shape[:2], size, old_keys.shape[3])
        self._keys[layer], self._values[layer] = old_keys.new_empty(shape), old_values.new_empty(shape)
        self._keys[layer][:, :, : self._num_cached] = old_keys[:, :, : self._num_cached]
        self._values[layer][:, :, : self._num_cached] = old_values[:, :, : self._num_cached]


def _round_up(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS) * BLOCK_TOKENS
