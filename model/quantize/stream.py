"""Quantizes a checkpoint folder into another, a layer at a time, so that memory does not grow with the model.

The order in which files appear keeps a half-written folder from being taken for whole: shards, index, the rest,
config.json last. `.quantize.json` records the source, the options and each finished shard with its hash; the same
command after a crash goes on with the first shard that is not in it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from model.checkpoint import INDEX
from model.config import CheckpointError, read_json
from model.quantize.calibrate import Calibration
from model.quantize.rtn import PackedWeight, quantize_rtn
from model.quantize.shards import (
    Layout,
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

JOURNAL = ".quantize.json"
SUMS = "SHA256SUMS"
HIDDEN = ".hidden-"
OURS = ("*.safetensors", "*.partial", INDEX, SUMS, JOURNAL)
PIECE_ELEMENTS = 2**23  # weights a worker takes at a time: 48 MB with their float32 copy
MAX_COPIED_BYTES = 2**26  # files beside the weights that are larger than a tokenizer are weights in another format
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
T = TypeVar("T")


class OutputError(OSError):
    """The target cannot be written; the message says what to do, and what was finished is kept."""


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """Per kind of module: how many tensors, mean and worst relative error |w - w'|/|w|, and the worst one's name.
    `fallbacks`: {layer: experts rounded to nearest although GPTQ was asked for}."""

    num_bytes: int
    errors: Mapping[str, tuple[int, float, float, str]]
    fallbacks: Mapping[int, tuple[int, ...]]
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
    with Source(source_folder) as source, _sentences(target):
        plan = make_plan(source, options)
        layouts = {shard.file: lay_out(source, shard, plan, options) for shard in plan.shards}
        identity: dict[str, Any] = {"source": source.identity(), "options": asdict(options)}
        if calibration_ids is not None:
            identity["calibration"] = hash_tensor(calibration_ids).hexdigest()
        journal = _open_journal(target, identity, overwrite)
        done = journal["shards"]
        _check_space(target, sum(layout_bytes(layout) for file, layout in layouts.items() if file not in done))
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
                _write_json(target / JOURNAL, journal)
        for file in target.glob(f"{HIDDEN}*"):
            file.unlink()
        _finish_folder(source, target, plan, options, layouts, done)
        return _summarise(target, plan, done)


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


# --- the target folder -------------------------------------------------------------------------------------------


def check_target(source: Path, target: Path) -> None:
    """Refuses a target that is, or lies in, the source folder."""
    inside = target.resolve()
    if inside == source.resolve() or source.resolve() in inside.parents:
        raise ValueError(f"{target} is, or lies inside, the checkpoint being read; give another folder.")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; give a folder that is new or was begun by this command.")


def _open_journal(target: Path, identity: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The journal of this very run, its finished shards verified; a new one for a new or emptied folder."""
    identity = json.loads(json.dumps({"version": 1, **identity}))
    target.mkdir(parents=True, exist_ok=True)
    path = target / JOURNAL
    if not path.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty and was not begun by this command; give another folder.")
    if path.exists() and not overwrite:
        journal = read_json(path)
        if {name: journal.get(name) for name in identity} != identity:
            raise ValueError(
                f"{target} was begun from another checkpoint or with other options; use --overwrite to start over."
            )
        for file, entry in journal["shards"].items():
            if not (target / file).is_file() or hash_file(target / file) != entry["sha256"]:
                raise CheckpointError(f"{target / file} is not as it was written; use --overwrite to start over.")
        return journal
    # Without its config.json no reader takes the folder for whole, so that goes first.
    (target / "config.json").unlink(missing_ok=True)
    for pattern in OURS:
        for file in target.glob(pattern):
            file.unlink()
    journal = identity | {"shards": {}, "hidden": None}
    _write_json(path, journal)
    return journal


def _finish_folder(
    source: Source, target: Path, plan: Plan, options: QuantizeOptions, layouts: Mapping[str, Layout], done: Mapping
) -> None:
    """Index, files beside the weights, hashes, and config.json last."""
    weight_map = {name: file for file, layout in layouts.items() for name in layout}
    total = sum(map(layout_bytes, layouts.values()))
    _write_json(target / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    names = [INDEX]
    for path in sorted(source.folder.iterdir()):
        if path.is_file() and _is_copied(path):
            _write(target / path.name, path.read_bytes())
            names.append(path.name)
    config = read_json(source.folder / "config.json") | {"quantization_config": describe(plan, options, source)}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    sums = {file: entry["sha256"] for file, entry in done.items()}
    sums |= {name: hash_file(target / name) for name in names}
    sums["config.json"] = hashlib.sha256(text.encode()).hexdigest()
    _write(target / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())
    _write(target / "config.json", text.encode())


def describe(plan: Plan, options: QuantizeOptions, source: Source) -> dict[str, object]:
    """`quantization_config` of compressed-tensors; `ignore` names exactly the linear layers left as they were."""
    ignore = [name.removesuffix(".weight") for name in plan.kept]
    if source.config.tie_word_embeddings:
        ignore.append("lm_head")
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": options.group_size,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def _is_copied(path: Path) -> bool:
    ours = {"config.json", INDEX, SUMS, JOURNAL}
    is_weights = path.suffix in (".safetensors", ".partial") or path.stat().st_size > MAX_COPIED_BYTES
    return path.name not in ours and not path.name.startswith(".") and not is_weights


def _write_json(path: Path, value: object) -> None:
    _write(path, json.dumps(value, indent=1).encode())


def _write(path: Path, data: bytes) -> None:
    """All of a file or nothing of it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _check_space(target: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(target).free + sum(file.stat().st_size for file in target.glob("*.partial"))
    if free < num_bytes:
        raise OutputError(
            f"{target} needs {num_bytes / 1e9:.1f} GB more and its disk has {free / 1e9:.1f} GB free; free some and "
            "run the same command again."
        )


@contextmanager
def _sentences(target: Path) -> Iterator[None]:
    """Turns an error of the system while writing into a sentence."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        why = "its disk is full" if error.errno in _FULL else str(error.strerror or error)
        raise OutputError(
            f"{target} cannot be written ({why}); finished layers are kept: mend that and run the same command again."
        ) from error


# --- what came of it ---------------------------------------------------------------------------------------------


def _summarise(target: Path, plan: Plan, done: Mapping[str, Any]) -> QuantizeReport:
    kinds: dict[str, dict[str, float]] = {}
    methods: dict[str, str] = {}
    for entry in done.values():
        for name, (method, error) in entry["tensors"].items():
            kinds.setdefault(_kind_of(name), {})[name] = error
            methods[name] = method
    errors = {
        kind: (len(found), sum(found.values()) / len(found), max(found.values()), max(found, key=found.__getitem__))
        for kind, found in kinds.items()
    }
    fallbacks: dict[int, set[int]] = {}
    if "gptq" in methods.values():
        for name, method in methods.items():
            if method == "rtn" and ".experts." in name:
                _, _, layer, _, _, expert, *_ = name.split(".")
                fallbacks.setdefault(int(layer), set()).add(int(expert))
    return QuantizeReport(
        num_bytes=sum((target / file).stat().st_size for file in done),
        errors=errors,
        fallbacks={layer: tuple(sorted(experts)) for layer, experts in sorted(fallbacks.items())},
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
