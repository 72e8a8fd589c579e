"""Gives a trained model more room without changing what it computes: new dims, heads and layers start silent.

What is wider than before is filled with zeros where it would speak (after Chen et al. 2016, "Net2Net",
arXiv 1511.05641), so that training goes on where it was. Knows nothing of what the new room is for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.config import ModelConfig
from model.modeling import BailingMoeV2ForCausalLM


class GrowthError(ValueError):
    """A model cannot become the wanted one by growing; the message names the field."""


_GROWING = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_nextn_predict_layers")
_FIXED = (
    "vocab_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers", "head_dim", "num_experts",
    "first_k_dense_replace", "num_shared_experts", "rotary_dim",
)  # fmt: skip


@torch.no_grad()
def grow(small: BailingMoeV2ForCausalLM, config: ModelConfig) -> BailingMoeV2ForCausalLM:
    """A model of `config` that computes what `small` does. Raises GrowthError where `config` is no larger sibling."""
    _check(small.config, config)
    large = BailingMoeV2ForCausalLM(config)
    ratio = math.sqrt(small.config.hidden_size / config.hidden_size)  # a norm's mean runs over the silent dims too
    source = small.state_dict()
    for name, target in large.state_dict().items():
        if name not in source:
            continue
        if name.endswith("query_key_value.weight"):
            _copy_heads(source[name], target, small.config, config)
        else:
            _copy_corner(source[name], target)
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight")):
            target[: small.config.hidden_size] *= ratio
    large.tie_weights()
    return large


def _check(small: ModelConfig, large: ModelConfig) -> None:
    for name in _FIXED:
        if getattr(small, name) != getattr(large, name):
            raise GrowthError(f"{name} is {getattr(large, name)}, and {getattr(small, name)} in init_from; keep it.")
    for name in _GROWING:
        if getattr(small, name) > getattr(large, name):
            raise GrowthError(
                f"{name} is {getattr(large, name)}; it must be at least init_from's {getattr(small, name)}."
            )
    ratios = [c.num_attention_heads // c.num_key_value_heads for c in (small, large)]
    if ratios[0] != ratios[1]:
        raise GrowthError("num_attention_heads must be the same multiple of num_key_value_heads as in init_from.")


def _copy_corner(source: Tensor, target: Tensor) -> None:
    target.zero_()
    target[tuple(slice(size) for size in source.shape)] = source


def _copy_heads(source: Tensor, target: Tensor, small: ModelConfig, large: ModelConfig) -> None:
    """Rows are all query heads, then all key heads, then all value heads."""
    old, new = (
        (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads) for c in (small, large)
    )  # fmt: skip
    parts = zip(
        source.split([n * small.head_dim for n in old]), target.split([n * large.head_dim for n in new]), strict=True
    )
    for before, after in parts:
        _copy_corner(before, after)
