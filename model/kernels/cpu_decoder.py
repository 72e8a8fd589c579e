"""The decoder on the processor by the C++ kernels: a whole pass over a batch of sequences in one call.

Takes the weights of a loaded model where they lie; INT4 weights are packed anew into the kernels' tiles. The
mathematics are model.modeling's, which the tests hold it against. Attention reads a paged cache of BLOCK_TOKENS
tokens a block.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import POINTER, Array, Structure, c_float, c_int32, c_void_p
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.huge_pages import prefer_huge_pages
from model.kernels.build import KernelsUnavailableError, Library, load_library
from model.kernels.expert_cache import ExpertCache
from model.modeling import MLP, BailingMoeV2ForCausalLM, DecoderLayer, MoE, MTPLayer
from model.quantized import DenseMatrix, Int4Matrix, Matrix, QuantizedExperts, TiledInt4Matrix, list_matrices

BLOCK_TOKENS = 32
TILE_ROWS = 16
MAX_HEADS_A_GROUP = 32  # kQueryRows in cpu/attention.h
_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_INT4 = 2
_TILED = {torch.float32: 3, torch.bfloat16: 4}
CACHE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class _Matrix(Structure):
    _fields_ = [
        ("kind", c_int32),
        ("rows", c_int32),
        ("cols", c_int32),
        ("group", c_int32),
        ("data", c_void_p),
        ("scales", c_void_p),
        ("scales_bf16", c_void_p),
    ]


class _Config(Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("hidden", "num_heads", "num_kv_heads", "head_dim", "rotary_dim")],
        *[(name, c_int32) for name in ("num_layers", "vocab", "num_experts", "num_groups", "top_groups", "top_k")],
        *[(name, c_float) for name in ("routed_scale", "eps", "rope_factor")],
    ]


class _LayerWeights(Structure):
    _fields_ = [
        *[(name, _Matrix) for name in ("qkv", "dense", "router", "gate", "up", "down")],
        *[(name, c_void_p) for name in ("input_norm", "post_norm", "query_norm", "key_norm", "expert_bias")],
        ("experts", POINTER(_Matrix)),
        ("num_experts", c_int32),
        ("cache_kind", c_int32),
        ("keys", c_void_p),
        ("values", c_void_p),
    ]


class _Batch(Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("num_tokens", "num_sequences", "num_logits", "max_blocks")],
        *[(name, POINTER(c_int32)) for name in ("ids", "positions", "starts", "block_tables", "logit_rows")],
        *[(name, c_void_p) for name in ("logits", "hidden", "router_logits", "topk_ids", "topk_weights")],
        ("num_taps", c_int32),
        ("tap_layers", POINTER(c_int32)),
        ("taps", c_void_p),
    ]


class _DraftBatch(Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("num_tokens", "num_sequences", "max_blocks", "max_draft")],
        *[(name, POINTER(c_int32)) for name in ("ids", "positions", "starts", "block_tables")],
        ("hidden", c_void_p),
        *[(name, POINTER(c_int32)) for name in ("hidden_rows", "num_drafts")],
        ("drafts", c_void_p),
    ]


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass computed: logits [rows asked for, V] f32; router_logits [L,T,E] f32, topk_ids [L,T,K] i32 and
    topk_weights [L,T,K] f32 of each layer, zero in dense ones, without rows where they were not asked for; hidden [T,D]
    f32 after the final norm, if asked for; taps [N,T,D] f32: the residual stream before each layer asked for."""

    logits: Tensor
    router_logits: Tensor
    topk_ids: Tensor
    topk_weights: Tensor
    hidden: Tensor | None
    taps: Tensor


class Threads:
    """The kernels' own threads. They sleep between passes."""

    def __init__(self, num_threads: int, library: Library | None = None) -> None:
        self.library = library or load_library()
        self.num_threads = num_threads
        create = self.library.handle.bedside_pool_new
        create.restype = c_void_p
        self.pointer = c_void_p(create(num_threads))

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.library.handle.bedside_pool_free(self.pointer)


class Tiles:
    """A plain matrix as the kernels read it fastest: [tile, I, 16], the rows of a tile across the lanes. A copy."""

    def __init__(self, weight_OI: Tensor) -> None:
        self.rows, self.cols = weight_OI.shape
        padded = torch.nn.functional.pad(weight_OI.detach(), (0, 0, 0, -self.rows % TILE_ROWS))
        self.tiles = padded.view(-1, TILE_ROWS, self.cols).transpose(1, 2).contiguous()


class Int4Tiles:
    """An INT4 matrix as the kernels read it: tiles of 16 rows, scales beside them. See cpu/linear.h."""

    def __init__(self, packed_OW: Tensor, scales_ON: Tensor, num_columns: int, threads: Threads) -> None:
        """packed int32 [O, I/8] as `quantization.pack_int4` writes it, scales [O, N]. Where O is a multiple of 16 the
        tiles take the very place of `packed`, so that no weight exists twice."""
        self.rows, self.cols = packed_OW.shape[0], num_columns
        self.group = num_columns // scales_ON.shape[1]
        num_tiles = -(-self.rows // TILE_ROWS)
        packed = packed_OW.contiguous()
        self.tiles = packed.view(torch.uint8)
        if self.rows % TILE_ROWS:
            self.tiles = torch.empty(num_tiles * TILE_ROWS * num_columns // 2, dtype=torch.uint8)
        threads.library.handle.bedside_pack_int4(
            threads.pointer, c_void_p(_pointer(packed)), self.rows, self.cols, c_void_p(_pointer(self.tiles))
        )
        padded = torch.nn.functional.pad(scales_ON, (0, 0, 0, num_tiles * TILE_ROWS - self.rows))
        tiled = padded.view(num_tiles, TILE_ROWS, -1).transpose(1, 2).contiguous()
        self.scales = tiled if tiled.dtype == torch.bfloat16 else tiled.float()

    @classmethod
    def from_parts(cls, shape: tuple[int, int], group: int, tiles: Tensor, scales: Tensor) -> Int4Tiles:
        """What was packed before: tiles and scales of a matrix [O, I], as another Int4Tiles of this layout has them."""
        made = cls.__new__(cls)
        (made.rows, made.cols), made.group, made.tiles, made.scales = shape, group, tiles, scales
        return made


def name_layout(library: Library | None = None) -> str:
    """The name of the layout that Int4Tiles has; what was packed in another cannot be read by these kernels."""
    layout = (library or load_library()).handle.bedside_layout
    layout.restype = ctypes.c_char_p
    return bytes(layout()).decode()


class CpuDecoder:
    """A model's layers, its MTP layer included, with a cache of `num_blocks` blocks."""

    def __init__(
        self,
        model: BailingMoeV2ForCausalLM,
        threads: Threads,
        num_blocks: int,
        cache_dtype: torch.dtype = torch.bfloat16,
        experts: ExpertCache | None = None,
    ) -> None:
        """cache_dtype: float32, exact; bfloat16, half the memory and the reading; or int8 with a scale for each
        position and head, a quarter. INT4 weights are taken from the model, which cannot compute by itself afterwards.
        experts: where the routed experts come from if the model holds none (they lie on the meta device). Raises
        KernelsUnavailableError if the model is not for these kernels; it is then untouched."""
        check_supported(model)
        self.config = config = model.config
        self._threads = threads
        self._library = threads.library.handle
        self._kept: list[Any] = []  # what the C++ side points at
        # Keys and values of each layer by blocks; what a block's bytes mean, cpu/attention.h says.
        block_bytes = BLOCK_TOKENS * token_bytes(config, cache_dtype)
        self.cache = lazy_zeros((config.num_layers, 2, num_blocks, block_bytes), torch.uint8)
        rotary = model.rotary
        self._c_config = _Config(
            hidden=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_dim=config.rotary_dim,
            num_layers=config.num_hidden_layers,
            vocab=config.vocab_size,
            num_experts=config.num_experts,
            num_groups=config.n_group,
            top_groups=config.topk_group,
            top_k=config.num_experts_per_tok,
            routed_scale=config.routed_scaling_factor,
            eps=config.rms_norm_eps,
            rope_factor=rotary.attention_factor,
        )
        create = self._library.bedside_decoder_new
        create.restype = c_void_p
        embedding, head = self._matrix(model.model.word_embeddings.weight), self._matrix(model.lm_head)
        self._pointer = c_void_p(
            create(
                ctypes.byref(self._c_config),
                self._floats(rotary.inv_freq),
                ctypes.byref(embedding),
                ctypes.byref(head),
                self._floats(model.model.norm.weight),
            )
        )
        for index, layer in enumerate(model.model.layers):
            assert isinstance(layer, DecoderLayer)
            if isinstance(layer, MTPLayer):
                self._add_mtp(layer)
            self._set_layer(index, layer, cache_dtype)
        self._experts_read = experts
        if experts is not None:
            experts.attach(self._library, self._pointer)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self._library.bedside_decoder_free(self._pointer)

    def forward(
        self,
        input_ids: Sequence[Sequence[int]],
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        logit_rows: Sequence[int] | None = None,
        output_hidden: bool = False,
        tap_layers: Sequence[int] = (),
        threads: Threads | None = None,
        output_router: bool = True,
        logits_NV: Tensor | None = None,
    ) -> Pass:
        """New tokens of some sequences, each from its first position on; block_tables: each sequence's blocks in order.

        logit_rows: rows of the flattened tokens to compute logits of, by default each sequence's last. tap_layers: n is
        the residual stream before layer n, 0 the embeddings, num_hidden_layers what the last one leaves. threads: by
        default those that the weights were packed with; the result is the same with any. logits_NV: f32, where the
        logits go; by default new memory. Raises ExpertReadError where experts are read from the disk and could not be;
        what the cache then holds of these tokens is void.
        """
        config = self.config
        flat = _flatten(input_ids, first_positions, block_tables)
        T = flat["num_tokens"]
        rows = [start - 1 for start in flat["starts"][1:]] if logit_rows is None else logit_rows
        L, E, K = config.num_hidden_layers, config.num_experts, config.num_experts_per_tok
        num_routed = T if output_router else 0
        result = Pass(
            torch.empty(len(rows), config.vocab_size) if logits_NV is None else logits_NV,
            torch.zeros(L, num_routed, E),
            torch.zeros(L, num_routed, K, dtype=torch.int32),
            torch.zeros(L, num_routed, K),
            torch.empty(T, config.hidden_size) if output_hidden else None,
            torch.empty(len(tap_layers), T, config.hidden_size),
        )
        batch = _Batch(
            **flat,
            num_logits=len(rows),
            logit_rows=_ints(rows),
            logits=_pointer(result.logits),
            hidden=None if result.hidden is None else _pointer(result.hidden),
            router_logits=_pointer(result.router_logits) if output_router else None,
            topk_ids=_pointer(result.topk_ids) if output_router else None,
            topk_weights=_pointer(result.topk_weights) if output_router else None,
            num_taps=len(tap_layers),
            tap_layers=_ints(tap_layers),
            taps=_pointer(result.taps),
        )
        threads = threads or self._threads
        if self._library.bedside_forward(self._pointer, threads.pointer, ctypes.byref(batch)):
            assert self._experts_read is not None
            raise self._experts_read.error()
        return result

    def draft(
        self,
        next_ids: Sequence[Sequence[int]],
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        hidden_ND: Tensor,
        hidden_rows: Sequence[int],
        num_drafts: Sequence[int],
        threads: Threads | None = None,
    ) -> list[list[int]]:
        """Drafts by the MTP layer, num_drafts tokens of each sequence, from its last row on.

        Of each sequence come the rows that `forward` has computed and the layer has not yet seen, from first_positions
        on: next_ids is the token after each, and hidden_ND [.., D] f32 holds their states after the final norm, in the
        places hidden_rows. threads: as in `forward`.
        """
        assert hidden_ND.is_contiguous()
        drafts = torch.zeros(len(num_drafts), max(*num_drafts, 1), dtype=torch.int32)
        batch = _DraftBatch(
            **_flatten(next_ids, first_positions, block_tables),
            max_draft=drafts.shape[1],
            hidden=_pointer(hidden_ND),
            hidden_rows=_ints(hidden_rows),
            num_drafts=_ints(num_drafts),
            drafts=_pointer(drafts),
        )
        self._library.bedside_draft(self._pointer, (threads or self._threads).pointer, ctypes.byref(batch))
        return [draft[:number] for draft, number in zip(drafts.tolist(), num_drafts, strict=True)]

    # --- handing over the weights -------------------------------------------------------------------------------

    def _set_layer(self, index: int, layer: DecoderLayer, cache_dtype: torch.dtype) -> None:
        attention, mlp = layer.attention, layer.mlp
        weights = _LayerWeights(
            qkv=self._matrix(attention.query_key_value),
            dense=self._matrix(attention.dense),
            input_norm=self._floats(layer.input_layernorm.weight),
            post_norm=self._floats(layer.post_attention_layernorm.weight),
            query_norm=self._floats(attention.query_layernorm.weight),
            key_norm=self._floats(attention.key_layernorm.weight),
            cache_kind=CACHE_KINDS[cache_dtype],
            keys=_pointer(self.cache[index, 0]),
            values=_pointer(self.cache[index, 1]),
        )
        dense = mlp.shared_experts if isinstance(mlp, MoE) else mlp
        if isinstance(dense, MLP):
            for name in ("gate", "up", "down"):
                setattr(weights, name, self._matrix(getattr(dense, f"{name}_proj")))
        if isinstance(mlp, MoE):
            experts = self._experts(mlp)
            weights.router = self._matrix(Tiles(mlp.gate.weight))
            weights.expert_bias = self._floats(mlp.gate.expert_bias)
            weights.experts = (_Matrix * (3 * len(experts)))(*[matrix for three in experts for matrix in three])
            weights.num_experts = len(experts)
        set_layer = self._library.bedside_decoder_set_layer
        set_layer(self._pointer, ctypes.byref(self._c_config), index, ctypes.byref(weights))

    def _add_mtp(self, layer: MTPLayer) -> None:
        norms = [self._floats(norm.weight) for norm in (layer.enorm, layer.hnorm, layer.final_layernorm)]
        join = self._matrix(layer.eh_proj)
        self._library.bedside_decoder_add_mtp(self._pointer, *norms, ctypes.byref(join))

    def _experts(self, moe: MoE) -> list[tuple[_Matrix, _Matrix, _Matrix]]:
        if isinstance(moe.experts, QuantizedExperts):
            stacks = [moe.experts.gate_proj, moe.experts.up_proj, moe.experts.down_proj]
            return list(zip(*[self._stack(stack) for stack in stacks], strict=True))
        gate_up, down = moe.experts.gate_up_proj, moe.experts.down_proj
        width = gate_up.shape[1] // 2
        return [
            (self._matrix(gate_up[e, :width]), self._matrix(gate_up[e, width:]), self._matrix(down[e]))
            for e in range(len(down))
        ]

    def _stack(self, stack: Matrix) -> list[_Matrix]:
        if isinstance(stack, DenseMatrix):
            return [self._matrix(weight) for weight in stack.weight]
        if isinstance(stack, TiledInt4Matrix):
            shape = (stack.shape[-2], stack.shape[-1])
            parts = zip(stack.tiles, stack.scales, strict=True)
            return [self._matrix(Int4Tiles.from_parts(shape, stack.group_size, *part)) for part in parts]
        assert isinstance(stack, Int4Matrix)
        parts = zip(*_take(stack), strict=True)
        return [self._matrix(Int4Tiles(*part, stack.shape[-1], self._threads)) for part in parts]

    def _matrix(self, weight: Tensor | nn.Module | Tiles | Int4Tiles) -> _Matrix:
        if isinstance(weight, Int4Matrix):
            weight = Int4Tiles(*_take(weight), weight.shape[-1], self._threads)
        if isinstance(weight, TiledInt4Matrix):
            shape = (weight.shape[0], weight.shape[1])
            weight = Int4Tiles.from_parts(shape, weight.group_size, weight.tiles, weight.scales)
        held = weight.weight if isinstance(weight, nn.Linear) else weight
        assert isinstance(held, Tensor | Tiles | Int4Tiles)
        return _describe_matrix(held, self._kept)

    def _floats(self, tensor: Tensor) -> c_void_p:
        floats = tensor.detach().float().contiguous()
        self._kept.append(floats)
        return c_void_p(floats.data_ptr())


def token_bytes(config: ModelConfig, cache_dtype: torch.dtype) -> int:
    """What the keys, or the values, of a token take in one layer's cache."""
    scale_bytes = torch.float32.itemsize if cache_dtype == torch.int8 else 0
    return config.num_key_value_heads * (config.head_dim * cache_dtype.itemsize + scale_bytes)


def _flatten(
    input_ids: Sequence[Sequence[int]], first_positions: Sequence[int], block_tables: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """A batch as the kernels read it: ids [T], positions [T], starts [S+1], block_tables [S, max_blocks] and their
    sizes. No torch in here: between two steps the caches hold weights, and every call into it costs microseconds."""
    spans = [range(first, first + len(ids)) for first, ids in zip(first_positions, input_ids, strict=True)]
    starts = [0, *accumulate(map(len, spans))]
    width = max(map(len, block_tables))
    return {
        "num_tokens": starts[-1],
        "num_sequences": len(spans),
        "max_blocks": width,
        "ids": _ints([token_id for ids in input_ids for token_id in ids]),
        "positions": _ints([position for span in spans for position in span]),
        "starts": _ints(starts),
        "block_tables": _ints([block for table in block_tables for block in [*table, *[0] * (width - len(table))]]),
    }


def _ints(values: Sequence[int]) -> Array[c_int32]:
    return (c_int32 * len(values))(*values)


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take memory only where something is written: torch.zeros would take a cache's whole room at once."""
    num_bytes = math.prod(shape) * dtype.itemsize
    zeros = torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8))
    prefer_huge_pages([zeros])
    return zeros.view(dtype).view(shape)


def check_supported(model: BailingMoeV2ForCausalLM) -> None:
    """Raises KernelsUnavailableError naming the first thing about the model that these kernels cannot do."""
    if model.config.head_dim % 16:
        raise KernelsUnavailableError(f"heads of {model.config.head_dim} dims; the kernels need a multiple of 16")
    heads_a_group = model.config.num_attention_heads // model.config.num_key_value_heads
    if heads_a_group > MAX_HEADS_A_GROUP:
        raise KernelsUnavailableError(f"{heads_a_group} query heads share keys; the kernels take {MAX_HEADS_A_GROUP}")
    dtype = model.model.word_embeddings.weight.dtype
    if dtype not in _KINDS:
        raise KernelsUnavailableError(f"no kernels yet for {str(dtype).removeprefix('torch.')}")
    for name, matrix in list_matrices(model):
        check_matrix(name, matrix)


def check_matrix(name: str, matrix: Matrix) -> None:
    """Raises KernelsUnavailableError saying why these kernels cannot multiply by the matrix."""
    if isinstance(matrix, DenseMatrix | TiledInt4Matrix):
        return
    if not isinstance(matrix, Int4Matrix):
        raise KernelsUnavailableError(f"no kernels yet for {matrix.precision} ({name})")
    if matrix.zeros is not None or matrix.g_idx is not None:
        raise KernelsUnavailableError(f"no kernels yet for zero points or act-order ({name})")
    if matrix.group_size % 8 or matrix.shape[-1] % matrix.group_size:
        raise KernelsUnavailableError(f"no kernels yet for groups of {matrix.group_size} columns ({name})")


def _take(matrix: Int4Matrix) -> tuple[Tensor, Tensor]:
    """Packed weights and scales of a matrix, which loses them: their memory becomes the tiles'."""
    packed, scales = matrix.packed, matrix.scales
    matrix.register_buffer("packed", None)
    matrix.register_buffer("scales", None)
    return packed, scales


def read_bytes(tensor: Tensor, threads: Threads) -> int:
    """Reads a tensor of whole MiB once, by all threads; the sum of its 64-bit words. For measuring bandwidth."""
    read = threads.library.handle.bedside_read
    read.restype = ctypes.c_uint64
    return int(read(threads.pointer, c_void_p(_pointer(tensor)), ctypes.c_long(tensor.nbytes // 8)))


def linear(weight: Tensor | Tiles | Int4Tiles, x_TI: Tensor, threads: Threads) -> Tensor:
    """One product by itself, for tests and benches: x [T,I] f32 -> [T,O] f32."""
    return linear_many([weight], x_TI, threads)[0]


def linear_many(weights: Sequence[Tensor | Tiles | Int4Tiles], x_TI: Tensor, threads: Threads) -> Tensor:
    """The product with each of N matrices of one shape and kind: x [T,I] f32 -> [N,T,O] f32."""
    kept: list[Any] = []
    matrices = [_describe_matrix(weight, kept) for weight in weights]
    y_NTO = torch.empty(len(weights), len(x_TI), matrices[0].rows)
    x_TI = x_TI.contiguous()
    threads.library.handle.bedside_linear(
        threads.pointer,
        (_Matrix * len(matrices))(*matrices),
        len(matrices),
        c_void_p(_pointer(x_TI)),
        len(x_TI),
        c_void_p(_pointer(y_NTO)),
    )
    return y_NTO


def _describe_matrix(weight: Tensor | Tiles | Int4Tiles, kept: list[Any]) -> _Matrix:
    if isinstance(weight, Tiles):
        kept.append(weight)
        return _Matrix(_TILED[weight.tiles.dtype], weight.rows, weight.cols, 0, _pointer(weight.tiles))
    if isinstance(weight, Int4Tiles):
        kept.append(weight)
        matrix = _Matrix(_INT4, weight.rows, weight.cols, weight.group, _pointer(weight.tiles))
        if weight.scales.is_meta:
            return matrix
        setattr(matrix, "scales_bf16" if weight.scales.dtype == torch.bfloat16 else "scales", _pointer(weight.scales))
        return matrix
    tensor = weight.detach().contiguous()
    kept.append(tensor)
    return _Matrix(_KINDS[tensor.dtype], tensor.shape[0], tensor.shape[1], 0, _pointer(tensor))


def _pointer(tensor: Tensor) -> int | None:
    """None for what is not in memory: experts that are read as they are chosen."""
    return None if tensor.is_meta else tensor.data_ptr()
