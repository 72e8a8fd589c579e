"""Builds the services in a thread of its own, so that reading a large checkpoint can be watched and stopped.

One loader stands behind all browser sessions: however many wait, a checkpoint is read once. Knows nothing of screens.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from app.config import Settings, read_settings
from app.services import Services
from contracts import LoadCancelled, LoadProgress

_LOG = logging.getLogger(__name__)


class LoadState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class LoadStatus:
    """Where a load is. settings is None until they were read, progress until the first weights are."""

    state: LoadState
    settings: Settings | None = None
    progress: LoadProgress | None = None
    is_cancelling: bool = False
    error: Exception | None = None


class Build(Protocol):
    """app.services.build_services, as far as a loader calls it."""

    def __call__(
        self, settings: Settings, *, on_progress: Callable[[LoadProgress], None], cancel: threading.Event
    ) -> Services: ...


class ServicesLoader:
    """Builds the services, again after a failure or a cancel if asked to. Any thread may call any method."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._change = threading.Lock()
        self._cancel, self._ended = threading.Event(), threading.Event()
        self._ended.set()  # nothing goes on before start()
        self._services: Services | None = None
        self.started = 0.0  # time.monotonic() of the last start()
        self._status = LoadStatus(LoadState.LOADING)

    @property
    def status(self) -> LoadStatus:
        status = self._status
        return replace(status, is_cancelling=status.state is LoadState.LOADING and self._cancel.is_set())

    @property
    def services(self) -> Services | None:
        """The services once they are ready."""
        return self._services

    def start(self) -> None:
        """Begins to load, with the settings as they are now; does nothing while it loads and once it is ready."""
        with self._change:
            if self._services is not None or not self._ended.is_set():
                return
            self._cancel, self._ended = threading.Event(), threading.Event()
            self._status = LoadStatus(LoadState.LOADING)
            self.started = time.monotonic()
            # A daemon: the program may end in the midst of a load.
            threading.Thread(target=self._run, name="load", daemon=True).start()

    def cancel(self) -> None:
        """Asks the load to stop; it has when the status says so."""
        self._cancel.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether the load has ended, well or not, after at most so long."""
        return self._ended.wait(timeout_s)

    def _run(self) -> None:
        status = self._status
        try:
            settings = read_settings()
            self._status = status = replace(status, settings=settings)
            self._services = self._build(settings, on_progress=self._note, cancel=self._cancel)
            status = replace(status, state=LoadState.READY)
        except LoadCancelled:
            status = replace(status, state=LoadState.CANCELLED)
        except Exception as error:  # noqa: BLE001 - the edge of this thread: logged here, shown on every screen
            _LOG.exception("The program could not be started")
            status = replace(status, state=LoadState.FAILED, error=_without_frames(error))
        gc.collect()  # what was read of a checkpoint goes now, not at some time
        self._status = status
        self._ended.set()

    def _note(self, progress: LoadProgress) -> None:
        self._status = replace(self._status, progress=progress)


def _without_frames(error: Exception) -> Exception:
    """The error alone: its traceback would keep alive what was read of the checkpoint."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
