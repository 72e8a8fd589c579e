"""What a model says to a generated question, most likely token by token: for the samples of a run's log."""

from __future__ import annotations

import torch

from model.kv_cache import KVCache
from model.modeling import BailingMoeV2ForCausalLM
from model.train.examples import Group, Item
from model.train.packing import Packer


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
