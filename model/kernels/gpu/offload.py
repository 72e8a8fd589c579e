"""Routed experts that a card has no room for, computed by the processor's kernels where they lie, while the card
computes the others: inputs and results cross the bus, never weights. model.offload_plan says what that gives.

Suffixes: n tokens of one expert, T rows, S slots, D hidden, F expert hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kernels.cpu_decoder import Int4Tiles, Threads, check_matrix, linear_many
from model.kernels.gpu.weights import release
from model.modeling import BailingMoeV2ForCausalLM, Experts, MoE
from model.quantized import DenseMatrix, Int4Matrix, Matrix, QuantizedExperts

Held = Tensor | Int4Tiles
Expert = tuple[Held, Held, Held]  # gate, up [F,D] and down [D,F]


class ColdExperts:
    """The experts of each MoE layer that stay in memory. `begin` takes a step's inputs over, `finish` gives results."""

    def __init__(self, layers: Sequence[Mapping[int, Expert]], threads: Threads) -> None:
        self._layers, self._threads = layers, threads
        self._step: tuple[Mapping[int, Expert], Tensor, Tensor] | None = None

    @classmethod
    def take(cls, model: BailingMoeV2ForCausalLM, hot: Sequence[Sequence[int]], threads: Threads) -> ColdExperts:
        """What take_weights left of the routed experts; the model loses them. hot: as given there, by decoder layer."""
        layers = []
        for layer, here in zip(model.model.layers, hot, strict=False):
            if isinstance(layer.mlp, MoE):
                cold = sorted(set(range(model.config.num_experts)) - set(here))
                layers.append(_take_experts(layer.mlp.experts, cold, threads))
        return cls(layers, threads)

    def begin(self, layer: int, x_TD: Tensor, ids_TS: Tensor) -> None:
        """Waits for a MoE layer's choice and takes it and the experts' input from the card."""
        self._step = self._layers[layer], x_TD.float().cpu(), ids_TS.cpu()

    def finish(self, out_TSD: Tensor) -> None:
        """Computes what was chosen and is here, into its slots of what the card computes; the other slots stay."""
        assert self._step is not None
        experts, x_TD, ids_TS = self._step
        places, rows = [], []
        for expert in sorted(set(ids_TS.flatten().tolist()) & set(experts)):
            tokens, slots = (ids_TS == expert).nonzero(as_tuple=True)
            rows.append(self._run(experts[expert], x_TD[tokens]))
            places.append(tokens * ids_TS.shape[1] + slots)
        if rows:
            target = out_TSD.view(-1, out_TSD.shape[-1])
            target[torch.cat(places).to(target.device)] = torch.cat(rows).to(target)

    def _run(self, expert: Expert, x_nD: Tensor) -> Tensor:
        gate, up, down = expert
        gated, lifted = linear_many([gate, up], x_nD, self._threads)
        return linear_many([down], F.silu(gated) * lifted, self._threads)[0]


def _take_experts(experts: nn.Module, cold: Sequence[int], threads: Threads) -> dict[int, Expert]:
    if isinstance(experts, Experts):
        gates, ups = (part.contiguous() for part in experts.gate_up_proj.detach()[list(cold)].cpu().chunk(2, 1))
        stacks: list[Sequence[Held]] = [list(gates), list(ups), list(experts.down_proj.detach()[list(cold)].cpu())]
    else:
        assert isinstance(experts, QuantizedExperts)
        stacks = [_take_stack(s, cold, threads) for s in (experts.gate_proj, experts.up_proj, experts.down_proj)]
    release(experts)
    return {expert: (gate, up, down) for expert, gate, up, down in zip(cold, *stacks, strict=True)}


def _take_stack(stack: Matrix, cold: Sequence[int], threads: Threads) -> list[Held]:
    """Raises KernelsUnavailableError where the processor's kernels cannot multiply by it."""
    check_matrix("experts", stack)
    if isinstance(stack, DenseMatrix):
        return list(stack.weight.detach()[list(cold)].cpu())
    assert isinstance(stack, Int4Matrix)
    parts = zip(stack.packed[list(cold)].cpu(), stack.scales[list(cold)].cpu(), strict=True)
    return [Int4Tiles(packed, scales, stack.shape[-1], threads) for packed, scales in parts]
