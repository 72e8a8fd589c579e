"""Learning with the weights that INT4 will leave: rounded in the pass, whole in the update.

The gradient goes through the rounding as if it were not there (the straight-through estimator of Bengio et al. 2013,
arXiv 1308.3432). Rounded is what `bedside quantize` rounds, as it rounds it: the feed-forward weights but the router's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from model.quantize.rtn import round_to, search_scales

GROUP_SIZE = 32


@contextmanager
def rounded(model: nn.Module) -> Iterator[None]:
    """Inside, the model's feed-forward weights are what INT4 in groups of GROUP_SIZE makes of them."""
    parameters = [p for name, p in model.named_parameters() if is_rounded(name, p)]
    whole = [parameter.data for parameter in parameters]
    with torch.no_grad():
        groups = torch.cat([weight.reshape(-1, GROUP_SIZE) for weight in whole])
        scales = search_scales(groups, torch.bfloat16)[:, None]
        parts = (round_to(groups, scales) * scales.float()).flatten().split([weight.numel() for weight in whole])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part.view_as(parameter)
    try:
        yield
    finally:
        for parameter, weight in zip(parameters, whole, strict=True):
            parameter.data = weight


def is_rounded(name: str, parameter: nn.Parameter) -> bool:
    """Whether INT4 rounds it, by its name in the model."""
    return ".mlp." in name and parameter.dim() > 1 and not name.endswith(".mlp.gate.weight")
