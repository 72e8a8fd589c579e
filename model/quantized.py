"""Quantized weights that compute: modules that stand where an nn.Linear, or a layer's Experts, stood.

Each holds a weight [O, I], or a stack [E, O, I] over experts, packed as model.quantization defines it, and multiplies
by its dequantized copy, made anew for each product. That is the definition; kernels for the same operation belong into
model/kernels and take the place of `Matrix.forward` only. Knows nothing of files: model.formats fills the buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.modeling import mix_experts
from model.quantization import dequantize_fp8, dequantize_int4, dequantize_int8, dequantize_nf4


class Matrix(nn.Module):
    """A weight of `shape` [O, I] or [E, O, I] in some precision. Its buffers keep their dtypes when the model is
    cast; a new one has no memory before `to_empty`."""

    precision: ClassVar[str]

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def dequantize(self, expert: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [O, I], of one expert if it is a stack: computed in float32, rounded to `dtype` once."""
        raise NotImplementedError

    def forward(self, x: Tensor, expert: int | None = None) -> Tensor:
        """x [..., I] -> [..., O], with the weight dequantized to x's dtype."""
        return F.linear(x, self.dequantize(expert, x.dtype))

    def simplify(self) -> None:
        """Drops what the loaded values turned out not to need."""

    @property
    def label(self) -> str:
        """The precision as it is shown."""
        return self.precision

    def _hold(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.empty(*self.shape[:-2], *shape, dtype=dtype, device="meta"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Matrix:
        """Moves with the model, but a cast to bf16 or f32 must not touch scales and packed weights."""
        held = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in held.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self


class DenseMatrix(Matrix):
    """Not quantized: one projection of experts whose others are."""

    precision = "dense"

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.weight = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)

    def dequantize(self, expert: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        return select(self.weight, expert).to(dtype)


class Int4Matrix(Matrix):
    """packed i32 [*, O, ceil(I/8)], scales [*, O, N] as stored, zeros i8 [*, O, N] and g_idx i32 [*, I] or None."""

    precision = "int4"
    packed: Tensor
    scales: Tensor
    zeros: Tensor | None
    g_idx: Tensor | None

    def __init__(
        self, shape: tuple[int, ...], group_size: int, scale_dtype: torch.dtype, has_zeros: bool, has_g_idx: bool
    ) -> None:
        super().__init__(shape)
        rows, columns = shape[-2:]
        self.group_size = group_size
        self.num_groups = -(-columns // group_size)
        self._hold("packed", (rows, -(-columns // 8)), torch.int32)
        self._hold("scales", (rows, self.num_groups), scale_dtype)
        for name, is_held, held, dtype in (
            ("zeros", has_zeros, (rows, self.num_groups), torch.int8),
            ("g_idx", has_g_idx, (columns,), torch.int32),
        ):
            if is_held:
                self._hold(name, held, dtype)
            else:
                self.register_buffer(name, None)

    def dequantize(self, expert: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        columns = self.shape[-1]
        g_idx = None if self.g_idx is None else select(self.g_idx, expert)
        if g_idx is None and -(-columns // self.num_groups) != self.group_size:
            g_idx = self._plain_order()  # the last group is so short that the number of groups does not tell their size
        zeros = None if self.zeros is None else select(self.zeros, expert)
        return dequantize_int4(select(self.packed, expert), select(self.scales, expert), columns, g_idx, zeros).to(
            dtype
        )

    @property
    def label(self) -> str:
        return _label_int4(self.group_size, self.shape[-1])

    def simplify(self) -> None:
        if self.zeros is not None and not self.zeros.any():
            self.zeros = None
        if self.g_idx is not None and bool((self.g_idx == self._plain_order()).all()):
            self.g_idx = None

    def _plain_order(self) -> Tensor:
        return torch.arange(self.shape[-1], dtype=torch.int32, device=self.packed.device) // self.group_size


class TiledInt4Matrix(Matrix):
    """INT4 in the C++ kernels' own layout, from a packed folder: tiles u8 [*, n] and scales [*, ...], whose order only
    the kernels know. On the meta device where the kernels read the experts from the disk themselves."""

    precision = "int4"
    tiles: Tensor
    scales: Tensor

    def __init__(self, shape: tuple[int, ...], group_size: int, tiles: Tensor, scales: Tensor) -> None:
        super().__init__(shape)
        self.group_size = group_size
        self.register_buffer("tiles", tiles)
        self.register_buffer("scales", scales)

    @property
    def label(self) -> str:
        return _label_int4(self.group_size, self.shape[-1])

    def dequantize(self, expert: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Raises ValueError: torch does not know the layout."""
        raise ValueError("Packed weights are for the C++ kernels alone; load the folder that they were packed from.")


class Fp8Matrix(Matrix):
    """weight f8_e4m3 [*, O, I], scale_inv f32 [*, ceil(O/block[0]), ceil(I/block[1])]."""

    precision = "fp8"
    weight: Tensor
    scale_inv: Tensor

    def __init__(self, shape: tuple[int, ...], block: tuple[int, int]) -> None:
        super().__init__(shape)
        rows, columns = shape[-2:]
        self.block = block
        self._hold("weight", (rows, columns), torch.float8_e4m3fn)
        self._hold("scale_inv", (-(-rows // block[0]), -(-columns // block[1])), torch.float32)

    def dequantize(self, expert: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        return dequantize_fp8(select(self.weight, expert), select(self.scale_inv, expert), self.block).to(dtype)


class Nf4Matrix(Matrix):
    """packed u8 [*, ceil(O I/2)], absmax f32 [*, ceil(O I/block)], quant_map f32 [*, 16]; see dequantize_nf4."""

    precision = "nf4"
    packed: Tensor
    absmax: Tensor
    quant_map: Tensor

    def __init__(self, shape: tuple[int, ...], block: int) -> None:
        super().__init__(shape)
        num_values = shape[-2] * shape[-1]
        self.block = block
        self._hold("packed", (-(-num_values // 2),), torch.uint8)
        self._hold("absmax", (-(-num_values // block),), torch.float32)
        self._hold("quant_map", (16,), torch.float32)

    def dequantize(self, expert: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        packed, absmax, quant_map = (select(held, expert) for held in (self.packed, self.absmax, self.quant_map))
        rows, columns = self.shape[-2:]
        return dequantize_nf4(packed, absmax, quant_map, (rows, columns), self.block).to(dtype)


class Int8Matrix(Matrix):
    """weight i8 [*, O, I], absmax f32 [*, O]."""

    precision = "int8"
    weight: Tensor
    absmax: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self._hold("weight", tuple(shape[-2:]), torch.int8)
        self._hold("absmax", (shape[-2],), torch.float32)

    def dequantize(self, expert: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        return dequantize_int8(select(self.weight, expert), select(self.absmax, expert)).to(dtype)


class QuantizedExperts(nn.Module):
    """The routed experts of a layer as three stacks: gate and up [E, F, D], down [E, D, F]; Experts' signature."""

    def __init__(self, gate: Matrix, up: Matrix, down: Matrix) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> Tensor:
        """Weighted sum of each token's experts, [T,D]; only chosen experts are dequantized."""
        return mix_experts(x_TD, topk_ids_TK, topk_weights_TK, self.down_proj.shape[0], self._run)

    def _run(self, expert: int, x_nD: Tensor) -> Tensor:
        gate, up = self.gate_proj(x_nD, expert), self.up_proj(x_nD, expert)
        return self.down_proj(F.silu(gate) * up, expert)


def select(tensor: Tensor, expert: int | None) -> Tensor:
    """A stack's part for one expert; a single matrix's tensor as it is."""
    return tensor if expert is None else tensor[expert]


def list_matrices(model: nn.Module) -> list[tuple[str, Matrix]]:
    """(module name, matrix) of everything in a model that is not held as plain parameters."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Matrix)]


def name_quantization(model: nn.Module) -> str | None:
    """The precision that most weights have, as "int4 (group 128)", "fp8", "nf4" or "int8"; None for a plain model."""
    sizes: dict[str, int] = {}
    for _, matrix in list_matrices(model):
        if not isinstance(matrix, DenseMatrix):
            sizes[matrix.label] = sizes.get(matrix.label, 0) + num_weights(matrix)
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _label_int4(group_size: int, columns: int) -> str:
    return f"int4 (group {group_size})" if columns > group_size else "int4 (per row)"


def num_weights(matrix: Matrix) -> int:
    return int(torch.Size(matrix.shape).numel())


def count_parameters(model: nn.Module) -> int:
    """Weights of a model, however they are packed."""
    packed: Any = (matrix for _, matrix in list_matrices(model) if not isinstance(matrix, DenseMatrix))
    return sum(parameter.numel() for parameter in model.parameters()) + sum(map(num_weights, packed))
