"""What can go wrong in retrieval, as sentences for the clinician.

DocumentError(ValueError)   the file cannot be taken in; the file is at fault and the message says what to do
IndexFailure(Exception)     the search index cannot be read or written: the disk is full, another process has it
    IndexUnreadable         its files are damaged: it must be made again from the text
"""

from __future__ import annotations

import errno


class DocumentError(ValueError):
    """A file that cannot be read; the message is one sentence that names the cause and the way out."""


class IndexFailure(Exception):  # noqa: N818 - reads as a state of the index; IndexError is Python's
    """The vector index cannot be opened, written or read; the message is one sentence."""


class IndexUnreadable(IndexFailure):
    """The index's files are damaged; moving them aside and making the index again helps, waiting does not."""


DISK_FULL = "The disk is full; free some space and add the document again."
_DISK_FULL_SIGNS = ("no space left", "disk is full", "database or disk is full", "file too large", "disk quota")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that nothing more can be written."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    if any(sign in str(error).lower() for sign in _DISK_FULL_SIGNS):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_disk_full(cause)
