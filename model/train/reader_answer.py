"""The reader's last layer, which says the chosen line and cites it, and the MTP layer, which does so one token on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.modeling import BailingMoeV2ForCausalLM, MTPLayer
from model.train.reader_heads import LENGTH, HeadGroup
from model.train.reader_stream import (
    BEACON,
    CARRIED,
    CONSTANT,
    HEAD,
    HIDDEN,
    MAX_KEY,
    NUM_LAYERS,
    OFFSET_PAIRS,
    SHORT,
    STREAM,
)

SHAPE = 2.0  # how much a leading space (or full stop) or a final line break weighs in a token's code
FINAL_NORM = 0.4
BEACON_NORM = 100.0  # of what the next layer's input is measured by, whatever is said
# What a match counts: of the last token, of the one before, of the line's place and of each rate of the offset.
SAME, SAME_BEFORE, SAME_LINE, SAME_OFFSET = 30.0, 16.0, 50.0, 45.0
# At a line's end the offset must be right to the token: of two equal digits the first is not the last.
END_OFFSET, END_MARGIN = (400.0, 45.0), 42.0
COPIED, DECIDED = 20.0, 150.0  # how loudly a copied token is said, and one that a rule decides
# What the MTP layer reads of a position, none of it in an embedding, so that the head does not hear it.
_READ_ON = [
    dim
    for part in (STREAM.own, STREAM.before, STREAM.offset, STREAM.offset_before, STREAM.line, STREAM.last_line,
                 STREAM.ended, STREAM.chosen, STREAM.chosen_passage, slice(STREAM.no_passage, STREAM.no_passage + 1))
    for dim in range(part.start, part.stop)
] + [STREAM.rule[name] for name in ("starts", "leaves", "origin")]  # fmt: skip
Codes = Mapping[str, Tensor]  # [CODE] of a token's text


def write_norm(norm: Tensor, has_mtp: bool) -> None:
    """The final norm: the head hears codes and shape; the MTP layer, what it reads on from."""
    norm.zero_()
    norm[STREAM.code.start : STREAM.line_break + 1] = FINAL_NORM
    if has_mtp:
        norm[_READ_ON] = 1.0
        norm[STREAM.beacon] = BEACON_NORM


def say(model: BailingMoeV2ForCausalLM, codes: Codes, place: float) -> None:
    """Layer 6: the chosen line's next token; at its end the citation, and the end of the turn after that.

    place: the mean square length of a position."""
    # 1. copy: the token after the same three, in the chosen line; at the start the line's first
    group = HeadGroup(model, 6, 0)
    _copy(group, model, SAME)
    starts = group.take(1)
    group.ask(0, starts, STREAM.mark["opens_turn"], 50.0)
    group.offer(starts, STREAM.rule["starts"], 10.0)
    group.offer(starts, STREAM.rule["landmark"], -10.0)  # a start that is never chosen, and has no offset
    # 2. end of the line
    group = HeadGroup(model, 6, 1)
    rest, _ = _end_line(group, model, codes, place)
    # 3. what follows from the position's own token
    group.offer_position(4.0)
    group.look_back(1, 0.0, 4.0)
    number, ended, opened, constant = (
        group.carry(STREAM.rule["numbered"]), group.carry(STREAM.rule["finished"]),
        group.carry(STREAM.mark["opens_turn"]), group.carry(STREAM.constant, 1 / CONSTANT),
    )  # fmt: skip
    group.write(1, STREAM.code, number, 2 * DECIDED * codes["]."][:, None])
    group.write(1, STREAM.code, ended, 2 * DECIDED * codes["<|role_end|>"][:, None])
    group.write(1, STREAM.space, opened, -2.0 * COPIED * SHAPE)
    group.write(1, STREAM.line_break, constant, -COPIED * SHAPE)
    # 4. after " [" the number
    _cite(group, _gate(group), rest, codes)


def say_next_but_one(model: BailingMoeV2ForCausalLM, codes: Codes, place: float) -> None:
    """The MTP layer: the same as layer 6, one token on. At a position it knows the token there (`before`), the next
    one (`code`) and what the decoder knew; it passes on the like for the position after, so that drafts can follow."""
    layer = model.model.layers[NUM_LAYERS]
    assert isinstance(layer, MTPLayer)
    _join(model, layer)
    # 1. copy, from where this position's token stands in the chosen line
    _copy(HeadGroup(model, NUM_LAYERS, 0), model, 2 * SAME)
    # 2. the end of the line
    group = HeadGroup(model, NUM_LAYERS, 1)
    rest, is_found = _end_line(group, model, codes, place)
    # 3. what follows from the two tokens themselves: each head looks at its own position where they are so, else rests
    group.offer_position(4.0)
    gate = _gate(group)
    ended, constant = group.carry(STREAM.mark["cited"]), group.carry(STREAM.constant, 1 / CONSTANT)
    group.look_back(1, 0.0, 4.0)
    group.write(1, STREAM.code, ended, 2 * DECIDED * codes["<|role_end|>"][:, None])
    group.write(1, STREAM.line_break, constant, -COPIED * SHAPE)
    _cite(group, gate, rest, codes)
    group.look_back(3, 0.0, 4.0)
    group.ask_matrix(3, gate, STREAM.before, 200.0 * codes[" ["][None, :SHORT] / SHORT)
    group.ask(3, rest, STREAM.constant, 150.0 / CONSTANT)
    group.write(3, STREAM.code, is_found, 2 * DECIDED * codes["]."][:, None])


def advance(model: BailingMoeV2ForCausalLM, tokens: float, gain: float) -> Tensor:
    """[4,4] that turns an offset by so many tokens."""
    turns = []
    for pair in OFFSET_PAIRS:
        angle = float(model.rotary.inv_freq[pair]) * tokens
        turns.append(torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]))
    return gain * torch.block_diag(*turns)


# --- steps of both layers ---------------------------------------------------------------------------------------


def _copy(group: HeadGroup, model: BailingMoeV2ForCausalLM, same: float) -> None:
    """Head 0: the token after the same two, at the next place of the chosen line."""
    own, before, line, offset = (group.take(n) for n in (SHORT, SHORT, 8, 4))
    group.ask(0, own, STREAM.short, same / SHORT)
    group.offer(own, STREAM.before)
    group.ask(0, before, STREAM.before, SAME_BEFORE / SHORT)
    group.offer(before, STREAM.before_that)
    group.ask(0, line, STREAM.chosen, 2.5 * SAME_LINE / 10 / CARRIED)
    group.offer(line, STREAM.line, 10.0)
    group.ask_matrix(0, offset, STREAM.offset, advance(model, 1.0, SAME_OFFSET / 2))
    group.offer(offset, STREAM.offset, 2.0)
    group.write(0, STREAM.code, group.carry(STREAM.code), COPIED)
    group.write(0, STREAM.space, group.carry(STREAM.space), COPIED)


def _end_line(group: HeadGroup, model: BailingMoeV2ForCausalLM, codes: Codes, place: float) -> tuple[slice, slice]:
    """Head 0: " [" where the line ends; the start of the next one knows the last token and where it stood. Returns the
    dims of where a head rests, and those of a 1 wherever it does not."""
    own, line, starts, offset, rest = (group.take(n) for n in (SHORT, 8, 1, 4, 1))
    origin = STREAM.rule["origin"]  # where the head rests, with the word SYSTEM before it
    group.ask(0, own, STREAM.short, 3 * SAME / SHORT)
    group.offer(own, STREAM.ended)
    group.offer_matrix(own, slice(origin, origin + 1), -codes["EM"][:SHORT, None])
    group.ask(0, line, STREAM.chosen, SAME_LINE / 10 / CARRIED)
    group.offer(line, STREAM.last_line, 10.0)
    group.ask(0, starts, STREAM.constant, 10.0 / CONSTANT)
    group.offer(starts, STREAM.rule["starts"], 10.0)
    group.offer(starts, STREAM.no_passage, -10.0)  # an abstention has no citation: its full stop is copied
    group.offer(starts, STREAM.rule["leaves"], 10.0)
    gains = torch.tensor(END_OFFSET).repeat_interleave(2)[:, None]
    group.ask_matrix(0, offset, STREAM.offset, advance(model, 0.0, 0.5) * gains)
    group.offer(offset, STREAM.offset_before, 2.0)
    enough = 200.0 + place * SAME_LINE + 3 * SAME + sum(END_OFFSET) - END_MARGIN
    group.ask(0, rest, STREAM.constant, enough / 10 / CONSTANT)
    group.offer(rest, origin, 10.0)
    is_found = group.carry(STREAM.constant, 1 / CONSTANT)
    group.cancel(is_found, origin)
    group.write(0, STREAM.code, is_found, DECIDED * codes[" ["][:, None])
    group.write(0, STREAM.space, is_found, DECIDED * SHAPE)
    return rest, is_found


def _gate(group: HeadGroup) -> slice:
    """A dim by which a head can be kept from resting."""
    gate = group.take(1)
    group.offer(gate, STREAM.constant, 8.0 / CONSTANT)
    group.offer(gate, STREAM.rule["origin"], -8.0)
    return gate


def _cite(group: HeadGroup, gate: slice, rest: slice, codes: Codes) -> None:
    """Head 2: the passage's number, after " ["."""
    group.look_back(2, 0.0, 4.0)
    group.ask(2, gate, STREAM.mark["cites"], 100.0)
    group.ask(2, rest, STREAM.constant, 50.0 / CONSTANT)
    chosen = group.carry(STREAM.chosen_passage, 1 / CARRIED)
    digits = torch.stack([codes[str(key)] for key in range(1, MAX_KEY + 1)], dim=1)
    group.write(2, STREAM.code, chosen, 2 * DECIDED * digits)


def _join(model: BailingMoeV2ForCausalLM, layer: MTPLayer) -> None:
    """The MTP layer's input, the stream of a position in which everything is one token on, and its norms."""
    unit = CONSTANT / math.sqrt(HIDDEN)  # an embedding is measured by its constant, a state by its beacon
    nn.init.constant_(layer.enorm.weight, unit)
    nn.init.constant_(layer.hnorm.weight, BEACON * BEACON_NORM / math.sqrt(HIDDEN))
    joined, state = layer.eh_proj.weight, HIDDEN
    joined.zero_()
    for dim in (STREAM.constant, *STREAM.mark.values(), *range(STREAM.code.start, STREAM.line_break + 1)):
        joined[dim, dim] = 1.0
    joined[STREAM.own, STREAM.short] = torch.eye(SHORT)
    for target, source in ((STREAM.before, STREAM.own), (STREAM.before_that, STREAM.before)):
        joined[target, state + source.start : state + source.stop] = torch.eye(SHORT)
    offset = STREAM.offset
    joined[offset, state + offset.start : state + offset.stop] = advance(model, 1.0, 1.0)
    kept = (STREAM.offset_before, STREAM.line, STREAM.last_line, STREAM.ended, STREAM.chosen, STREAM.chosen_passage)
    rules = (STREAM.rule[name] for name in ("starts", "leaves", "origin"))
    for dim in (*(dim for part in kept for dim in range(part.start, part.stop)), STREAM.no_passage, *rules):
        joined[dim, state + dim] = 1.0
    joined[STREAM.beacon, state + STREAM.beacon] = 1 / BEACON_NORM
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        nn.init.constant_(norm.weight, unit)
    layer.final_layernorm.weight.copy_(model.model.norm.weight)
    nn.init.zeros_(layer.attention.dense.weight)
    for name, parameter in layer.mlp.named_parameters():
        if name.endswith(("down_proj.weight", "down_proj")):
            nn.init.zeros_(parameter)
    for norm in (layer.attention.query_layernorm, layer.attention.key_layernorm):
        nn.init.constant_(norm.weight, math.sqrt(LENGTH**2 / math.sqrt(HEAD)))
