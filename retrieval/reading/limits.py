"""What a reading process may use of the machine; it sets these limits itself, before it sees the first foreign byte."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
import time

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CPU_SECONDS = 900


def limit_this_process(memory_mb: int) -> None:
    """Memory and processor time have an end; no file can be written, no core left, and no address reached where the
    system lets a process give its network away. The first to go when the machine runs out of memory."""
    hard = memory_mb * 2**20
    # Data, not address space: models and libraries are mapped, which costs nothing.
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _leave_the_network()
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")


def _leave_the_network() -> None:
    """An empty network namespace of its own; tried without privileges first, as most systems allow."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        libc.unshare(_CLONE_NEWNET)


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
