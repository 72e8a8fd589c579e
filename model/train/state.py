"""What a run needs to go on to the bit: tensors and a few numbers, in safetensors files that stay small.

No file exceeds MAX_FILE_BYTES, so that a run can be carried between machines that exchange small files only. A state is
written beside the old one and takes its place at once: a kill at any moment leaves one that is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MAX_FILE_BYTES = 16_000_000
_HEADER_BYTES = 200_000  # at most: names and shapes in each file


class StateError(ValueError):
    """A saved state cannot be read; the message says which file and what to do."""


def save_state(folder: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Writes FOLDER/state/*.safetensors and numbers.json."""
    new, old, place = folder / "state.new", folder / "state.old", folder / "state"
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    new.mkdir(parents=True)
    for number, part in enumerate(_parts(tensors)):
        save_file(part, new / f"{number:04d}.safetensors")
    (new / "numbers.json").write_text(json.dumps(dict(numbers)), encoding="utf-8")
    if place.is_dir():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def has_state(folder: Path) -> bool:
    return _place(folder) is not None


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_state` was given. Raises StateError if it is not whole."""
    place = _place(folder)
    if place is None:
        raise StateError(f"{folder} holds no state to go on from; train from the start.")
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    try:
        for path in sorted(place.glob("*.safetensors")):
            for name, tensor in load_file(path).items():
                whole, _, piece = name.rpartition("#")
                pieces.setdefault(whole, []).append((int(piece), tensor))
        numbers = json.loads((place / "numbers.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise StateError(f"{place} is damaged ({error}); remove it and train from the start.") from error
    ordered = {name: [piece for _, piece in sorted(found, key=lambda f: f[0])] for name, found in pieces.items()}
    return {name: torch.cat(found) for name, found in ordered.items()}, numbers


def _place(folder: Path) -> Path | None:
    """state.old is whole where a kill fell between the two renames."""
    return next((path for path in (folder / "state", folder / "state.old") if (path / "numbers.json").is_file()), None)


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    room = MAX_FILE_BYTES - _HEADER_BYTES
    part: dict[str, Tensor] = {}
    size = 0
    for name, piece in _pieces(tensors, room):
        if part and size + piece.nbytes > room:
            yield part
            part, size = {}, 0
        part[name] = piece
        size += piece.nbytes
    yield part


def _pieces(tensors: Mapping[str, Tensor], room: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors by rows, each piece of at most `room` bytes, named NAME#NUMBER."""
    for name, tensor in tensors.items():
        rows = torch.atleast_1d(tensor.detach().cpu())  # a number comes back as a row of one
        per_piece = max(1, room * len(rows) // max(rows.nbytes, 1))
        for number, piece in enumerate(rows.split(per_piece)):
            yield f"{name}#{number}", piece.clone()
