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
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.modeling import MLP, Attention, BailingMoeV2ForCausalLM, DecoderLayer, MoE, Router
from model.quantize.rtn import round_to, search_scales
from model.train.lines import MARKS, NUM_KEPT, RULES
from model.train.matching import POOLED, SLOPE_PHASE, SLOPE_RATE, VECTOR, Matcher
from model.train.reader_answer import BEACON, SHAPE, say, say_next_but_one, write_norm
from model.train.reader_heads import LENGTH, HeadGroup, look_before_end
from model.train.reader_stream import (
    CARRIED,
    CODE,
    CONSTANT,
    GROUP,
    HEAD,
    HIDDEN,
    MAX_KEY,
    NUM_LAYERS,
    OFFSET_PAIRS,
    PLACE_PAIRS,
    SHORT,
    STREAM,
)

BETA = 32.0  # how sharply the first layer's rules decide
PLACE_GAIN = 0.2
ASKED = 20000.0  # how sharply a line is chosen: two that are equally good would blend
SLOPE_LENGTH = 1000  # tokens, over which a passage's nearer part counts as it was learned,
SLOPE_RATES = (0.0005, 0.03)  # by waves of these rates
ROUTED = 0.3  # how far a router's scores lie apart
_OPENING = ("<role>", "S", "Y", "ST", "EM", "</role>", "Answer")  # what every prompt begins with


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
            module.weight[:, STREAM.own] = ROUTED * torch.randn(len(module.weight), SHORT)
    codes = _codes(tokens)
    model.model.word_embeddings.weight.copy_(_embeddings(tokens, codes, matcher))
    write_norm(model.model.norm.weight, bool(model.config.num_nextn_predict_layers))
    _know_neighbours(model, matcher)
    _apply_rules(layers[0].mlp, matcher)
    place = _know_place(model, [tokens.index(text) for text in _OPENING])
    _know_line(model)
    _know_offset(layers[2].mlp)
    _know_meaning(model, matcher)
    _choose_line(model, layers[4].attention, matcher)
    _carry_choice(model)
    code_of = {text: codes[id_] for id_, text in enumerate(tokens)}
    say(model, code_of, place)
    if model.config.num_nextn_predict_layers:
        say_next_but_one(model, code_of, place)
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
    table[:, STREAM.constant], table[:, STREAM.one] = CONSTANT, 1.0
    for name, is_marked in MARKS.items():
        table[torch.tensor([is_marked(text) for text in tokens]), STREAM.mark[name]] = 1.0
    table[:, STREAM.code] = codes
    table[:, STREAM.space] = torch.tensor(
        [SHAPE if text.startswith(" ") or _is_gap(text) else -SHAPE for text in tokens]
    )
    table[:, STREAM.line_break] = torch.tensor([SHAPE if text.endswith("\n") else -SHAPE for text in tokens])
    for id_, text in enumerate(tokens):
        if MARKS["digit"](text):
            table[id_, STREAM.number.start + int(text) - 1] = 1.0
    table[:, STREAM.meaning] = matcher.embedding
    return table


# --- the seven layers -------------------------------------------------------------------------------------------


def _know_neighbours(model: BailingMoeV2ForCausalLM, matcher: Matcher) -> None:
    """Layer 0: codes and marks of the two tokens before, and the meaning of the one before
    as it bears on this one's."""
    group, names = HeadGroup(model, 0, 1), list(MARKS)[:NUM_KEPT]
    group.offer_position(4.0)
    group.look_back(0, 1.0, 5.0)
    group.look_back(1, 2.0, 5.0)
    code = group.carry(slice(STREAM.code.start, STREAM.code.start + SHORT))
    marks = {name: group.carry(STREAM.mark[name]) for name in names}
    meaning = group.carry(STREAM.meaning)
    group.write(0, STREAM.before, code)
    group.write(1, STREAM.before_that, code)
    group.look_back(2, 0.0, 5.0)
    group.write(2, STREAM.own, code)
    for name in names:
        group.write(0, STREAM.mark_before[name], marks[name])
        if name in STREAM.mark_before_that:
            group.write(1, STREAM.mark_before_that[name], marks[name])
    group.write(0, STREAM.meaning, meaning, matcher.before)


def _apply_rules(mlp: nn.Module, matcher: Matcher) -> None:
    """The first layer's own: where a line starts and what opens a passage or a question, from marks, and what a pair
    of tokens means, as learned."""
    assert isinstance(mlp, MLP)
    gate, up, down = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
    for weight in (gate, up):
        weight.zero_()
    # 1. A rule is the difference of two units, 16 and 8 where it holds and 0 where not: so much however exactly its
    # marks are seen. They lie in groups of their own, in which INT4's rounding of what is 0 or the largest is none.
    first, second = STREAM.one.start, STREAM.one.start + 1
    for row, rule in enumerate(RULES):
        wanted, unwanted = (
            [STREAM.seen[distance][mark] for distance, mark in part] for part in (rule.wanted, rule.unwanted)
        )
        for unit, enough, sign in ((row, 0.5, 1.0), (row + GROUP, 0.75, -1.0)):
            gate[unit, wanted], gate[unit, unwanted] = BETA, -BETA
            gate[unit, first], gate[unit, second] = -BETA * enough, -BETA * (len(wanted) - 1)
            up[unit, first] = 1.0
            down[STREAM.rule[rule.target], unit] = sign * 4 / BETA
    assert len(RULES) < GROUP
    gate[len(RULES), first], up[len(RULES), first] = BETA / 2, 1.0  # as a rule that always holds
    down[STREAM.beacon, len(RULES)] = BEACON * 2 / BETA
    # 2. what was learned
    learned = slice(len(down[0]) - len(matcher.gate), len(down[0]))
    assert learned.start >= 2 * GROUP
    gate[learned, STREAM.meaning], up[learned, STREAM.meaning] = matcher.gate, matcher.up
    down[STREAM.meaning, learned] = matcher.down


def _know_place(model: BailingMoeV2ForCausalLM, opening_ids: Sequence[int]) -> float:
    """Layer 1: the position, as the sines of its distance from the first turn's opening, one head each.

    Returns the mean square length of a position."""
    landmarks = []
    for number in (0, 1):
        group = HeadGroup(model, 1, number)
        kept, trim = group.take(1), group.take(1)
        group.turn(PLACE_PAIRS, [1.0] * len(PLACE_PAIRS), STREAM.rule["origin"], None, 0.0)
        group.offer(kept, STREAM.rule["origin"], 4.0)
        group.offer(kept, STREAM.rule["landmark"], 4.0)
        sign, other = group.carry(STREAM.rule["origin"]), group.carry(STREAM.rule["landmark"])
        for head, pair in enumerate(PLACE_PAIRS):
            group.ask(head, kept, STREAM.constant, 5.0 / CONSTANT)
            group.ask(head, trim, STREAM.constant, 1.0 / CONSTANT)
            group.turn([pair], [2 * PLACE_GAIN], STREAM.constant, head, number * math.pi / 2)
            target = STREAM.place.start + len(PLACE_PAIRS) * number + head
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
            group.offer(trim, STREAM.rule["landmark"], gain)
        _round(model)
        x_BSD, tables = model.model.word_embeddings(ids), model.rotary(torch.arange(length)[None])
        for layer in model.model.layers[:2]:
            x_BSD, _ = layer(x_BSD, *tables, None, None)
        place_SP = x_BSD[0, len(opening_ids) :, STREAM.place]
        gain += 2 * PLACE_GAIN * float(place_SP[:, 0].mean())
    return float(place_SP.square().sum(-1).mean())


def _round(model: BailingMoeV2ForCausalLM) -> None:
    """To what the checkpoint will hold: bf16, and of the feed-forward weights what INT4 leaves as it is."""
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        for name, parameter in layer.mlp.named_parameters():
            if parameter.dim() > 1 and name != "gate.weight":
                parameter.copy_(_to_int4(parameter))
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())


def _to_int4(weight: Tensor) -> Tensor:
    """Rounded so that rounding again changes nothing: a step of five bits times an integer of three is exact."""
    groups = weight.unflatten(-1, (-1, GROUP))
    mantissa, exponent = torch.frexp(search_scales(groups, torch.bfloat16).float()[..., None])
    scales = torch.ldexp((mantissa * 32).round() / 32, exponent)
    return (round_to(groups, scales) * scales).flatten(-2)


def _know_line(model: BailingMoeV2ForCausalLM) -> None:
    """Layer 2: the place where the line started; the passage; and the last two tokens before what parts two lines."""
    group = HeadGroup(model, 2, 0)
    group.latest(0, range(2, 10), [STREAM.rule["starts"]])
    group.write(0, STREAM.line, group.carry(STREAM.place))
    group.write(0, STREAM.is_header, group.carry(STREAM.mark["bracket"]))
    group = HeadGroup(model, 2, 1)
    group.latest(0, (8, 9), [STREAM.rule["opens"], STREAM.rule["leaves"]])
    group.write(0, STREAM.passage, group.carry(STREAM.number))
    group.write(0, STREAM.no_passage, group.carry(STREAM.rule["leaves"]))
    look_before_end(group, 1)
    group.write(1, STREAM.ended, group.carry(slice(STREAM.code.start, STREAM.code.start + SHORT)))


def _know_offset(mlp: nn.Module) -> None:
    """Layer 2, the shared expert: how far into its line a token stands, as cosine and sine of two rates: those of the
    position less those of the line's start, by products that the gate computes: silu(x) y - silu(-x) y is x y."""
    assert isinstance(mlp, MoE)
    assert isinstance(mlp.shared_experts, MLP)
    expert, half = mlp.shared_experts, len(PLACE_PAIRS)
    gate, up, down = expert.gate_proj.weight, expert.up_proj.weight, expert.down_proj.weight
    for weight in (gate, up):
        weight.zero_()
    row = 0
    for number, pair in enumerate(OFFSET_PAIRS):
        cosine = PLACE_PAIRS.index(pair)
        sine = cosine + half
        # The place's second half has the phase of a cosine a quarter turn on: minus the sine.
        for target, terms in (
            (2 * number, ((cosine, cosine, 1.0), (sine, sine, 1.0))),
            (2 * number + 1, ((sine, cosine, -1.0), (cosine, sine, 1.0))),
        ):
            for here, start, sign in terms:
                for half_of_it in (1.0, -1.0):
                    gate[row, STREAM.place.start + here] = half_of_it
                    for nowhere in ("origin", "landmark"):  # these two have no place of their own
                        gate[row, STREAM.rule[nowhere]] = -64.0
                    up[row, STREAM.line.start + start] = 1.0
                    down[STREAM.offset.start + target, row] = sign * half_of_it
                    row += 1


def _know_meaning(model: BailingMoeV2ForCausalLM, matcher: Matcher) -> None:
    """Layer 3: the weighted mean of the line's meaning so far, and of the passage's; and the line before this one."""
    group = HeadGroup(model, 3, 0)
    line, weight, passage, weight_far = (group.take(n) for n in (2 * len(PLACE_PAIRS), 1, MAX_KEY + 1, 1))
    group.offer(line, STREAM.line, 10.0)
    group.ask(0, line, STREAM.line, 20.0)
    group.offer_matrix(weight, STREAM.meaning, matcher.weight[None])
    group.ask(0, weight, STREAM.constant, 1 / CONSTANT)
    group.offer(passage, STREAM.where, 10.0)
    group.ask(1, passage, STREAM.where, 20.0)
    group.offer_matrix(weight_far, STREAM.meaning, matcher.weight_far[None])
    group.ask(1, weight_far, STREAM.constant, 1 / CONSTANT)
    for pair, (strength, phase) in _fit_slope(group.frequencies).items():
        group.turn([pair], [1.0], STREAM.constant, None, 0.0)
        group.turn([pair], [matcher.slope.item() * strength], STREAM.constant, 1, phase)
    meaning = group.carry(STREAM.meaning)
    group.write(0, STREAM.meaning, meaning, POOLED)
    group.write(1, STREAM.context, meaning, matcher.context)
    group = HeadGroup(model, 3, 1)
    group.offer_position(5.0)
    group.look_back(0, 1.0, 5.0)
    group.write(0, STREAM.last_line, group.carry(STREAM.line))


def _fit_slope(frequencies: Tensor) -> dict[int, tuple[float, float]]:
    """Strengths and phases of rotary pairs that together fall with the distance as the matcher's slope does, to its
    lowest, and stay there: nearer distances count more."""
    pairs = [pair for pair, rate in enumerate(frequencies.tolist()) if SLOPE_RATES[0] < rate < SLOPE_RATES[1]]
    distance = torch.arange(SLOPE_LENGTH)
    weight = 1 / (1 + distance / 100)
    angles = distance[:, None] * frequencies[pairs]
    waves = torch.cat((angles.cos(), -angles.sin()), dim=1) * weight[:, None]
    wanted = torch.cos((SLOPE_RATE * distance + SLOPE_PHASE).clamp(max=math.pi)) * weight
    small = torch.eye(2 * len(pairs)) * SLOPE_LENGTH**0.5 / 1000  # ridge: bounded beyond what was fitted
    parts = (
        torch.linalg.lstsq(torch.cat((waves, small)), torch.cat((wanted, torch.zeros(2 * len(pairs))))[:, None])
        .solution.view(2, -1)
        .T
    )
    return {pair: (math.hypot(a, b), math.atan2(b, a)) for pair, (a, b) in zip(pairs, parts.tolist(), strict=True)}


def _choose_line(model: BailingMoeV2ForCausalLM, attention: Attention, matcher: Matcher) -> None:
    """Layer 4: where a turn ends, the line whose meaning is nearest to that of the turn's last line, or none."""
    HeadGroup(model, 4, 1)
    group = HeadGroup(model, 4, 0)
    row, key = group._queries[0], group._key
    for free in (row + HEAD - 1, key + HEAD - 2):
        group._weight[free] = 0
    vector, limit, filler, out = group.take(VECTOR), group.take(1), group.take(1), group.take(1)
    group.ask_matrix(0, vector, STREAM.meaning, matcher.query / (1 + POOLED))
    group.ask(0, limit, STREAM.constant, 1 / CONSTANT)
    group.ask(0, out, STREAM.constant, 0.05 / CONSTANT)
    group.offer_matrix(vector, STREAM.meaning, matcher.key / (1 + POOLED))
    group.offer_matrix(vector, STREAM.context, matcher.key_context)
    group.offer(filler, STREAM.constant, 1 / CONSTANT)
    for mark in (STREAM.no_passage, STREAM.is_header):
        group.offer(out, mark, -1000.0)
    far, threshold = 1000.0, matcher.threshold.item()
    group.offer(out, STREAM.rule["abstains"], 1000.0)
    group.offer(limit, STREAM.rule["abstains"], far * threshold)
    group._weight[key + filler.start, STREAM.rule["abstains"]] = far * math.sqrt(1 - threshold**2)
    sharp = math.sqrt(ASKED / math.sqrt(HEAD))
    for norm in (attention.query_layernorm, attention.key_layernorm):
        nn.init.constant_(norm.weight, sharp)
    group.write(0, STREAM.chosen, group.carry(STREAM.line))
    group.write(0, STREAM.chosen_passage, group.carry(STREAM.where))


def _carry_choice(model: BailingMoeV2ForCausalLM) -> None:
    """Layer 5: an answer takes over what the end of the question has chosen."""
    group = HeadGroup(model, 5, 1)
    look_before_end(group, 0)
    group.write(0, STREAM.offset_before, group.carry(STREAM.offset))
    group = HeadGroup(model, 5, 0)
    group.latest(0, range(2, 10), [STREAM.mark["ends_turn"]])
    group.write(0, STREAM.chosen, group.carry(STREAM.chosen), CARRIED)
    group.write(0, STREAM.chosen_passage, group.carry(STREAM.chosen_passage), CARRIED)
