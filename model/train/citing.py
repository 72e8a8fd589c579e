"""A start for citing: weights under which the decoder knows from which passage it copies, and says that number.

Four steps, one attention layer each, all in the last key-value group and the last CITING_DIMS of the residual stream:
know the two tokens before; know the number of one's passage, from the "[n]" that opens it; while answering, find where
the same three tokens stand in a passage and take over its number; after " [", say what the sentence has gathered. Left
to gradient descent the number was the last thing learnt: after 3.6 M tokens three citations in four were a fixed guess.
What `init_circuits` writes is another part of the stream; the mathematics of the decoder is untouched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model.modeling import Attention, BailingMoeV2ForCausalLM, DecoderLayer
from model.train.circuits import CONSTANT

NUM_LAYERS = 4
CITING_DIMS = 64
MAX_KEY = 9  # passages with a number of one digit
CODE = 13  # dims of a token's random code
EMBEDDED = 1.0  # length of a code, size of a mark
SAY = 20.0  # how loudly a number is said
HEARD = 3.0  # final norm of what is said, in a trained model
HEARD_AT_START = 0.3  # and in one whose stream is still quiet, so that a wrong number costs little
_NEAR = (3, 4, 5)  # rotary pairs that tell a sentence from the one before
_FAR = (6, 7, 8)  # rotary pairs that tell a passage from the one before


class _Dims:
    """Where things lie in the residual stream."""

    def __init__(self, width: int) -> None:
        start = width - CITING_DIMS
        self.all = slice(start, width)
        self.said = slice(start, start + MAX_KEY)
        self.passage = slice(self.said.stop, self.said.stop + MAX_KEY)
        self.no_passage, self.opens, self.turn, self.bracket, self.cites = range(self.passage.stop, start + 23)
        self.own, self.previous, self.before = (
            slice(start + 23 + CODE * i, start + 23 + CODE * (i + 1)) for i in (0, 1, 2)
        )


@torch.no_grad()
def init_citing(model: BailingMoeV2ForCausalLM, tokens: Sequence[str], heard: float = HEARD) -> None:
    """Overwrites the last key-value group of the first NUM_LAYERS layers and the last CITING_DIMS of the stream, by
    torch's global seed. tokens: the text of each id; heard: HEARD or HEARD_AT_START."""
    config = model.config
    dims = _Dims(config.hidden_size)
    for name, parameter in model.named_parameters():
        if name.endswith(
            ("gate_proj.weight", "up_proj.weight", "gate_up_proj", "query_key_value.weight", "gate.weight")
        ):
            parameter[..., dims.all] = 0
        elif name.endswith(("attention.dense.weight", "down_proj.weight")):
            parameter[dims.all] = 0
        elif name.endswith("down_proj"):
            parameter[:, dims.all] = 0
        elif name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            parameter[dims.all] = 1
    model.model.norm.weight[dims.all] = 0
    model.model.norm.weight[dims.said] = heard
    model.model.word_embeddings.weight[:, dims.all] = _embeddings(tokens, dims)
    layers = [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)][:NUM_LAYERS]
    frequencies = model.rotary.inv_freq
    for layer, write in zip(layers, (_know_neighbours, _know_passage, _find_source, _say_number), strict=True):
        head = _Head(layer.attention)
        head.clear()
        write(head, dims, frequencies)


def _embeddings(tokens: Sequence[str], dims: _Dims) -> Tensor:
    table, start = torch.zeros(len(tokens), CITING_DIMS), dims.all.start
    codes = torch.randn(len(tokens), CODE)
    table[:, dims.own.start - start : dims.own.stop - start] = EMBEDDED * codes / codes.norm(dim=1, keepdim=True)
    for id_, text in enumerate(tokens):
        if text in "123456789" and len(text) == 1:
            table[id_, int(text) - 1] = EMBEDDED
    for mark, wanted in ((dims.turn, "</role>"), (dims.bracket, "["), (dims.cites, " [")):
        table[[text == wanted for text in tokens], mark - start] = EMBEDDED
    return table


class _Head:
    """The first two query heads of an attention's last group, with its key and value, as rows of the fused weight."""

    def __init__(self, attention: Attention) -> None:
        H, G, C = attention.num_heads, attention.num_kv_heads, attention.head_dim
        self.C, self.half, per_group = C, 0, H // G
        self.weight, self.dense = attention.query_key_value.weight, attention.dense.weight
        self.heads = [C * (H - per_group + i) for i in range(min(2, per_group))]
        self.key, self.value = C * (H + G - 1), C * (H + 2 * G - 1)
        self.group = slice(C * (H - per_group), C * H)

    def clear(self) -> None:
        nn.init.normal_(self.weight[self.group], std=0.02)  # what is not written below may learn something of its own
        for row in (*self.heads[:1], self.key, self.value):
            self.weight[row : row + self.C] = 0
        self.dense[:, self.group] = 0

    def carry(self, source: slice | int, row: int, gain: float) -> int:
        """Reads these dims into the value from `row` on; returns the row after them."""
        source = slice(source, source + 1) if isinstance(source, int) else source
        for offset, dim in enumerate(range(source.start, source.stop)):
            self.weight[self.value + row + offset, dim] = gain
        return row + source.stop - source.start

    def write(self, head: int, row: int, target: slice | int, gain: float) -> None:
        target = slice(target, target + 1) if isinstance(target, int) else target
        for offset, dim in enumerate(range(target.start, target.stop)):
            self.dense[dim, self.heads[head] + row + offset] = gain


def _know_neighbours(head: _Head, dims: _Dims, frequencies: Tensor) -> None:
    """Queries and keys that are the same for every token, so that only the distance counts: 1 and 2."""
    half = len(frequencies)
    strength = torch.tensor([1.4, 1.0, 0.7, 0.5])[: min(4, half)]
    pairs = torch.arange(len(strength))
    for query, distance in zip(head.heads, (1.0, 2.0), strict=False):
        head.weight[query : query + head.C] = 0
        angle = frequencies[pairs] * distance
        head.weight[query + pairs, CONSTANT] = strength * angle.cos()
        head.weight[query + half + pairs, CONSTANT] = -strength * angle.sin()
    head.weight[head.key + pairs, CONSTANT] = strength
    mark = head.carry(dims.own, 0, 0.4)
    head.carry(dims.bracket, mark, 0.4)
    head.write(0, 0, dims.previous, 1.0)
    head.write(0, mark, dims.opens, 1.0)
    head.write(len(head.heads) - 1, 0, dims.before, 1.0)


def _know_passage(head: _Head, dims: _Dims, frequencies: Tensor) -> None:
    """Looks at the latest token that opens a passage or a turn, and takes its number, or that it has none."""
    _look_at_latest(head, frequencies, _FAR, CONSTANT, {dims.opens: 0.0, dims.turn: 40.0})
    mark = head.carry(dims.said, 0, 1.0)
    head.carry(dims.turn, mark, 1.0)
    head.write(0, 0, dims.passage, 1.7)
    head.write(0, mark, dims.no_passage, 1.7)


def _find_source(head: _Head, dims: _Dims, frequencies: Tensor) -> None:
    """Looks for a passage's token that is this one and follows the same two, and takes its passage's number."""
    half = len(frequencies)
    slow = [*range(half - half // 3, half), *range(2 * half - half // 3, 2 * half), *range(2 * half, head.C - 1)]
    per_code = min(CODE, len(slow) // 3)
    for place, code in enumerate((dims.own, dims.previous, dims.before)):
        for offset, row in enumerate(slow[place * per_code : (place + 1) * per_code]):
            head.weight[head.heads[0] + row, code.start + offset] = 1.0
            head.weight[head.key + row, code.start + offset] = 1.0
    head.weight[head.heads[0] + head.C - 1, CONSTANT] = 0.02
    head.weight[head.key + head.C - 1, dims.no_passage] = -8.0
    head.carry(dims.passage, 0, 1.0)
    head.write(0, 0, dims.passage, 2.0)


def _say_number(head: _Head, dims: _Dims, frequencies: Tensor) -> None:
    """After " [", gathers the numbers of the sentence's tokens and says the most frequent; elsewhere it rests."""
    _look_at_latest(head, frequencies, _NEAR, dims.cites, {dims.no_passage: 0.0})
    head.weight[head.heads[0] + head.C - 3, CONSTANT] = 0.01
    head.weight[head.key + head.C - 3, dims.turn] = 20.0
    head.carry(dims.passage, 0, 1.0)
    head.write(0, 0, dims.said, SAY)


def _look_at_latest(
    head: _Head, frequencies: Tensor, pairs: Sequence[int], asks: int, marks: Mapping[int, float]
) -> None:
    """Where `asks` is set, looks at the latest position with one of the marks, each set back by so many tokens; others
    look alike to it."""
    half, query, key = len(frequencies), head.heads[0], head.key
    mark, rest = head.C - 1, head.C - 2
    chosen = torch.tensor([pair for pair in pairs if pair < half] or [half - 1])
    share = len(chosen) ** -0.5
    head.weight[query + mark, asks] = 1.0
    head.weight[query + chosen, asks] = share * torch.tensor(0.5).cos()
    head.weight[query + half + chosen, asks] = share * torch.tensor(0.5).sin()  # ahead: steep from the start
    head.weight[key + rest, CONSTANT] = 0.05
    for dim, back in marks.items():
        angle = -frequencies[chosen] * back
        head.weight[key + mark, dim] = 10.0
        head.weight[key + chosen, dim] = 10.0 * share * angle.cos()
        head.weight[key + half + chosen, dim] = 10.0 * share * angle.sin()
