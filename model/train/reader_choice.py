"""The reader's next three layers: what a line says so far, which line a question asks for, and what an answer keeps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.modeling import Attention, BailingMoeV2ForCausalLM
from model.train.matching import POOLED, SLOPE_PHASE, SLOPE_RATE, VECTOR, Matcher
from model.train.reader_heads import HeadGroup, look_before_end
from model.train.reader_stream import CARRIED, CONSTANT, HEAD, MAX_KEY, PLACE_PAIRS, STREAM

ASKED = 80000.0  # how sharply a line is chosen: two that are equally good would blend
EARLIER = 0.005  # what a passage's place counts, before the next one's: the retriever's best stand first
SLOPE_LENGTH = 1000  # tokens, over which a passage's nearer part counts as it was learned,
SLOPE_RATES = (0.0005, 0.03)  # by waves of these rates


def know_meaning(model: BailingMoeV2ForCausalLM, matcher: Matcher) -> None:
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
    ridge = 1e-6 * SLOPE_LENGTH * torch.eye(2 * len(pairs))  # bounded beyond what is fitted
    parts = torch.linalg.solve((waves.T @ waves + ridge).double(), (waves.T @ wanted).double()).view(2, -1).T
    return {pair: (math.hypot(a, b), math.atan2(b, a)) for pair, (a, b) in zip(pairs, parts.tolist(), strict=True)}


def choose_line(model: BailingMoeV2ForCausalLM, attention: Attention, matcher: Matcher) -> None:
    """Layer 4: where a turn ends, the line whose meaning is nearest to that of the turn's last line, or none."""
    HeadGroup(model, 4, 1)
    group = HeadGroup(model, 4, 0)
    group.measure_by_itself(0)
    vector, limit, filler, out, order = group.take(VECTOR), *(group.take(1) for _ in range(4))
    group.ask_matrix(0, vector, STREAM.meaning, matcher.query / (1 + POOLED))
    group.ask(0, limit, STREAM.constant, 1 / CONSTANT)
    group.ask(0, out, STREAM.constant, 0.05 / CONSTANT)
    group.offer_matrix(vector, STREAM.meaning, matcher.key / (1 + POOLED))
    group.offer_matrix(vector, STREAM.context, matcher.key_context)
    group.offer(filler, STREAM.constant, 1 / CONSTANT)
    for mark in (STREAM.no_passage, STREAM.is_heading):
        group.offer(out, mark, -1000.0)
    group.ask(0, order, STREAM.constant, 0.25 / CONSTANT)
    group.offer_matrix(order, STREAM.passage, EARLIER / 0.25 * (5.0 - torch.arange(MAX_KEY))[None])
    far, threshold = 1000.0, matcher.threshold.item()
    group.offer(out, STREAM.rule["abstains"], 1000.0)
    group.offer(limit, STREAM.rule["abstains"], far * threshold)
    group.offer(filler, STREAM.rule["abstains"], far * math.sqrt(1 - threshold**2))
    sharp = math.sqrt(ASKED / math.sqrt(HEAD))
    for norm in (attention.query_layernorm, attention.key_layernorm):
        nn.init.constant_(norm.weight, sharp)
    group.write(0, STREAM.chosen, group.carry(STREAM.line))
    group.write(0, STREAM.chosen_passage, group.carry(STREAM.passage))


def carry_choice(model: BailingMoeV2ForCausalLM) -> None:
    """Layer 5: an answer takes over what the end of the question has chosen."""
    group = HeadGroup(model, 5, 1)
    look_before_end(group, 0)
    group.write(0, STREAM.offset_before, group.carry(STREAM.offset))
    group = HeadGroup(model, 5, 0)
    group.latest(0, range(2, 10), [STREAM.mark["ends_turn"]])
    group.write(0, STREAM.chosen, group.carry(STREAM.chosen), CARRIED)
    group.write(0, STREAM.chosen_passage, group.carry(STREAM.chosen_passage), CARRIED)
