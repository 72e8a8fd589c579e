"""Whether the files of a packed folder are those that were written, by SHA-256, without reading 10 GB at every start.

A file that was hashed is remembered by path, size, inode and times, to the nanosecond; the time of the last change of
an inode (ctime) cannot be set by a program, so a file that was touched since is hashed again. Damage that leaves no
such trace, a disk that forgets, is what `WeightsGuard` looks for behind a running model. Knows nothing of tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from contracts import GenerationError
from model.backend import Backend, Slice
from model.candidates import Logits
from model.config import CheckpointError
from model.packed.manifest import PackedFile
from model.safetensors_file import CHUNK_BYTES
from model.weights import ProgressCallback, Watch

NUM_THREADS = 2
LOOK_EVERY_S = 1.0
BACKGROUND_DELAY_S = 30.0  # the first answers come first
_LOWEST = 19  # niceness


class WeightsChangedError(GenerationError):
    """The files behind a running model are no longer those it was started with."""


def memory_path() -> Path:
    """Where verified files are remembered, for all folders of this user."""
    return Path.home() / ".cache" / "bedside" / "verified-weights.json"


def verify_files(
    folder: Path,
    files: Mapping[str, PackedFile],
    *,
    always: bool = False,
    on_progress: ProgressCallback | None = None,
    cancel: threading.Event | None = None,
) -> bool:
    """Whether any file was trusted because it had been verified before; `always` hashes all of them.

    Raises CheckpointError naming the file that is missing, of another size, or of another hash; LoadCancelled.
    """
    found = {name: _stat(folder / name, file) for name, file in files.items()}
    memory = _read_memory()
    wanted = [
        name
        for name, file in files.items()
        if always or memory.get(str((folder / name).resolve())) != [*_key(found[name]), file.sha256]
    ]
    watch = Watch("verifying", sum(files[name].num_bytes for name in wanted), on_progress, cancel)
    counting = threading.Lock()

    def check(name: str) -> None:
        digest, buffer = hashlib.sha256(), bytearray(CHUNK_BYTES)
        with (folder / name).open("rb", buffering=0) as file:
            while num := file.readinto(buffer):
                digest.update(memoryview(buffer)[:num])
                with counting:
                    watch.add(name, num)
        if digest.hexdigest() != files[name].sha256 or _key(_stat(folder / name, files[name])) != _key(found[name]):
            raise CheckpointError(f"{name} is damaged: its SHA-256 is not that of packing; pack the checkpoint again.")

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in pool.map(check, wanted):
            pass
    if wanted:
        _remember({folder / name: [*_key(found[name]), files[name].sha256] for name in files})
    return len(wanted) < len(files)


def remember_digest(path: Path, sha256: str) -> None:
    """Notes that a file was just read, and what its hash was."""
    _remember({path: [*_key(path.stat()), sha256]})


def recall_digest(path: Path) -> str | None:
    """The SHA-256 of a file that was read before and not touched since; None where that is not known."""
    *key, sha256 = _read_memory().get(str(path.resolve()), [None])
    return str(sha256) if sha256 and key == _key(path.stat()) else None


def _remember(found: Mapping[Path, list[int | str]]) -> None:
    """A home that cannot be written is no fault: the files are then hashed at each start."""
    memory = _read_memory() | {str(path.resolve()): key for path, key in found.items()}
    path = memory_path()
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({name: key for name, key in memory.items() if Path(name).exists()}))
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)


class WeightsGuard:
    """Stands behind a model whose weights are mapped from files, or read from them: `check` before and after every
    pass."""

    def __init__(self, folder: Path, files: Mapping[str, PackedFile], count_lost: Callable[[], int]) -> None:
        """count_lost: pages of mapped files that could not be read, so far."""
        self._folder, self._files = folder, files
        self._count_lost, self._num_lost = count_lost, count_lost()
        self._names: Sequence[str] = [name for name in files if name.endswith(".safetensors")]
        # Held open: a file that is replaced or deleted stays readable for this process.
        self._fds = [os.open(folder / name, os.O_RDONLY) for name in self._names]
        self._stats = list(map(_content_key, self._fds))
        self._next_look = 0.0
        self._fault: str | None = None

    def __del__(self) -> None:
        for fd in getattr(self, "_fds", ()):
            os.close(fd)

    def check(self) -> None:
        """Raises WeightsChangedError once a file was written to, could not be read, or was found damaged. Looks at the
        files once a second at most."""
        now = time.monotonic()
        if self._fault is None and now >= self._next_look:
            self._next_look = now + LOOK_EVERY_S
            for name, fd, key in zip(self._names, self._fds, self._stats, strict=True):
                if _content_key(fd) != key:
                    self._fault = f"{name} was changed while the model ran from it"
        if self._fault is None and self._count_lost() != self._num_lost:
            self._fault = f"weights in {self._folder.name} could not be read while the model ran"
        if self._fault is not None:
            raise WeightsChangedError(
                f"{self._fault}: no answer can be trusted, and none is given. Pack the checkpoint again and restart."
            )

    def verify(self) -> None:
        """Hashes every file again; what it finds is told by `check`."""
        try:
            verify_files(self._folder, self._files, always=True)
        except (CheckpointError, OSError) as error:
            self._fault = str(error).rstrip(".")

    def verify_in_background(self, delay_s: float = BACKGROUND_DELAY_S) -> None:
        """`verify` by a thread that gives way to all others."""

        def run() -> None:
            time.sleep(delay_s)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
            self.verify()

        threading.Thread(target=run, name="verify-weights", daemon=True).start()


class GuardedBackend:
    """A backend that gives only what was computed while the guard was content."""

    def __init__(self, backend: Backend, guard: WeightsGuard) -> None:
        self.config, self.num_blocks, self.name = backend.config, backend.num_blocks, backend.name
        self.bytes_a_token = backend.bytes_a_token
        self.cache_dtype = backend.cache_dtype
        self.cache_layout, self.block_bytes = backend.cache_layout, backend.block_bytes
        self._backend, self._guard = backend, guard

    def forward(self, batch: Sequence[Slice]) -> Logits:
        self._guard.check()
        logits = self._backend.forward(batch)
        self._guard.check()
        return logits

    def copy_block(self, source: int, target: int) -> None:
        self._backend.copy_block(source, target)

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        return self._backend.read_blocks(blocks)

    def write_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        self._backend.write_blocks(blocks, data)


def _stat(path: Path, file: PackedFile) -> os.stat_result:
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path.name} is missing from {path.parent}; pack the checkpoint again.") from error
    if found.st_size != file.num_bytes:
        raise CheckpointError(
            f"{path.name} has {found.st_size:,} bytes, not {file.num_bytes:,}; pack the checkpoint again."
        )
    return found


def _key(found: os.stat_result) -> list[int]:
    return [found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _content_key(fd: int) -> tuple[int, int]:
    """Changes with what is in a file; not, as ctime does, when it is renamed or deleted."""
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns


def _read_memory() -> dict[str, list[int | str]]:
    try:
        memory = json.loads(memory_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}
