"""How far a checkpoint is read, in one line on a terminal's standard error; Ctrl-C stops it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from app.ui.load_words import describe_load
from contracts import LoadProgress

CANCELLED = 130  # the shell's status for a command that Ctrl-C ended
PATIENCE_S = 1.0  # a shorter load says nothing
_INTERVAL_S = 0.2
_ERASE = "\r\x1b[K"


@contextmanager
def show_loading(
    clock: Callable[[], float] = time.monotonic, cancelled: str = "loading was cancelled"
) -> Iterator[Callable[[LoadProgress], None]]:
    """Gives the callback that draws the line, where standard error is a terminal. The line is gone after the block.

    Ctrl-C within the block ends the command with one line, which says what was `cancelled`, and exit status 130.
    """
    next_at, is_drawn = clock() + PATIENCE_S, False

    def show(progress: LoadProgress) -> None:
        nonlocal next_at, is_drawn
        if not sys.stderr.isatty() or clock() < next_at:
            return
        next_at, is_drawn = clock() + _INTERVAL_S, True
        words = ", ".join(describe_load(progress))
        typer.echo(f"{_ERASE}{words[: _width() - 1]}", err=True, nl=False)

    try:
        try:
            yield show
        finally:
            if is_drawn:
                typer.echo(_ERASE, err=True, nl=False)
    except KeyboardInterrupt:
        typer.echo(f"bedside: {cancelled}.", err=True)
        raise typer.Exit(CANCELLED) from None


def _width() -> int:
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80
