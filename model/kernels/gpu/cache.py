"""One layer's keys and values as kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.cpu_decoder import BLOCK_TOKENS
from model.kernels.gpu.arithmetic import prefetch

KINDS = {torch.bfloat16: 0, torch.int8: 1, torch.float8_e4m3fn: 2}


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a kernel must know of a layer's cache when it is compiled. page: elements of one; kind: one of KINDS."""

    num_q: int
    num_kv: int
    width: int
    page: int
    block_tokens: int
    kind: int

    @property
    def block(self) -> int:
        """The head dim as a power of two."""
        return triton.next_power_of_2(self.width)


@dataclass(frozen=True, slots=True)
class CacheView:
    """pages of model.kernels.gpu.buffers as vectors and, for int8 and fp8, the same bytes as f32, where the scales are;
    strides: of keys and values and of blocks, in elements of the vectors."""

    vectors: Tensor
    scales: Tensor
    strides: tuple[int, int]
    shape: CacheShape


def view_cache(pages: Tensor, num_q: int, width: int) -> CacheView:
    kind = KINDS[pages.dtype]
    scales = pages.view(torch.float32) if kind else pages
    shape = CacheShape(num_q, pages.shape[2], width, pages.shape[3], BLOCK_TOKENS, kind)
    return CacheView(pages, scales, (pages.stride(0), pages.stride(1)), shape)


@triton.jit
def load_vectors(vectors_ptr, scales_ptr, page, place, is_key, column, S: tl.constexpr):
    """bf16 [keys, columns] as stored, and their f32 scales (1 for bf16). page: where each key's page begins."""
    ptrs = vectors_ptr + (page + place * S.width)[:, None] + column[None, :]
    vectors = tl.load(ptrs, mask=is_key[:, None] & (column < S.width)[None, :], other=0.0)
    if S.kind == 0:
        scales = tl.full(place.shape, 1.0, tl.float32)
    else:
        places = page // 4 + S.block_tokens * S.width // 4 + place
        scales = tl.load(scales_ptr + places, mask=is_key, other=0.0)
        vectors = vectors.to(tl.float32).to(tl.bfloat16)
    return vectors, scales


@triton.jit
def prefetch_vectors(vectors_ptr, page, place, S: tl.constexpr):
    """What load_vectors will read of the vectors, to the L2 cache."""
    LINE: tl.constexpr = 64 if S.kind == 0 else 128  # elements of 128 bytes
    LINES: tl.constexpr = triton.next_power_of_2((S.width + LINE - 1) // LINE)
    column = tl.minimum(tl.arange(0, LINES) * LINE, S.width - 1)
    prefetch(vectors_ptr + (page + place * S.width)[:, None] + column[None, :])
