"""Muon for the matrices inside the layers, AdamW for the rest.

Muon: momentum whose step is made orthogonal by a Newton-Schulz iteration (Jordan et al. 2024, "Muon: an optimizer for
hidden layers in neural networks"); stacked experts are a batch of matrices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic that the paper tuned for five steps


class Muon(torch.optim.Optimizer):
    """Parameters of two dimensions, or of three: a stack of matrices."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}  # one call for all of a shape: many are small
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(tuple(parameter.shape), []).append(parameter)
            for shape, parameters in alike.items():
                grads = [p.grad for p in parameters if p.grad is not None]
                for parameter in parameters:
                    if not self.state[parameter]:
                        self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                buffers = [self.state[parameter]["momentum"] for parameter in parameters]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                updates = orthogonalize(torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"])))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * max(1.0, shape[-2] / shape[-1]) ** 0.5
                torch._foreach_add_(parameters, updates.unbind(), alpha=-rate)


def orthogonalize(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values near 1, [..., rows, columns]; bf16 inside, as the method allows."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix.bfloat16()
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if is_tall else x).to(matrix.dtype)


def make_optimizers(
    model: nn.Module, matrix_lr: float, embedding_lr: float, other_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """[Muon, AdamW]; each group keeps its rate before any schedule as "base_lr"."""
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if _is_matrix(name, p)]
    embeddings = [p for name, p in named.items() if name.endswith("word_embeddings.weight")]
    others = [p for name, p in named.items() if not _is_matrix(name, p) and not name.endswith("word_embeddings.weight")]
    muon = Muon(matrices, matrix_lr, weight_decay=weight_decay)
    groups = [{"params": embeddings, "lr": embedding_lr}, {"params": others, "lr": other_lr}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return [muon, adam]


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.dim() >= 2 and not name.endswith(("word_embeddings.weight", "lm_head.weight", "mlp.gate.weight"))
