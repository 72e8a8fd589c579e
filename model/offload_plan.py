"""What of a model lies on the card and what in the machine's memory, and how fast it then decodes: a forecast, not a
measurement.

Attention, routers, shared experts and head are read for every token and go on the card first; then whole routed
experts, the most often chosen of each layer; the others stay in memory, where the C++ kernels compute them, so that an
activation crosses the bus and never a weight. The placement is KTransformers' (SOSP 2025, doi 10.1145/3731569.3764843).
Times are bytes over bandwidth (model.roofline) and what launches and the bus cost beside them. Pure: asks no machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.config import ModelConfig
from model.roofline import BF16, PartBytes, count_moe_layers, kv_bytes

GIB = 2.0**30
CARD_RESERVE = 1.5 * GIB  # CUDA's context, activations of a chunk, graphs
RAM_RESERVE = 4.0 * GIB  # the program, the embedder, the system
# Shares of a bandwidth that kernels reach: the processor's that of one MoE layer of AntAngelMed's shapes
# (bench/results/cpu-table.md); the card's with LAUNCH_S so that decode comes out as an H200 gave it, 1 to 32 answers of
# the 103 B shapes and one of the 16 B, within 5 % (bench/results/gpu.json).
CARD_SHARE = 0.6
RAM_SHARE = 0.8
LAUNCH_S = 7e-6  # from one kernel of a graph to the next that waits for it, the way from memory included
PHASES_A_LAYER = 7  # kernels that wait for one another
HOP_S = 10e-6  # the card's word that an activation is there, or the processor's; once each way


@dataclass(frozen=True, slots=True)
class Machine:
    """bandwidths in bytes/s; pcie: one way between card and memory."""

    card: str
    card_bytes: float
    card_bandwidth: float
    pcie_bandwidth: float
    ram_bytes: float
    ram_bandwidth: float


@dataclass(frozen=True, slots=True)
class Card:
    """A card's memory and the bandwidth its maker states, bytes/s."""

    name: str
    num_bytes: float
    bandwidth: float
    pcie_bandwidth: float = 25e9  # PCIe 4.0 x16: 31.5e9 by the standard, of which four fifths are reached


# By the makers' data sheets; the first of a size is taken where only a size is given.
CARDS: Sequence[Card] = (
    Card("RTX 4090", 24 * GIB, 1008e9),
    Card("RTX 3090", 24 * GIB, 936e9),
    Card("RTX 5090", 32 * GIB, 1792e9, 50e9),
    Card("A100 40GB", 40 * GIB, 1555e9),
    Card("L40S", 48 * GIB, 864e9),
    Card("H100 80GB", 80 * GIB, 3350e9, 50e9),
    Card("A100 80GB", 80 * GIB, 2039e9),
    Card("H20", 96 * GIB, 4000e9, 50e9),
    Card("H200", 141e9, 4800e9, 50e9),
)


@dataclass(frozen=True, slots=True)
class OffloadPlan:
    """hot_experts: of each layer, on the card. hit_rate: the share of choices that fall on them. limit: tokens/s if
    every byte came at the full bandwidth and nothing else took time; expected: at the shares that kernels reach.
    problem: why it cannot be, or ""."""

    machine: Machine
    parts: PartBytes
    context: int
    kv_bytes: float
    hot_experts: int
    num_experts: int
    hit_rate: float
    card_bytes: float
    ram_bytes: float
    limit: float
    expected: float
    problem: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether all of it lies on the card."""
        return self.hot_experts == self.num_experts

    def describe(self) -> list[str]:
        """The plan in a few lines."""
        machine = self.machine
        lines = [
            f"{machine.card}: {machine.card_bytes / GIB:.0f} GiB at {machine.card_bandwidth / 1e9:,.0f} GB/s; memory "
            f"{machine.ram_bytes / GIB:.0f} GiB at {machine.ram_bandwidth / 1e9:.0f} GB/s; bus "
            f"{machine.pcie_bandwidth / 1e9:.0f} GB/s"
        ]
        if self.problem:
            return [*lines, self.problem]
        experts = "all routed experts" if self.is_whole else f"{self.hot_experts} of {self.num_experts} experts a layer"
        lines += [
            f"on the card: attention, routers, shared experts, embedding, head, {self.context:,} tokens of context "
            f"({self.kv_bytes / GIB:.1f} GiB), {experts}: {self.card_bytes / GIB:.1f} GiB",
            "in memory: nothing"
            if self.is_whole
            else f"in memory, computed there: {self.num_experts - self.hot_experts} experts a layer, "
            f"{self.ram_bytes / GIB:.1f} GiB, with {1 - self.hit_rate:.0%} of the choices",
            f"one answer: about {self.expected:,.0f} tokens/s (no faster than {self.limit:,.0f}); a forecast from "
            f"bytes and bandwidths, at {CARD_SHARE:.0%} of the card's and {RAM_SHARE:.0%} of the memory's",
        ]
        return lines


def plan_offload(
    config: ModelConfig,
    parts: PartBytes,
    machine: Machine,
    context: int,
    kv_width: float = BF16,
    shares: Sequence[float] = (),
) -> OffloadPlan:
    """Places the parts for one answer behind `context` tokens. shares: how often each expert of a layer is chosen, the
    most frequent first, together 1; by default all alike, which makes the forecast a low one."""
    E, num_moe = config.num_experts, count_moe_layers(config)
    cache = kv_bytes(config, context, kv_width)
    always = parts.total - parts.experts + cache + CARD_RESERVE
    one_of_each = parts.experts / E  # an expert of every layer
    room = machine.card_bytes - always
    hot = E if not num_moe else max(0, min(E, int(room / one_of_each)))
    in_ram = parts.experts * (E - hot) / E
    problem = ""
    if room < 0:
        problem = (
            f"does not fit: what every token needs and {context:,} tokens of context take {always / GIB:.1f} GiB; "
            "quantize attention and head, or shorten the context"
        )
    elif in_ram and in_ram + RAM_RESERVE > machine.ram_bytes:
        problem = (
            f"does not fit: {in_ram / GIB:.1f} GiB of experts are left for the memory, which needs "
            f"{(in_ram + RAM_RESERVE) / GIB:.1f} GiB; use a larger card or more memory"
        )
    hits = sum(shares[:hot]) if shares else hot / E
    return OffloadPlan(
        machine,
        parts,
        context,
        cache,
        hot,
        E,
        hits,
        always + hot * one_of_each,
        in_ram,
        1 / _step_seconds(config, parts, machine, cache, hits, is_limit=True),
        1 / _step_seconds(config, parts, machine, cache, hits, is_limit=False),
        problem,
    )


def _step_seconds(
    config: ModelConfig, parts: PartBytes, machine: Machine, cache: float, hits: float, is_limit: bool
) -> float:
    """A token's time. In each layer the card computes its experts while the processor computes the others."""
    card = machine.card_bandwidth * (1 if is_limit else CARD_SHARE)
    ram = machine.ram_bandwidth * (1 if is_limit else RAM_SHARE)
    chosen = parts.experts * config.num_experts_per_tok / config.num_experts
    on_card = (parts.shared + chosen * hits) / card
    in_ram = chosen * (1 - hits) / ram
    if hits < 1:
        crossing = 2 * config.hidden_size * BF16 / machine.pcie_bandwidth
        in_ram += count_moe_layers(config) * (crossing + (0 if is_limit else 2 * HOP_S))
    before = (parts.attention + parts.router + (parts.head or parts.embedding) + cache) / card
    launches = 0 if is_limit else config.num_hidden_layers * PHASES_A_LAYER * LAUNCH_S
    return before + launches + max(on_card, in_ram)


def parse_card(text: str) -> Card:
    """A card by name ("H100"), by memory ("24GB") or by memory and GB/s ("24GB@900"). Raises ValueError."""
    size, _, bandwidth = text.strip().upper().partition("@")
    words = size.replace(" ", "")
    named = [
        card for card in CARDS if not words[:1].isdigit() and words and words in card.name.upper().replace(" ", "")
    ]
    if named and not bandwidth:
        return named[0]
    try:
        gigabytes, rate = float(words.removesuffix("IB").removesuffix("GB").removesuffix("G")), float(bandwidth or 0)
    except ValueError:
        gigabytes = rate = -1.0
    if gigabytes > 0 and rate > 0:
        return Card(f"card of {gigabytes:g} GB", gigabytes * GIB, rate * 1e9)
    alike = [card for card in CARDS if abs(card.num_bytes / GIB - gigabytes) < 0.1 * gigabytes]
    if rate < 0 or not alike:
        names = ", ".join(card.name for card in CARDS)
        raise ValueError(f"{text!r} is no card known here; give memory and bandwidth, as 24GB@900, or one of {names}.")
    return alike[0]
