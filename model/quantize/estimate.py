"""What quantizing a checkpoint would take, before it is begun: sizes, disk, memory, and time by timing one tensor."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.quantize.rtn import quantize_rtn
from model.quantize.shards import Plan, lay_out, layout_bytes, make_plan
from model.quantize.source import QuantizeOptions, Source
from model.quantize.stream import NUM_WORKERS, PIECE_ELEMENTS, check_target, run_ordered, start_workers

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


def estimate(source_folder: Path, target: Path, options: QuantizeOptions) -> Estimate:
    """Reads and quantizes one tensor in memory; writes nothing. Raises as `quantize_checkpoint` for what is wrong."""
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
            disk_bytes=sum(shards.values()),
            free_bytes=shutil.disk_usage(existing).free,
            peak_memory_bytes=PROCESS_BYTES + (3 * NUM_WORKERS + 1) * PIECE_BYTES,
            seconds=source_bytes / _time_one_tensor(source, plan, options),
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


def _time_one_tensor(source: Source, plan: Plan, options: QuantizeOptions) -> float:
    """Source bytes a second, from a weight in the middle of the model that every worker quantizes once."""
    names = sorted(plan.quantized, key=lambda name: (math.prod(source.shapes[name]), name))
    name = names[len(names) // 2]
    begin, end = next(source.row_pieces(name, PIECE_ELEMENTS))

    def work() -> None:
        quantize_rtn(source.read_rows(name, begin, end), options.group_size, source.dtype)

    with start_workers() as pool:
        list(run_ordered(pool, work, [()] * NUM_WORKERS))  # the first call prepares the libraries
        started = time.perf_counter()
        list(run_ordered(pool, work, [()] * NUM_WORKERS))
        seconds = time.perf_counter() - started
    share = (end - begin) / source.shapes[name][0]
    return NUM_WORKERS * source.source_bytes(name) * share / seconds
