"""What quantizing a checkpoint would take, before it is begun: sizes, disk, memory, and time by timing one tensor."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from model.quantize.calibrate import sum_squares
from model.quantize.folder import check_target
from model.quantize.gptq import quantize_gptq
from model.quantize.rtn import quantize_rtn
from model.quantize.shards import NUM_WORKERS, Plan, lay_out, layout_bytes, make_plan, run_ordered, start_workers
from model.quantize.source import QuantizeOptions, Source
from model.quantize.stream import PIECE_ELEMENTS

PROCESS_BYTES = 450_000_000  # the interpreter with torch, measured
PIECE_BYTES = PIECE_ELEMENTS * 8  # a piece as stored, in float32, and packed


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sizes in bytes: the weights in each precision, each file to be written, the disk's need and what it has."""

    source_bytes: int
    precisions: Mapping[str, int]
    shards: Mapping[str, int]
    disk_bytes: int
    free_bytes: int
    peak_memory_bytes: int
    seconds: float
    undivided: tuple[str, ...]


def estimate(source_folder: Path, target: Path, options: QuantizeOptions, num_tokens: int = 0) -> Estimate:
    """Reads and quantizes one tensor in memory; writes nothing. `num_tokens` of calibration, for GPTQ.

    Raises as `quantize_checkpoint` for what is wrong.
    """
    check_target(source_folder, target)
    with Source(source_folder) as source:
        plan = make_plan(source, options)
        shards = {shard.file: layout_bytes(lay_out(source, shard, plan, options)) for shard in plan.shards}
        source_bytes = sum(map(source.source_bytes, source.shapes))
        existing = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.is_dir())
        return Estimate(
            source_bytes=source_bytes,
            precisions=_precisions(source) | {"int4": sum(shards.values())},
            shards=shards,
            disk_bytes=sum(shards.values()) + 2 * num_tokens * source.config.hidden_size * source.dtype.itemsize,
            free_bytes=shutil.disk_usage(existing).free,
            peak_memory_bytes=PROCESS_BYTES
            + (3 * NUM_WORKERS + 1) * PIECE_BYTES
            + (_calibration_bytes(source, plan, num_tokens) if options.method == "gptq" else 0),
            seconds=_time(source, plan, options, num_tokens),
            undivided=plan.undivided,
        )


def _precisions(source: Source) -> dict[str, int]:
    """The same model in BF16, and in FP8 with a float32 scale per 128 x 128 block of each layer's linear weights."""
    bf16 = fp8 = 0
    for name, shape in source.shapes.items():
        size = math.prod(shape) * (4 if name.endswith("expert_bias") else 2)
        bf16 += size
        is_fp8 = name in source.linears and not name.endswith((".eh_proj.weight", "lm_head.weight"))
        fp8 += size // 2 + 4 * math.prod(-(-side // 128) for side in shape) if is_fp8 else size
    return {"bf16": bf16, "fp8": fp8}


def _calibration_bytes(source: Source, plan: Plan, num_tokens: int) -> int:
    """GPTQ's: the residual stream and what a layer makes of it, and the largest weight with its Hessian."""
    config = source.config
    streams = num_tokens * (16 * config.hidden_size + 4 * config.intermediate_size)
    largest = max(
        4 * columns * (5 * columns + 8 * rows) for rows, columns in (source.shapes[n] for n in plan.quantized)
    )
    return streams + largest


def _time(source: Source, plan: Plan, options: QuantizeOptions, num_tokens: int) -> float:
    """Seconds for the whole from those for a weight in the middle, which every worker quantizes once."""
    names = sorted(plan.quantized, key=lambda name: (math.prod(source.shapes[name]), name))
    name = names[len(names) // 2]
    begin, end = next(source.row_pieces(name, PIECE_ELEMENTS))
    num_rows, num_columns = source.shapes[name]
    num_inputs = num_tokens * source.config.num_experts_per_tok // source.config.num_experts

    def work() -> None:
        rows = source.read_rows(name, begin, end)
        if options.method == "rtn":
            quantize_rtn(rows, options.group_size, source.dtype)
        else:
            quantize_gptq(rows, sum_squares(torch.randn(num_inputs, num_columns)), options.group_size, source.dtype)

    def cost(name: str) -> int:
        rows, columns = source.shapes[name]
        if options.method == "rtn":
            return rows * columns
        return columns**2 * (rows + columns + (num_inputs if ".experts." in name else num_tokens))

    with start_workers() as pool:
        list(run_ordered(pool, work, [()] * NUM_WORKERS))  # the first call prepares the libraries
        started = time.perf_counter()
        list(run_ordered(pool, work, [()] * NUM_WORKERS))
        seconds = (time.perf_counter() - started) * num_rows / (end - begin)
    return seconds * sum(map(cost, plan.quantized)) / (NUM_WORKERS * cost(name))
