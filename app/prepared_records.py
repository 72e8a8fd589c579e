"""Prepared records: what the model computed of a patient's record, kept so that the next question need not wait for it.

The keys and values of the prompt's beginning (system turn, patient line, passages) stay in the engine's cache and, one
encrypted file a patient, under the data folder. A file is a row of frames, each a length and a sealed piece: first the
header of model.prepared, then the blocks. The seal binds each frame to its patient, its file and its place, so that
nothing can be exchanged, moved or cut off. What is not exactly of today's record and model is removed and computed
again. Knows nothing of documents and turns; whoever deletes a document calls `erase` before its rows go.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from app.errors import StorageError
from app.store.encryption import NONCE_BYTES, Cipher, sync_folder
from contracts import Message
from model.prepared import PreparedError, PromptKeeper

_LOG = logging.getLogger(__name__)
FOLDER = "prepared"
_SUFFIX, _UNFINISHED = ".kv", ".part"
_CONTEXT = b"bedside prepared record 1"
_LENGTH = struct.Struct(">I")
SPARE_DISK_BYTES = 512 * 2**20  # what must stay free for the database: these files are a convenience, it is not

Prompts = tuple[Sequence[Message], Sequence[Message]]


class PreparedRecords:
    """The prepared records of one data folder. Safe to call from several threads."""

    def __init__(
        self,
        folder: Path,
        cipher: Cipher,
        keeper: PromptKeeper,
        encode: Callable[[Sequence[Message]], list[int]],
        max_bytes: int,
        is_sound: Callable[[], bool] = lambda: True,
    ) -> None:
        """encode: messages to the ids of the whole prompt. max_bytes: of all files together; beyond it those that were
        not used for longest go. is_sound: whether the model seems in order; what a failing one read must not outlive
        it. Files that a killed process left unfinished are removed."""
        self._folder = folder
        self._cipher = cipher
        self._keeper = keeper
        self._encode = encode
        self._max_bytes = max_bytes
        self._is_sound = is_sound
        self._writing = threading.Lock()  # one writes a draft or erases, so that none is left behind; before _files
        self._files = threading.Lock()  # one reads, replaces or removes finished files
        self._num_erased: Counter[str] = Counter()  # by patient, so that who prepared before writes nothing after
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in folder.glob(f"*{_UNFINISHED}"):
            path.unlink()

    def load(self, patient_id: str, messages: Sequence[Message]) -> int:
        """Brings the patient's prepared record into the cache, if there is one; how many tokens of the prompt are then
        prepared. A file of another record, model or key, or a damaged one, is removed."""
        path = self._path(patient_id)
        if not path.exists():
            return 0
        prompt_ids = self._encode(messages)
        with self._files:
            try:
                num_tokens = self._restore(patient_id, prompt_ids)
            except FileNotFoundError:
                return 0
            except (PreparedError, OSError) as error:
                _LOG.warning("a prepared record is not used and made anew: %s", error)
                with suppress(OSError):  # the answer does not hang on it
                    _remove(path)
                return 0
        self._keeper.keep(prompt_ids[: num_tokens + 1])  # a block may be known by the token after it too
        return num_tokens

    def refresh(self, patient_id: str, make_prompts: Callable[[], Prompts | None], busy: threading.Event) -> bool:
        """Makes the patient's file what it should be today; False if it gave way to `busy` or a deletion and wants to
        be called again. make_prompts: two prompts about the record that differ in the question alone, or None where
        there is nothing to prepare; it is called when all that is still to be erased can be seen."""
        num_erased = self._num_erased[patient_id]
        prompts = make_prompts()
        token_ids = self._common_beginning(prompts) if prompts else []
        path = self._path(patient_id)
        with self._files:
            if token_ids and self._read_stored_header(patient_id) == self._keeper.make_header(token_ids):
                _note_use(path)
                self._keeper.keep(token_ids)
                return True
            _remove(path)
        if not token_ids:
            return True
        if not self._keeper.is_known(token_ids) and not self._keeper.compute(token_ids, busy):
            return False
        if not self._is_sound():
            return True
        self._keeper.keep(token_ids)

        def must_stop() -> bool:
            return busy.is_set() or self._num_erased[patient_id] != num_erased

        with self._writing:
            return self._write(patient_id, token_ids, must_stop)

    def erase(self, patient_id: str) -> None:
        """Removes what was prepared of a patient, on disk and in the cache. Raises StorageError if the file stays."""
        self._num_erased[patient_id] += 1  # before the lock: a writer sees it and lets go
        with self._writing, self._files:
            try:
                _remove(self._path(patient_id))
            except OSError as error:
                raise StorageError(f"The prepared record cannot be removed ({error.strerror}); try again.") from None
        self._keeper.forget()

    def sweep(self, patient_ids: set[str]) -> None:
        """Removes the files of all other patients: those of patients who were deleted as the program was killed."""
        with self._files:
            for path in self._folder.glob(f"*{_SUFFIX}"):
                if path.stem not in patient_ids:
                    _remove(path)

    def _path(self, patient_id: str) -> Path:
        return self._folder / f"{patient_id}{_SUFFIX}"

    def _common_beginning(self, prompts: Prompts) -> list[int]:
        pairs = zip(*map(self._encode, prompts), strict=False)
        return self._keeper.trim([one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)])

    # --- files ----------------------------------------------------------------------------------------------------

    def _restore(self, patient_id: str, prompt_ids: Sequence[int]) -> int:
        path = self._path(patient_id)
        with path.open("rb") as file:
            num_tokens = self._keeper.restore(prompt_ids, self._open_frames(patient_id, file))
        _note_use(path)
        return num_tokens

    def _read_stored_header(self, patient_id: str) -> bytes:
        try:
            with self._path(patient_id).open("rb") as file:
                return next(self._open_frames(patient_id, file), b"")
        except (OSError, PreparedError):
            return b""

    def _open_frames(self, patient_id: str, file: BinaryIO) -> Iterator[bytes]:
        context = _CONTEXT + patient_id.encode()
        for number, sealed in enumerate(_read_frames(file)):
            try:
                yield self._cipher.open(sealed, context + _LENGTH.pack(number))
            except StorageError:
                raise PreparedError("The prepared record is damaged, or sealed with another key.") from None
            if number == 0:
                context += sealed[:NONCE_BYTES]

    def _seal_frames(self, patient_id: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        context = _CONTEXT + patient_id.encode()
        for number, piece in enumerate(pieces):
            sealed = self._cipher.seal(piece, context + _LENGTH.pack(number))
            yield _LENGTH.pack(len(sealed)) + sealed
            if number == 0:
                context += sealed[:NONCE_BYTES]

    def _write(self, patient_id: str, token_ids: Sequence[int], must_stop: Callable[[], bool]) -> bool:
        """False if it was to stop. A full disk, or a record larger than all room, is no fault: it is then not kept."""
        size = self._keeper.count_bytes(token_ids)
        if size > self._max_bytes or shutil.disk_usage(self._folder).free < size + SPARE_DISK_BYTES:
            _LOG.info("a prepared record of %d MB is not kept on disk: there is no room for it", size >> 20)
            return True
        draft = self._path(patient_id).with_suffix(_UNFINISHED)
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file, closing(self._keeper.export(token_ids)) as pieces:
                for frame in self._seal_frames(patient_id, pieces):
                    if must_stop():
                        return False
                    file.write(frame)
                file.flush()
                os.fsync(file.fileno())
            with self._files:
                if must_stop():
                    return False
                _note_use(draft)
                os.replace(draft, self._path(patient_id))
                sync_folder(self._folder)
                self._remove_oldest()
        except PreparedError as error:  # other traffic took its blocks meanwhile
            _LOG.info("a prepared record is not kept on disk: %s", error)
        except OSError as error:
            _LOG.warning("a prepared record could not be written: %s", error.strerror)
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _remove_oldest(self) -> None:
        paths = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
        total = sum(path.stat().st_size for path in paths)
        for path in paths:
            if total <= self._max_bytes:
                break
            total -= path.stat().st_size
            _remove(path)


def remove_prepared(folder: Path) -> None:
    """Removes all prepared records of a data folder in which none are wanted."""
    if folder.exists():
        shutil.rmtree(folder)


def _note_use(path: Path) -> None:
    """By our own clock: the file system's may stand still for milliseconds."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def _read_frames(file: BinaryIO) -> Iterator[bytes]:
    while head := file.read(_LENGTH.size):
        if len(head) < _LENGTH.size:
            raise PreparedError("The prepared record is damaged: it ends in the midst of a frame.")
        (length,) = _LENGTH.unpack(head)
        frame = file.read(length)
        if len(frame) < max(length, NONCE_BYTES):
            raise PreparedError("The prepared record is damaged: it ends in the midst of a frame.")
        yield frame
