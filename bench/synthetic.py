"""Checkpoints of real shapes and random weights, written shard by shard: what size, speed and memory are measured on.

    .venv/bin/python -m bench.synthetic ling-mini-2.0 FOLDER [--format bf16|int4|packed] [--layers N]

packed: what `bedside pack` would write of an INT4 copy with its attention and head in INT4 too, but without the copy.

Shapes as published (Ling-flash-2.0 is AntAngelMed's architecture). The embedded model's tokenizer is put beside them,
so that every command of the program accepts the folder; what such a model says is noise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.report import ROOT
from model.checkpoint import INDEX, named_tensors
from model.config import ModelConfig
from model.modeling import BailingMoeV2ForCausalLM, Experts
from model.packed.pack import Packer, one_thread
from model.packed.verify import remember_digest
from model.quantized import Int4Matrix, QuantizedExperts
from model.safetensors_file import SafetensorsWriter

EMBEDDED = ROOT / "model" / "embedded"
GROUP = 128
NUM_VALUES = (
    2**25
)  # the pool that weights are cut from: drawing 16 billion of them anew would take longer than all else
_FAMILY = ModelConfig(
    vocab_size=157184,
    hidden_size=4096,
    intermediate_size=9216,
    moe_intermediate_size=1024,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    num_experts=256,
    num_experts_per_tok=8,
    n_group=8,
    topk_group=4,
    routed_scaling_factor=2.5,
    partial_rotary_factor=0.5,
    rope_theta=600000.0,
    initializer_range=0.006,
    eos_token_ids=(156892, 156895),
    pad_token_id=156892,
    bos_token_id=156891,
    torch_dtype="bfloat16",
)
PRESETS = {
    "antangelmed": _FAMILY,
    "ling-mini-2.0": replace(
        _FAMILY,
        hidden_size=2048,
        intermediate_size=5120,
        moe_intermediate_size=512,
        num_hidden_layers=20,
        num_attention_heads=16,
    ),
    "nano": ModelConfig.from_hf(EMBEDDED),
}
Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def write_checkpoint(config: ModelConfig, folder: Path, form: str = "bf16") -> None:
    """Writes the folder, one shard a layer. form "int4": every Linear of layers in compressed-tensors' packing."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(EMBEDDED / name, folder)
    generator = torch.Generator().manual_seed(0)
    floats = torch.randn(NUM_VALUES, generator=generator).mul_(config.initializer_range).bfloat16()
    words = _draw_nibbles(4 * NUM_VALUES, generator).view(torch.int32)
    shards = _plan_shards(config, form)
    weight_map = {}
    for number, shapes in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with SafetensorsWriter(folder / file, shapes) as writer:
            for name, (dtype, shape) in shapes.items():
                if name.endswith("weight_shape"):
                    rows, words_a_row = shapes[name.replace("weight_shape", "weight_packed")][1]
                    writer.write(name, torch.tensor([rows, words_a_row * 8]))
                elif len(shape) == 1:  # norms are 1 and biases 0, as in a new model
                    writer.write(name, torch.full(shape, 0.0 if dtype == torch.float32 else 1.0, dtype=dtype))
                else:
                    pool = words if dtype == torch.int32 else floats
                    for first_row, part in _cut_rows(pool, shape, generator):
                        # Of a scale only size matters: about that of weights rounded to 4 bits.
                        writer.write(name, part.abs() / 8 + 1e-4 if "scale" in name else part, first_row)
            writer.finish()
        weight_map |= dict.fromkeys(shapes, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    quantization = _describe_int4() if form == "int4" else None
    config = replace(config, quantization_config=quantization)
    (folder / "config.json").write_text(json.dumps(config.to_hf(), indent=2) + "\n", encoding="utf-8")


class RandomSource:
    """An INT4 checkpoint that is never written: what a Packer asks for is drawn."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.dtype = config, torch.bfloat16
        with torch.device("meta"):
            self.model = BailingMoeV2ForCausalLM(config)
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.Linear):
                self.model.set_submodule(name, _plan_int4((module.out_features, module.in_features)))
            elif isinstance(module, Experts):
                experts, hidden, width = module.down_proj.shape
                shapes = ((experts, width, hidden), (experts, width, hidden), (experts, hidden, width))
                matrices = [_plan_int4(shape) for shape in shapes]
                self.model.set_submodule(name, QuantizedExperts(*matrices))
        self._shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(self.model)}
        self._generator = torch.Generator().manual_seed(0)
        self._bytes = _draw_nibbles(4 * NUM_VALUES, self._generator)

    def stored_dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name.endswith("expert_bias") else torch.bfloat16

    def read_plain(self, name: str) -> Tensor:
        if len(self._shapes[name]) == 1:
            return torch.full(self._shapes[name], 0.0 if name.endswith("expert_bias") else 1.0)
        floats = torch.empty(self._shapes[name], dtype=torch.bfloat16)
        return floats.normal_(std=self.config.initializer_range, generator=self._generator)

    def read_int4(self, name: str, shape: tuple[int, int]) -> Int4Matrix:
        matrix = _plan_int4(shape).to_empty(device="cpu")
        matrix.packed.view(torch.uint8).view(-1).copy_(self._draw_bytes(matrix.packed.nbytes))
        scales = self._draw_bytes(matrix.scales.numel()).view(matrix.scales.shape)
        matrix.scales.copy_(scales.to(matrix.scales.dtype) / 2**19 + 1e-4)
        return matrix

    def _draw_bytes(self, num_bytes: int) -> Tensor:
        if num_bytes > NUM_VALUES:
            return torch.cat([self._draw_bytes(NUM_VALUES), self._draw_bytes(num_bytes - NUM_VALUES)])
        start = int(torch.randint(len(self._bytes) - num_bytes, (1,), generator=self._generator))
        return self._bytes[start : start + num_bytes]


class RandomPacker(Packer):
    """Writes random weights, without reading back what no patient depends on."""

    def _finish_file(self, target: Path, file: str, digest: str, journal: dict[str, Any]) -> None:
        remember_digest(target / file, digest)
        journal["shards"][file] = {"sha256": digest}


def write_packed(config: ModelConfig, folder: Path) -> None:
    """Writes the folder that `bedside pack` would, of random INT4 weights."""
    with tempfile.TemporaryDirectory() as name:
        side = Path(name)
        (side / "config.json").write_text(json.dumps(config.to_hf(), indent=2), encoding="utf-8")
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(EMBEDDED / file, side)
        with one_thread() as threads:
            packer = RandomPacker(RandomSource(config), threads)
            packer.write(folder, folder.name, "0" * 64, sorted(side.iterdir()))


def _draw_nibbles(num_bytes: int, generator: torch.Generator) -> Tensor:
    """Bytes of nibbles from 1 to 15, which stand for -7 to 7: with a mean other than zero all tokens would choose the
    same experts."""
    low, high = torch.randint(1, 16, (2, num_bytes), dtype=torch.uint8, generator=generator)
    return low | (high << 4)


def _plan_int4(shape: tuple[int, ...]) -> Int4Matrix:
    return Int4Matrix(shape, GROUP, torch.bfloat16, has_zeros=False, has_g_idx=False)


def _plan_shards(config: ModelConfig, form: str) -> list[Shapes]:
    """The tensors of each shard: those outside the layers first, then a shard a layer."""
    with torch.device("meta"):
        model = BailingMoeV2ForCausalLM(config)
    shards: dict[str, Shapes] = {}
    for name, tensor in named_tensors(model):
        layer = name.split(".")[2] if name.startswith("model.layers.") else ""
        shapes = shards.setdefault(layer, {})
        shape = tuple(tensor.shape)
        is_linear = bool(layer) and len(shape) == 2 and not name.endswith("mlp.gate.weight")
        if form == "int4" and is_linear and shape[1] % GROUP == 0:
            rows, columns = shape
            base = name.removesuffix(".weight")
            shapes[f"{base}.weight_packed"] = (torch.int32, (rows, columns // 8))
            shapes[f"{base}.weight_scale"] = (torch.bfloat16, (rows, columns // GROUP))
            shapes[f"{base}.weight_shape"] = (torch.int64, (2,))
        else:
            is_bias = name.endswith("expert_bias")
            shapes[name] = (torch.float32 if is_bias else torch.bfloat16, shape)
    return list(shards.values())


def _cut_rows(pool: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of a matrix until it is full, each cut from the pool at a random place."""
    rows, columns = shape
    step = NUM_VALUES // 2 // columns
    for first in range(0, rows, step):
        num = min(step, rows - first)
        start = int(torch.randint(NUM_VALUES - num * columns, (1,), generator=generator))
        yield first, pool[start : start + num * columns].view(num, columns)


def _describe_int4() -> dict[str, object]:
    weights = {"num_bits": 4, "group_size": GROUP, "strategy": "group", "symmetric": True, "type": "int"}
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=("bf16", "int4", "packed"), default="bf16")
    parser.add_argument("--layers", type=int, default=0, help="fewer than the preset has")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    config = replace(preset, num_hidden_layers=arguments.layers or preset.num_hidden_layers)
    if arguments.format == "packed":
        write_packed(config, arguments.folder)
    else:
        write_checkpoint(config, arguments.folder, arguments.format)


if __name__ == "__main__":
    main()
