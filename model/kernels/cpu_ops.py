"""The processor's kernels one by one, on torch tensors: what tests hold against float64 and benches time.

A pass never comes here: cpu_decoder crosses into C++ once for all of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int32, c_void_p

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kernels.build import Library
from model.kernels.cpu_decoder import BLOCK_TOKENS, CACHE_KINDS, lazy_zeros, token_bytes


class _Routing(Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("num_experts", "num_groups", "top_groups", "top_k")],
        ("scale", c_float),
    ]


class _Cache(Structure):
    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        *[(name, c_int32) for name in ("kind", "num_kv_heads", "head_dim")],
    ]


def rms_norm(x_NC: Tensor, weight_C: Tensor, eps: float, library: Library) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight of each row, all f32."""
    x_NC, out_NC = x_NC.contiguous(), torch.empty_like(x_NC)
    pointers = [c_void_p(t.data_ptr()) for t in (x_NC, weight_C, out_NC)]
    library.handle.bedside_rms_norm(pointers[0], pointers[1], c_float(eps), len(x_NC), x_NC.shape[1], pointers[2])
    return out_NC


def rotate(x_NC: Tensor, cos_NR: Tensor, sin_NR: Tensor, library: Library) -> Tensor:
    """Turns the first 2R dims of each row f32, halves paired, as modeling.rotate does."""
    out_NC, half = x_NC.clone(), cos_NR.shape[1]
    pointers = [c_void_p(t.data_ptr()) for t in (out_NC, cos_NR, sin_NR)]
    library.handle.bedside_rotate(*pointers, len(out_NC), out_NC.shape[1], half)
    return out_NC


def route(logits_TE: Tensor, bias_E: Tensor, config: ModelConfig, library: Library) -> tuple[Tensor, Tensor]:
    """The chosen experts [T,K] i32, best first, and their weights [T,K] f32."""
    T, E = logits_TE.shape
    routing = _Routing(E, config.n_group, config.topk_group, config.num_experts_per_tok, config.routed_scaling_factor)
    ids_TK = torch.empty(T, config.num_experts_per_tok, dtype=torch.int32)
    weights_TK = torch.empty(T, config.num_experts_per_tok)
    logits, bias, ids, weights = (c_void_p(t.data_ptr()) for t in (logits_TE, bias_E, ids_TK, weights_TK))
    library.handle.bedside_route(ctypes.byref(routing), logits, bias, T, ids, weights)
    return ids_TK, weights_TK


class PagedAttention:
    """Attention of one sequence over a cache of its own, whose blocks lie in the order of `block_table`."""

    def __init__(self, config: ModelConfig, block_table: Sequence[int], dtype: torch.dtype, library: Library) -> None:
        num_bytes = (max(block_table) + 1) * BLOCK_TOKENS * token_bytes(config, dtype)
        self.keys, self.values = (lazy_zeros((num_bytes,), torch.uint8) for _ in range(2))
        self._table = torch.tensor(block_table, dtype=torch.int32)
        self._library = library.handle
        self._cache = _Cache(
            self.keys.data_ptr(),
            self.values.data_ptr(),
            CACHE_KINDS[dtype],
            config.num_key_value_heads,
            config.head_dim,
        )

    def write(self, first_position: int, keys_TGC: Tensor, values_TGC: Tensor) -> None:
        """Keys and values f32 of positions from the first on."""
        self._library.bedside_cache_write(
            ctypes.byref(self._cache),
            c_void_p(self._table.data_ptr()),
            first_position,
            len(keys_TGC),
            c_void_p(keys_TGC.contiguous().data_ptr()),
            c_void_p(values_TGC.contiguous().data_ptr()),
        )

    def attend(self, first_position: int, queries_THC: Tensor) -> Tensor:
        """What queries f32 at positions from the first on see: [T,H,C] f32."""
        queries_THC, out_THC = queries_THC.contiguous(), torch.empty_like(queries_THC)
        self._library.bedside_attend(
            ctypes.byref(self._cache),
            c_void_p(self._table.data_ptr()),
            first_position,
            len(queries_THC),
            queries_THC.shape[1],
            c_void_p(queries_THC.data_ptr()),
            c_void_p(out_THC.data_ptr()),
        )
        return out_THC
