"""The packed encoder as a transformers BertModel, whole or its upper blocks alone.

Word vectors stay packed and are unpacked as a text needs them: 54 MB mapped instead of 384 MB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertModel

from retrieval.embedding import compute_dtype
from retrieval.multilingual.packed import PackedEncoder, unpack

_MATRICES = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"}
_MATRICES |= {"ao": "attention.output.dense", "fi": "intermediate.dense", "fo": "output.dense"}
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


class _PackedWords(nn.Module):
    """Stands where an nn.Embedding does."""

    def __init__(self, packed: PackedEncoder, dtype: torch.dtype) -> None:
        super().__init__()
        self._rows, self._dtype = packed.rows("emb.word"), dtype

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int64 [N, T] -> [N, T, D]."""
        words = unpack(self._rows[input_ids.cpu().numpy()])
        return torch.from_numpy(words.reshape(*words.shape[:-2], -1)).to(input_ids.device, self._dtype)


def load_encoder(packed: PackedEncoder, tuned: Path | None = None) -> BertModel:
    """In bf16 where the processor multiplies it; the tensors of `tuned` take the place of the published ones.

    Raises KeyError for a tensor that the encoder does not have, and as PackedEncoder.tensor does.
    """
    model = BertModel(_config(packed), add_pooling_layer=False).eval()
    state = _state(packed)
    if tuned:
        changed = {name: tensor for name, tensor in load_file(tuned).items() if name.startswith("encoder.")}
        if unknown := changed.keys() - state.keys():
            raise KeyError(f"{tuned.name} holds {min(unknown)}, which the encoder does not have")
        state |= changed
    model.load_state_dict(state, strict=False)  # all but the word vectors
    dtype = compute_dtype()
    model = model.to(dtype)
    model.embeddings.word_embeddings = _PackedWords(packed, dtype)
    return model


def _config(packed: PackedEncoder) -> BertConfig:
    return BertConfig(
        vocab_size=1,  # the word vectors are put in packed
        hidden_size=packed.hidden_size,
        num_hidden_layers=packed.num_layers,
        num_attention_heads=packed.num_heads,
        intermediate_size=packed.intermediate_size,
        max_position_embeddings=packed.max_tokens,
        type_vocab_size=packed.num_types,
        layer_norm_eps=packed.epsilon,
    )


def _state(packed: PackedEncoder) -> dict[str, torch.Tensor]:
    """BertModel's names -> float32."""
    width, inner = packed.hidden_size, packed.intermediate_size
    state = {
        "embeddings.position_embeddings.weight": packed.tensor("emb.pos", packed.max_tokens, width),
        "embeddings.token_type_embeddings.weight": packed.tensor("emb.type", packed.num_types, width),
        "embeddings.LayerNorm.weight": packed.tensor("emb.ln.w", width),
        "embeddings.LayerNorm.bias": packed.tensor("emb.ln.b", width),
    }
    for number in range(packed.num_layers):
        for short, name in _MATRICES.items():
            rows, columns = {"fi": (inner, width), "fo": (width, inner)}.get(short, (width, width))
            state[f"encoder.layer.{number}.{name}.weight"] = packed.tensor(f"l{number}.{short}.w", rows, columns)
            state[f"encoder.layer.{number}.{name}.bias"] = packed.tensor(f"l{number}.{short}.b", rows)
        for short, name in _NORMS.items():
            state[f"encoder.layer.{number}.{name}.weight"] = packed.tensor(f"l{number}.{short}.w", width)
            state[f"encoder.layer.{number}.{name}.bias"] = packed.tensor(f"l{number}.{short}.b", width)
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in state.items()}
