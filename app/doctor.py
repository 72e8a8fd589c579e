"""Preflight: can this machine serve, and with what. Each check passes, or says what to do. Changes nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.config import OFFLINE_ENVIRONMENT, Settings

MIN_FREE_DISK_BYTES = 2 * 1024**3
MIN_MEMORY_BYTES = 3 * 1024**3  # the app, the embedder and the embedded model together stay below 2.5 GB


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    passed: bool
    message: str


def run_checks(settings: Settings) -> list[Check]:
    """Runs every check; one that raises has failed, with the error as its message."""
    checks: list[tuple[str, Callable[[Settings], tuple[bool, str]]]] = [
        ("python", _check_python),
        ("checkpoint", _check_checkpoint),
        ("rules", _check_rules),
        ("memory", _check_memory),
        ("disk", _check_disk),
        ("database", _check_database),
        ("fonts", _check_fonts),
        ("scanned pages", _check_ocr),
        ("network", _check_network),
    ]
    return [_run(name, check, settings) for name, check in checks]


def _run(name: str, check: Callable[[Settings], tuple[bool, str]], settings: Settings) -> Check:
    try:
        passed, message = check(settings)
    except Exception as error:  # noqa: BLE001 - a preflight reports every fault of every layer as a failed line
        return Check(name, False, str(error))
    return Check(name, passed, message)


def _check_python(settings: Settings) -> tuple[bool, str]:
    return sys.version_info >= (3, 11), f"{sys.version.split()[0]} (3.11 or later is needed)"


def _check_checkpoint(settings: Settings) -> tuple[bool, str]:
    from model.generator import LocalGenerator

    precision = None if settings.precision == "auto" else settings.precision
    info = LocalGenerator.load(settings.checkpoint, dtype=precision).info
    return True, (
        f"{info.name}, {info.num_parameters:,} parameters, {info.precision}, {info.kernels}, "
        f"{info.context_length:,} tokens of context, sha256 {info.weights_sha256[:16]}"
    )


def _check_rules(settings: Settings) -> tuple[bool, str]:
    from safety.checker import RuleSafetyChecker

    safety = RuleSafetyChecker()
    return True, f"{len(safety.rules)} rules, version {safety.version}"


def _check_memory(settings: Settings) -> tuple[bool, str]:
    free = psutil.virtual_memory().available
    return free >= MIN_MEMORY_BYTES, f"{free / 1e9:.1f} GB free; {MIN_MEMORY_BYTES / 1e9:.1f} GB are needed"


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
    return True, "this version reads text layers only; scanned pages are counted as unreadable under each answer"


def _check_network(settings: Settings) -> tuple[bool, str]:
    is_offline = all(os.environ.get(key) == value for key, value in OFFLINE_ENVIRONMENT.items())
    is_local = settings.host in ("127.0.0.1", "localhost", "::1")
    where = "this machine only" if is_local else f"every machine that reaches {settings.host}"
    return is_offline, f"serves {where}; model hubs, telemetry and tracing are {'off' if is_offline else 'NOT off'}"
