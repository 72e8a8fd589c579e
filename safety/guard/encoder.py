"""Sentences -> logits, by small encoders with adapters of the guard's own, and heads on their vectors.

A sentence embedding made for search holds what a text is about; whether it is asked to do harm shows only after the
encoder itself was tuned: on acts it had not seen, harmful wordings told from legitimate ones rose from three in five to
what MODEL_CARD.md gives. The adapters are low-rank (Hu et al., LoRA, 2021) and are added to the weights once loaded.
They err on different texts: MiniLM is the fastest, MPNet the best in English, multilingual-e5-small reads Chinese too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from safety.guard import weights_file
from safety.guard.conformal import TARGETS, has_han
from safety.guard.features import NUM_BUCKETS, hashed_ngrams

FloatArray = npt.NDArray[np.float32]
MAX_TOKENS = 96  # of one sentence
BATCH_SIZE = 16
_UNEVEN = 1.5  # the longest text of a batch to its shortest, at most
ADAPTED = ("query", "key", "value", "dense", "q", "k", "v", "o")  # the linear layers of an encoder block


_OF_DOCUMENTS = TARGETS.index("errand")
_DOUBT = (-2.5, 2.5)  # logits between which a second opinion is had: of two in a hundred clinical sentences
_LOADING = threading.Lock()


class WeightsError(RuntimeError):
    """The guard's weights are missing or are not what this program wants; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Base:
    """An encoder as published."""

    open: Callable[[], tuple[Any, Any]]  # its tokenizer, which neither pads nor cuts, and its model
    reads_chinese: bool = True
    weight: float = 1.0  # of its logits in the mean

    def reads(self, text: str) -> bool:
        return self.reads_chinese or not has_han(text)


@dataclass(frozen=True, slots=True)
class Head:
    """One target. lexical: float32 [buckets]; direct: float32 [D]; bias: a logit."""

    lexical: FloatArray
    direct: FloatArray
    bias: float

    def score(self, rows: Sequence[npt.NDArray[np.int64]], vectors: FloatArray) -> FloatArray:
        """float32 [N] logits; rows are hashed_ngrams of the texts, vectors float32 [N, D]."""
        lexical = [self.lexical[row].sum() / max(len(row), 1) ** 0.5 for row in rows]
        scores: FloatArray = np.asarray(lexical, np.float32) + vectors @ self.direct + np.float32(self.bias)
        return scores


@dataclass(frozen=True, slots=True)
class Tower:
    """An encoder with its adapters merged, and its heads."""

    base: Base
    tokenizer: Any
    model: Any
    heads: dict[str, Head]


class GuardEncoder:
    """Scores sentences on every target. Loads at the first call at the latest; safe to share between threads."""

    def __init__(self, towers: Mapping[Path, Base], threads: int = 1) -> None:
        """towers: the guard's own *.safetensors, each with the encoder that it adapts; the cheapest first."""
        self._towers = tuple(towers.items())
        # Each worker computes alone, as in retrieval.embedding: two threads on one batch are slower than one when busy.
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="guard", initializer=_compute_alone)

    def score(self, texts: Sequence[str], is_document: bool = False) -> dict[str, FloatArray]:
        """Target -> float32 [N] logits, the weighted mean of all towers that read a text; of a document, which has
        thousands of sentences, the first alone reads those without Chinese that it is sure of. Raises WeightsError."""
        first, *others = self.load()
        rows = [hashed_ngrams(text) for text in texts]
        total = self._score(first, texts, rows)  # its own weight is one
        is_sure = (total[_OF_DOCUMENTS] < _DOUBT[0]) | (total[_OF_DOCUMENTS] > _DOUBT[1])
        asked = [n for n, text in enumerate(texts) if not (is_document and is_sure[n]) or has_han(text)]
        weights = np.ones(len(texts), np.float32)
        for tower in others:
            places = [n for n in asked if tower.base.reads(texts[n])]
            scores = self._score(tower, [texts[place] for place in places], [rows[place] for place in places])
            total[:, places] += tower.base.weight * scores
            weights[places] += tower.base.weight
        return dict(zip(TARGETS, total / weights, strict=True))

    def load(self) -> list[Tower]:
        """Raises WeightsError."""
        with _LOADING:  # of two first callers one loads
            return [_load(weights, base) for weights, base in self._towers]

    def _score(self, tower: Tower, texts: Sequence[str], rows: Sequence[npt.NDArray[np.int64]]) -> FloatArray:
        """float32 [targets, N]."""
        if not texts:
            return np.empty((len(TARGETS), 0), np.float32)
        vectors = self._encode(tower, texts)
        return np.stack([tower.heads[target].score(rows, vectors) for target in TARGETS])

    def _encode(self, tower: Tower, texts: Sequence[str]) -> FloatArray:
        ids = to_ids(tower.tokenizer, texts)
        batches = _batches([len(row) for row in ids])
        vectors = np.empty((len(ids), tower.model.config.hidden_size), np.float32)
        results = self._pool.map(lambda rows: _forward(tower.model, [ids[row] for row in rows]), batches)
        for rows, part in zip(batches, results, strict=True):
            vectors[rows] = part
        return vectors


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Places of texts, in batches of like lengths, so that little is padding; the longest first, so that threads end
    together."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        is_like = batches and lengths[batches[-1][0]] <= _UNEVEN * lengths[place]
        if not is_like or len(batches[-1]) == BATCH_SIZE:
            batches.append([])
        batches[-1].append(place)
    return batches


def _forward(model: Any, ids: Sequence[Sequence[int]]) -> FloatArray:
    import torch

    with torch.inference_mode():
        vectors: FloatArray = pool(model, ids).float().numpy()
    return vectors


def _compute_alone() -> None:
    import torch

    torch.set_num_threads(1)  # of the thread that calls; other threads keep theirs


@cache
def _load(weights: Path, base: Base) -> Tower:
    """Once for a process."""
    try:
        tokenizer, model = base.open()
    except (OSError, ValueError) as error:  # a package that is missing, weights that are not those published
        raise WeightsError(f"The encoder that {weights.name} adapts cannot be opened: {error}") from error
    try:
        tensors = weights_file.load(weights)
        merge(model, tensors)
        return Tower(base, tokenizer, model.eval(), _heads(tensors))
    except (OSError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"{weights.name} cannot be used ({error}); restore the file.") from error


def open_folder(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and model of a checkpoint as published, in bf16 where the processor multiplies it."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    dtype = torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True)


def to_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Each text's tokens with the two at its ends, at most MAX_TOKENS. Cut here: others may share the tokenizer."""
    found = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    return [ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], ids[-1]] for ids in found]


def pool(model: Any, ids: Sequence[Sequence[int]]) -> Any:
    """Tensor [N, D]: the mean of the last layer over each text's tokens."""
    import torch

    width = max(map(len, ids))
    input_ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    hidden = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def adapted_layers(model: Any, first: int) -> dict[str, Any]:
    """Name -> linear layer that takes an adapter, from block `first` on."""
    upper = tuple(f"encoder.layer.{number}." for number in range(first, model.config.num_hidden_layers))
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(upper) and name.rpartition(".")[2] in ADAPTED
    }


def merge(model: Any, tensors: dict[str, npt.NDArray[Any]]) -> None:
    """Adds up @ down to each layer that the tensors adapt. Raises AttributeError for a layer that is not there."""
    import torch

    with torch.no_grad():
        for name in [key.removesuffix(".down") for key in tensors if key.endswith(".down")]:
            layer = model.get_submodule(name)
            change = tensors[f"{name}.up"] @ tensors[f"{name}.down"]
            layer.weight += torch.from_numpy(change).to(layer.weight.dtype)


def _heads(tensors: dict[str, npt.NDArray[Any]]) -> dict[str, Head]:
    """Raises ValueError for a head of another shape, KeyError for one that is missing."""
    heads = {}
    for name in TARGETS:
        parts = [tensors[f"{part}.{name}"] for part in ("lexical", "direct", "bias")]
        if parts[0].shape != (NUM_BUCKETS,):
            raise ValueError(f"the head {name} is of another size")
        heads[name] = Head(parts[0], parts[1], float(parts[2][0]))
    return heads
