"""Puts a finished run's checkpoint where the product looks for it.

Copies the five files that a checkpoint needs, and no state of the training. Knows nothing of how it was trained.
"""

from __future__ import annotations

import shutil
from pathlib import Path

MAX_BYTES = 40_000_000  # in the repository, weights and tokenizer together
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"


class ExportError(ValueError):
    """A run's folder cannot be exported; the message says what is missing or too large."""


def export(run_dir: Path, folder: Path = EMBEDDED) -> Path:
    """Copies the checkpoint of run_dir into folder. Raises ExportError and leaves folder as it was."""
    missing = [name for name in FILES if not (run_dir / name).is_file()]
    if missing:
        raise ExportError(f"{run_dir} has no {missing[0]}; train first.")
    size = sum((run_dir / name).stat().st_size for name in FILES)
    if size > MAX_BYTES:
        raise ExportError(f"The checkpoint takes {size:,} bytes and {MAX_BYTES:,} are allowed; train a smaller model.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(run_dir / name, folder / name)
    return folder
