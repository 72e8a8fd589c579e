"""Exact figures of an embedded model on held-out questions: words, citations and abstentions, before any check.

The model answers greedily, as it stands, without the product's output check. Knows nothing of the product: the
prompt's form is the caller's (`render`).
"""

from __future__ import annotations

from pathlib import Path

import torch

from model.checkpoint import load_model
from model.kv_cache import KVCache
from model.modeling import BailingMoeV2ForCausalLM
from model.train.corpora import read_texts, split_held_out
from model.train.examples import ExampleMaker, Group, Item
from model.train.packing import Packer, Render
from model.train.score import Figures, score


def evaluate(
    folder: Path, data_dir: Path, render: Render, num_groups: int = 60, size: float = 1.0
) -> dict[str, Figures]:
    """Figures of a checkpoint folder by kind of source: "record" (invented records) and "text" (held-out documents)."""
    model, packer = load_model(folder, torch.float32), Packer(folder, render)
    maker = ExampleMaker(split_held_out(read_texts(data_dir))[1])
    figures = {}
    for kind in ("record", "text"):
        groups = [maker.make(f"evaluation/{kind}/{i}", size, 4, kind) for i in range(num_groups)]
        figures[kind] = score((g, item, answer(model, packer, g, item)) for g in groups for item in g.items)
    return figures


@torch.inference_mode()
def answer(model: BailingMoeV2ForCausalLM, packer: Packer, group: Group, item: Item, max_tokens: int = 160) -> str:
    """What the model says to an item, most likely token by token."""
    model.eval()
    ids = packer.template.encode(packer.messages(group, item))
    cache = KVCache(model.config, capacity=len(ids) + max_tokens, device=model.device)
    new, said = torch.tensor([ids], device=model.device), []
    for _ in range(max_tokens):
        token = int(model(new, cache=cache, logits_to_keep=1).logits[0, -1].argmax())
        if token in packer.tokenizer.stop_ids:
            break
        said.append(token)
        new = torch.tensor([[token]], device=model.device)
    return packer.tokenizer.decode(said)
