"""A process that measures on request, and what two of them side by side need: turns, priority, rest between turns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.report import ROOT, cpu_seconds

RAISED, NORMAL = -20, 0


class SideEndedError(RuntimeError):
    """The process of a side ended before it answered."""


class Side:
    """A child that answers a JSON line with a JSON line. `hello` is what it said once it was ready.

    It runs only while it is asked: between its turns it is stopped, so that no thread of it can spin beside the other
    side's. During a turn its session has the highest priority, where the system lets us give it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Starts it and waits until it is ready. Raises SideEndedError."""
        self._command = command
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        # Two sides take most of the memory: should it run out, they end, and not what others do here.
        Path(f"/proc/{self._process.pid}/oom_score_adj").write_text("1000", encoding="ascii")
        self.hello = self._read()
        self.has_priority = False
        self.cores_of_others: list[float] = []  # that other programs kept busy, a turn
        self._rest()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Gives it its turn and waits for the answer. Raises SideEndedError."""
        assert self._process.stdin is not None
        if self._process.poll() is not None:
            raise self._explain()
        self.has_priority = set_priority(self._process.pid, RAISED)
        started, busy, own = time.perf_counter(), busy_seconds(), cpu_seconds(self._process.pid)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._explain() from None
        answer = self._read()
        others = (busy_seconds() - busy) - (cpu_seconds(self._process.pid) - own)
        self.cores_of_others.append(max(0.0, others / (time.perf_counter() - started)))
        self._rest()
        return answer

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        with self._process:  # closes the pipes
            pass

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._explain()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _explain(self) -> SideEndedError:
        status = self._process.wait()
        reason = ": the memory may have run out" if status == -signal.SIGKILL else ""
        return SideEndedError(f"{' '.join(map(str, self._command))} ended with status {status}{reason}.")

    def _rest(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        set_priority(self._process.pid, NORMAL)


def busy_seconds() -> float:
    """Processor time that all programs used since the machine's start."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def set_priority(pid: int, nice: int) -> bool:
    """Sets the priority of a process's whole session; False where it may not be set. Linux weighs sessions against each
    other by this number, not by the nice value of their processes."""
    try:
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")
    except OSError:
        return False
    return True
