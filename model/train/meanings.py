"""Gives a new model's embeddings the meanings of words that the written reader has learned, to begin with.

The reader's are distilled from a sentence encoder and learned from questions (`matching.py`). The new model takes over
its tokenizer. Knows nothing of how the rest of the model is made.
"""

from __future__ import annotations

from pathlib import Path

import torch

from model.checkpoint import load_model
from model.modeling import BailingMoeV2ForCausalLM
from model.train.matching import MEANING
from model.train.reader_stream import STREAM

SPREAD = 0.08  # standard deviation of what is given; the other dims keep what they were made with


@torch.no_grad()
def give_meanings(model: BailingMoeV2ForCausalLM, folder: Path) -> None:
    """Fills the first MEANING dims of the embeddings with those of the reader in folder, [V,MEANING]."""
    meanings = load_model(folder, torch.float32).model.word_embeddings.weight[:, STREAM.meaning]
    meanings = meanings - meanings.mean(0)
    model.model.word_embeddings.weight[:, :MEANING] = SPREAD * meanings / meanings.std()
