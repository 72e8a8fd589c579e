"""Logits -> next token id, for one request. Knows nothing of the model or of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts import GenerationError, SamplingParams
from model.candidates import CandidateRow, LogitRow
from model.request import TokenScore


class SamplerError(GenerationError):
    """The logits are not numbers: weights or arithmetic are broken, and no token may be chosen."""


class Matcher(Protocol):
    """How far one answer has come in a form it must have; model.grammar has the real one. May raise GenerationError."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        ...

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next [V], at least one; end tokens exactly where the answer may end."""
        ...

    def advance(self, token_id: int) -> None:
        """Takes the token that was chosen."""
        ...

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of the tokens, from the first, could be taken one after the other."""
        ...


class Sampler:
    """Chooses one request's tokens. With a seed, or greedy, the same logits give the same tokens."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], vocab_size: int, matcher: Matcher | None = None
    ) -> None:
        self._params = params
        self._matcher = matcher
        self._random = torch.Generator()
        if params.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(params.seed)
        self._is_seen_V = torch.zeros(vocab_size, dtype=torch.bool)
        self._is_seen_V[torch.tensor(prompt_ids, dtype=torch.long)] = True

    def sample(self, logits: LogitRow) -> int:
        """The next token id from logits [V] f32, or the largest of them where that gives the same. Raises SamplerError
        if there is NaN or infinity among all, GenerationError if the answer cannot go on in its form."""
        if isinstance(logits, CandidateRow):
            _check_finite(logits.is_finite)
            token_id = self._choose_candidate(logits)
            if token_id is None:
                token_id = self._choose(self._penalize(self._constrain(logits.read())))
        else:
            logits_V = logits.cpu()
            _check_finite(bool(logits_V.isfinite().all()))
            token_id = self._choose(self._penalize(self._constrain(logits_V)))
        if self._matcher:
            self._matcher.advance(token_id)
        self._is_seen_V[token_id] = True
        return token_id

    @property
    def is_complete(self) -> bool:
        """Whether the answer has its form and nothing may follow."""
        return self._matcher is not None and self._matcher.is_complete

    def cut_draft(self, draft: list[int]) -> list[int]:
        """The beginning of a draft that could be sampled."""
        return draft[: self._matcher.count_allowed(draft)] if self._matcher and draft else draft

    def score(self, logits: LogitRow, token_id: int) -> TokenScore | None:
        """What the model itself thought of a token, from the logits [V] f32 it was sampled from; None if not asked."""
        if self._params.logprobs is None:
            return None
        logits_V = logits.read() if isinstance(logits, CandidateRow) else logits.cpu()
        logprobs_V = logits_V.log_softmax(-1)
        values_k, ids_k = logprobs_V.topk(min(self._params.logprobs, len(logprobs_V)))
        likeliest = tuple(zip(ids_k.tolist(), values_k.tolist(), strict=True))
        return TokenScore(float(logprobs_V[token_id]), likeliest)

    def _constrain(self, logits_V: Tensor) -> Tensor:
        if self._matcher is None:
            return logits_V
        return torch.from_numpy(np.where(self._matcher.allowed(), logits_V.numpy(), np.float32(-np.inf)))

    def _penalize(self, logits_V: Tensor) -> Tensor:
        """Divides positive and multiplies negative logits of every token seen in prompt or output."""
        penalty = self._params.repetition_penalty
        if penalty == 1.0:
            return logits_V
        return _lower(logits_V, self._is_seen_V, penalty)

    def _choose_candidate(self, row: CandidateRow) -> int | None:
        """What `_choose` would choose among all V logits, or None where it takes more of them to know. A penalty only
        lowers logits: who is not a candidate stays below the least of them."""
        params = self._params
        num_wanted = 1 if params.temperature == 0 else params.top_k
        if self._matcher is not None or not 0 < num_wanted <= len(row.ids_k) or params.repetition_penalty < 1:
            return None
        values_k = row.values_k
        if params.repetition_penalty != 1:
            values_k = _lower(values_k, self._is_seen_V[row.ids_k], params.repetition_penalty)
            if values_k.topk(num_wanted).values[-1] <= row.values_k[-1]:
                return None
        return int(row.ids_k[self._choose(values_k)])

    def _choose(self, logits_V: Tensor) -> int:
        params = self._params
        if params.temperature == 0:
            return int(logits_V.argmax())
        num_kept = min(params.top_k or logits_V.numel(), logits_V.numel())
        values_k, ids_k = (logits_V / params.temperature).topk(num_kept)
        probs_k = values_k.softmax(-1)
        # Nucleus: a token stays while the mass before it is below top_p, so the first always stays.
        probs_k = probs_k.masked_fill(probs_k.cumsum(-1) - probs_k >= params.top_p, 0.0)
        return int(ids_k[torch.multinomial(probs_k, 1, generator=self._random)])


def _check_finite(is_finite: bool) -> None:
    if not is_finite:
        raise SamplerError("The model's output is not finite: check the weights, or use --precision f32.")


def _lower(logits: Tensor, is_seen: Tensor, penalty: float) -> Tensor:
    return torch.where(is_seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
