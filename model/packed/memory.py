"""How much memory this process may still take, as Linux tells it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def available_bytes() -> int:
    """Free memory and what the system would give up for it, within a container's limit; a terabyte where nothing is
    known, as on other systems than Linux."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = 2**40
    with suppress(OSError, ValueError):  # no container, or "max"
        free = min(free, int(_LIMIT.read_text()) - int(_USED.read_text()))
    return free
