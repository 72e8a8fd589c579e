"""Reading processes, seen from the program: every foreign file is read, recognised and drawn in one of them.

A process has limits of memory, time and reach (limits.py) and sees one file. One that is killed, hangs or dies is one
sentence for the clinician; in a file with pages it costs the page that did it, and a new process goes on behind it.
One spare process is kept started, so that a short file waits for no imports.
"""

from __future__ import annotations

import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contracts import Page, ReadMethod
from retrieval.errors import DocumentError
from retrieval.hidden import Stretch
from retrieval.reading import wire
from retrieval.reading.blocks import Table
from retrieval.reading.formats import FORMATS

_ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.2
_BATCH = 16
_MAX_STRIKES = 8  # pages of one file that may stop the reader before the file is given up
_PAGES_A_PROCESS = 8  # recognised by one process before another document gets its turn
# Nothing of the program's environment: its settings hold a key and the address of a database.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONHASHSEED": "0",
    "PATH": os.environ.get("PATH", os.defpath),
}


class ReadingCancelled(Exception):  # noqa: N818 - an order that was obeyed, not a fault
    """Reading was cancelled; its process is gone."""


class ReaderDied(Exception):  # noqa: N818 - reads as what happened
    """A reading process was killed, crashed or said nothing for too long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """memory_mb: of each process. stall_s: how long one may say nothing. recognisers: how many recognise pictures side
    by side, all documents together."""

    memory_mb: int = 2048
    stall_s: float = 120.0
    recognisers: int = 2


@dataclass(frozen=True, slots=True)
class Opened:
    """A file could be opened: how many pages it has, what reads it and what it says of itself."""

    num_pages: int
    parser: str
    warnings: tuple[str, ...] = ()
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class PagesRead:
    """hidden: what of their text cannot be seen."""

    pages: tuple[Page, ...]
    tables: tuple[Table, ...] = ()
    hidden: tuple[Stretch, ...] = ()


Event = Opened | PagesRead


class Readers:
    """Starts, feeds and ends reading processes. Safe to use from several threads."""

    def __init__(self, limits: Limits = Limits(), keeps_spare: bool = True) -> None:
        self.limits = limits
        self._recognising = threading.BoundedSemaphore(limits.recognisers)
        self._lock = threading.Lock()
        self._spare: subprocess.Popen[bytes] | None = None
        self._is_closed = not keeps_spare

    def close(self) -> None:
        """Ends the spare process; those at work end with their jobs."""
        with self._lock:
            self._is_closed = True
            spare, self._spare = self._spare, None
        if spare:
            _end(spare)

    def read(
        self, data: bytes, media_type: str, max_pages: int, first: int = 1, cancel: threading.Event | None = None
    ) -> Iterator[Event]:
        """Opened, then the pages from `first` on as far as their own text goes; pictures of pages stay PENDING.

        Raises DocumentError for a file that cannot be read, ReadingCancelled once cancel is set.
        """
        label = FORMATS[media_type].label
        num_pages, batch, strikes = 0, _BATCH, 0
        while True:
            request = {"media_type": media_type, "first": first, "batch": batch, "max_pages": max_pages}
            try:
                for message, _ in self._run("read", request, data, label, cancel):
                    if message["event"] == "opened":
                        if not num_pages:
                            yield _opened(message)
                        num_pages = message["num_pages"]
                    elif message["event"] == "pages":
                        event = _pages_read(message)
                        yield event
                        first = event.pages[-1].number + 1
                return
            except ReaderDied as error:
                strikes += 1
                if not num_pages or FORMATS[media_type].count_pages is None or strikes > _MAX_STRIKES:
                    raise DocumentError(
                        f"This {label} made the reader stop ({error}) and was not taken in; "
                        "print it to a new PDF and upload that."
                    ) from error
                if batch == 1:  # page by page it is certain which one did it
                    yield PagesRead((Page(first, "", ReadMethod.EMPTY, 0.0),))
                    first += 1
                    if first > num_pages:
                        return
                batch = 1

    def recognise(
        self, data: bytes, media_type: str, numbers: Sequence[int], cancel: threading.Event | None = None
    ) -> Generator[Page, None, None]:
        """Pages that are pictures, as they are recognised, several side by side; EMPTY where that fails.

        Raises ReadingCancelled once cancel is set.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in numbers:
            waiting.put(number)
        results: queue.SimpleQueue[Page | BaseException] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            try:
                while not stop.is_set() and not waiting.empty():
                    if not self._recognising.acquire(timeout=_POLL_S):
                        continue
                    try:
                        self._recognise_some(data, media_type, waiting, results, stop)
                    finally:
                        self._recognising.release()
            except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
                results.put(error)

        threads = [threading.Thread(target=work, name="recognise", daemon=True) for _ in self._shares(numbers)]
        for thread in threads:
            thread.start()
        try:
            for _ in numbers:
                yield _next(results, cancel)
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def render(self, data: bytes, media_type: str, page: Page, highlights: Sequence[tuple[int, int]]) -> bytes:
        """PNG of a page of a PDF or a picture, the given ranges of its text marked."""
        request = {
            "media_type": media_type,
            "page": page.number,
            "text": page.text if page.lines else "",
            "highlights": [list(span) for span in highlights],
            "lines": [asdict(line) for line in page.lines],
            "rotation": page.rotation,
        }
        try:
            for _, payload in self._run("render", request, data, "page", None):
                return payload
        except ReaderDied as error:
            raise DocumentError(f"Page {page.number} cannot be drawn ({error}); its text can be read below.") from error
        raise DocumentError(f"Page {page.number} cannot be drawn; its text can be read below.")

    def unpack(
        self, data: bytes, media_type: str, cancel: threading.Event | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """(name, bytes) of the files inside. Raises DocumentError where a limit is passed."""
        label = FORMATS[media_type].label
        try:
            for message, payload in self._run("unpack", {"media_type": media_type}, data, label, cancel):
                yield message["name"], payload
        except ReaderDied as error:
            raise DocumentError(
                f"This {label} made the reader stop ({error}); unpack it and upload the files."
            ) from error

    # --- one process ----------------------------------------------------------------------------------------------

    def _shares(self, numbers: Sequence[int]) -> range:
        return range(min(self.limits.recognisers, len(numbers)))

    def _recognise_some(
        self,
        data: bytes,
        media_type: str,
        waiting: queue.SimpleQueue[int],
        results: queue.SimpleQueue[Page | BaseException],
        stop: threading.Event,
    ) -> None:
        """Up to _PAGES_A_PROCESS pages in one process; a page that stops it is EMPTY."""
        numbers: list[int] = []
        while len(numbers) < _PAGES_A_PROCESS and not waiting.empty():
            try:
                numbers.append(waiting.get_nowait())
            except queue.Empty:
                break
        while numbers:
            try:
                request = {"media_type": media_type, "pages": numbers}
                for message, _ in self._run("recognise", request, data, "picture", stop):
                    results.put(_pages_read(message).pages[0])
                    numbers = numbers[1:]
                return
            except (ReaderDied, DocumentError):
                results.put(Page(numbers[0], "", ReadMethod.EMPTY, 0.0))
                numbers = numbers[1:]

    def _run(
        self, job: str, request: dict[str, Any], data: bytes, label: str, cancel: threading.Event | None
    ) -> Iterator[wire.Frame]:
        """The frames of one job in one process, without the closing one. Raises DocumentError if the file is refused,
        ReaderDied if the process ends or says nothing for too long, ReadingCancelled once cancel is set."""
        with self._process() as process:
            frames = _Frames(process, self.limits.stall_s, cancel)
            frames.send(wire.pack({"job": job, **request}, data))
            while True:
                message, payload = frames.next()
                event = message.get("event")
                if event == "done":
                    return
                if event == "refused":
                    raise DocumentError(str(message["message"]))
                if event == "out of memory":
                    raise ReaderDied("it needs more memory than is allowed")
                if event == "failed":
                    raise DocumentError(f"This {label} is damaged and cannot be read; save it again and upload it.")
                yield message, payload

    @contextmanager
    def _process(self) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:
            process, self._spare = self._spare, None
        process = process or self._start()
        threading.Thread(target=self._keep_a_spare, name="reader-spare", daemon=True).start()
        try:
            yield process
        finally:
            _end(process)

    def _keep_a_spare(self) -> None:
        with self._lock:
            if self._spare is None and not self._is_closed:
                self._spare = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "retrieval.reading.worker", str(self.limits.memory_mb)]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a library's complaint may quote the document
            cwd=_ROOT,
            env=_ENVIRONMENT,
            bufsize=0,
            start_new_session=True,
        )


class _Frames:
    """The two pipes of a process, read and written with an eye on the clock and on cancel."""

    def __init__(self, process: subprocess.Popen[bytes], stall_s: float, cancel: threading.Event | None) -> None:
        assert process.stdin
        assert process.stdout
        self._stdin, self._stdout = process.stdin, process.stdout
        self._process, self._stall_s, self._cancel = process, stall_s, cancel
        self._selector = selectors.DefaultSelector()
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._stdin, selectors.EVENT_WRITE)
            try:
                view = view[os.write(self._stdin.fileno(), view[: 2**20]) :]
            except BrokenPipeError as error:
                raise ReaderDied(self._why()) from error
        self._stdin.close()

    def next(self) -> wire.Frame:
        try:
            frame = wire.unpack(self._read)
        except (ValueError, KeyError) as error:
            raise ReaderDied(self._why()) from error
        if frame is None:
            raise ReaderDied(self._why())
        return frame

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            self._wait(self._stdout, selectors.EVENT_READ)
            part = os.read(self._stdout.fileno(), min(size, 2**20))
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self, pipe: Any, event: int) -> None:
        deadline = time.monotonic() + self._stall_s
        self._selector.register(pipe, event)
        try:
            while not self._selector.select(_POLL_S):
                if self._cancel is not None and self._cancel.is_set():
                    raise ReadingCancelled
                if time.monotonic() > deadline:
                    raise ReaderDied(f"no answer for {self._stall_s:g} seconds")
        finally:
            self._selector.unregister(pipe)
        if self._cancel is not None and self._cancel.is_set():
            raise ReadingCancelled

    def _why(self) -> str:
        try:
            status = self._process.wait(2)
        except subprocess.TimeoutExpired:
            return "its answer made no sense"
        return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session: what it has started goes with it
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def _opened(message: dict[str, Any]) -> Opened:
    warnings = tuple(message.get("warnings", ()))
    return Opened(message["num_pages"], message["parser"], warnings, message.get("metadata", ""))


def _pages_read(message: dict[str, Any]) -> PagesRead:
    tables = tuple(tuple(tuple(row) for row in table) for table in message.get("tables", ()))
    hidden = tuple(Stretch(**stretch) for stretch in message.get("hidden", ()))
    return PagesRead(tuple(wire.page_from_json(page) for page in message["pages"]), tables, hidden)


def _next(results: queue.SimpleQueue[Page | BaseException], cancel: threading.Event | None) -> Page:
    while True:
        if cancel is not None and cancel.is_set():
            raise ReadingCancelled
        try:
            result = results.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if isinstance(result, BaseException):
            raise result
        return result
