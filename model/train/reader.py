"""A start for reading: weights under which the decoder answers with the line of the record that a question asks for.

Seven layers, each a step that is written down: who stands before me (0), at which position (1), in which line and
passage (2), what the line and the passage say so far (3), which line a question's words ask for, or none (4), carry
that choice to the answer (5), copy the line to its end and cite its passage (6). What words mean to each other is not
written: `matching.py` learns it, apart and quickly, because the fourth step is a cosine of two weighted means.
"None" is a line too: the sentence of the instructions that an abstention repeats.

Every position keeps a constant so large that normalising hardly changes it, so a layer's input is the sum of what the
layers before it wrote; each head has one dim of its own that keeps the length of its queries and keys. So a logit is
the plain product of what `ask` and `offer` put down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model.modeling import MLP, Attention, BailingMoeV2ForCausalLM, DecoderLayer, MoE, MTPLayer, Router
from model.train.lines import MARKS, NUM_KEPT, RULES
from model.train.matching import CONTEXT, MEANING, POOLED, SLOPE_PHASE, SLOPE_RATE, VECTOR, Matcher

NUM_LAYERS = 7
HIDDEN, HEADS, GROUPS, HEAD = 416, 8, 2, 128  # the shape that this is written for
ROTARY = 32  # dims of a head that turn
CONSTANT = 256.0  # in every position's stream; a power of 2, as BETA: what is divided by it stays exact in bf16
LENGTH = 512.0  # of a head's queries and keys
BETA = 16.0  # how sharply the first layer's rules decide
CODE, SHORT = 48, 32  # dims of a token's code, and of what is kept of a neighbour's
SHAPE = 2.0  # how much a leading space or a final line break weighs in a token's code
MAX_KEY = 9  # passages with a number of one digit
PLACE_PAIRS = (1, 3, 5, 7)  # rotary pairs whose phases are a position
OFFSET_PAIRS = (1, 3)
PLACE_GAIN = 0.2
# What a match counts: of the last token, of the one before, of the line's place and of each rate of the offset.
SAME, SAME_BEFORE, SAME_LINE, SAME_OFFSET = 30.0, 16.0, 50.0, 45.0
# At a line's end the offset must be right to the token: of two equal digits the first is not the last.
END_OFFSET, END_MARGIN = (400.0, 45.0), 42.0
COPIED, DECIDED = 20.0, 150.0  # how loudly a copied token is said, and one that a rule decides
CARRIED = 50.0  # the choice, in an answer, against the answer's own
ASKED = 20000.0  # how sharply a line is chosen: two that are equally good would blend
FINAL_NORM = 0.4
ROUTED = 0.3  # how far a router's scores lie apart
BEACON, BEACON_NORM = 16.0, 100.0  # what the next layer's input is measured by, whatever is said
_NEIGHBOUR = (2.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # strengths of rotary pairs: distance 1 beats all others


_OPENING = ("<role>", "S", "Y", "ST", "EM", "</role>", "Answer")  # what every prompt begins with


class _Stream:
    """Where things lie in the residual stream."""

    def __init__(self) -> None:
        self._end = 1
        self.constant = 0
        self.one = self._take(1).start  # for the rules: in INT4 a weight as small as the constant's would be lost
        self.mark = {name: self._take(1).start for name in MARKS}
        self.code = self._take(CODE)
        self.space, self.line_break = self._take(1).start, self._take(1).start
        self.number = self._take(MAX_KEY)
        self.meaning = self._take(MEANING)
        self.before, self.before_that = self._take(SHORT), self._take(SHORT)
        kept = list(MARKS)[:NUM_KEPT]
        self.mark_before = {name: self._take(1).start for name in kept}
        self.mark_before_that = {n: self._take(1).start for n in ("breaks", "opens_turn", "system", "title", "say")}
        self.rule = {name: self._take(1).start for name in dict.fromkeys(rule.target for rule in RULES)}
        self.seen = (self.mark, self.mark_before, self.mark_before_that)
        self.place = self._take(2 * len(PLACE_PAIRS))
        self.line, self.is_header = self._take(2 * len(PLACE_PAIRS)), self._take(1).start
        self.last_line = self._take(2 * len(PLACE_PAIRS))
        self.passage, self.no_passage = self._take(MAX_KEY), self._take(1).start
        self.ended, self.own = self._take(SHORT), self._take(SHORT)
        self.beacon = self._take(1).start
        self.offset, self.offset_before = self._take(4), self._take(4)
        self.context = self._take(CONTEXT)
        self.chosen, self.chosen_passage = self._take(2 * len(PLACE_PAIRS)), self._take(MAX_KEY + 1)
        assert self._end <= HIDDEN, self._end

    def _take(self, size: int) -> slice:
        self._end += size
        return slice(self._end - size, self._end)


_S = _Stream()
# What the MTP layer reads of a position, none of it in an embedding, so that the head does not hear it.
_READ_ON = [
    dim
    for part in (_S.own, _S.before, _S.offset, _S.offset_before, _S.line, _S.last_line, _S.ended, _S.chosen,
                 _S.chosen_passage, slice(_S.no_passage, _S.no_passage + 1))
    for dim in range(part.start, part.stop)
] + [_S.rule["starts"], _S.rule["leaves"], _S.rule["origin"]]  # fmt: skip
_WHERE = slice(_S.passage.start, _S.no_passage + 1)  # the passage's number or that there is none


class _Group:
    """One key-value group of an attention layer: its query heads, key and value, as rows of the fused weight."""

    def __init__(self, model: BailingMoeV2ForCausalLM, layer: int, group: int) -> None:
        attention: Attention = model.model.layers[layer].attention  # type: ignore[assignment]
        H, G, C = attention.num_heads, attention.num_kv_heads, attention.head_dim
        self._weight, self._dense = attention.query_key_value.weight, attention.dense.weight
        self._queries = [C * (group * (H // G) + i) for i in range(H // G)]
        self._key, self._value = C * (H + group), C * (H + G + group)
        self.frequencies = model.rotary.inv_freq
        self.half = len(self.frequencies)
        self._free = 2 * self.half  # the next dim of a head that does not turn and is not taken
        self._carried = 0
        for row in (*self._queries, self._key, self._value):
            self._weight[row : row + C] = 0
        for row, dim in [*((q, C - 1) for q in self._queries), (self._key, C - 2)]:
            self._weight[row + dim, _S.constant] = LENGTH / CONSTANT

    def take(self, size: int) -> slice:
        """Dims of a head for a match of its own."""
        self._free += size
        assert self._free <= HEAD - 2
        return slice(self._free - size, self._free)

    def ask(self, head: int, dims: slice | int, source: slice | int, gain: float = 1.0) -> None:
        _fill(self._weight, self._queries[head], dims, source, gain)

    def offer(self, dims: slice | int, source: slice | int, gain: float = 1.0) -> None:
        _fill(self._weight, self._key, dims, source, gain)

    def ask_matrix(self, head: int, dims: slice, source: slice, matrix: Tensor) -> None:
        row = self._queries[head]
        self._weight[row + dims.start : row + dims.stop, source] = matrix

    def offer_matrix(self, dims: slice, source: slice, matrix: Tensor) -> None:
        self._weight[self._key + dims.start : self._key + dims.stop, source] = matrix

    def turn(self, pairs: Sequence[int], strengths: Sequence[float], mark: int, head: int | None, phase: float) -> None:
        """Writes rotary pairs of a query head, or of the key (head None), that are on where `mark` is. A query's phase
        is in radians; a distance d is the phase -frequency d."""
        row = self._key if head is None else self._queries[head]
        scale = 1 / CONSTANT if mark == _S.constant else 1.0
        for pair, strength in zip(pairs, strengths, strict=True):
            self._weight[row + pair, mark] = strength * scale * math.cos(phase)
            self._weight[row + self.half + pair, mark] = strength * scale * math.sin(phase)

    def look_back(self, head: int, distance: float, gain: float) -> None:
        """The query looks so many positions back; the key's part is `offer_position`."""
        row = self._queries[head]
        for pair, strength in enumerate(_NEIGHBOUR):
            angle = -float(self.frequencies[pair]) * distance
            self._weight[row + pair, _S.constant] = gain * math.sqrt(strength) / CONSTANT * math.cos(angle)
            self._weight[row + self.half + pair, _S.constant] = gain * math.sqrt(strength) / CONSTANT * math.sin(angle)

    def offer_position(self, gain: float) -> None:
        self.turn(range(len(_NEIGHBOUR)), [gain * math.sqrt(s) for s in _NEIGHBOUR], _S.constant, None, 0.0)

    def latest(self, head: int, gains: Mapping[int, float], marks: Sequence[int]) -> None:
        """Looks at the latest position with one of the marks. gains: of rotary pairs; the slowest turns less than half
        within a prompt, so that nothing earlier comes near again; faster ones part neighbours."""
        dims = self.take(1)
        base = math.sqrt(1.2 * sum(gains.values()))
        self.ask(head, dims, _S.constant, base / CONSTANT)
        roots = [math.sqrt(gain) for gain in gains.values()]
        self.turn(list(gains), roots, _S.constant, head, 0.5)  # ahead: steep from the start
        for mark in marks:
            self.offer(dims, mark, base)
            self.turn(list(gains), roots, mark, None, 0.0)

    def carry(self, source: slice | int, gain: float = 1.0) -> slice:
        """Reads these dims into the value; returns where."""
        size = 1 if isinstance(source, int) else source.stop - source.start
        dims = slice(self._carried, self._carried + size)
        self._carried += size
        assert self._carried <= HEAD
        _fill(self._weight, self._value, dims, source, gain)
        return dims

    def cancel(self, dims: slice, mark: int) -> None:
        """Takes a mark off a value of one dim, so that a position with it says nothing."""
        self._weight[self._value + dims.start, mark] = -1.0

    def write(self, head: int, target: slice | int, dims: slice, gain: float | Tensor = 1.0) -> None:
        """What the head found of these dims of the value goes to `target`, times a number or by a matrix."""
        column = self._queries[head]
        if isinstance(gain, Tensor):
            target = slice(target, target + 1) if isinstance(target, int) else target
            self._dense[target, column + dims.start : column + dims.stop] = gain
            return
        first = target if isinstance(target, int) else target.start
        for offset in range(dims.stop - dims.start):
            self._dense[first + offset, column + dims.start + offset] = gain


def _fill(weight: Tensor, row: int, dims: slice | int, source: slice | int, gain: float) -> None:
    dims = slice(dims, dims + 1) if isinstance(dims, int) else dims
    source = slice(source, source + 1) if isinstance(source, int) else source
    for offset in range(dims.stop - dims.start):
        weight[row + dims.start + offset, source.start + offset] = gain


@torch.no_grad()
def init_reader(model: BailingMoeV2ForCausalLM, tokens: Sequence[str], matcher: Matcher) -> None:
    """Overwrites the weights, by torch's global seed. tokens: the text of each id, special ones too; matcher: what
    words mean to each other, learned for the same tokens. The model has the shape above and a tied head."""
    layers = [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)][:NUM_LAYERS]
    for layer in layers:
        nn.init.zeros_(layer.attention.dense.weight)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            nn.init.constant_(norm.weight, CONSTANT / math.sqrt(HIDDEN))
        for name, parameter in layer.mlp.named_parameters():
            if name.endswith(("down_proj.weight", "down_proj")):
                nn.init.zeros_(parameter)
        sharp = math.sqrt(LENGTH**2 / math.sqrt(HEAD))
        for norm in (layer.attention.query_layernorm, layer.attention.key_layernorm):
            nn.init.constant_(norm.weight, sharp)
    for module in model.modules():
        if isinstance(module, Router):  # by the token itself: the constant would send every one the same way
            module.weight.zero_()
            module.weight[:, _S.own] = ROUTED * torch.randn(len(module.weight), SHORT)
    codes = _codes(tokens)
    model.model.word_embeddings.weight.copy_(_embeddings(tokens, codes, matcher))
    nn.init.zeros_(model.model.norm.weight)
    model.model.norm.weight[_S.code.start : _S.line_break + 1] = FINAL_NORM
    if model.config.num_nextn_predict_layers:
        model.model.norm.weight[_READ_ON] = 1.0
        model.model.norm.weight[_S.beacon] = BEACON_NORM
    _know_neighbours(model, matcher)
    _apply_rules(layers[0].mlp, matcher)
    place = _know_place(model, [tokens.index(text) for text in _OPENING])
    _know_line(model)
    _know_offset(layers[2].mlp)
    _know_meaning(model, matcher)
    _choose_line(model, layers[4].attention, matcher)
    _carry_choice(model)
    _say(model, tokens, codes, place)
    if model.config.num_nextn_predict_layers:
        _say_next_but_one(model, tokens, codes, place)
    _round(model)


def _codes(tokens: Sequence[str]) -> Tensor:
    """[V, CODE] of 1 and -1, alike where the text is but for space around it; nothing for a turn's opening."""
    texts = [" " if _is_gap(text) else text if text.startswith("<") else text.strip() or text for text in tokens]
    keys = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    keyed = torch.randn(len(keys), CODE).sign()[[keys[text] for text in texts]]
    # Tokens that are pieces of a character have one text, the replacement mark: they are told apart by id.
    own = torch.randn(len(tokens), CODE).sign()
    is_piece = torch.tensor(["\ufffd" in text for text in tokens])
    keyed[is_piece] = own[is_piece]
    keyed[[text in ("</role>", "") for text in tokens]] = 0
    # Digits differ in half of what is kept of them: a number's last must not be taken for the one before.
    walsh = torch.ones(1, 1)
    while len(walsh) < SHORT:
        walsh = torch.cat((torch.cat((walsh, walsh), 1), torch.cat((walsh, -walsh), 1)))
    for id_, text in enumerate(tokens):
        if text.strip().isdigit() and len(text.strip()) == 1 and text.isascii():
            keyed[id_, :SHORT] = walsh[int(text) + 1]
    return keyed


def _is_gap(text: str) -> bool:
    """What is copied as a space: where a line is only wrapped, its break."""
    return text == " " or (text != "" and not text.strip("\n"))


def _embeddings(tokens: Sequence[str], codes: Tensor, matcher: Matcher) -> Tensor:
    table = torch.zeros(len(tokens), HIDDEN)
    table[:, _S.constant], table[:, _S.one] = CONSTANT, 1.0
    for name, is_marked in MARKS.items():
        table[torch.tensor([is_marked(text) for text in tokens]), _S.mark[name]] = 1.0
    table[:, _S.code] = codes
    table[:, _S.space] = torch.tensor([SHAPE if text.startswith(" ") or _is_gap(text) else -SHAPE for text in tokens])
    table[:, _S.line_break] = torch.tensor([SHAPE if text.endswith("\n") else -SHAPE for text in tokens])
    for id_, text in enumerate(tokens):
        if MARKS["digit"](text):
            table[id_, _S.number.start + int(text) - 1] = 1.0
    table[:, _S.meaning] = matcher.embedding
    return table


# --- the seven layers -------------------------------------------------------------------------------------------


def _know_neighbours(model: BailingMoeV2ForCausalLM, matcher: Matcher) -> None:
    """Layer 0: codes and marks of the two tokens before, and the meaning of the one before
    as it bears on this one's."""
    group, names = _Group(model, 0, 1), list(MARKS)[:NUM_KEPT]
    group.offer_position(4.0)
    group.look_back(0, 1.0, 5.0)
    group.look_back(1, 2.0, 5.0)
    code = group.carry(slice(_S.code.start, _S.code.start + SHORT))
    marks = {name: group.carry(_S.mark[name]) for name in names}
    meaning = group.carry(_S.meaning)
    group.write(0, _S.before, code)
    group.write(1, _S.before_that, code)
    group.look_back(2, 0.0, 5.0)
    group.write(2, _S.own, code)
    for name in names:
        group.write(0, _S.mark_before[name], marks[name])
        if name in _S.mark_before_that:
            group.write(1, _S.mark_before_that[name], marks[name])
    group.write(0, _S.meaning, meaning, matcher.before)


def _apply_rules(mlp: nn.Module, matcher: Matcher) -> None:
    """The first layer's own: where a line starts and what opens a passage or a question, from marks, and what a pair
    of tokens means, as learned."""
    assert isinstance(mlp, MLP)
    gate, up, down = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
    for weight in (gate, up):
        weight.zero_()
    for row, rule in enumerate(RULES):
        wanted, unwanted = (
            [_S.seen[distance][mark] for distance, mark in part] for part in (rule.wanted, rule.unwanted)
        )
        gate[row, wanted], gate[row, unwanted] = BETA, -BETA
        gate[row, _S.one], up[row, _S.one] = -BETA * (len(wanted) - 0.5), 1.0
        down[_S.rule[rule.target], row] = 2 / BETA
    gate[len(RULES), _S.one], up[len(RULES), _S.one] = BETA, 1.0
    down[_S.beacon, len(RULES)] = BEACON / BETA
    learned = slice(len(down[0]) - len(matcher.gate), len(down[0]))
    assert learned.start > len(RULES)
    gate[learned, _S.meaning], up[learned, _S.meaning] = matcher.gate, matcher.up
    down[_S.meaning, learned] = matcher.down


def _know_place(model: BailingMoeV2ForCausalLM, opening_ids: Sequence[int]) -> float:
    """Layer 1: the position, as the sines of its distance from the first turn's opening, one head each.

    Returns the mean square length of a position."""
    landmarks = []
    for number in (0, 1):
        group = _Group(model, 1, number)
        kept, trim = group.take(1), group.take(1)
        group.turn(PLACE_PAIRS, [1.0] * len(PLACE_PAIRS), _S.rule["origin"], None, 0.0)
        group.offer(kept, _S.rule["origin"], 4.0)
        group.offer(kept, _S.rule["landmark"], 4.0)
        sign, other = group.carry(_S.rule["origin"]), group.carry(_S.rule["landmark"])
        for head, pair in enumerate(PLACE_PAIRS):
            group.ask(head, kept, _S.constant, 5.0 / CONSTANT)
            group.ask(head, trim, _S.constant, 1.0 / CONSTANT)
            group.turn([pair], [2 * PLACE_GAIN], _S.constant, head, number * math.pi / 2)
            target = _S.place.start + len(PLACE_PAIRS) * number + head
            group.write(head, target, sign, 1 / PLACE_GAIN)
            group.write(head, target, other, -1 / PLACE_GAIN)
        landmarks.append((group, trim))
    # The two landmarks must count alike to a thousandth, and normalising makes them differ by more: the mean of the
    # fastest cosine over whole turns, which should be 0, says by how much.
    turns = 15
    length = len(opening_ids) + round(turns * 2 * math.pi / float(model.rotary.inv_freq[PLACE_PAIRS[0]]))
    ids = torch.tensor([[*opening_ids, *[opening_ids[-1]] * (length - len(opening_ids))]])
    gain = 0.0
    for _ in range(4):
        for group, trim in landmarks:
            group.offer(trim, _S.rule["landmark"], gain)
        _round(model)
        x_BSD, tables = model.model.word_embeddings(ids), model.rotary(torch.arange(length)[None])
        for layer in model.model.layers[:2]:
            x_BSD, _ = layer(x_BSD, *tables, None, None)
        place_SP = x_BSD[0, len(opening_ids) :, _S.place]
        gain += 2 * PLACE_GAIN * float(place_SP[:, 0].mean())
    return float(place_SP.square().sum(-1).mean())


def _round(model: BailingMoeV2ForCausalLM) -> None:
    """To what the checkpoint will hold."""
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())


def _look_before_end(group: _Group, head: int) -> None:
    """The token before this one, or where that is an end and nothing else the one before it."""
    group.offer_position(8.0)
    group.look_back(head, 1.4, 8.0)
    skip = group.take(1)
    group.ask(head, skip, _S.constant, 5.0 / CONSTANT)
    group.offer(skip, _S.mark["pure"], -6.0)


def _know_line(model: BailingMoeV2ForCausalLM) -> None:
    """Layer 2: the place where the line started; the passage; and the last two tokens before what parts two lines."""
    group = _Group(model, 2, 0)
    group.latest(0, {5: 500.0, 8: 3000.0, 9: 3000.0}, [_S.rule["starts"]])
    group.write(0, _S.line, group.carry(_S.place))
    group.write(0, _S.is_header, group.carry(_S.mark["bracket"]))
    group = _Group(model, 2, 1)
    group.latest(0, {8: 4000.0, 9: 4000.0}, [_S.rule["opens"], _S.rule["leaves"]])
    group.write(0, _S.passage, group.carry(_S.number))
    group.write(0, _S.no_passage, group.carry(_S.rule["leaves"]))
    _look_before_end(group, 1)
    group.write(1, _S.ended, group.carry(slice(_S.code.start, _S.code.start + SHORT)))


def _know_offset(mlp: nn.Module) -> None:
    """Layer 2, the shared expert: how far into its line a token stands, as cosine and sine of two rates: those of the
    position less those of the line's start, by products that the gate computes: silu(x + B) y - B y is x y."""
    assert isinstance(mlp, MoE)
    assert isinstance(mlp.shared_experts, MLP)
    expert, half = mlp.shared_experts, len(PLACE_PAIRS)
    gate, up, down = expert.gate_proj.weight, expert.up_proj.weight, expert.down_proj.weight
    for weight in (gate, up):
        weight.zero_()
    row = 0
    for number, pair in enumerate(OFFSET_PAIRS):
        index = PLACE_PAIRS.index(pair)
        cosine, sine = index, index + half
        # The place's second half has the phase of a cosine a quarter turn on: minus the sine.
        for target, terms in (
            (2 * number, ((cosine, cosine, 1.0), (sine, sine, 1.0))),
            (2 * number + 1, ((sine, cosine, -1.0), (cosine, sine, 1.0))),
        ):
            for here, start, sign in terms:
                for factor, is_product in ((1.0, True), (-1.0, False)):
                    gate[row, _S.constant] = BETA / CONSTANT
                    gate[row, [_S.rule["origin"], _S.rule["landmark"]]] = (
                        -3 * BETA
                    )  # these two have no place of their own
                    if is_product:
                        gate[row, _S.place.start + here] = 1.0
                    up[row, _S.line.start + start] = 1.0
                    down[_S.offset.start + target, row] = sign * factor
                    row += 1


def _advance(model: BailingMoeV2ForCausalLM, tokens: float, gain: float) -> Tensor:
    """[4,4] that turns an offset by so many tokens."""
    turns = []
    for pair in OFFSET_PAIRS:
        angle = float(model.rotary.inv_freq[pair]) * tokens
        turns.append(torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]))
    return gain * torch.block_diag(*turns)


def _know_meaning(model: BailingMoeV2ForCausalLM, matcher: Matcher) -> None:
    """Layer 3: the weighted mean of the line's meaning so far, and of the passage's; and the line before this one."""
    group = _Group(model, 3, 0)
    line, weight, passage, weight_far = (group.take(n) for n in (2 * len(PLACE_PAIRS), 1, MAX_KEY + 1, 1))
    group.offer(line, _S.line, 10.0)
    group.ask(0, line, _S.line, 20.0)
    group.offer_matrix(weight, _S.meaning, matcher.weight[None])
    group.ask(0, weight, _S.constant, 1 / CONSTANT)
    group.offer(passage, _WHERE, 10.0)
    group.ask(1, passage, _WHERE, 20.0)
    group.offer_matrix(weight_far, _S.meaning, matcher.weight_far[None])
    group.ask(1, weight_far, _S.constant, 1 / CONSTANT)
    pair = int((group.frequencies - SLOPE_RATE).abs().argmin())
    group.turn([pair], [1.0], _S.constant, None, 0.0)
    group.turn([pair], [matcher.slope.item()], _S.constant, 1, SLOPE_PHASE)
    meaning = group.carry(_S.meaning)
    group.write(0, _S.meaning, meaning, POOLED)
    group.write(1, _S.context, meaning, matcher.context)
    group = _Group(model, 3, 1)
    group.offer_position(5.0)
    group.look_back(0, 1.0, 5.0)
    group.write(0, _S.last_line, group.carry(_S.line))


def _choose_line(model: BailingMoeV2ForCausalLM, attention: Attention, matcher: Matcher) -> None:
    """Layer 4: where a turn ends, the line whose meaning is nearest to that of the turn's last line, or none."""
    _Group(model, 4, 1)
    group = _Group(model, 4, 0)
    row, key = group._queries[0], group._key
    for free in (row + HEAD - 1, key + HEAD - 2):
        group._weight[free] = 0
    vector, limit, filler, out = group.take(VECTOR), group.take(1), group.take(1), group.take(1)
    group.ask_matrix(0, vector, _S.meaning, matcher.query / (1 + POOLED))
    group.ask(0, limit, _S.constant, 1 / CONSTANT)
    group.ask(0, out, _S.constant, 0.05 / CONSTANT)
    group.offer_matrix(vector, _S.meaning, matcher.key / (1 + POOLED))
    group.offer_matrix(vector, _S.context, matcher.key_context)
    group.offer(filler, _S.constant, 1 / CONSTANT)
    for mark in (_S.no_passage, _S.is_header):
        group.offer(out, mark, -1000.0)
    far, threshold = 1000.0, matcher.threshold.item()
    group.offer(out, _S.rule["abstains"], 1000.0)
    group.offer(limit, _S.rule["abstains"], far * threshold)
    group._weight[key + filler.start, _S.rule["abstains"]] = far * math.sqrt(1 - threshold**2)
    sharp = math.sqrt(ASKED / math.sqrt(HEAD))
    for norm in (attention.query_layernorm, attention.key_layernorm):
        nn.init.constant_(norm.weight, sharp)
    group.write(0, _S.chosen, group.carry(_S.line))
    group.write(0, _S.chosen_passage, group.carry(_WHERE))


def _carry_choice(model: BailingMoeV2ForCausalLM) -> None:
    """Layer 5: an answer takes over what the end of the question has chosen."""
    group = _Group(model, 5, 1)
    _look_before_end(group, 0)
    group.write(0, _S.offset_before, group.carry(_S.offset))
    group = _Group(model, 5, 0)
    group.latest(0, {8: 4000.0, 9: 4000.0}, [_S.mark["ends_turn"]])
    group.write(0, _S.chosen, group.carry(_S.chosen), CARRIED)
    group.write(0, _S.chosen_passage, group.carry(_S.chosen_passage), CARRIED)


def _say(model: BailingMoeV2ForCausalLM, tokens: Sequence[str], codes: Tensor, place: float) -> None:
    """Layer 6: the chosen line's next token; at its end the citation, and the end of the turn after that."""
    code_of = {text: codes[id_] for id_, text in enumerate(tokens)}
    short = slice(_S.code.start, _S.code.start + SHORT)
    # 1. copy: the token after the same three, in the chosen line; at the start the line's first
    group = _Group(model, 6, 0)
    own, before, line, starts, offset = (group.take(n) for n in (SHORT, SHORT, 8, 1, 4))
    group.ask(0, own, short, SAME / SHORT)
    group.offer(own, _S.before)
    group.ask(0, before, _S.before, SAME_BEFORE / SHORT)
    group.offer(before, _S.before_that)
    group.ask(0, line, _S.chosen, 2.5 * SAME_LINE / 10 / CARRIED)
    group.offer(line, _S.line, 10.0)
    group.ask(0, starts, _S.mark["opens_turn"], 50.0)
    group.offer(starts, _S.rule["starts"], 10.0)
    group.ask_matrix(0, offset, _S.offset, _advance(model, 1.0, SAME_OFFSET / 2))
    group.offer(offset, _S.offset, 2.0)
    group.write(0, _S.code, group.carry(_S.code), COPIED)
    group.write(0, _S.space, group.carry(_S.space), COPIED)
    # 2. end of the line: the start of the next one knows the last token and where it stood
    group = _Group(model, 6, 1)
    own, line, starts, offset, rest, cites = (group.take(n) for n in (SHORT, 8, 1, 4, 1, 1))
    group.ask(0, own, short, 3 * SAME / SHORT)
    group.offer(own, _S.ended)
    origin = _S.rule["origin"]  # where the head rests, whatever stands before it
    group.offer_matrix(own, slice(origin, origin + 1), -code_of[_OPENING[-3]][:SHORT, None])
    group.ask_matrix(
        0, offset, _S.offset, _advance(model, 0.0, 0.5) * torch.tensor(END_OFFSET).repeat_interleave(2)[:, None]
    )
    group.offer(offset, _S.offset_before, 2.0)
    group.ask(0, line, _S.chosen, SAME_LINE / 10 / CARRIED)
    group.offer(line, _S.last_line, 10.0)
    group.ask(0, starts, _S.constant, 10.0 / CONSTANT)
    group.offer(starts, _S.rule["starts"], 10.0)
    group.offer(starts, _S.no_passage, -10.0)  # an abstention has no citation: its full stop is copied
    group.offer(starts, _S.rule["leaves"], 10.0)
    enough = 200.0 + place * SAME_LINE + 3 * SAME + sum(END_OFFSET) - END_MARGIN
    group.ask(0, rest, _S.constant, enough / 10 / CONSTANT)
    group.offer(rest, _S.rule["origin"], 10.0)
    is_found = group.carry(_S.constant, 1 / CONSTANT)
    group.cancel(is_found, _S.rule["origin"])  # where the head rests
    group.write(0, _S.code, is_found, DECIDED * code_of[" ["][:, None])
    group.write(0, _S.space, is_found, DECIDED * SHAPE)
    # 3. what follows from the position's own token
    group.offer_position(4.0)
    group.look_back(1, 0.0, 4.0)
    number, ended, opened, constant = (
        group.carry(_S.rule["numbered"]), group.carry(_S.rule["finished"]), group.carry(_S.mark["opens_turn"]),
        group.carry(_S.constant, 1 / CONSTANT),
    )  # fmt: skip
    group.write(1, _S.code, number, 2 * DECIDED * code_of["]."][:, None])
    group.write(1, _S.code, ended, 2 * DECIDED * code_of["<|role_end|>"][:, None])
    group.write(1, _S.space, opened, -2.0 * COPIED * SHAPE)
    group.write(1, _S.line_break, constant, -COPIED * SHAPE)
    # 4. after " [" the number
    group.look_back(2, 0.0, 4.0)
    group.ask(2, cites, _S.mark["cites"], 100.0)
    group.offer(cites, _S.constant, 8.0 / CONSTANT)
    group.offer(cites, _S.rule["origin"], -8.0)
    group.ask(2, rest, _S.constant, 50.0 / CONSTANT)
    chosen = group.carry(slice(_S.chosen_passage.start, _S.chosen_passage.stop - 1), 1 / CARRIED)
    digits = torch.stack([code_of[str(key)] for key in range(1, MAX_KEY + 1)], dim=1)
    group.write(2, _S.code, chosen, 2 * DECIDED * digits)


def _say_next_but_one(model: BailingMoeV2ForCausalLM, tokens: Sequence[str], codes: Tensor, place: float) -> None:
    """The MTP layer: the same as layer 6, one token on. At a position it knows the token there (`before`), the next
    one (`code`) and what the decoder knew; it passes on the like for the position after, so that drafts can follow."""
    layer = model.model.layers[NUM_LAYERS]
    assert isinstance(layer, MTPLayer)
    code_of = {text: codes[id_] for id_, text in enumerate(tokens)}
    short = slice(_S.code.start, _S.code.start + SHORT)
    # 1. join: the stream of a position in which everything is one token on
    unit = CONSTANT / math.sqrt(HIDDEN)  # an embedding is measured by its constant, a state by its beacon
    nn.init.constant_(layer.enorm.weight, unit)
    nn.init.constant_(layer.hnorm.weight, BEACON * BEACON_NORM / math.sqrt(HIDDEN))
    joined, state = layer.eh_proj.weight, HIDDEN
    joined.zero_()
    for dim in (_S.constant, *_S.mark.values(), *range(_S.code.start, _S.line_break + 1)):
        joined[dim, dim] = 1.0
    joined[_S.own, short] = torch.eye(SHORT)
    for target, source in ((_S.before, _S.own), (_S.before_that, _S.before)):
        joined[target, state + source.start : state + source.stop] = torch.eye(SHORT)
    joined[_S.offset, state + _S.offset.start : state + _S.offset.stop] = _advance(model, 1.0, 1.0)
    for part in (_S.offset_before, _S.line, _S.last_line, _S.ended, _S.chosen, _S.chosen_passage):
        for dim in range(part.start, part.stop):
            joined[dim, state + dim] = 1.0
    for dim in (_S.no_passage, _S.rule["starts"], _S.rule["leaves"], _S.rule["origin"]):
        joined[dim, state + dim] = 1.0
    joined[_S.beacon, state + _S.beacon] = 1 / BEACON_NORM
    # 2. the norms of a layer, and at its end those of the decoder
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        nn.init.constant_(norm.weight, unit)
    layer.final_layernorm.weight.copy_(model.model.norm.weight)
    nn.init.zeros_(layer.attention.dense.weight)
    for name, parameter in layer.mlp.named_parameters():
        if name.endswith(("down_proj.weight", "down_proj")):
            nn.init.zeros_(parameter)
    for norm in (layer.attention.query_layernorm, layer.attention.key_layernorm):
        nn.init.constant_(norm.weight, math.sqrt(LENGTH**2 / math.sqrt(HEAD)))
    # 3. copy, from where this position's token stands in the chosen line
    group = _Group(model, NUM_LAYERS, 0)
    own, before, line, offset = (group.take(n) for n in (SHORT, SHORT, 8, 4))
    group.ask(0, own, short, 2 * SAME / SHORT)
    group.offer(own, _S.before)
    group.ask(0, before, _S.before, SAME_BEFORE / SHORT)
    group.offer(before, _S.before_that)
    group.ask(0, line, _S.chosen, 2.5 * SAME_LINE / 10 / CARRIED)
    group.offer(line, _S.line, 10.0)
    group.ask_matrix(0, offset, _S.offset, _advance(model, 1.0, SAME_OFFSET / 2))
    group.offer(offset, _S.offset, 2.0)
    group.write(0, _S.code, group.carry(_S.code), COPIED)
    group.write(0, _S.space, group.carry(_S.space), COPIED)
    # 4. the end of the line
    group = _Group(model, NUM_LAYERS, 1)
    own, line, starts, offset, rest, gate = (group.take(n) for n in (SHORT, 8, 1, 4, 1, 1))
    group.ask(0, own, short, 3 * SAME / SHORT)
    group.offer(own, _S.ended)
    origin = _S.rule["origin"]  # where the head rests, whatever stands before it
    group.offer_matrix(own, slice(origin, origin + 1), -code_of[_OPENING[-3]][:SHORT, None])
    group.ask(0, line, _S.chosen, SAME_LINE / 10 / CARRIED)
    group.offer(line, _S.last_line, 10.0)
    group.ask(0, starts, _S.constant, 10.0 / CONSTANT)
    group.offer(starts, _S.rule["starts"], 10.0)
    group.offer(starts, _S.no_passage, -10.0)
    group.offer(starts, _S.rule["leaves"], 10.0)
    group.ask_matrix(
        0, offset, _S.offset, _advance(model, 0.0, 0.5) * torch.tensor(END_OFFSET).repeat_interleave(2)[:, None]
    )
    group.offer(offset, _S.offset_before, 2.0)
    enough = 200.0 + place * SAME_LINE + 3 * SAME + sum(END_OFFSET) - END_MARGIN
    group.ask(0, rest, _S.constant, enough / 10 / CONSTANT)
    group.offer(rest, _S.rule["origin"], 10.0)
    is_found = group.carry(_S.constant, 1 / CONSTANT)
    group.cancel(is_found, _S.rule["origin"])
    group.write(0, _S.code, is_found, DECIDED * code_of[" ["][:, None])
    group.write(0, _S.space, is_found, DECIDED * SHAPE)
    # 5. what follows from the two tokens themselves: each head looks at its own position where they are so, else rests
    group.offer_position(4.0)
    group.offer(gate, _S.constant, 8.0 / CONSTANT)
    group.offer(gate, _S.rule["origin"], -8.0)
    ended = group.carry(_S.mark["cited"])
    constant = group.carry(_S.constant, 1 / CONSTANT)
    group.look_back(1, 0.0, 4.0)
    group.write(1, _S.code, ended, 2 * DECIDED * code_of["<|role_end|>"][:, None])
    group.write(1, _S.line_break, constant, -COPIED * SHAPE)
    group.look_back(2, 0.0, 4.0)
    group.ask(2, gate, _S.mark["cites"], 100.0)
    group.ask(2, rest, _S.constant, 50.0 / CONSTANT)
    chosen = group.carry(slice(_S.chosen_passage.start, _S.chosen_passage.stop - 1), 1 / CARRIED)
    digits = torch.stack([code_of[str(key)] for key in range(1, MAX_KEY + 1)], dim=1)
    group.write(2, _S.code, chosen, 2 * DECIDED * digits)
    group.look_back(3, 0.0, 4.0)
    opening = code_of[" ["][:SHORT] / SHORT
    group.ask_matrix(3, gate, _S.before, 200.0 * opening[None])
    group.ask(3, rest, _S.constant, 150.0 / CONSTANT)
    group.write(3, _S.code, is_found, 2 * DECIDED * code_of["]."][:, None])
