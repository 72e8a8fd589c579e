"""Quantizes a checkpoint folder into another, a layer at a time, so that memory does not grow with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from model.config import CheckpointError
from model.quantize.calibrate import Calibration
from model.quantize.folder import (
    JOURNAL,
    check_space,
    check_target,
    finish_folder,
    open_journal,
    write_json,
    writing_to,
)
from model.quantize.rtn import PackedWeight, quantize_rtn
from model.quantize.shards import (
    Plan,
    Progress,
    Shard,
    ShardWriter,
    Step,
    hash_file,
    hash_tensor,
    lay_out,
    layout_bytes,
    make_plan,
    run_ordered,
    start_workers,
)
from model.quantize.source import QuantizeOptions, Source
from model.safetensors_file import SafetensorsFile, SafetensorsWriter

HIDDEN = ".hidden-"
PIECE_ELEMENTS = 2**21  # weights a worker takes at a time: 12 MB with their float32 copy


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """Per kind of module: how many tensors, mean and worst relative error |w - w'|/|w|, and the worst one's name.
    Rounded to nearest although GPTQ was asked for: `fallbacks` {layer: experts}; `rounded`, other kinds of weights."""

    num_bytes: int
    errors: Mapping[str, tuple[int, float, float, str]]
    fallbacks: Mapping[int, tuple[int, ...]]
    rounded: tuple[str, ...]
    undivided: tuple[str, ...]


def quantize_checkpoint(
    source_folder: str | Path,
    target_folder: str | Path,
    options: QuantizeOptions,
    *,
    calibration_ids: Tensor | None = None,
    overwrite: bool = False,
    show: Callable[[Step], None] = lambda step: None,
) -> QuantizeReport:
    """Writes `target_folder`, or goes on with it. GPTQ needs `calibration_ids` [B,S] i64.

    Raises CheckpointError or ValueError for what cannot be read, OutputError for what cannot be written.
    """
    source_folder, target = Path(source_folder), Path(target_folder)
    check_target(source_folder, target)
    with Source(source_folder) as source, writing_to(target):
        plan = make_plan(source, options)
        layouts = {shard.file: lay_out(source, shard, plan, options) for shard in plan.shards}
        identity: dict[str, Any] = {"source": source.identity(), "options": asdict(options)}
        if calibration_ids is not None:
            identity["calibration"] = hash_tensor(calibration_ids).hexdigest()
        journal = open_journal(target, identity, overwrite)
        done = journal["shards"]
        check_space(target, sum(layout_bytes(layout) for file, layout in layouts.items() if file not in done))
        calibration = _resume_calibration(source, target, plan, options, calibration_ids, journal)
        progress = Progress(len(plan.shards), sum(map(source.source_bytes, source.shapes)), show)
        with start_workers() as pool:
            for shard in plan.shards:
                if shard.file in done:
                    progress.skip(sum(map(source.source_bytes, shard.names)))
                    continue
                progress.begin()
                with ShardWriter(target / shard.file, layouts[shard.file], source, progress) as writer:
                    if calibration is not None and shard.layer is not None:
                        calibration.quantize_layer(shard, writer, pool)
                    else:
                        round_shard(shard, plan, options, writer, pool)
                    done[shard.file] = writer.finish()
                if calibration is not None and shard.layer is not None:
                    _save_hidden(target, shard.layer + 1, calibration.hidden, journal)
                write_json(target / JOURNAL, journal)
        for file in target.glob(f"{HIDDEN}*"):
            file.unlink()
        finish_folder(source, target, plan, options, layouts, done)
        return _summarise(target, plan, options, done)


def round_shard(
    shard: Shard, plan: Plan, options: QuantizeOptions, writer: ShardWriter, pool: ThreadPoolExecutor
) -> None:
    """Round-to-nearest for every weight of a shard that the plan quantizes; the rest is copied."""
    source = writer.source
    for name in shard.names:
        if name not in plan.quantized:
            writer.copy(name)
    pieces = [
        (name, begin, end)
        for name in shard.names
        if name in plan.quantized
        for begin, end in source.row_pieces(name, PIECE_ELEMENTS)
    ]

    def round_piece(name: str, begin: int, end: int) -> tuple[str, int, PackedWeight]:
        rows = source.read_rows(name, begin, end)
        return name, begin, quantize_rtn(rows, options.group_size, source.dtype)

    for name, begin, weight in run_ordered(pool, round_piece, pieces):
        writer.put(name, weight, "rtn", begin)


# --- calibration, kept between layers -----------------------------------------------------------------------------


def _resume_calibration(
    source: Source,
    target: Path,
    plan: Plan,
    options: QuantizeOptions,
    ids_BS: Tensor | None,
    journal: Mapping[str, Any],
) -> Calibration | None:
    """The calibration before the first unfinished layer; None for round-to-nearest."""
    if options.method == "rtn":
        return None
    if ids_BS is None:
        raise ValueError("GPTQ needs calibration text; give one.")
    calibration = Calibration(source, plan, options, ids_BS)
    hidden = journal.get("hidden")
    if hidden is not None and any(s.layer is not None and s.file not in journal["shards"] for s in plan.shards):
        path = target / hidden["file"]
        if not path.is_file() or hash_file(path) != hidden["sha256"]:
            raise CheckpointError(f"{path} is not as it was written; use --overwrite to start over.")
        with SafetensorsFile(path) as file:
            calibration.hidden = file.read("hidden")
    return calibration


def _save_hidden(target: Path, layer: int, hidden: Tensor, journal: dict[str, Any]) -> None:
    """Before the journal names it, a file of its own: whichever of the two a crash spares, they fit. The one before
    the last is no longer named by anything."""
    path = target / f"{HIDDEN}{layer:05d}.safetensors"
    with SafetensorsWriter(path, {"hidden": (hidden.dtype, tuple(hidden.shape))}) as writer:
        writer.write("hidden", hidden)
        writer.finish()
    (target / f"{HIDDEN}{layer - 2:05d}.safetensors").unlink(missing_ok=True)
    journal["hidden"] = {"file": path.name, "sha256": hash_file(path)}


# --- what came of it ---------------------------------------------------------------------------------------------


def _summarise(target: Path, plan: Plan, options: QuantizeOptions, done: Mapping[str, Any]) -> QuantizeReport:
    kinds: dict[str, dict[str, float]] = {}
    fallbacks: dict[int, set[int]] = {}
    rounded = []
    for name, (method, error) in ((n, entry) for shard in done.values() for n, entry in shard["tensors"].items()):
        kinds.setdefault(_kind_of(name), {})[name] = error
        if method == options.method:
            continue
        if ".experts." in name:
            _, _, layer, _, _, expert, *_ = name.split(".")
            fallbacks.setdefault(int(layer), set()).add(int(expert))
        else:
            rounded.append(name)
    return QuantizeReport(
        num_bytes=sum((target / file).stat().st_size for file in done),
        errors={
            kind: (len(found), sum(found.values()) / len(found), max(found.values()), max(found, key=found.__getitem__))
            for kind, found in kinds.items()
        },
        fallbacks={layer: tuple(sorted(experts)) for layer, experts in sorted(fallbacks.items())},
        rounded=tuple(rounded),
        undivided=plan.undivided,
    )


def _kind_of(name: str) -> str:
    parts = {
        ".attention.": "attention",
        ".mlp.experts.": "routed experts",
        ".mlp.shared_experts.": "shared experts",
        ".mlp.": "dense layers",
        ".eh_proj.": "MTP projection",
    }
    return next((kind for part, kind in parts.items() if part in name), "lm_head")
