"""Files that a command is given."""

from __future__ import annotations

from pathlib import Path

from app.errors import InputError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises InputError naming the file and what to do."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); convert it first.") from error
