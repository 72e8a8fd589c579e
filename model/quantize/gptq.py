"""GPTQ: rounds a matrix column by column; the columns to come make up for each one's error on calibration inputs.

Frantar et al., arXiv 2210.17323: algorithm 1 in blocks, Cholesky form, 1 % damping. Two differences: each group's scale
is searched for (model.quantize.rtn) on the weights as they stand when its turn comes, and a column that no calibration
input reached keeps its weights instead of being set to zero. Act-order (largest inputs first) keeps the groups where
they are, so no g_idx is stored: what compressed-tensors calls `static`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.quantize.rtn import round_to, search_scales

BLOCK = 128
DAMPING = 0.01  # share of the mean of the Hessian's diagonal that is added to it


def quantize_gptq(
    weight_OI: Tensor, hessian_II: Tensor, group_size: int, dtype: torch.dtype, *, act_order: bool = False
) -> tuple[Tensor, Tensor]:
    """Integers [O,I] as f32 and scales [O,N] in `dtype`. `hessian_II` is X^T X in f32, of any scale; it is left as is.

    Raises ArithmeticError if it is not positive definite even when damped.
    """
    diagonal_I = hessian_II.diagonal()
    order_I = diagonal_I.argsort(descending=True, stable=True) if act_order else torch.arange(len(diagonal_I))
    factor_II = _factor_inverse(hessian_II[order_I][:, order_I] if act_order else hessian_II.clone())
    w_IO = weight_OI.float().T[order_I].contiguous()  # columns as rows: each step works on whole rows in memory
    q_IO = torch.empty_like(w_IO)
    scales_NO = search_scales(weight_OI.float().unflatten(1, (-1, group_size)), dtype).T.contiguous()
    block = max(BLOCK // group_size, 1) * group_size  # whole groups, so that a group's weights are up to date
    for begin in range(0, len(w_IO), block):
        w_bO, q_bO = w_IO[begin : begin + block], q_IO[begin : begin + block]
        factor_bI = factor_II[begin : begin + block, begin:]
        error_bO = torch.empty_like(w_bO)
        for i, column in enumerate(order_I[begin : begin + block].tolist()):
            group = column // group_size
            if not act_order and column % group_size == 0:
                scales_NO[group] = search_scales(w_bO[i : i + group_size].T.contiguous(), dtype)
            scale_O = scales_NO[group].float()
            q_bO[i] = round_to(w_bO[i], scale_O)
            error_bO[i] = (w_bO[i] - q_bO[i] * scale_O) / factor_bI[i, i]
            w_bO[i + 1 :].addr_(factor_bI[i, i + 1 : len(w_bO)], error_bO[i], alpha=-1)
        w_IO[begin + block :].addmm_(factor_bI[:, block:].T, error_bO, alpha=-1)
    return q_IO[order_I.argsort()].T.contiguous(), scales_NO.T.contiguous()


def _factor_inverse(hessian_II: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse; works in place."""
    diagonal_I = hessian_II.diagonal()
    diagonal_I += DAMPING * diagonal_I.mean()
    lower_II, failed = torch.linalg.cholesky_ex(hessian_II)
    if not failed:
        upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
    if failed or not bool(upper_II.isfinite().all()):
        raise ArithmeticError("The Hessian is not positive definite.")
    return upper_II
