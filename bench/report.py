"""What every figure needs beside it: the machine, the commit, and one JSON line at the end. Reads /proc: Linux only."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
MAX_RSS_MB = 2384.0  # 2.5 GB for the whole process


def describe_machine() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    total_kb = int(next(line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")).split()[1])
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(total_kb / 2**20, 1),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def read_commit() -> str:
    """The commit's short hash, with "-dirty" where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def peak_rss_mb(pid: int | str = "self") -> float:
    """The most memory the process ever held, in MiB; 0 if it is gone."""
    try:
        peak = next((line for line in _lines(f"/proc/{pid}/status") if line.startswith("VmHWM")), "VmHWM: 0")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return round(int(peak.split()[1]) / 1024, 1)


def rss_gb() -> float:
    """Memory that this process holds now, in GB, pages of mapped files included."""
    resident = next(line for line in _lines("/proc/self/status") if line.startswith("VmRSS"))
    return int(resident.split()[1]) * 1024 / 1e9


def cpu_seconds(pid: int) -> float:
    """Processor time used so far, in all threads of a process: unlike wall time, the same on a busy machine."""
    user, system = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def print_report(what: str, figures: dict[str, Any], limits: dict[str, float] | None = None) -> None:
    """Prints the JSON line; limits name figures that must not be exceeded, and `passed` says whether all were kept."""
    report: dict[str, Any] = {"what": what, **figures}
    if limits:
        report |= {"limits": limits, "passed": all(figures[name] <= limit for name, limit in limits.items())}
    print(json.dumps(with_origin(report), ensure_ascii=False), flush=True)


def with_origin(report: dict[str, Any]) -> dict[str, Any]:
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return report | {"machine": describe_machine(), "commit": read_commit(), "at": time}


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()
