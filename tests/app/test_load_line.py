"""The line that a shell shows while a checkpoint is read, over a real load and a real terminal."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import typer
from filelock import FileLock

from app.commands.loading import show_loading
from app.config import EMBEDDED_CHECKPOINT, Settings
from app.services import build_services
from app.ui.load_words import describe_load
from contracts import LoadProgress
from model.generator import LocalGenerator


def load_on_a_terminal(clock: Callable[[], float]) -> str:
    """What a terminal was told while the built-in model was loaded."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stream, redirect_stderr(stream):
        with show_loading(clock) as on_progress:
            LocalGenerator.load(EMBEDDED_CHECKPOINT, on_progress=on_progress)
        stream.write("end")
        stream.flush()
        words = ""
        while not words.endswith("end"):  # a terminal hands over what it was told in pieces
            words += os.read(ours, 65536).decode()
    os.close(ours)
    return words.removesuffix("end")


def test_a_long_load_is_one_line_that_goes_at_the_end() -> None:
    seconds = itertools.count()
    words = load_on_a_terminal(lambda: float(next(seconds)))
    assert "Reading model.safetensors, " in words
    assert "\n" not in words
    assert words.endswith("\r\x1b[K")


def test_a_short_load_says_nothing() -> None:
    assert load_on_a_terminal(lambda: 0.0) == ""


def test_a_log_gets_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = itertools.count()
    with show_loading(clock=lambda: float(next(seconds))) as on_progress:
        LocalGenerator.load(EMBEDDED_CHECKPOINT, on_progress=on_progress)
    assert capsys.readouterr().err == ""


def test_ctrl_c_ends_the_load_in_one_line_and_frees_the_data_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path, demo=False, threads=1)
    with pytest.raises(typer.Exit) as ending, show_loading():
        build_services(settings, on_progress=lambda progress: signal.raise_signal(signal.SIGINT))
    assert ending.value.exit_code == 130
    assert capsys.readouterr().err == "bedside: loading was cancelled.\n"
    with FileLock(tmp_path / "owner.lock", timeout=0) as lock:
        assert lock.is_locked


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (
            LoadProgress("reading", "model-00003-of-00012.safetensors", 3_210_000_000, 55_000_000_000, 250.0),
            ["Reading model-00003-of-00012.safetensors", "3.2 of 55.0 GB", "about 4 min left"],
        ),
        (LoadProgress("verifying", "m.safetensors", 0, 26_000_000), ["Checking m.safetensors", "0.0 of 26.0 MB"]),
        (LoadProgress("reading", "m", 100, 100, 0.4), ["Reading m", "0.0 of 0.0 MB", "about 0 s left"]),
    ],
)
def test_progress_in_words(progress: LoadProgress, words: list[str]) -> None:
    assert describe_load(progress) == words
