"""Bytes of weights that must be read for one token: what decoding alone cannot be faster than, given a bandwidth."""

from __future__ import annotations

from itertools import chain

from model.modeling import BailingMoeV2ForCausalLM


def bytes_a_token(model: BailingMoeV2ForCausalLM) -> int:
    """Bytes of all weights and scales that a decode step of one token reads: of the experts those that a token takes,
    of the embedding one row. Counts what the model holds at this moment: kernels take some of it over."""
    config = model.config
    num_bytes = 0.0
    tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers())
    for name, tensor in tensors:  # a head that is the embedding's very weight is read as a head
        if name.startswith("model.layers.") and int(name.split(".")[2]) >= config.num_hidden_layers:
            continue  # an MTP layer, which does not take part
        if ".experts." in name:
            num_bytes += tensor.nbytes * config.num_experts_per_tok / config.num_experts
        elif "word_embeddings" in name:
            num_bytes += tensor.nbytes / config.vocab_size
        else:
            num_bytes += tensor.nbytes
    return round(num_bytes)
