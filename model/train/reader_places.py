"""The reader's first three layers: who stands before a token, at which position it stands, and in which line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from model.modeling import MLP, BailingMoeV2ForCausalLM, MoE
from model.train.lines import RULES
from model.train.matching import Matcher
from model.train.reader_heads import HeadGroup, look_before_end
from model.train.reader_rounding import round_model
from model.train.reader_stream import BEACON, CONSTANT, GROUP, OFFSET_PAIRS, PLACE_PAIRS, STREAM

BETA = 32.0  # how sharply the first layer's rules decide
PLACE_GAIN = 0.2


def know_neighbours(model: BailingMoeV2ForCausalLM, matcher: Matcher) -> None:
    """Layer 0: codes and marks of the two tokens before, and the meaning of the one before
    as it bears on this one's."""
    group = HeadGroup(model, 0, 1)
    group.offer_position(4.0)
    group.look_back(0, 1.0, 5.0)
    group.look_back(1, 2.0, 5.0)
    code = group.carry(STREAM.short)
    marks = {name: group.carry(STREAM.mark[name]) for name in {**STREAM.seen[1], **STREAM.seen[2]}}
    meaning = group.carry(STREAM.meaning)
    group.write(0, STREAM.before, code)
    group.write(1, STREAM.before_that, code)
    group.look_back(2, 0.0, 5.0)
    group.write(2, STREAM.own, code)
    for head in (0, 1):
        for name, dim in STREAM.seen[head + 1].items():
            group.write(head, dim, marks[name])
    group.write(0, STREAM.meaning, meaning, matcher.before)


def apply_rules(mlp: nn.Module, matcher: Matcher) -> None:
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


def know_place(model: BailingMoeV2ForCausalLM, opening_ids: Sequence[int]) -> float:
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
        round_model(model)
        x_BSD, tables = model.model.word_embeddings(ids), model.rotary(torch.arange(length)[None])
        for layer in model.model.layers[:2]:
            x_BSD, _ = layer(x_BSD, *tables, None, None)
        place_SP = x_BSD[0, len(opening_ids) :, STREAM.place]
        gain += 2 * PLACE_GAIN * float(place_SP[:, 0].mean())
    return float(place_SP.square().sum(-1).mean())


def know_line(model: BailingMoeV2ForCausalLM) -> None:
    """Layer 2: the place where the line started; the passage; and the last two tokens before what parts two lines."""
    group = HeadGroup(model, 2, 0)
    group.latest(0, range(2, 10), [STREAM.rule["starts"]])
    group.write(0, STREAM.line, group.carry(STREAM.place))
    group.write(0, STREAM.is_heading, group.carry(STREAM.mark["heads"]))
    group = HeadGroup(model, 2, 1)
    group.latest(0, (8, 9), [STREAM.rule["opens"], STREAM.rule["leaves"]])
    group.write(0, STREAM.passage, group.carry(STREAM.number))
    group.write(0, STREAM.no_passage, group.carry(STREAM.rule["leaves"]))
    look_before_end(group, 1)
    group.write(1, STREAM.ended, group.carry(STREAM.short))


def know_offset(mlp: nn.Module) -> None:
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
