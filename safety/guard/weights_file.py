"""How the guard's weights lie in a file: int8 with a float16 scale for each run of 64, so that three encoders' adapters
and n-grams stay below 10 MB; what is small stays float16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

Array = npt.NDArray[Any]
_RUN = 64  # values that share a scale
_SMALL = 1024  # values up to which a tensor is not worth it
_SCALES = ".scales"  # ends the name of a tensor's scales


def save(tensors: Mapping[str, npt.NDArray[np.float32]], path: Path) -> None:
    """Writes float32 tensors; the largest value of a run becomes 127 of its scales."""
    stored: dict[str, Array] = {}
    for name, tensor in tensors.items():
        if tensor.size <= _SMALL or tensor.size % _RUN:
            stored[name] = np.ascontiguousarray(tensor, np.float16)
            continue
        runs = tensor.reshape(-1, _RUN)
        scales = np.maximum(np.abs(runs).max(1) / 127, np.finfo(np.float16).tiny).astype(np.float16)
        whole = np.rint(runs / scales[:, None].astype(np.float32)).clip(-127, 127)
        stored[name] = np.ascontiguousarray(whole.reshape(tensor.shape), np.int8)
        stored[name + _SCALES] = scales
    save_file(stored, path)


def load(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """What `save` wrote, as float32. Raises OSError, ValueError, KeyError if the file is missing or no such file."""
    stored = load_file(path)
    tensors = {}
    for name, tensor in stored.items():
        if not name.endswith(_SCALES):
            tensors[name] = tensor.astype(np.float32)
            if tensor.dtype == np.int8:
                runs = tensors[name].reshape(-1, _RUN) * stored[name + _SCALES].astype(np.float32)[:, None]
                tensors[name] = runs.reshape(tensor.shape)
    return tensors
