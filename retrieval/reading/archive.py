"""Files that hold files (ZIP archives, mail with attachments) -> the files inside, which become documents of their own.

Limits: how many, how deep, how large, and how much larger than packed. A file inside that cannot be read is refused
like any other; the rest goes on.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from retrieval.errors import DocumentError
from retrieval.reading.mail import attachments
from retrieval.reading.packed import check_unpacked

MAX_MEMBERS = 500
MAX_DEPTH = 2  # an archive inside an archive is opened, one inside that is not
MAX_RATIO = 200  # text packs to a tenth, at best a fiftieth
_SMALL = 1_000_000  # what unpacks to less than this may pack as well as it likes
_IGNORED = ("__MACOSX/", ".DS_Store", "Thumbs.db")


def unpack_zip(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file in a ZIP archive. Raises DocumentError where a limit is passed or a password asked."""
    check_unpacked(data, "ZIP archive")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir() and not _is_ignored(entry.filename)]
        if not entries:
            raise DocumentError("This ZIP archive is empty; check that it is the right file.")
        if len(entries) > MAX_MEMBERS:
            raise DocumentError(f"This ZIP archive holds {len(entries):,} files; the limit is {MAX_MEMBERS}; split it.")
        for entry in entries:
            if entry.flag_bits & 1:
                raise DocumentError("This ZIP archive is protected by a password; unpack it and upload the files.")
            if entry.file_size > _SMALL and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
                raise DocumentError("A file in this ZIP archive unpacks to hundreds of times its size; it is not read.")
            try:
                yield _member_name(entry), archive.read(entry)
            except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, ValueError) as error:
                raise DocumentError("This ZIP archive is damaged; make it again and upload it.") from error


def unpack_mail(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file attached to a mail."""
    found = attachments(data)
    if len(found) > MAX_MEMBERS:
        raise DocumentError(f"This mail has {len(found):,} attachments; the limit is {MAX_MEMBERS}.")
    yield from found


def _member_name(entry: zipfile.ZipInfo) -> str:
    """The name without its folders. Without the mark for UTF-8, a Chinese Windows wrote GB18030."""
    name = entry.filename
    if not entry.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode("gb18030") if not name.isascii() else name
        except (UnicodeEncodeError, UnicodeDecodeError):
            name = entry.filename
    return PurePosixPath(name.replace("\\", "/")).name


def _is_ignored(name: str) -> bool:
    return any(part in name for part in _IGNORED)
