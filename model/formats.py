"""How published checkpoints store a weight matrix, and how each form fills a matrix of model.quantized.

A form is recognised by the tensors that are there, matrix by matrix: nobody's list of what was quantized is trusted.
Each form checks every tensor's dtype and shape against the config's [O, I] first (`plan`, which takes no memory), then
reads one matrix at a time (`fill`), straight into its place in the stack of experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from model.config import CheckpointError
from model.quantization import unpack_int4
from model.quantized import DenseMatrix, Fp8Matrix, Int4Matrix, Matrix, select
from model.weights import FLOATS, Weights

Quantization = Mapping[str, Any]
Shape = tuple[int, ...]


class Format(Protocol):
    """One way of storing a matrix. `name` is the module's in the checkpoint, without `.weight`."""

    main: ClassVar[str]  # the tensor that holds the bulk

    def claims(self, weights: Weights, name: str) -> bool:
        """Whether the matrix is stored this way."""
        ...

    def plan(self, weights: Weights, names: Sequence[str], shape: Shape) -> Matrix:
        """A matrix [O, I], or a stack [len(names), O, I], to be filled. Raises CheckpointError naming what is amiss."""
        ...

    def fill(self, weights: Weights, name: str, matrix: Any, expert: int | None) -> None:
        """Reads one matrix, into the stack's place `expert`. Raises CheckpointError for values that cannot be."""
        ...


class PackQuantized:
    """compressed-tensors' `pack-quantized`, 4 bits: `weight_packed`, `weight_scale`, `weight_shape` if there, and
    `weight_zero_point` and `weight_g_idx` where it is asymmetric or in activation order."""

    main: ClassVar[str] = "weight_packed"

    def __init__(self, quantization: Quantization) -> None:
        groups = quantization.get("config_groups")
        schemes = [group.get("weights") or {} for group in groups.values()] if isinstance(groups, Mapping) else []
        self._group_sizes = [size for scheme in schemes if isinstance(size := scheme.get("group_size"), int)]

    def claims(self, weights: Weights, name: str) -> bool:
        return any(f"{name}.{tensor}" in weights for tensor in ("weight_packed", "weight_shape"))

    def plan(self, weights: Weights, names: Sequence[str], shape: Shape) -> Int4Matrix:
        rows, columns = shape[-2:]
        scale = weights.info(f"{names[0]}.weight_scale")
        num_groups = scale.shape[-1] if scale.shape else 0
        group_size = find_group_size(self._group_sizes, columns, num_groups)
        if group_size is None:
            where = weights.where(f"{names[0]}.weight_scale")
            raise CheckpointError(f"{where} has {num_groups} groups, which do not fit {columns} columns.")
        has_zeros, has_g_idx = (f"{names[0]}.{name}" in weights for name in ("weight_zero_point", "weight_g_idx"))
        for name in names:
            weights.check(f"{name}.weight_packed", (torch.int32,), (rows, -(-columns // 8)))
            weights.check(f"{name}.weight_scale", FLOATS, (rows, num_groups))
            if f"{name}.weight_shape" in weights:
                weights.check(f"{name}.weight_shape", (torch.int64, torch.int32), (2,))
            if has_zeros:
                weights.check(f"{name}.weight_zero_point", (torch.int32,), (-(-rows // 8), num_groups))
            if has_g_idx:
                weights.check(f"{name}.weight_g_idx", (torch.int32, torch.int64), (columns,))
        return Int4Matrix(shape, group_size, scale.dtype, has_zeros, has_g_idx)

    def fill(self, weights: Weights, name: str, matrix: Int4Matrix, expert: int | None) -> None:
        if f"{name}.weight_shape" in weights:
            stated = tuple(weights.read(f"{name}.weight_shape").tolist())
            if stated != tuple(matrix.shape[-2:]):
                raise CheckpointError(
                    f"{weights.where(f'{name}.weight_shape')} says {stated}; config.json asks for "
                    f"{tuple(matrix.shape[-2:])}."
                )
        weights.read_into(f"{name}.weight_packed", select(matrix.packed, expert))
        read_scales(weights, f"{name}.weight_scale", select(matrix.scales, expert))
        if matrix.zeros is not None:
            packed = weights.read(f"{name}.weight_zero_point")
            select(matrix.zeros, expert).copy_(unpack_int4(packed.T, matrix.shape[-2]).T)
        if matrix.g_idx is not None:
            read_g_idx(weights, f"{name}.weight_g_idx", matrix, expert)


class Fp8Block:
    """`weight` in f8_e4m3 with one `weight_scale_inv` a block."""

    main: ClassVar[str] = "weight"

    def __init__(self, quantization: Quantization) -> None:
        block = quantization.get("weight_block_size") or (128, 128)
        if not (isinstance(block, Sequence) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)):
            raise CheckpointError(f"config.json: weight_block_size is {block!r}; it must be two numbers above zero.")
        self._block = (block[0], block[1])

    def claims(self, weights: Weights, name: str) -> bool:
        is_fp8 = f"{name}.weight" in weights and weights.info(f"{name}.weight").dtype == torch.float8_e4m3fn
        return is_fp8 or f"{name}.weight_scale_inv" in weights

    def plan(self, weights: Weights, names: Sequence[str], shape: Shape) -> Fp8Matrix:
        rows, columns = shape[-2:]
        for name in names:
            weights.check(f"{name}.weight", (torch.float8_e4m3fn,), (rows, columns))
            blocks = (-(-rows // self._block[0]), -(-columns // self._block[1]))
            weights.check(f"{name}.weight_scale_inv", FLOATS, blocks)
        return Fp8Matrix(shape, self._block)

    def fill(self, weights: Weights, name: str, matrix: Fp8Matrix, expert: int | None) -> None:
        weights.read_into(f"{name}.weight", select(matrix.weight, expert))
        read_scales(weights, f"{name}.weight_scale_inv", select(matrix.scale_inv, expert))


class Plain:
    """`weight` in bf16, f32 or f16."""

    main: ClassVar[str] = "weight"

    def claims(self, weights: Weights, name: str) -> bool:
        return f"{name}.weight" in weights

    def plan(self, weights: Weights, names: Sequence[str], shape: Shape) -> DenseMatrix:
        for name in names:
            weights.check(f"{name}.weight", FLOATS, shape[-2:])
        return DenseMatrix(shape)

    def fill(self, weights: Weights, name: str, matrix: DenseMatrix, expert: int | None) -> None:
        weights.read_into(f"{name}.weight", select(matrix.weight, expert))


PLAIN = Plain()


def list_formats(quantization: Quantization) -> tuple[Format, ...]:
    """The forms a checkpoint may hold, in the order they are asked. Raises CheckpointError for an unknown method."""
    method = quantization.get("quant_method")
    if method not in (None, "compressed-tensors", "gptq", "fp8", "bitsandbytes"):
        raise CheckpointError(
            f"config.json: weights quantized by {method!r} are not supported; use a checkpoint in bf16, FP8, INT4 "
            "(compressed-tensors or GPTQ) or NF4."
        )
    return PackQuantized(quantization), Fp8Block(quantization), PLAIN


def find_format(formats: Sequence[Format], weights: Weights, names: Sequence[str]) -> Format:
    """The one form that all of these matrices are stored in; PLAIN if nothing of them is there. Raises CheckpointError
    if they differ: a stack of experts has one form."""
    found = {name: kind for name in names if (kind := _find_one(formats, weights, name)) is not None}
    if not found:
        return PLAIN
    first = next(iter(found.values()))
    for name, kind in found.items():
        if kind is not first:
            raise CheckpointError(
                f"{weights.where(f'{name}.{kind.main}') if f'{name}.{kind.main}' in weights else name} is stored in "
                "another precision than other experts of its layer; quantize all of them alike."
            )
    return first


def _find_one(formats: Sequence[Format], weights: Weights, name: str) -> Format | None:
    return next((kind for kind in formats if kind.claims(weights, name)), None)


def find_group_size(stated: Sequence[int], columns: int, num_groups: int) -> int | None:
    """Columns of a group, from the config's candidates or from even division; None if the count fits neither."""
    for size in stated:
        if size > 0 and -(-columns // size) == num_groups:
            return size
    return columns // num_groups if num_groups > 0 and columns % num_groups == 0 else None


def read_scales(weights: Weights, name: str, out: Tensor) -> None:
    """Fills `out` with scales. Raises CheckpointError if one is NaN, infinite or zero: a whole group would be lost."""
    weights.read_into(name, out)
    if not bool(out.isfinite().all()) or not bool(out.all()):
        raise CheckpointError(
            f"{weights.where(name)} holds a scale that is NaN, infinite or zero; copy the file again."
        )


def read_g_idx(weights: Weights, name: str, matrix: Int4Matrix, expert: int | None) -> None:
    """Fills the matrix's g_idx; -1 throughout is compressed-tensors' word for "in order". Raises CheckpointError."""
    assert matrix.g_idx is not None
    g_idx = weights.read(name)
    if bool((g_idx == -1).all()):
        g_idx = torch.arange(len(g_idx)) // matrix.group_size
    if not 0 <= int(g_idx.min()) <= int(g_idx.max()) < matrix.num_groups:
        raise CheckpointError(
            f"{weights.where(name)} points outside the {matrix.num_groups} groups; copy the file again."
        )
    select(matrix.g_idx, expert).copy_(g_idx)
