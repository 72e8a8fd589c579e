"""How far a long step of a command is, for the shell."""

from __future__ import annotations

import sys
import time

import typer


class ProgressLine:
    """One line on standard error that says how far a step is and how long it will still take: rewritten in place on a
    terminal, a new line now and then in a log."""

    def __init__(self) -> None:
        self._step, self._started, self._shown = "", 0.0, 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        now, is_terminal = time.monotonic(), sys.stderr.isatty()
        if step != self._step:
            self._step, self._started, self._shown = step, now, 0.0
        if done < total and now - self._shown < (0.2 if is_terminal else 10.0):
            return
        self._shown = now
        left = (now - self._started) / max(done, 1) * (total - done)
        line = f"{step} {done:,} of {total:,}, {left:.0f} s left in this step"
        typer.echo(f"\r{line:<78}" if is_terminal else line, err=True, nl=not is_terminal or done == total)
