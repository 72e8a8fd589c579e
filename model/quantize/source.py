"""The checkpoint that is quantized, read by rows, and which of its weights become INT4.

Names, shapes and dtypes are checked against config.json before any weight is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.checkpoint import list_shards, named_tensors, stored_dtype
from model.config import CheckpointError, ModelConfig, read_json
from model.modeling import BailingMoeV2ForCausalLM
from model.quantization import dequantize_fp8
from model.safetensors_file import SafetensorsFile, TensorInfo

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn
METHODS = ("rtn", "gptq")


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """What becomes INT4, and how. Every field changes the files that are written."""

    method: str = "rtn"
    group_size: int = 128
    # 1.2 % of AntAngelMed's weights; on the embedded model rounding them costs sixty times the KL of all the others.
    attention: bool = False
    lm_head: bool = False
    mtp_projection: bool = False  # SGLang before 2026 reads an MTP layer's eh_proj unquantized only
    act_order: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"The method is {self.method!r}; use one of {', '.join(METHODS)}.")
        if self.group_size < 8 or self.group_size % 8:
            raise ValueError(f"The group size is {self.group_size}; it must be a multiple of 8 (128 is usual).")
        if self.act_order and self.method != "gptq":
            raise ValueError("Act-order is an order of GPTQ's columns; use it with method gptq.")


class Source:
    """An open checkpoint folder of BF16, F16, F32 or block-wise FP8 weights."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError naming the file or tensor at fault."""
        self.folder = folder
        self.config = ModelConfig.from_hf(folder)
        self.dtype = stored_dtype(self.config)
        self.block = _fp8_block(self.config)
        with torch.device("meta"):
            model = BailingMoeV2ForCausalLM(self.config)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
        self.linears = set(_linear_names(model))
        with ExitStack() as stack:
            self._files = [stack.enter_context(SafetensorsFile(folder / name)) for name in list_shards(folder)]
            self._file_of = self._locate()
            self._check()
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def info(self, name: str) -> TensorInfo:
        return self._file_of[name].tensors[name]

    def copy_dtype(self, name: str) -> torch.dtype:
        """What an unquantized tensor is written as: as it is stored, FP8 in the model's dtype."""
        return self.dtype if self.info(name).dtype == FP8 else self.info(name).dtype

    def read_rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows [begin, end), in their stored dtype, FP8 as f32. `begin` must be a multiple of the FP8 block's rows.

        NaN or infinity raises CheckpointError: quantized, it would spoil its group silently.
        """
        file = self._file_of[name]
        rows = file.read_rows(name, begin, end)
        if rows.dtype == FP8:
            height = self.block[0]
            scale_name = _scale_name(name)
            scales = self._file_of[scale_name].read_rows(scale_name, begin // height, -(-end // height))
            rows = dequantize_fp8(rows, scales, self.block)
        if not all(bool(bound.isfinite()) for bound in torch.aminmax(rows)):  # both are NaN where any value is
            raise CheckpointError(f"{file.path.name}: tensor {name} holds NaN or infinity; copy the checkpoint again.")
        return rows

    def read(self, name: str) -> Tensor:
        """The whole tensor, as `read_rows`."""
        return self.read_rows(name, 0, self.shapes[name][0])

    def row_pieces(self, name: str, max_elements: int) -> Iterator[tuple[int, int]]:
        """[begin, end) of the pieces a tensor is read in, none of them cutting an FP8 block."""
        rows, *rest = self.shapes[name]
        height = self.block[0]
        step = max(1, max_elements // max(rest[0] if rest else 1, 1) // height) * height
        return ((begin, min(begin + step, rows)) for begin in range(0, rows, step))

    def source_bytes(self, name: str) -> int:
        """Bytes read for a tensor, an FP8 weight's scales included."""
        scale = _scale_name(name)
        return self.info(name).num_bytes + (self.info(scale).num_bytes if self.info(name).dtype == FP8 else 0)

    def identity(self) -> dict[str, object]:
        """Equal for the same checkpoint: file names, sizes, and a hash over config.json and the files' headers."""
        digest = hashlib.sha256(json.dumps(read_json(self.folder / "config.json"), sort_keys=True).encode())
        files = {}
        for file in self._files:
            files[file.path.name] = file.path.stat().st_size
            digest.update(repr(sorted(file.tensors.items())).encode())
        return {"files": files, "sha256": digest.hexdigest()}

    def _locate(self) -> dict[str, SafetensorsFile]:
        found: dict[str, SafetensorsFile] = {}
        for file in self._files:
            for name in file.tensors:
                if name in found:
                    raise CheckpointError(
                        f"Tensor {name} is in both {found[name].path.name} and {file.path.name}; "
                        "copy the checkpoint again."
                    )
                found[name] = file
        return found

    def _check(self) -> None:
        allowed = set(self.shapes)
        for name, shape in self.shapes.items():
            if name not in self._file_of:
                raise CheckpointError(f"Tensor {name} is missing from the checkpoint; copy it again.")
            info = self.info(name)
            _check_shape(name, info.shape, shape)
            if info.dtype == FP8 and name in self.linears:
                scale = _scale_name(name)
                if scale not in self._file_of:
                    raise CheckpointError(f"Tensor {scale} is missing from the checkpoint; copy it again.")
                _check_shape(
                    scale, self.info(scale).shape, (-(-shape[0] // self.block[0]), -(-shape[1] // self.block[1]))
                )
                allowed.add(scale)
            elif info.dtype not in FLOATS:
                raise CheckpointError(f"Tensor {name} is stored as {info.dtype}; give the BF16, F32 or FP8 checkpoint.")
        extra = sorted(set(self._file_of) - allowed)
        if extra:
            raise CheckpointError(f"Tensor {extra[0]} has no place in the model that config.json describes.")


def _linear_names(model: BailingMoeV2ForCausalLM) -> Iterator[str]:
    """Names of the weights of linear layers. The routed experts, stacked in our model, are such in every other."""
    modules = dict(model.named_modules())
    for name, _ in named_tensors(model):
        module = modules.get(name.removesuffix(".weight"))
        if isinstance(module, nn.Linear) or ".mlp.experts." in name:
            yield name


def _fp8_block(config: ModelConfig) -> tuple[int, int]:
    """The FP8 block's rows and columns; (1, 1) for weights that are not quantized. Refuses other formats."""
    quantization = config.quantization_config
    if quantization is None:
        return 1, 1
    method = quantization.get("quant_method")
    block = quantization.get("weight_block_size") or [128, 128]
    if method != "fp8" or len(block) != 2:
        raise CheckpointError(
            f"config.json: the weights are quantized by {method!r} already; give the BF16, F32 or block-wise FP8 "
            "checkpoint."
        )
    return int(block[0]), int(block[1])


def _scale_name(name: str) -> str:
    return f"{name}_scale_inv"


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise CheckpointError(f"Tensor {name} has shape {found}; config.json asks for {expected}.")
