"""The losses of a batch: of answers, of the language around them, and of the token after next.

Shape suffixes as in `model.modeling`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.modeling import BailingMoeV2ForCausalLM
from model.train.branches import decode, decode_mtp
from model.train.config import TrainConfig
from model.train.packing import ANSWER, DECISION, PROMPT, Batch
from model.train.pointers import Watch
from model.train.run import Step


@dataclass(frozen=True, slots=True)
class Scored:
    """Which tokens of a batch are scored: rows [n] of the flattened positions from which they are predicted, the token
    ids [n] and the weight [n] f32 of each. Found before the batch goes to a device, which need not be waited for."""

    rows: Tensor
    ids: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Scored:
        return Scored(*(x.to(device, non_blocking=True) for x in (self.rows, self.ids, self.weights)))


def losses(model: BailingMoeV2ForCausalLM, batch: Batch, config: TrainConfig, seed: int, share: float = 1.0) -> Step:
    """Mean cross-entropy of answer tokens, of a random share of prompt tokens, and of the MTP layer on answer tokens.

    Only the rows that are scored pass the head: it is two fifths of the work otherwise.
    """
    scored = {name: found.to(model.device) for name, found in find_scored(batch, config, seed).items()}
    num_tokens = int((batch.branches >= 0).sum())
    num_answer_tokens = int(((batch.kinds == ANSWER) | (batch.kinds == DECISION)).sum())
    batch = batch.to(model.device)
    watch = Watch(batch.looks.long(), batch.mask) if batch.looks is not None else None
    x_BSD, routers = decode(model, batch, watch)
    hidden_BSD = model.model.norm(x_BSD)
    answer = mean_loss(model, hidden_BSD, scored["answer"])
    language = mean_loss(model, hidden_BSD, scored["language"])
    total = answer + config.language_weight * language
    figures = {"answer_loss": answer.detach(), "language_loss": language.detach()}
    if watch is not None:
        look = watch.total()
        total = total + config.look_weight * look
        figures["look_loss"] = look.detach()
        figures |= {
            f"look_{kind.name.lower()}": torch.stack(part).mean().detach() for kind, part in watch.losses.items()
        }
    if model.config.num_nextn_predict_layers and share >= config.mtp_from:
        mtp_BSD, of_mtp = decode_mtp(model, batch, hidden_BSD)
        mtp = mean_loss(model, mtp_BSD, scored["mtp"])
        total = total + config.mtp_weight * mtp
        figures["mtp_loss"] = mtp.detach()
        routers = routers + of_mtp
    return Step(total, routers, num_tokens, num_answer_tokens, figures)


def find_scored(batch: Batch, config: TrainConfig, seed: int) -> dict[str, Scored]:
    """What is scored as "answer" and "language", from the position before it in the same branch, and as "mtp", from two
    positions before."""
    ids, branches, kinds = batch.ids[:, 1:], batch.branches, batch.kinds[:, 1:]
    is_next = branches[:, 1:] == branches[:, :-1]
    chance = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
    is_answer = is_next & ((kinds == ANSWER) | (kinds == DECISION))
    is_language = is_next & (kinds == PROMPT) & (chance < config.language_share)
    is_after_next = F.pad(is_answer[:, 1:] & is_next[:, :-1], (1, 0))
    weights = torch.where(kinds == DECISION, config.decision_weight, 1.0)
    ones, found = torch.ones_like(weights), {}
    for name, wanted, weight, back in (
        ("answer", is_answer, weights, 1), ("language", is_language, ones, 1), ("mtp", is_after_next, ones, 2),
    ):  # fmt: skip
        row, column = wanted.nonzero(as_tuple=True)
        rows = row * batch.ids.shape[1] + column + 1 - back
        found[name] = Scored(rows, ids[row, column], weight[row, column])
    return found


def mean_loss(model: BailingMoeV2ForCausalLM, hidden_BSD: Tensor, scored: Scored) -> Tensor:
    """The weighted mean of the cross-entropy; 0 where there is nothing."""
    loss = cross_entropy(model, hidden_BSD.flatten(0, 1).index_select(0, scored.rows), scored.ids)
    return (loss * scored.weights).sum() / scored.weights.sum().clamp(min=1e-9)


def cross_entropy(model: BailingMoeV2ForCausalLM, hidden_nD: Tensor, ids_n: Tensor) -> Tensor:
    """Of each row, f32."""
    return F.cross_entropy(model.lm_head(hidden_nD).float(), ids_n, reduction="none")
