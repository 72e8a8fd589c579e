"""Rounds the reader to what its checkpoint holds in bf16 and in INT4, so that quantizing changes no weight of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.modeling import BailingMoeV2ForCausalLM
from model.quantize.rtn import round_to, search_scales
from model.train.matching import MEANING, Matcher
from model.train.reader_stream import GROUP, STREAM
from model.train.rounding import is_rounded


def round_model(model: BailingMoeV2ForCausalLM) -> None:
    """To what the checkpoint will hold: bf16, and of the feed-forward weights what INT4 leaves as it is."""
    for name, parameter in model.named_parameters():
        if is_rounded(name, parameter):
            parameter.copy_(_to_int4(parameter))
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())


@torch.no_grad()
def round_learned(matcher: Matcher) -> None:
    """Rounds what the matcher learned in feed-forward weights, as `init_reader` will, and keeps it from learning."""
    before, after = STREAM.meaning.start % GROUP, -STREAM.meaning.stop % GROUP  # in the groups that it will lie in
    for weight in (matcher.gate, matcher.up):
        weight.copy_(_to_int4(F.pad(weight, (before, after)))[:, before : before + MEANING])
    matcher.down.copy_(_to_int4(matcher.down))
    for weight in (matcher.gate, matcher.up, matcher.down):
        weight.requires_grad_(False)


def _to_int4(weight: Tensor) -> Tensor:
    """Rounded so that rounding again changes nothing: a step of five bits times an integer of three is exact."""
    groups = weight.unflatten(-1, (-1, GROUP))
    mantissa, exponent = torch.frexp(search_scales(groups, torch.bfloat16).float()[..., None])
    scales = torch.ldexp((mantissa * 32).round() / 32, exponent)
    return (round_to(groups, scales) * scales).flatten(-2)
