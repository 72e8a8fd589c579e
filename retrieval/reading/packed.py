"""Limits for what comes packed: ZIP archives, and the office files that are ZIP archives inside."""

from __future__ import annotations

import io
import zipfile

from retrieval.errors import DocumentError

MAX_UNPACKED_BYTES = 300_000_000  # what unpacks to more is an attack or a mistake
MAX_ENTRIES = 5_000


def check_unpacked(data: bytes, label: str) -> None:
    """Raises DocumentError for a damaged archive, one with too many parts, or one that would unpack to too much.

    An entry cannot yield more than the size it declares: zipfile stops there.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DocumentError(f"This {label} is damaged; open it where it was made and save it again.") from error
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
        raise DocumentError(f"This {label} unpacks to more than 300 MB; split it, or save it without its images.")
    if len(entries) > MAX_ENTRIES:
        raise DocumentError(f"This {label} has {len(entries):,} parts; the limit is {MAX_ENTRIES:,}; split it.")
