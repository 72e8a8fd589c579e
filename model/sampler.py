"""Logits -> next token id, for one request. Knows nothing of the model or of text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from contracts import GenerationError, SamplingParams


class SamplerError(GenerationError):
    """The logits are not numbers: weights or arithmetic are broken, and no token may be chosen."""


class Sampler:
    """Chooses one request's tokens. With a seed, or greedy, the same logits give the same tokens."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], vocab_size: int) -> None:
        self._params = params
        self._random = torch.Generator()
        if params.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(params.seed)
        self._is_seen_V = torch.zeros(vocab_size, dtype=torch.bool)
        self._is_seen_V[torch.tensor(prompt_ids, dtype=torch.long)] = True

    def sample(self, logits_V: Tensor) -> int:
        """The next token id from logits [V] f32. Raises SamplerError if they hold NaN or infinity."""
        logits_V = logits_V.cpu()
        if not bool(logits_V.isfinite().all()):
            raise SamplerError("The model's output is not finite: check the weights, or use --precision f32.")
        token_id = self._choose(self._penalize(logits_V))
        self._is_seen_V[token_id] = True
        return token_id

    def _penalize(self, logits_V: Tensor) -> Tensor:
        """Divides positive and multiplies negative logits of every token seen in prompt or output."""
        penalty = self._params.repetition_penalty
        if penalty == 1.0:
            return logits_V
        penalized_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
        return torch.where(self._is_seen_V, penalized_V, logits_V)

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
