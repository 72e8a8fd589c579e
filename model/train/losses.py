"""The losses of a batch: of answers, of the language around them, and of the token after next.

Shape suffixes as in `model.modeling`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.modeling import BailingMoeV2ForCausalLM
from model.train.branches import decode, decode_mtp
from model.train.config import TrainConfig
from model.train.packing import ANSWER, DECISION, PROMPT, Batch
from model.train.run import Step


def losses(model: BailingMoeV2ForCausalLM, batch: Batch, config: TrainConfig, seed: int) -> Step:
    """Mean cross-entropy of answer tokens, of a random share of prompt tokens, and of the MTP layer on answer tokens.

    Only the rows that are scored pass the head: it is two fifths of the work otherwise.
    """
    # 1. the decoder
    x_BSD, routers = decode(model, batch)
    hidden_BSD = model.model.norm(x_BSD)
    # 2. token t+1 is scored at t, if both stand in the same branch
    ids, branches, kinds = batch.ids[:, 1:], batch.branches, batch.kinds[:, 1:]
    is_next = branches[:, 1:] == branches[:, :-1]
    chance = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)).to(ids.device)
    is_answer = is_next & ((kinds == ANSWER) | (kinds == DECISION))
    is_language = is_next & (kinds == PROMPT) & (chance < config.language_share)
    is_scored = is_answer | is_language
    loss = cross_entropy(model, hidden_BSD[:, :-1][is_scored], ids[is_scored])
    of_answer = is_answer[is_scored]
    weight = torch.where(kinds[is_scored] == DECISION, config.decision_weight, 1.0)[of_answer]
    answer = weighted_mean(loss[of_answer], weight)
    language = weighted_mean(loss[~of_answer], torch.ones_like(loss[~of_answer]))
    total = answer + config.language_weight * language
    figures = {"answer_loss": answer.item(), "language_loss": language.item()}
    # 3. token t+2, from the MTP layer, where all three stand in the same branch
    if model.config.num_nextn_predict_layers:
        mtp_BSD, router = decode_mtp(model, batch, hidden_BSD)
        is_after_next = is_answer[:, 1:] & is_next[:, :-1]
        mtp_loss = cross_entropy(model, mtp_BSD[:, :-2][is_after_next], ids[:, 1:][is_after_next])
        mtp = weighted_mean(mtp_loss, torch.ones_like(mtp_loss))
        total = total + config.mtp_weight * mtp
        figures["mtp_loss"] = mtp.item()
        routers = [*routers, router]
    num_answer_tokens = int(((batch.kinds == ANSWER) | (batch.kinds == DECISION)).sum())
    return Step(total, routers, int((batch.branches >= 0).sum()), num_answer_tokens, figures)


def cross_entropy(model: BailingMoeV2ForCausalLM, hidden_nD: Tensor, ids_n: Tensor) -> Tensor:
    """Of each row, f32."""
    return F.cross_entropy(model.lm_head(hidden_nD).float(), ids_n, reduction="none")


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """0 where there is nothing."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-9)
