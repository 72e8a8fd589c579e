"""What a packed folder says of itself: packed.json, written last, so that a folder without it is not whole.

A packed folder holds a safetensors file for what lies outside the layers and one for each layer, every tensor at a page
of its own. A matrix in INT4 is two tensors, `<name>.tiles` and `<name>.scales`, as Int4Tiles holds them; a plain one is
`<name>.weight` as in the source. The routed experts of a layer are one tensor at the end of its file,
`model.layers.<i>.mlp.experts` u8 [E, S]: in S bytes gate, up and down of one expert, so that it is one read. Beside
them lie config.json, the tokenizer's files and this manifest. Knows nothing of how they are read or written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import PACKED
from model.config import CheckpointError, ModelConfig
from model.safetensors_file import DTYPES

FORMAT = "bedside-packed"
VERSION = 1
PAGE = 4096
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class PackedFile:
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor within an expert's bytes; dtype by safetensors' name."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpertMatrix:
    """gate, up or down of each expert of a layer. group: columns that share a scale, 0 for a plain matrix; parts: the
    tiles and the scales, or the one plain matrix."""

    group: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """layout: of the kernels that it was packed for. dtype: what the model computes in. groups: columns that share a
    scale, of each INT4 matrix outside the experts. experts: by layer, in the order of PROJECTIONS. sha256: of the
    manifest itself, which holds every file's, and so of all."""

    layout: str
    dtype: str
    source: str
    source_sha256: str
    files: Mapping[str, PackedFile]
    groups: Mapping[str, int]
    experts: Mapping[int, tuple[ExpertMatrix, ...]]
    sha256: str = ""

    @property
    def num_bytes(self) -> int:
        """Of all weights."""
        return sum(file.num_bytes for name, file in self.files.items() if name.endswith(".safetensors"))

    @property
    def has_int4_experts(self) -> bool:
        return any(matrix.group for matrices in self.experts.values() for matrix in matrices)

    def to_json(self) -> str:
        data = asdict(self) | {"format": FORMAT, "version": VERSION}
        del data["sha256"]
        return json.dumps(data, indent=1)


def expert_stride(matrices: Sequence[ExpertMatrix]) -> int:
    """Bytes of one expert of a layer, whole pages."""
    end = max(
        part.offset + math.prod(part.shape) * DTYPES[part.dtype].itemsize
        for matrix in matrices
        for part in matrix.parts
    )
    return -(-end // PAGE) * PAGE


def count_held_bytes(manifest: Manifest, config: ModelConfig) -> int:
    """The least memory that the weights run in: all but the routed experts, and one layer's of these."""
    layers = [config.num_experts * expert_stride(matrices) for matrices in manifest.experts.values()]
    return manifest.num_bytes - sum(layers) + max(layers, default=0)


def experts_name(layer: int) -> str:
    return f"model.layers.{layer}.mlp.experts"


def is_packed(folder: Path) -> bool:
    return (folder / PACKED).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Raises CheckpointError for a manifest that is missing, damaged, or of another version."""
    try:
        text = (folder / PACKED).read_bytes()
        data = json.loads(text)
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise CheckpointError(
                f"{folder} is packed in version {data['version']} of {data['format']}, and this program reads version "
                f"{VERSION}; pack the checkpoint again."
            )
        return _parse(data, hashlib.sha256(text).hexdigest())
    except OSError as error:
        raise CheckpointError(f"{folder / PACKED} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder / PACKED} is damaged ({error!r}); pack the checkpoint again.") from error


def _parse(data: Mapping[str, Any], sha256: str) -> Manifest:
    files = {name: PackedFile(int(f["num_bytes"]), str(f["sha256"])) for name, f in data["files"].items()}
    strange = next((name for name in files if Path(name).name != name), None)
    if strange is not None:
        raise CheckpointError(f"{PACKED} names the file {strange!r}, which lies outside its folder.")
    return Manifest(
        layout=str(data["layout"]),
        dtype=str(data["dtype"]),
        source=str(data["source"]),
        source_sha256=str(data["source_sha256"]),
        files=files,
        groups={name: int(group) for name, group in data["groups"].items()},
        experts={int(layer): tuple(map(_parse_expert, matrices)) for layer, matrices in data["experts"].items()},
        sha256=sha256,
    )


def _parse_expert(data: Mapping[str, Any]) -> ExpertMatrix:
    parts = (Part(int(p["offset"]), str(p["dtype"]), tuple(map(int, p["shape"]))) for p in data["parts"])
    return ExpertMatrix(int(data["group"]), tuple(parts))
