"""What is timed, and how long each should take: the bytes or operations it cannot do without, and a forecast made from
them before anything was measured.

    .venv/bin/python -m bench.gpu --predict [--bandwidth 4300] [--peak 790]
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.gpu.table import Report, Row
from model.config import ModelConfig
from model.gpu_backend import MAX_DRAFT_ROWS
from model.offload_plan import LAUNCH_S, PHASES_A_LAYER
from model.roofline import (
    BF16,
    FORMATS,
    FP8,
    INT4,
    count_bytes,
    count_distinct_experts,
    count_moe_layers,
    decode_bytes,
    kv_bytes,
    prefill_flop,
)

# What the forecast takes for granted: streams of weights reach so much of the measured bandwidth, tensor cores fed from
# packed weights so much of the measured peak, and a kernel in a graph waits LAUNCH_S for the one before it.
BANDWIDTH_SHARE = 0.7
PEAK_SHARE = 0.6
# Drafts of random weights say nothing of how many stay: a step with drafts is timed, and its rate is that of so many.
# Of DeepSeek-V3's second tokens 85 to 90 % stay (arXiv 2412.19437, 5.4.3).
ACCEPTED = 0.8
DRAFTED = 3  # tokens of an answer's draft, where a step has room
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Case:
    """num_bytes, flop: least needed. phases: kernels that wait for one another. tokens: that a step gives."""

    name: str
    num_bytes: float = 0
    flop: float = 0
    phases: int = 1
    tokens: float = 0
    goal: str = ""

    def forecast(self, bandwidth: float, peak: float) -> float:
        """Seconds, for a card's measured bytes/s and FLOP/s."""
        by_bytes, by_flop = self.num_bytes / (bandwidth * BANDWIDTH_SHARE), self.flop / (peak * PEAK_SHARE)
        return max(by_bytes, by_flop) + self.phases * LAUNCH_S

    def row(self, report: Report, seconds: float | None = None, note: str = "") -> Row:
        predicted = self.forecast(report.bandwidth, report.peak)
        return Row(
            self.name,
            seconds,
            self.num_bytes,
            self.flop,
            self.tokens,
            predicted=predicted,
            goal=self.goal,
            note=note,
        )


def linear_case(name: str, rows: int, columns: int, num_tokens: int, width: float = INT4) -> Case:
    moved = rows * columns * width + num_tokens * (rows + columns) * BF16
    return Case(name, moved, 2.0 * rows * columns * num_tokens)


def moe_case(config: ModelConfig, num_tokens: int, goal: str = "") -> Case:
    """Router, routed experts and the shared one of a layer, experts in INT4."""
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    distinct = count_distinct_experts(config, num_tokens)
    router = config.num_experts * config.hidden_size
    moved = (distinct + config.num_shared_experts) * expert * INT4 + router * BF16
    active = (config.num_experts_per_tok + config.num_shared_experts) * expert + router
    name = f"one MoE layer, {num_tokens:,} token{'s' if num_tokens > 1 else ''}"
    return Case(name, moved, 2.0 * active * num_tokens, phases=3, goal=goal)


def decode_attention_case(config: ModelConfig, batch: int, context: int, kv: str) -> Case:
    width = {"bf16": BF16, "fp8": 1.0, "int8": 1 + 4 / config.head_dim}[kv]
    moved = batch * kv_bytes(config, context, width) / config.num_hidden_layers
    return Case(f"decode attention, {batch} × {context:,}, {kv}", moved, phases=2)


def prefill_attention_case(config: ModelConfig, num_tokens: int) -> Case:
    pairs = num_tokens * (num_tokens + 1) / 2
    flop = 4.0 * config.num_attention_heads * config.head_dim * pairs
    return Case(f"prefill attention, {num_tokens:,} tokens", 0, flop)


def norm_rope_case(config: ModelConfig, num_tokens: int) -> Case:
    """Norms of q and k, positions, and keys and values into the cache."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    moved = 2 * num_tokens * heads * config.head_dim * BF16
    return Case(f"QK norm, RoPE, KV write, {num_tokens:,} tokens", moved)


def add_norm_case(config: ModelConfig, num_tokens: int) -> Case:
    """A layer's output into the residual stream, and the norm before the next."""
    return Case(f"residual and RMSNorm, {num_tokens:,} tokens", 4 * num_tokens * config.hidden_size * BF16)


def top_case(config: ModelConfig, num_rows: int) -> Case:
    return Case(f"largest 64 logits, {num_rows} rows", 4.0 * num_rows * config.vocab_size, phases=2)


def decode_case(config: ModelConfig, batch: int, context: int, goal: str = "", form: str = "int4") -> Case:
    moved = decode_bytes(config, count_bytes(config, FORMATS[form]), batch, context)
    phases = config.num_hidden_layers * PHASES_A_LAYER + 3
    return Case(f"decode, {batch} × {context:,}", moved, phases=phases, tokens=batch, goal=goal)


def count_drafted(batch: int) -> int:
    """Tokens drafted for each of so many answers."""
    return min(DRAFTED, MAX_DRAFT_ROWS // batch)


def draft_case(config: ModelConfig, batch: int, context: int, goal: str = "") -> Case:
    """A step whose answers carry drafts, and the MTP layer's steps for the next ones; layer and join in INT4."""
    drafted, parts = count_drafted(batch), count_bytes(config, FORMATS["int4"])
    rows = batch * (1 + drafted)
    moved = decode_bytes(config, parts, rows, 0) + batch * kv_bytes(config, context)
    moes = count_moe_layers(config)
    chosen = count_distinct_experts(config, batch) / config.num_experts
    layer = parts.attention / config.num_hidden_layers + (parts.router + parts.shared + parts.experts * chosen) / moes
    join = 2 * config.hidden_size**2 * INT4
    moved += drafted * (layer + join + parts.head + batch * kv_bytes(config, context) / config.num_hidden_layers)
    phases = (config.num_hidden_layers + drafted) * PHASES_A_LAYER + 3 + 6 * drafted
    tokens = batch * sum(ACCEPTED**number for number in range(1 + drafted))
    name = f"decode, {batch} × {context:,}, MTP drafts of {drafted}, {ACCEPTED:.0%} right"
    return Case(name, moved, phases=phases, tokens=tokens, goal=goal)


def prefill_case(config: ModelConfig, num_tokens: int, goal: str = "") -> Case:
    phases = config.num_hidden_layers * 2 * PHASES_A_LAYER
    return Case(f"prefill, {num_tokens:,} tokens", 0, prefill_flop(config, num_tokens), phases, num_tokens, goal)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is: of the real run, or so small that the interpreter does it."""

    contexts: tuple[int, int]  # of a usual answer, and the longest
    batches: tuple[int, ...]
    tokens: int  # of a chunk of a prompt
    prompts: tuple[int, int]


FULL = Sizes(contexts=(1024, 131072), batches=(1, 8, 32), tokens=4096, prompts=(8192, 131072))
TINY = Sizes(contexts=(40, 96), batches=(1, 2), tokens=24, prompts=(40, 96))


def list_op_cases(config: ModelConfig, sizes: Sizes) -> dict[str, Case]:
    """By key: what bench.gpu.ops runs under it."""
    hidden, vocab = config.hidden_size, config.vocab_size
    qkv_rows = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    short, long = sizes.contexts
    many, tokens = sizes.batches[-1], sizes.tokens
    return {
        "qkv": linear_case("q, k, v, INT4, 1 token", qkv_rows, hidden, 1),
        "qkv_many": linear_case(f"q, k, v, INT4, {many} tokens", qkv_rows, hidden, many),
        "qkv_prefill": linear_case(f"q, k, v, INT4, {tokens:,} tokens", qkv_rows, hidden, tokens),
        "qkv_fp8": linear_case("q, k, v, FP8, 1 token", qkv_rows, hidden, 1, FP8),
        "head": linear_case("lm_head, INT4, 1 token", vocab, hidden, 1),
        "head_many": linear_case(f"lm_head, INT4, {many} tokens", vocab, hidden, many),
        "moe": moe_case(config, 1, "≤ 25 µs, then 18"),
        "moe_many": moe_case(config, many),
        "moe_prefill": moe_case(config, tokens),
        "norm_rope": norm_rope_case(config, tokens),
        "add_norm": add_norm_case(config, tokens),
        "top": top_case(config, many),
        "attend": decode_attention_case(config, 1, short, "bf16"),
        "attend_many": decode_attention_case(config, many, short, "bf16"),
        "attend_long": decode_attention_case(config, 1, long, "bf16"),
        "attend_long_fp8": decode_attention_case(config, 1, long, "fp8"),
        "attend_long_int8": decode_attention_case(config, 1, long, "int8"),
        "attend_prefill": prefill_attention_case(config, sizes.prompts[0]),
    }


def list_model_cases(config: ModelConfig, sizes: Sizes, is_small: bool = False) -> dict[str, Case]:
    """is_small: the 16 B sibling, of which one figure is wanted."""
    short = sizes.contexts[0]
    if is_small:
        return {"decode_1": decode_case(config, 1, short, "≥ 1,300 tok/s, then 2,000")}
    goals = {1: "≥ 600 tok/s, then 870", 32: "≥ 2,300 tok/s"}
    decode = {f"decode_{batch}": decode_case(config, batch, short, goals.get(batch, "")) for batch in sizes.batches}
    wanted = {8192: "≤ 200 ms", 131072: "≤ 12 s"}
    prefill = {f"prefill_{n}": prefill_case(config, n, wanted.get(n, "")) for n in sizes.prompts}
    drafts = {
        f"draft_{batch}": draft_case(config, batch, short, {32: "≥ 4,300 tok/s"}.get(batch, ""))
        for batch in (sizes.batches[0], sizes.batches[-1])
    }
    return decode | drafts | prefill


def list_memory(config: ModelConfig, context: int) -> Row:
    """Weights in INT4 and keys and values of one long context."""
    total = count_bytes(config, FORMATS["int4"]).total + kv_bytes(config, context)
    return Row(
        f"memory, weights and {context:,} tokens", num_bytes=total, goal="≤ 66 GiB", note=f"{total / GIB:.1f} GiB"
    )


def predict(config: ModelConfig, small: ModelConfig, bandwidth: float, peak: float) -> Report:
    """The table as it is expected, without a card; bandwidth bytes/s, peak FLOP/s."""
    report = Report(None, False, {}, bandwidth, peak)
    report.rows += [case.row(report) for case in list_op_cases(config, FULL).values()]
    report.rows += [case.row(report) for case in list_model_cases(config, FULL).values()]
    report.rows.append(list_memory(config, FULL.contexts[1]))
    sibling = [case.row(report) for case in list_model_cases(small, FULL, is_small=True).values()]
    for row in sibling:
        row.name = f"16 B sibling: {row.name}"
    report.rows += sibling
    for row in report.rows:
        row.note = row.note or f"no faster than {_floor(report, row)}"
    return report


def _floor(report: Report, row: Row) -> str:
    from bench.gpu.table import format_seconds

    floor = report.floor(row)
    rate = f", {row.tokens / floor:,.0f} tok/s" if row.tokens else ""
    expected = f"; expected {row.tokens / row.predicted:,.0f} tok/s" if row.tokens and row.predicted else ""
    return format_seconds(floor) + rate + expected
