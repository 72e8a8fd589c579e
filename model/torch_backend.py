"""A pass for the engine by plain torch: where there are no kernels, and what they are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.backend import CACHES, Slice, count_blocks, describe_cache, read_cache_blocks, write_cache_blocks
from model.kernels.cpu_decoder import BLOCK_TOKENS, lazy_zeros
from model.modeling import BailingMoeV2ForCausalLM
from model.traffic import bytes_a_token

REFERENCE = "torch reference"


class TorchBackend:
    """The plain decoder, a sequence after the other."""

    def __init__(self, model: BailingMoeV2ForCausalLM, why: str = "", cache: str = "auto") -> None:
        if CACHES[cache] not in (None, model.model.norm.weight.dtype):
            raise ValueError(f"Only the C++ kernels store keys and values as {cache}; leave the cache on auto. {why}")
        self.config = config = model.config
        self.bytes_a_token = bytes_a_token(model)
        weight = model.model.norm.weight
        self.num_blocks = count_blocks(config, weight.dtype)
        self.name = f"{REFERENCE} ({why})" if why else REFERENCE
        self._model = model
        shape = (
            config.num_hidden_layers,
            2,
            self.num_blocks,
            BLOCK_TOKENS,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.cache_dtype = weight.dtype
        self._cache = lazy_zeros(shape, weight.dtype).to(weight.device)
        self.cache_layout = (
            f"torch {torch.__version__} {weight.device.type} {describe_cache(self._cache, weight.dtype, config)}"
        )
        self.block_bytes = self._cache[:, :, 0].nbytes

    def forward(self, batch: Sequence[Slice]) -> Tensor:
        logits = []
        with torch.inference_mode():
            for part in batch:
                ids_BS = torch.tensor([part.token_ids], device=self._cache.device)
                out = self._model(ids_BS, cache=_PagedCache(self._cache, part), logits_to_keep=max(part.num_logits, 1))
                if part.num_logits:
                    logits.append(out.logits[0].cpu())
        return torch.cat(logits) if logits else torch.empty(0, self.config.vocab_size)

    def copy_block(self, source: int, target: int) -> None:
        self._cache[:, :, target] = self._cache[:, :, source]

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        return read_cache_blocks(self._cache, blocks)

    def write_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        write_cache_blocks(self._cache, blocks, data)


class _PagedCache:
    """One sequence's blocks behind the decoder's Cache protocol."""

    def __init__(self, cache: Tensor, part: Slice) -> None:
        self._cache = cache
        self._part = part
        self._blocks = torch.tensor(part.blocks, device=cache.device)

    @property
    def num_cached_tokens(self) -> int:
        return self._part.first_position

    def append(self, layer: int, k_BGSC: Tensor, v_BGSC: Tensor) -> tuple[Tensor, Tensor]:
        start, end = self._part.first_position, self._part.first_position + k_BGSC.shape[2]
        places = torch.arange(start, end, device=self._cache.device)
        block, slot = self._blocks[places // BLOCK_TOKENS], places % BLOCK_TOKENS
        both = []
        for which, new_BGSC in enumerate((k_BGSC, v_BGSC)):
            pages = self._cache[layer, which]
            pages[block, slot] = new_BGSC[0].transpose(0, 1)
            both.append(pages[self._blocks].flatten(0, 1)[:end].transpose(0, 1)[None])
        return both[0], both[1]

    def advance(self, num_tokens: int) -> None:
        """Nothing to do: the engine counts."""
