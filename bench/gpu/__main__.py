"""Everything about the card in one command: correctness first, then times beside what was predicted.

    python -m bench.gpu                 on a card, at most eight minutes; the report goes to bench/results/gpu.json
    python -m bench.gpu --predict       what is expected, from bytes and bandwidths; needs no card
    python -m bench.gpu --dry-run       tiny shapes on the processor: that the bench runs, no figures

Needs torch, triton and numpy. What has been measured is saved after each row, so that a run that is
cut off has lost nothing. Exit status 1: something failed or was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.gpu.baselines import PRODUCTS, time_eager_moe
from bench.gpu.cases import (
    FULL,
    TINY,
    Case,
    Sizes,
    count_drafted,
    linear_case,
    list_memory,
    list_model_cases,
    list_op_cases,
    moe_case,
    predict,
)
from bench.gpu.clock import Clock
from bench.gpu.operations import LIMIT, Operations
from bench.gpu.table import Report, Row
from bench.gpu.whole import WholeModel, check_decoder, check_rows
from bench.report import RESULTS, read_commit
from bench.synthetic import PRESETS
from model.config import ModelConfig
from model.gpu_backend import load_ops
from model.kernels.gpu import reference
from model.kernels.gpu.decoder import CHUNK

MINUTES = 7.5
CAPTURE_LIMIT = 1e-3  # a step in a graph is the same step
DECODER_LIMIT = 3e-2  # of two layers, whose roundings add up
STEPS = 32  # of a decode that is timed
SLOWEST_PREFILL = 90.0  # seconds; a long prompt that would take more is left out


@dataclass(slots=True)
class Run:
    """What every part of the bench is given."""

    config: ModelConfig
    small: ModelConfig
    sizes: Sizes
    clock: Clock
    ops: Any
    report: Report
    ends: float

    @property
    def chunk(self) -> int:
        return CHUNK if self.clock.is_card else 64

    @contextmanager
    def part(self, name: str, seconds: float) -> Iterator[bool]:
        """Whether there is time for a part that takes about so long; what it raises becomes a row."""
        left = self.ends - time.monotonic()
        if self.clock.is_card and left < seconds:
            self.report.add(Row(name, note=f"skipped: {left:.0f} s are left and it takes about {seconds:.0f}"))
            yield False
            return
        try:
            yield True
        except Exception as error:  # noqa: BLE001 - one part's fault must not cost the others' figures
            self.report.add(
                Row(name, error=float("inf"), limit=0, note=f"failed: {type(error).__name__}: {error}"[:300])
            )
        if self.clock.is_card:
            torch.cuda.empty_cache()


def measure_card(run: Run) -> None:
    report, clock = run.report, run.clock
    report.bandwidth, report.peak = clock.measure_bandwidth(), clock.measure_peak()
    report.add(Row("the card's copy", note=f"{report.bandwidth / 1e9:,.0f} GB/s, read and written"))
    report.add(Row("the card's bf16 product", note=f"{report.peak / 1e12:,.0f} TFLOP/s"))


def check(run: Run) -> None:
    """The whole decoder against its definition, before anything is timed."""
    with run.part("decoder", 60) as is_on:
        if is_on:
            for name, error in check_decoder(run.config, run.clock, run.ops).items():
                limit = CAPTURE_LIMIT if "captured" in name else DECODER_LIMIT
                run.report.add(Row(f"decoder of two layers: {name}", error=error, limit=limit))
    with run.part("a row among others", 30) as is_on:
        if is_on:
            error, is_same = check_rows(run.config, run.clock, run.ops)
            note = "the same to the bit: drafts change no text" if is_same else "not to the bit: a draft may turn a tie"
            run.report.add(Row("a row among up to 64 others", error=error, limit=DECODER_LIMIT, note=note))


def time_operations(run: Run) -> None:
    operations = Operations(run.config, run.sizes, run.clock, run.ops)
    for key, case in list_op_cases(run.config, run.sizes).items():
        with run.part(case.name, 8) as is_on:
            if is_on:
                error, seconds = operations.runners[key](case)
                row = case.row(run.report, seconds)
                row.error, row.limit = error, LIMIT
                run.report.add(row)


def time_baselines(run: Run) -> None:
    config = run.config
    rows = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    for tokens in (1, run.sizes.batches[-1]):
        for name, (timed, width) in PRODUCTS.items():
            case = linear_case(
                f"{name}: q, k, v, {tokens} token{'s' if tokens > 1 else ''}", rows, config.hidden_size, tokens, width
            )
            time_peer(run, case, lambda timed=timed, tokens=tokens: timed(run.clock, rows, config.hidden_size, tokens))
        case = replace(moe_case(config, tokens), goal="")
        peer = replace(case, name=f"torch eager bf16: {case.name}", num_bytes=case.num_bytes * 4)
        time_peer(run, peer, lambda tokens=tokens: time_eager_moe(run.clock, config, tokens))


def time_peer(run: Run, case: Case, timed: Callable[[], float]) -> None:
    with run.part(case.name, 10) as is_on:
        if not is_on:
            return
        try:
            row = case.row(run.report, timed())
        except ImportError as error:
            row = case.row(run.report, note=f"skipped: {error}")
        row.predicted = None
        run.report.add(row)


def time_model(run: Run) -> None:
    with run.part("the whole model", 120) as is_on:
        if not is_on:
            return
        model = WholeModel(run.config, run.sizes.contexts[1], run.clock, run.ops, run.chunk)
        cases = list_model_cases(run.config, run.sizes)
        time_decodes(run, model, cases, "")
        time_drafts(run, model, cases)
        time_prefills(run, model, cases)
        total, parts = model.describe_memory()
        row = list_memory(run.config, run.sizes.contexts[1])
        row.note = f"{total:.1f} GiB taken: {parts}"
        run.report.add(row)


def time_decodes(run: Run, model: WholeModel, cases: dict[str, Case], prefix: str) -> None:
    context = run.sizes.contexts[0]
    steps = STEPS if run.clock.is_card else 2
    for batch in run.sizes.batches:
        case = cases.get(f"decode_{batch}")
        if case is None:
            continue
        with run.part(prefix + case.name, 20) as is_on:
            if is_on:
                seconds, alone = model.time_decode(batch, context, steps)
                row = case.row(run.report, seconds, f"{alone * 1e3:.2f} ms where the host does not wait")
                row.name = prefix + row.name
                run.report.add(row)
        with run.part(f"{prefix}{case.name}, engine", 20) as is_on:
            if is_on:
                row = replace(case, name=f"{prefix}{case.name}, engine", goal="").row(
                    run.report, model.time_engine(batch, context, steps)
                )
                run.report.add(row)


def time_drafts(run: Run, model: WholeModel, cases: dict[str, Case]) -> None:
    steps = STEPS if run.clock.is_card else 2
    for batch in (run.sizes.batches[0], run.sizes.batches[-1]):
        case = cases[f"draft_{batch}"]
        with run.part(case.name, 20) as is_on:
            if is_on:
                seconds = model.time_drafts(batch, run.sizes.contexts[0], count_drafted(batch), steps)
                run.report.add(case.row(run.report, seconds, "the share that is right is assumed"))


def time_prefills(run: Run, model: WholeModel, cases: dict[str, Case]) -> None:
    short, long = run.sizes.prompts
    rate = 0.0
    for length in (short, long):
        case = cases[f"prefill_{length}"]
        # Attention grows faster than the prompt: half as much again as in proportion, where it is 16 times as long.
        seconds = 1.5 * length / rate if rate else 20
        with run.part(case.name, min(seconds, SLOWEST_PREFILL) + 5) as is_on:
            if is_on and seconds > SLOWEST_PREFILL:
                run.report.add(case.row(run.report, note=f"left out: it would take about {seconds:.0f} s"))
            elif is_on:
                if length == short:
                    model.time_prefill(length)  # compiles
                taken = model.time_prefill(length)
                rate = length / taken
                run.report.add(case.row(run.report, taken))


def time_sibling(run: Run) -> None:
    with run.part("16 B sibling", 40) as is_on:
        if is_on:
            context = run.sizes.contexts[0]
            model = WholeModel(run.small, max(4 * context, 256), run.clock, run.ops, run.chunk)
            time_decodes(run, model, list_model_cases(run.small, run.sizes, is_small=True), "16 B sibling: ")


def describe_head(clock: Clock) -> dict[str, Any]:
    """Date, chip and commit: what a figure is worth nothing without."""
    head: dict[str, Any] = {
        "what": "gpu",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "card": "none",
    }
    try:
        head["commit"] = os.environ.get("BENCH_COMMIT") or read_commit()
    except (OSError, subprocess.CalledProcessError):
        head["commit"] = "unknown: no repository here; set BENCH_COMMIT"
    if clock.is_card:
        card = torch.cuda.get_device_properties(clock.device)
        head |= {
            "card": card.name,
            "card_gib": round(card.total_memory / 2**30, 1),
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return head


def make_tiny(config: ModelConfig) -> ModelConfig:
    """The same architecture in a size for the processor."""
    return replace(
        config,
        vocab_size=640,
        hidden_size=128,
        intermediate_size=192,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        initializer_range=0.1,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", action="store_true", help="print the expected table and end")
    parser.add_argument("--bandwidth", type=float, default=4300, help="with --predict: of the card, GB/s")
    parser.add_argument("--peak", type=float, default=790, help="with --predict: of the card, bf16 TFLOP/s")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the processor; no figures")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which no further part begins")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json", help="the report; not written by a dry run")
    options = parser.parse_args(arguments)
    config, small = PRESETS["antangelmed"], PRESETS["ling-mini-2.0"]
    if options.predict:
        print(f"Expected at {options.bandwidth:,.0f} GB/s and {options.peak:,.0f} TFLOP/s; nothing here is measured.")
        predict(config, small, options.bandwidth * 1e9, options.peak * 1e12).print_table()
        return 0
    if not options.dry_run and not torch.cuda.is_available():
        print("bench.gpu: torch finds no CUDA card; use --predict or --dry-run here.", file=sys.stderr)
        return 2
    run = prepare(options, config, small)
    for part in (measure_card, check, time_operations, time_baselines, time_model, time_sibling):
        part(run)
    run.report.print_table()
    if options.dry_run:
        print(json.dumps({"is_dry_run": True, "rows": len(run.report.rows), "failures": run.report.failures}))
    return int(bool(run.report.failures))


def prepare(options: argparse.Namespace, config: ModelConfig, small: ModelConfig) -> Run:
    ends = time.monotonic() + 60 * options.minutes
    if options.dry_run:
        clock = Clock(torch.device("cpu"))
        ops = load_ops() if os.environ.get("TRITON_INTERPRET") == "1" else reference
        report = Report(None, True, describe_head(clock))
        return Run(make_tiny(config), make_tiny(small), TINY, clock, ops, report, ends)
    clock = Clock(torch.device("cuda", 0))
    report = Report(options.out, False, describe_head(clock))
    return Run(config, small, FULL, clock, load_ops(), report, ends)


if __name__ == "__main__":
    sys.exit(main())
