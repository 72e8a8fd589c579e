"""multilingual-e5-small with our tuned blocks, as an embedder. Nothing is loaded before the first text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.embedding import EncoderEmbedder, FloatArray, Span
from retrieval.multilingual.packed import PackedEncoder, find_file, open_packed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TUNED = Path(__file__).with_name("tuned.safetensors")
QUESTION_PREFIX = "query: "  # as E5 was trained
PASSAGE_PREFIX = "passage: "
QUESTION_CENTRE, PASSAGE_CENTRE = "centre.question", "centre.passage"  # tensors beside the tuned blocks
MAX_TOKENS = 512
VECTOR_SIZE = 384


class MultilingualEmbedder(EncoderEmbedder):
    """Vectors for Chinese, and for whatever else MiniLM does not read."""

    question_prefix = QUESTION_PREFIX
    passage_prefix = PASSAGE_PREFIX

    def __init__(self, threads: int | None = None, tuned: Path = TUNED) -> None:
        """tuned: blocks that take the place of the published ones. Raises FileNotFoundError without the package."""
        super().__init__(VECTOR_SIZE, MAX_TOKENS, threads=threads)
        self._file = find_file()
        self._tuned = tuned

    @cached_property
    def identity(self) -> str:
        """Changes with the tuned blocks, so that vectors made by others are made anew."""
        return f"multilingual-e5-small {hashlib.sha256(self._tuned.read_bytes()).hexdigest()[:12]}"

    @cached_property
    def _packed(self) -> PackedEncoder:
        return open_packed(self._file)

    @cached_property
    def _centres(self) -> dict[str, FloatArray]:
        """float32 [D] each: what all questions, and all passages, have in common."""
        from safetensors import safe_open

        with safe_open(self._tuned, "numpy") as tensors:
            return {name: tensors.get_tensor(name).astype(np.float32) for name in (QUESTION_CENTRE, PASSAGE_CENTRE)}

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """As in the base class, less what all questions share: E5's vectors lie in a narrow cone."""
        return _less(super().embed(texts), self._centres[QUESTION_CENTRE])

    def embed_parts(self, texts: Sequence[str], parts: Sequence[Sequence[Span]]) -> list[FloatArray]:
        """As in the base class, less what all passages share."""
        return [_less(vectors, self._centres[PASSAGE_CENTRE]) for vectors in super().embed_parts(texts, parts)]

    def _open_tokenizer(self) -> Any:
        return open_tokenizer(self._file)

    def _open_model(self) -> Any:
        from retrieval.multilingual.encoder import load_encoder

        return load_encoder(self._packed, self._tuned)


def _less(vectors: FloatArray, centre: FloatArray) -> FloatArray:
    rest = vectors - centre
    return np.asarray(rest / np.linalg.norm(rest, axis=1, keepdims=True), dtype=np.float32)


@cache
def open_tokenizer(file: Path) -> Tokenizer:
    """Made once for a process: it has 250,000 pieces. Whoever uses it leaves its settings as they are."""
    return make_tokenizer(open_packed(file))


def make_tokenizer(packed: PackedEncoder) -> Tokenizer:
    """XLM-RoBERTa's tokenizer, which neither pads nor cuts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = packed.pieces()
    tokenizer = Tokenizer(models.Unigram(pieces, packed.unknown, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    ends = [(pieces[token][0], token) for token in (packed.begin, packed.end)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends
    )
    return tokenizer
