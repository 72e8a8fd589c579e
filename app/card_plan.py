"""The plan for a graphics card: of the checkpoint that is set, what lies on the card, what in memory, how fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from app.config import Settings
from app.errors import InputError
from model.checkpoint import list_shards
from model.config import CheckpointError, ModelConfig
from model.offload_plan import CARDS, Card, Machine, OffloadPlan, parse_card, plan_offload
from model.packed.manifest import is_packed, read_manifest
from model.roofline import FORMATS, PartBytes, count_bytes, measure_bytes
from model.router_health import read_baseline

DEFAULT_RAM_BANDWIDTH = 40e9  # two channels of DDR4-3200 reach about that; used where it cannot be measured


def plan_for(settings: Settings, card: str | Card, context: int = 8192, form: str = "auto") -> OffloadPlan:
    """For a card, given as offload_plan.parse_card reads it. form: one of roofline.FORMATS, or "auto", as the
    checkpoint is stored; a folder with nothing but config.json will do for the others. Raises InputError."""
    from app.measure import read_bandwidth

    try:
        found = parse_card(card) if isinstance(card, str) else card
        config = ModelConfig.from_hf(settings.checkpoint)
        parts = _find_parts(settings.checkpoint, config, form)
    except ValueError as error:
        raise InputError(str(error)) from error
    bandwidth = read_bandwidth()
    machine = Machine(
        found.name,
        found.num_bytes,
        found.bandwidth,
        found.pcie_bandwidth,
        psutil.virtual_memory().total,
        bandwidth * 1e9 if bandwidth else DEFAULT_RAM_BANDWIDTH,
    )
    context = min(context, config.context_length)
    return plan_offload(config, parts, machine, context, shares=_read_shares(settings.checkpoint, config))


def _find_parts(folder: Path, config: ModelConfig, form: str) -> PartBytes:
    if form != "auto":
        if form not in FORMATS:
            raise CheckpointError(f"The format is {form!r}; use auto or one of {', '.join(FORMATS)}.")
        return count_bytes(config, FORMATS[form])
    if is_packed(folder):
        files = [folder / name for name in read_manifest(folder).files if name.endswith(".safetensors")]
    else:
        files = [folder / name for name in list_shards(folder)]
    return measure_bytes(files, config)


def _read_shares(folder: Path, config: ModelConfig) -> Sequence[float]:
    """How often the most chosen expert of a layer is chosen, the next, and so on: the mean over the layers of the
    folder's router_baseline.json; nothing where there is none."""
    loads = [sorted(load, reverse=True) for load in (read_baseline(folder, config) or {}).values()]
    return [sum(shares) / len(loads) for shares in zip(*loads, strict=True)]


def describe_here(settings: Settings) -> str:
    """For `bedside doctor`: the card of this machine and what would lie on it, or that there is none."""
    import torch

    if not torch.cuda.is_available():
        return "no CUDA card: the processor computes; `bedside doctor --plan 24GB` says what one would do"
    found = torch.cuda.get_device_properties(0)
    known = [card for card in CARDS if all(word in found.name for word in card.name.split())]
    # Where a data sheet is not known, the slowest card's bandwidth: a low forecast.
    nearest = min(known or CARDS, key=lambda card: card.bandwidth)
    card = replace(nearest, name=found.name, num_bytes=found.total_memory)
    return "; ".join(plan_for(settings, card).describe())
