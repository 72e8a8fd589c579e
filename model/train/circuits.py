"""A start for training: weights under which the decoder can look a line up and copy it, and nothing else.

To answer in a passage's own words takes five steps, one attention layer each: know the previous token; know the first
word of one's line; from a word of the question, find the line that holds it; gather what the question's words found;
go on from where the same word stood before (Olsson et al. 2022, "In-context learning and induction heads"). Found by
gradient alone they took longer than the whole run has on a CPU; written down, training starts with them and is free to
change them. The mathematics of the decoder is untouched.

The residual stream starts in four parts: marks (a dim each: constant, ends a line, digit, telling word, turn markers),
the token itself, the previous token, the line's first token; the last two are `head_dim` wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.modeling import Attention, BailingMoeV2ForCausalLM, DecoderLayer

NUM_LAYERS = 5
EMBEDDING_STD = 0.5
SAME_WORD = 0.9  # share of an embedding that " Sodium", "sodium" and "Sodium" have in common
CONSTANT, ENDS_LINE, IS_DIGIT, IS_TELLING, OPENS_ROLE, CLOSES_ROLE = range(6)
NUM_MARKS = 6
FIRST_RARE_ID = 850  # BPE numbers its merges by how frequent they are
# Words of questions and templates that tell nothing about what is asked.
_COMMON_WORDS = """
about any anything are as can did does done em find for from has have he her him his how is it known list ma me mention
mentioned much noted nt of on or patient please question record said say she show st take takes taken tell that the
their them there these this to was were what when where which who why will with
"""
SHARP_POSITION, SHARP_MATCH = 2.0, 1.6  # norm weights of queries and keys: how sharply a head looks
REST = 1.0  # how good a match must be
COPYING_GROUPS = 2  # key-value groups that copy; more of them drown the rest
GATHER_GAIN, COPY_GAIN = 6.0, 6.0  # against the position's own token
FINAL_NORM = 0.2  # the head is the embedding: brings logits to the usual size


class _Layout:
    """Where things lie in the residual stream and in a head."""

    def __init__(self, model: BailingMoeV2ForCausalLM, num_free: int) -> None:
        config = model.config
        D, self.C = config.hidden_size - num_free, config.head_dim
        self.words = slice(NUM_MARKS, D - 2 * self.C)
        self.previous = slice(D - 2 * self.C, D - self.C)
        self.first = slice(D - self.C, D)
        self.half = config.rotary_dim // 2
        self.frequencies = model.rotary.inv_freq
        # Head dims that do not turn, or hardly within a prompt, so that a match counts alike at any distance.
        slow = [*range(self.half // 2, self.half), *range(self.half + self.half // 2, 2 * self.half)]
        self.matching = torch.tensor([*slow, *range(2 * self.half, self.C - 2)])
        self.mark, self.rest = self.C - 1, self.C - 2  # two that do not turn, kept free for marks
        num_words = self.words.stop - self.words.start
        # What a head carries of a token: its word, and in the last dim whether it ends a line.
        self.read_word = _orthonormal(self.C - 1, num_words)

    def pair_near(self, radians: float) -> int:
        """The rotary pair that turns about this much per token."""
        return int((self.frequencies - radians).abs().argmin())


@torch.no_grad()
def init_circuits(model: BailingMoeV2ForCausalLM, tokens: Sequence[str], num_free: int = 0) -> None:
    """Overwrites the random weights, by torch's global seed. tokens: the text of each id; num_free: dims at the end of
    the stream that are left to others. Needs at least NUM_LAYERS layers and a tied head."""
    assert model.config.num_hidden_layers >= NUM_LAYERS
    assert model.config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.dense.weight", "down_proj.weight", "down_proj")):
            nn.init.zeros_(parameter)
    layout = _Layout(model, num_free)
    model.model.word_embeddings.weight.copy_(_embeddings(tokens, layout, model.config.hidden_size))
    nn.init.constant_(model.model.norm.weight, FINAL_NORM)
    layers = [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)]
    previous_token, line_start, look_up, gather, *_, copy = (layer.attention for layer in layers)
    _init_previous_token(previous_token, layout)
    _init_line_start(line_start, layout)
    _init_look_up(look_up, layout)
    _init_gather(gather, layout)
    _init_copy(copy, layout)


def _embeddings(tokens: Sequence[str], layout: _Layout, width: int) -> Tensor:
    num_words = layout.words.stop - layout.words.start
    table = torch.zeros(len(tokens), width)
    keys = {key: index for index, key in enumerate(dict.fromkeys(text.strip().casefold() for text in tokens))}
    common = torch.randn(len(keys), num_words)[[keys[text.strip().casefold()] for text in tokens]]
    own = torch.randn(len(tokens), num_words)
    table[:, layout.words] = EMBEDDING_STD * (SAME_WORD * common + math.sqrt(1 - SAME_WORD**2) * own)
    opens_role = torch.tensor([text == "<role>" for text in tokens])
    table[opens_role] = 0  # where a head has nothing to look at, it looks here and finds nothing
    table[:, CONSTANT] = 4 * EMBEDDING_STD
    ends = [not text or text.endswith((".", "!", "?", "\n", "。", ">")) for text in tokens]  # special ones have no text
    table[torch.tensor(ends), ENDS_LINE] = 4 * EMBEDDING_STD
    common_words = frozenset(_COMMON_WORDS.split())
    marks = {
        IS_DIGIT: [text.strip().isdigit() for text in tokens],
        IS_TELLING: [
            id_ >= FIRST_RARE_ID and text.strip().isalpha() and text.strip().casefold() not in common_words
            for id_, text in enumerate(tokens)
        ],
        CLOSES_ROLE: [text == "</role>" for text in tokens],
    }
    table[opens_role, OPENS_ROLE] = 60 * EMBEDDING_STD  # large, so that normalising lifts nothing else there
    for mark, is_marked in marks.items():
        table[torch.tensor(is_marked), mark] = 4 * EMBEDDING_STD
    return table


def _init_previous_token(attention: Attention, layout: _Layout) -> None:
    """Head 0 looks one position back and writes what it finds, head 1 looks two back."""
    q, k, v = _rows(attention)
    # The fastest turning pairs tell neighbours apart; slower ones tell a neighbour from its echoes further back.
    strength = torch.tensor([1.4, 1.0, 0.7, 0.5])[: min(4, layout.half)]
    pairs = torch.arange(len(strength))
    _clear(attention, q[0], q[1], k[0], v[0])
    _look_by_position(attention, layout, (q[0], q[1]), k[0], pairs, strength, (1.0, 2.0))
    weight = attention.query_key_value.weight
    weight[v[0] : v[0] + layout.C - 1, layout.words] = layout.read_word
    weight[v[0] + layout.C - 1, ENDS_LINE] = 1.0
    attention.dense.weight[layout.previous, : layout.C] = EMBEDDING_STD * torch.eye(layout.C)
    _sharpen(attention, SHARP_POSITION)


def _init_line_start(attention: Attention, layout: _Layout) -> None:
    """Head 0 looks at the latest position whose previous token ends a line (no digit: 4.6), and writes its word."""
    q, k, v = _rows(attention)
    _clear(attention, q[0], k[0], v[0])
    weight = attention.query_key_value.weight
    pairs = torch.tensor([layout.pair_near(0.036), layout.pair_near(0.0157)])
    for pair in pairs:
        weight[q[0] + pair, CONSTANT] = math.cos(0.5)
        weight[q[0] + layout.half + pair, CONSTANT] = math.sin(0.5)  # ahead: the slope is steep from the start
        weight[k[0] + pair, layout.previous.stop - 1] = 1.0
        weight[k[0] + pair, IS_DIGIT] = -1.0
    weight[k[0] + layout.C - 1, CONSTANT] = 0.4  # what other positions have, so that they do not count for noise
    weight[v[0] : v[0] + layout.C - 1, layout.words] = layout.read_word
    attention.dense.weight[layout.first, : layout.C] = EMBEDDING_STD * torch.eye(layout.C)
    _sharpen(attention, SHARP_POSITION)


def _init_look_up(attention: Attention, layout: _Layout) -> None:
    """Head 0 looks for positions whose previous token is this one, and fetches the first token of their line."""
    q, k, v = _rows(attention)
    _clear(attention, q[0], k[0], v[0])
    _match_previous(attention, layout, q[0], k[0], 0)
    weight = attention.query_key_value.weight
    weight[v[0] : v[0] + layout.C, layout.first] = torch.eye(layout.C)
    attention.dense.weight[layout.first, : layout.C] = 4 * EMBEDDING_STD * torch.eye(layout.C)
    _sharpen(attention, SHARP_MATCH)


def _init_gather(attention: Attention, layout: _Layout) -> None:
    """Head 0, where an answer begins, looks at the question's telling words and says the first tokens they fetched;
    elsewhere it rests on the latest turn markers."""
    q, k, v = _rows(attention)
    _clear(attention, q[0], k[0], v[0])
    weight = attention.query_key_value.weight
    weight[q[0] + layout.mark, CLOSES_ROLE], weight[k[0] + layout.mark, IS_TELLING] = 4.0, 1.0
    weight[q[0] + layout.rest, CONSTANT], weight[k[0] + layout.rest, OPENS_ROLE] = 1.0, 1.0
    for radians in (0.083, 0.036, 0.0157):
        pair = layout.pair_near(radians)
        angle = layout.frequencies[pair] * 14.0  # the middle of a question, from where the answer begins
        weight[q[0] + pair, CLOSES_ROLE] = angle.cos()
        weight[q[0] + layout.half + pair, CLOSES_ROLE] = -angle.sin()
        weight[k[0] + pair, CONSTANT] = 0.5
    weight[v[0] : v[0] + layout.C, layout.first] = torch.eye(layout.C)
    back = GATHER_GAIN * EMBEDDING_STD * layout.read_word.T
    attention.dense.weight[layout.words, : layout.C - 1] = back
    _sharpen(attention, SHARP_MATCH)


def _init_copy(attention: Attention, layout: _Layout) -> None:
    """Each group's first query head looks for positions whose previous token is this one, and says their token."""
    q, k, v = _rows(attention)
    heads_per_group = attention.num_heads // attention.num_kv_heads
    num_words, weight = layout.words.stop - layout.words.start, attention.query_key_value.weight
    num_groups = min(attention.num_kv_heads, COPYING_GROUPS)
    carried = _orthonormal(num_groups * layout.C, num_words)
    for group in range(num_groups):
        query = q[group * heads_per_group]
        _clear(attention, query, k[group], v[group])
        _match_previous(attention, layout, query, k[group], (layout.C - 1 - len(layout.matching)) * (group % 2))
        weight[query + layout.rest, CLOSES_ROLE] = 8.0  # where an answer begins, what was gathered speaks alone
        # What stood after an earlier line's end says nothing about what comes after this one.
        weight[query + layout.mark, CONSTANT] = 1.0
        weight[k[group] + layout.mark, layout.previous.stop - 1] = -2.0
        weight[k[group] + layout.mark, IS_DIGIT] = 1.0  # but 4.6 is not a line's end
        mine = carried[group * layout.C : (group + 1) * layout.C]
        weight[v[group] : v[group] + layout.C, layout.words] = mine
        attention.dense.weight[layout.words, query : query + layout.C] = COPY_GAIN * EMBEDDING_STD * mine.T
    _sharpen(attention, SHARP_MATCH)


def _rows(attention: Attention) -> tuple[list[int], list[int], list[int]]:
    """First rows of the query, key and value heads in the fused weight."""
    H, G, C = attention.num_heads, attention.num_kv_heads, attention.head_dim
    starts = [C * head for head in range(H + 2 * G)]
    return starts[:H], starts[H : H + G], starts[H + G :]


def _clear(attention: Attention, *rows: int) -> None:
    for row in rows:
        attention.query_key_value.weight[row : row + attention.head_dim] = 0


def _look_by_position(
    attention: Attention,
    layout: _Layout,
    queries: Sequence[int],
    key: int,
    pairs: Tensor,
    strength: Tensor,
    distances: Sequence[float],
) -> None:
    """Queries and keys that are the same for every token, so that only the distance counts."""
    weight, angle = attention.query_key_value.weight, layout.frequencies[pairs]
    for query, distance in zip(queries, distances, strict=True):
        weight[query + pairs, CONSTANT] = strength * (angle * distance).cos()
        weight[query + layout.half + pairs, CONSTANT] = -strength * (angle * distance).sin()
    weight[key + pairs, CONSTANT] = strength


def _match_previous(attention: Attention, layout: _Layout, query: int, key: int, skip: int) -> None:
    """The query's own word against the key's previous one, in all but `skip` of the dims that a head carries; without
    a match the head rests on the turn markers, where it finds nothing."""
    weight = attention.query_key_value.weight
    part = torch.arange(min(len(layout.matching), layout.C - 1 - skip)) + skip
    matching = layout.matching[: len(part)]
    weight[query + matching, layout.words] = layout.read_word[part]
    weight[key + matching, layout.previous.start + part] = 1.0
    weight[query + layout.rest, CONSTANT], weight[key + layout.rest, OPENS_ROLE] = REST, 4.0


def _sharpen(attention: Attention, weight: float) -> None:
    nn.init.constant_(attention.query_layernorm.weight, weight)
    nn.init.constant_(attention.key_layernorm.weight, weight)


def _orthonormal(rows: int, columns: int) -> Tensor:
    """[rows, columns] with rows of length 1, at right angles as far as there is room for."""
    q, _ = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))
    matrix = q.T if rows < columns else q
    return matrix / math.sqrt(max(1.0, rows / columns))
