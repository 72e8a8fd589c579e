"""The folder that is written: its journal, its index and config, and errors of its disk as sentences.

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.checkpoint import HASHES, INDEX
from model.config import CheckpointError, read_json
from model.quantize.shards import Layout, Plan, hash_file, layout_bytes
from model.quantize.source import QuantizeOptions, Source

JOURNAL = ".quantize.json"
OURS = ("*.safetensors", "*.partial", INDEX, HASHES)
MAX_COPIED_BYTES = 2**26  # files beside the weights that are larger than a tokenizer are weights in another format
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutputError(OSError):
    """The target cannot be written; the message says what to do, and what was finished is kept."""


def check_target(source: Path, target: Path) -> None:
    """Refuses a target that is, or lies in, the source folder."""
    inside = target.resolve()
    if inside == source.resolve() or source.resolve() in inside.parents:
        raise ValueError(f"{target} is, or lies inside, the checkpoint being read; give another folder.")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; give a folder that is new or was begun by this command.")


def open_journal(
    target: Path,
    identity: dict[str, Any],
    overwrite: bool,
    name: str = JOURNAL,
    digest_of: Callable[[Path], str] = hash_file,
) -> dict[str, Any]:
    """The journal of this very run, its finished shards verified; a new one for a new or emptied folder."""
    identity = json.loads(json.dumps({"version": 1, **identity}))
    target.mkdir(parents=True, exist_ok=True)
    path = target / name
    if not path.exists() and any(file.name != f"{name}.partial" for file in target.iterdir()):
        raise ValueError(f"{target} is not empty and was not begun by this command; give another folder.")
    if path.exists() and not overwrite:
        journal = read_json(path)
        if {key: journal.get(key) for key in identity} != identity:
            raise ValueError(
                f"{target} was begun from another checkpoint or with other options; use --overwrite to start over."
            )
        for file, entry in journal["shards"].items():
            if not (target / file).is_file() or digest_of(target / file) != entry["sha256"]:
                raise CheckpointError(f"{target / file} is not as it was written; use --overwrite to start over.")
        return journal
    # Without its config.json no reader takes the folder for whole, so that goes first.
    (target / "config.json").unlink(missing_ok=True)
    for pattern in OURS:
        for file in target.glob(pattern):
            file.unlink()
    journal = identity | {"shards": {}, "hidden": None}
    write_json(path, journal)
    return journal


def finish_folder(
    source: Source,
    target: Path,
    plan: Plan,
    options: QuantizeOptions,
    layouts: Mapping[str, Layout],
    done: Mapping[str, Any],
) -> None:
    """Index, files beside the weights, hashes, and config.json last."""
    weight_map = {name: file for file, layout in layouts.items() for name in layout}
    total = sum(map(layout_bytes, layouts.values()))
    write_json(target / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    names = [INDEX]
    for path in list_side_files(source.folder):
        write_bytes(target / path.name, path.read_bytes())
        names.append(path.name)
    config = read_json(source.folder / "config.json") | {"quantization_config": describe(plan, options, source)}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    sums = {file: entry["sha256"] for file, entry in done.items()}
    sums |= {name: hash_file(target / name) for name in names}
    sums["config.json"] = hashlib.sha256(text.encode()).hexdigest()
    write_bytes(target / HASHES, "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())
    write_bytes(target / "config.json", text.encode())


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


def list_side_files(folder: Path) -> list[Path]:
    """What lies beside a checkpoint's weights and config and goes with them: the tokenizer, a licence."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and _is_copied(path)]


def _is_copied(path: Path) -> bool:
    ours = {"config.json", INDEX, HASHES, JOURNAL}
    is_weights = path.suffix in (".safetensors", ".partial") or path.stat().st_size > MAX_COPIED_BYTES
    return path.name not in ours and not path.name.startswith(".") and not is_weights


def write_json(path: Path, value: object) -> None:
    write_bytes(path, json.dumps(value, indent=1).encode())


def write_bytes(path: Path, data: bytes) -> None:
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


def check_space(target: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(target).free + sum(file.stat().st_size for file in target.glob("*.partial"))
    if free < num_bytes:
        raise OutputError(
            f"{target} needs {num_bytes / 1e9:.1f} GB more and its disk has {free / 1e9:.1f} GB free; free some and "
            "run the same command again."
        )


@contextmanager
def writing_to(target: Path) -> Iterator[None]:
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
