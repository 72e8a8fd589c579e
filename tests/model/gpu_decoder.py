"""The whole decoder by Triton's interpreter against modeling.py in float32. Run by test_gpu_interpreter.py, in a
process of its own: what a kernel is, is decided when it is imported."""

from __future__ import annotations

import pytest
from torch import Tensor

from model.kernels.gpu import ops, reference
from model.kernels.gpu.decoder import GpuDecoder
from model.modeling import BailingMoeV2ForCausalLM
from tests.model.test_gpu_decoder import PROMPT, define, error, make_pair, rows_routed_alike
from tests.model.test_gpu_drafts import draft, make_decoder, make_model

SHAPES = {
    "vocab_size": 400,
    "num_hidden_layers": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


class Checked:
    """Sequences as the decoder and the definition see them, and the errors of rows that both routed alike: bf16 turns
    near ties."""

    def __init__(self, decoder: GpuDecoder, model: BailingMoeV2ForCausalLM, texts: list[list[int]]) -> None:
        self._decoder, self._model, self._texts = decoder, model, texts
        self._done = [0] * len(texts)
        self.errors: list[float] = []

    def run(self, *parts: tuple[int, int]) -> None:
        """One pass over (sequence, tokens) each."""
        ids = [self._texts[s][self._done[s] : self._done[s] + n] for s, n in parts]
        tables = [[2 * s + 1, 2 * s] for s, _ in parts]
        rows = list(range(sum(n for _, n in parts)))
        out = self._decoder.forward(ids, [self._done[s] for s, _ in parts], tables, rows)
        first = 0
        for s, n in parts:
            self._compare(s, n, out.logits[first : first + n], out.topk_ids[:, first : first + n])
            self._done[s] += n
            first += n

    def _compare(self, s: int, num_rows: int, logits: Tensor, topk_ids: Tensor) -> None:
        start, end = self._done[s], self._done[s] + num_rows
        wanted = define(self._model, self._texts[s][:end])
        alike = rows_routed_alike(topk_ids, wanted, slice(start, end))
        self.errors += [error(logits[row], wanted.logits[0, start + row]) for row in range(num_rows) if alike[row]]


@pytest.mark.parametrize("kind", ["bf16", "int4"])
def test_prompts_in_parts_and_tokens_of_mixed_lengths(kind: str) -> None:
    decoder, model = make_pair(kind, ops, chunk=64, **SHAPES)
    checked = Checked(decoder, model, [PROMPT[:40], PROMPT[40:50], PROMPT[50:60]])
    checked.run((0, 33), (1, 5))  # two prompts, one of them over a block's end
    checked.run((0, 4), (1, 1))  # the rest of one beside an answer
    checked.run((0, 2), (1, 1), (2, 1))  # answers of three lengths, one of them new, one with a draft
    errors = sorted(checked.errors)
    assert len(errors) > 37  # of 47
    assert errors[len(errors) // 2] < 0.02
    assert errors[len(errors) * 9 // 10] < 0.1  # the others look back at a row that was routed otherwise


def test_drafts_by_the_mtp_layer() -> None:
    model = make_model(**SHAPES)
    texts = [PROMPT[:36], PROMPT[40:44], PROMPT[50:53]]
    got, wanted = (draft(make_decoder(model, each), texts, [4, 2, 0]) for each in (ops, reference))
    alike = [a == b for ours, true in zip(got, wanted, strict=True) for a, b in zip(ours, true, strict=True)]
    assert sum(alike) > len(alike) // 2  # a turned tie takes what follows it along
    assert len({token for ours in got for token in ours}) > 2
