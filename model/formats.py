"""How published checkpoints store a weight matrix, and how each form fills a matrix of model.quantized.

A form is recognised by the tensors that are there, matrix by matrix: nobody's list of what was quantized is trusted.
Each form checks every tensor's dtype and shape against the config's [O, I] first (`plan`, which takes no memory), then
reads one matrix at a time (`fill`), straight into its place in the stack of experts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from model.config import CheckpointError
from model.quantization import dequantize_absmax, gptq_to_int4, unpack_int4
from model.quantized import DenseMatrix, Fp8Matrix, Int4Matrix, Int8Matrix, Matrix, Nf4Matrix, select
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
        groups = list(groups.values()) if isinstance(groups, Mapping) else []
        schemes = [group["weights"] for group in groups if isinstance(group, Mapping) and group.get("weights")]
        for scheme in schemes:
            if scheme.get("num_bits", 4) != 4:
                raise CheckpointError(
                    f"config.json: compressed-tensors weights of {scheme['num_bits']} bits are not supported; use 4 "
                    "bits, or FP8 with weight_scale_inv."
                )
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


class Gptq:
    """GPTQ version 1 or 2, 4 bits: `qweight`, `qzeros`, `scales`, and `g_idx`, in order or not."""

    main: ClassVar[str] = "qweight"

    def __init__(self, quantization: Quantization) -> None:
        if quantization.get("quant_method") == "gptq" and quantization.get("bits", 4) != 4:
            raise CheckpointError(f"config.json: GPTQ weights of {quantization['bits']} bits are not supported; use 4.")
        size = quantization.get("group_size")
        self._group_sizes = [size] if isinstance(size, int) else []
        self._is_v2 = quantization.get("checkpoint_format") == "gptq_v2"
        self._is_symmetric = bool(quantization.get("sym", True))

    def claims(self, weights: Weights, name: str) -> bool:
        return any(f"{name}.{tensor}" in weights for tensor in ("qweight", "qzeros"))

    def plan(self, weights: Weights, names: Sequence[str], shape: Shape) -> Int4Matrix:
        rows, columns = shape[-2:]
        scales = weights.info(f"{names[0]}.scales")
        num_groups = scales.shape[0] if scales.shape else 0
        group_size = find_group_size(self._group_sizes, columns, num_groups)
        if group_size is None:
            where = weights.where(f"{names[0]}.scales")
            raise CheckpointError(f"{where} has {num_groups} groups, which do not fit {columns} columns.")
        has_g_idx = f"{names[0]}.g_idx" in weights
        for name in names:
            weights.check(f"{name}.qweight", (torch.int32,), (-(-columns // 8), rows))
            weights.check(f"{name}.qzeros", (torch.int32,), (num_groups, -(-rows // 8)))
            weights.check(f"{name}.scales", FLOATS, (num_groups, rows))
            if has_g_idx:
                weights.check(f"{name}.g_idx", (torch.int32, torch.int64), (columns,))
        return Int4Matrix(shape, group_size, scales.dtype, has_zeros=True, has_g_idx=has_g_idx)

    def fill(self, weights: Weights, name: str, matrix: Int4Matrix, expert: int | None) -> None:
        scales = torch.empty(matrix.num_groups, matrix.shape[-2], dtype=matrix.scales.dtype)
        read_scales(weights, f"{name}.scales", scales)
        qweight, qzeros = weights.read(f"{name}.qweight"), weights.read(f"{name}.qzeros")
        assert matrix.zeros is not None
        targets = (select(held, expert) for held in (matrix.packed, matrix.scales, matrix.zeros))
        for target, value in zip(
            targets, gptq_to_int4(qweight, qzeros, scales, self._is_v2, self._is_symmetric), strict=True
        ):
            target.copy_(value)
        if matrix.g_idx is not None:
            read_g_idx(weights, f"{name}.g_idx", matrix, expert)


class Nf4:
    """bitsandbytes' NF4: `weight` u8, `weight.absmax`, and a JSON of constants; absmax itself may be quantized."""

    main: ClassVar[str] = "weight"

    def claims(self, weights: Weights, name: str) -> bool:
        return any(f"{name}.weight.{tensor}" in weights for tensor in ("absmax", "quant_map", _NF4_STATE))

    def plan(self, weights: Weights, names: Sequence[str], shape: Shape) -> Nf4Matrix:
        num_values = shape[-2] * shape[-1]
        block = self._read_state(weights, names[0], shape)["blocksize"]
        num_blocks = -(-num_values // block)
        for name in names:
            state = self._read_state(weights, name, shape)
            if state["blocksize"] != block:
                raise CheckpointError(
                    f"{weights.where(f'{name}.weight.{_NF4_STATE}')} has another blocksize than others."
                )
            weights.check(f"{name}.weight", (torch.uint8,), (-(-num_values // 2), 1))
            weights.check(f"{name}.weight.quant_map", (torch.float32,), (16,))
            if "nested_offset" in state:
                weights.check(f"{name}.weight.absmax", (torch.uint8,), (num_blocks,))
                num_nested = -(-num_blocks // state["nested_blocksize"])
                weights.check(f"{name}.weight.nested_absmax", (torch.float32,), (num_nested,))
                weights.check(f"{name}.weight.nested_quant_map", (torch.float32,), (256,))
            else:
                weights.check(f"{name}.weight.absmax", (torch.float32,), (num_blocks,))
        return Nf4Matrix(shape, block)

    def fill(self, weights: Weights, name: str, matrix: Nf4Matrix, expert: int | None) -> None:
        weights.read_into(f"{name}.weight", select(matrix.packed, expert))
        weights.read_into(f"{name}.weight.quant_map", select(matrix.quant_map, expert))
        absmax, state = weights.read(f"{name}.weight.absmax"), self._read_state(weights, name, matrix.shape)
        if absmax.dtype == torch.uint8:
            nested, nested_map = (weights.read(f"{name}.weight.nested_{part}") for part in ("absmax", "quant_map"))
            absmax = dequantize_absmax(absmax, nested, nested_map, state["nested_offset"], state["nested_blocksize"])
        if not bool(absmax.isfinite().all()):  # zero is right for a block of zeros
            raise CheckpointError(f"{weights.where(f'{name}.weight.absmax')} gives a scale that is NaN or infinite.")
        select(matrix.absmax, expert).copy_(absmax)

    def _read_state(self, weights: Weights, name: str, shape: Shape) -> dict[str, Any]:
        tensor = f"{name}.weight.{_NF4_STATE}"
        data = bytes(weights.read(tensor).tolist())
        try:
            state = json.loads(data)
            stored = tuple(state["shape"])
            sizes = [state["blocksize"], state.get("nested_blocksize", 1)]
            is_sound = all(isinstance(size, int) and size > 0 for size in sizes)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{weights.where(tensor)} is damaged ({error!r}); copy the file again.") from error
        if stored != tuple(shape[-2:]) or not is_sound:
            raise CheckpointError(f"{weights.where(tensor)} says {stored}; config.json asks for {tuple(shape[-2:])}.")
        return state


_NF4_STATE = "quant_state.bitsandbytes__nf4"


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


class OnTheFly:
    """Plain weights that bitsandbytes quantizes as they are read: all linear layers but the head, as it does itself."""

    main: ClassVar[str] = "weight"

    def __init__(self, precision: str) -> None:
        self._precision = precision

    def claims(self, weights: Weights, name: str) -> bool:
        return name != "lm_head" and PLAIN.claims(weights, name)

    def plan(self, weights: Weights, names: Sequence[str], shape: Shape) -> Matrix:
        PLAIN.plan(weights, names, shape)
        return Nf4Matrix(shape, block=64) if self._precision == "nf4" else Int8Matrix(shape)

    def fill(self, weights: Weights, name: str, matrix: Any, expert: int | None) -> None:
        functional = import_bitsandbytes()
        weight = weights.read(f"{name}.weight")
        if self._precision == "nf4":
            packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=False, quant_type="nf4")
            select(matrix.packed, expert).copy_(packed.flatten())
            select(matrix.quant_map, expert).copy_(state.code)
            absmax = state.absmax
        else:
            values, absmax, _ = functional.int8_vectorwise_quant(weight)
            select(matrix.weight, expert).copy_(values)
        if not bool(absmax.isfinite().all()):
            raise CheckpointError(f"{weights.where(f'{name}.weight')} holds NaN or infinity; copy the file again.")
        select(matrix.absmax, expert).copy_(absmax)


ON_THE_FLY = ("nf4", "int8")


def import_bitsandbytes() -> Any:
    """bitsandbytes.functional. Imported on use: that takes seconds, and warns of kernels that are not used here."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional as functional
    except ImportError as error:
        raise CheckpointError(
            "Quantizing while loading needs bitsandbytes; install it or use a plain precision."
        ) from error
    return functional


def list_formats(quantization: Quantization, on_the_fly: str | None = None) -> tuple[Format, ...]:
    """The forms a checkpoint may hold, in the order they are asked; plain weights may be quantized `on_the_fly`. Raises
    CheckpointError for a method that is not known."""
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
    if method not in (None, "compressed-tensors", "gptq", "fp8", "bitsandbytes"):
        raise CheckpointError(
            f"config.json: weights quantized by {method!r} are not supported; use a checkpoint in bf16, FP8, INT4 "
            "(compressed-tensors or GPTQ) or NF4."
        )
    plain = PLAIN if on_the_fly is None else OnTheFly(on_the_fly)
    return PackQuantized(quantization), Gptq(quantization), Nf4(), Fp8Block(quantization), plain


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
