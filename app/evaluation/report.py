"""Where a precision report rests: beside the weights it is about, as JSON and as a page. Imports nothing heavy."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.errors import InputError

FORMAT = 1  # of the report's data; raised when a key changes its meaning
JSON_NAME = "precision_report.json"
HTML_NAME = "precision_report.html"


def require_writable(folder: Path, is_ours: bool = False) -> None:
    """Raises InputError, before an hour's work, if a report could not be saved in this folder; is_ours makes it."""
    if not folder.is_dir() and not is_ours:
        raise InputError(f"{folder} is not a folder; name the folder of a checkpoint.")
    probe = folder / ".precision_report.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"The report cannot be saved in {folder} ({error.strerror}); name a folder that can be written by --output."
        ) from error


def save_report(report: Mapping[str, Any], page: str, folder: Path) -> tuple[Path, Path]:
    """Writes both files and gives their paths; a crash leaves the old ones. Raises InputError if it cannot."""
    texts = {folder / HTML_NAME: page, folder / JSON_NAME: json.dumps(report, ensure_ascii=False, indent=1) + "\n"}
    for path, text in texts.items():
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}); use --output.") from error
    return folder / JSON_NAME, folder / HTML_NAME


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report in a checkpoint's folder; None if there is none. Raises InputError if it cannot be used."""
    path = folder / JSON_NAME
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); run the comparison again.") from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise InputError(f"{path} was written by another version of Bedside; run the comparison again.")
    return report
