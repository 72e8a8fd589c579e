"""What a checkpoint folder's weight files hold and take, from their headers alone: for the preflight."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import MAX_F32_PARAMETERS, PRECISIONS, list_shards
from model.config import CheckpointError, ModelConfig
from model.packed.manifest import count_held_bytes, is_packed, read_manifest
from model.safetensors_file import SafetensorsFile, TensorInfo

# A tensor's last name -> the quantization it belongs to.
_FORMS = {
    "weight_packed": "int4 (compressed-tensors)",
    "qweight": "int4 (GPTQ)",
    "weight_scale_inv": "fp8 (blocks)",
    "bitsandbytes__nf4": "nf4 (bitsandbytes)",
}
_PLAIN = {dtype: name for name, dtype in PRECISIONS.items()}
# nf4 packs two weights in a byte and keeps an f32 scale for 64 of them; int8 has a scale a row, next to nothing.
_BYTES_PER_WEIGHT = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "nf4": 0.5 + 4 / 64, "int8": 1.0}


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """precision: f32, bf16, f16, or the quantization; num_values counts stored values, packed ones as they are.
    least_bytes: with how little memory a packed folder runs, its experts on the disk; 0 for another."""

    names: tuple[str, ...]
    precision: str
    num_bytes: int
    num_values: int
    least_bytes: int = 0

    def memory_bytes(self, precision: str) -> float:
        """What the weights take in memory under the setting `precision`; packed weights stay packed."""
        if self.precision not in _BYTES_PER_WEIGHT:
            return self.num_bytes
        if precision == "auto":
            precision = "f32" if self.num_values < MAX_F32_PARAMETERS else self.precision
        return self.num_values * _BYTES_PER_WEIGHT[precision]


def read_weights(folder: Path) -> WeightFiles:
    """Raises CheckpointError that names every missing file, or the first damaged one."""
    if is_packed(folder):
        return _read_packed(folder)
    names = list_shards(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} files are missing from {folder}: {', '.join(missing)}; copy them again."
        )
    tensors: dict[str, TensorInfo] = {}
    for name in names:
        with SafetensorsFile(folder / name) as file:
            tensors |= file.tensors
    num_bytes = sum((folder / name).stat().st_size for name in names)
    num_values = sum(math.prod(info.shape) for info in tensors.values())
    return WeightFiles(tuple(names), _find_precision(tensors), num_bytes, num_values)


def _read_packed(folder: Path) -> WeightFiles:
    manifest = read_manifest(folder)
    names = tuple(name for name in manifest.files if name.endswith(".safetensors"))
    precision = f"{'int4' if manifest.groups or manifest.has_int4_experts else 'plain weights'}, packed"
    least = count_held_bytes(manifest, ModelConfig.from_hf(folder))
    return WeightFiles(names, precision, manifest.num_bytes, 0, least)


def _find_precision(tensors: dict[str, TensorInfo]) -> str:
    """The quantization, if any tensor is of one, else the dtype that most bytes are in."""
    forms = {form for name in tensors if (form := _FORMS.get(name.rpartition(".")[2]))}
    if forms:
        return " and ".join(sorted(forms))
    sizes = Counter[str]()
    for info in tensors.values():
        sizes[_PLAIN.get(info.dtype, str(info.dtype).removeprefix("torch."))] += info.num_bytes
    return sizes.most_common(1)[0][0] if sizes else "nothing"
