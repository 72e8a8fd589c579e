"""Preflight: can this machine serve, and with what. Each check passes, or says what to do. Changes nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from app.config import OFFLINE_ENVIRONMENT, Settings
from contracts import LoadProgress

MIN_FREE_DISK_BYTES = 2 * 1024**3
MIN_MEMORY_BYTES = 3 * 1024**3  # the app, the embedder and the embedded model together stay below 2.5 GB
TRIAL_TOKENS = 16  # computed once: enough to choose the number of threads
MEMORY_PER_BYTE = 1.1  # of weights, at most, while they are read and after


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    passed: bool
    message: str


def run_checks(settings: Settings, on_progress: Callable[[LoadProgress], None] | None = None) -> list[Check]:
    """Runs every check; one that raises has failed, with the error as its message. Loads the checkpoint last of all
    that concerns it, and only if it fits in memory."""
    checks: list[tuple[str, Callable[[Settings], tuple[bool, str]]]] = [
        ("python", _check_python),
        *_model_checks(settings, on_progress),
        ("rules", _check_rules),
        ("disk", _check_disk),
        ("database", _check_database),
        ("fonts", _check_fonts),
        ("scanned pages", _check_ocr),
        ("network", _check_network),
    ]
    return [_run(name, check, settings) for name, check in checks]


def _model_checks(
    settings: Settings, on_progress: Callable[[LoadProgress], None] | None
) -> list[tuple[str, Callable[[Settings], tuple[bool, str]]]]:
    if settings.server_url:
        return [("memory", _check_memory), ("model server", _check_server)]
    return [
        ("weights", _check_weights),
        ("memory", _check_memory),
        ("card", _check_card),
        ("checkpoint", partial(_check_checkpoint, on_progress=on_progress)),
    ]


def _run(name: str, check: Callable[[Settings], tuple[bool, str]], settings: Settings) -> Check:
    try:
        passed, message = check(settings)
    except Exception as error:  # noqa: BLE001 - a preflight reports every fault of every layer as a failed line
        return Check(name, False, str(error))
    return Check(name, passed, message)


def _check_python(settings: Settings) -> tuple[bool, str]:
    return sys.version_info >= (3, 11), f"{sys.version.split()[0]} (3.11 or later is needed)"


def _check_weights(settings: Settings) -> tuple[bool, str]:
    from app.weight_files import read_weights

    weights = read_weights(settings.checkpoint)
    num_files = f"{len(weights.names)} files" if len(weights.names) > 1 else weights.names[0]
    memory = weights.memory_bytes(settings.precision)
    return (
        True,
        f"{weights.precision}, {weights.num_bytes / 1e9:.2f} GB in {num_files}; {memory / 1e9:.2f} GB in memory",
    )


def _check_memory(settings: Settings) -> tuple[bool, str]:
    free, (needed, least) = psutil.virtual_memory().available, _needed_memory(settings)
    message = f"{free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed"
    if free >= needed:
        return True, message
    if 0 < least <= free:
        return (
            True,
            f"{free / 1e9:.1f} GB free, of {needed / 1e9:.1f}: experts are read from the disk as they are chosen",
        )
    return False, f"{message}: end other programs, or use a checkpoint of a lower precision (INT4, or precision nf4)"


def _check_card(settings: Settings) -> tuple[bool, str]:
    from app.card_plan import describe_here

    return True, describe_here(settings)


def _needed_memory(settings: Settings) -> tuple[float, float]:
    """To hold everything; and with the experts on the disk, 0 where they cannot be left there."""
    from app.weight_files import read_weights

    if settings.server_url:
        return MIN_MEMORY_BYTES, 0
    try:
        files = read_weights(settings.checkpoint)
    except ValueError:  # the line about the weights says what is wrong with them
        return MIN_MEMORY_BYTES, 0
    needed = MIN_MEMORY_BYTES + MEMORY_PER_BYTE * files.memory_bytes(settings.precision)
    return needed, files.least_bytes and MIN_MEMORY_BYTES + MEMORY_PER_BYTE * files.least_bytes


def _check_checkpoint(settings: Settings, on_progress: Callable[[LoadProgress], None] | None) -> tuple[bool, str]:
    from app.measure import ModelBench
    from model.generator import LocalGenerator
    from model.packed.manifest import is_packed, read_manifest
    from model.packed.verify import verify_files

    has_room, message = _check_memory(settings)
    if not has_room:
        return False, f"not loaded: {message}"
    if is_packed(settings.checkpoint):  # whatever was verified before: a preflight looks itself
        files = read_manifest(settings.checkpoint).files
        verify_files(settings.checkpoint, files, always=True, on_progress=on_progress)
    generator = LocalGenerator.load(settings.checkpoint, **settings.load_options, on_progress=on_progress)
    ModelBench(generator).time_steps(TRIAL_TOKENS, TRIAL_TOKENS)
    info = generator.info
    threads = f" (threads {generator.threads})" if generator.threads else ""
    held = f", {info.details['weights']}" if "weights" in info.details else ""
    return True, (
        f"{info.name}, {info.num_parameters:,} parameters, {info.precision}{held}, {info.kernels}{threads}, "
        f"{info.context_length:,} tokens of context, sha256 {info.weights_sha256[:16]}"
    )


def _check_server(settings: Settings) -> tuple[bool, str]:
    from app.services import connect_server

    info = connect_server(settings).info
    counted = "counted by its tokenizer" if settings.tokenizer_folder else "counted as bytes: see docs/serving.md"
    return True, f"{info.name} at {info.details['server']}, {info.context_length:,} tokens of context, {counted}"


def _check_rules(settings: Settings) -> tuple[bool, str]:
    from safety.checker import RuleSafetyChecker

    safety = RuleSafetyChecker()
    return True, f"{len(safety.rules)} rules, version {safety.version}"


def _check_disk(settings: Settings) -> tuple[bool, str]:
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    message = f"{free / 1e9:.1f} GB free at {folder}; {MIN_FREE_DISK_BYTES / 1e9:.1f} GB are needed"
    return free >= MIN_FREE_DISK_BYTES and os.access(folder, os.W_OK), message


def _check_database(settings: Settings) -> tuple[bool, str]:
    if not settings.database_url:
        return True, f"SQLite in {settings.data_dir}"
    from sqlalchemy import create_engine, text

    engine = create_engine(settings.database_url)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
    return True, f"{engine.dialect.name} answers"


def _check_fonts(settings: Settings) -> tuple[bool, str]:
    folders = (Path("/usr/share/fonts"), Path("/Library/Fonts"), Path.home() / ".local/share/fonts")
    has_cjk = any(next(folder.rglob("*CJK*"), None) for folder in folders if folder.is_dir())
    return (
        True,
        "Chinese page images have a font" if has_cjk else "no CJK font: install fonts-noto-cjk for Chinese pages",
    )


def _check_ocr(settings: Settings) -> tuple[bool, str]:
    from retrieval.reading import ocr, tesseract

    if not (recognisers := ocr.parser()):
        return False, "nothing recognises scanned pages: run `make setup`, or install tesseract"
    if not tesseract.version():
        return True, f"read by {recognisers}; where that fails they count as unreadable, unless tesseract is installed"
    return True, f"read by {recognisers} ({', '.join(tesseract.languages()) or 'without a language: install eng'})"


def _check_network(settings: Settings) -> tuple[bool, str]:
    is_offline = all(os.environ.get(key) == value for key, value in OFFLINE_ENVIRONMENT.items())
    is_local = settings.host in ("127.0.0.1", "localhost", "::1")
    where = "this machine only" if is_local else f"every machine that reaches {settings.host}"
    return is_offline, f"serves {where}; model hubs, telemetry and tracing are {'off' if is_offline else 'NOT off'}"
