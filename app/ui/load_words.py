"""How far a checkpoint has been read, in words, for the page and the shell alike. Needs no Streamlit."""

from __future__ import annotations

from app.ui.text import say
from contracts import LoadProgress

_UNITS = (("GB", 1e9), ("MB", 1e6))


def describe_load(progress: LoadProgress) -> list[str]:
    """Step and file, bytes, and the time left where it is known: `Reading model.safetensors`, `3.2 of 55.0 GB`, …"""
    facts = [say(f"loading.step.{progress.step}", file=progress.file), _describe_bytes(progress)]
    if progress.seconds_left is not None:
        facts.append(describe_left(progress.seconds_left))
    return facts


def _describe_bytes(progress: LoadProgress) -> str:
    unit, size = next(((unit, size) for unit, size in _UNITS if progress.bytes_total >= size), _UNITS[-1])
    done, total = progress.bytes_done / size, progress.bytes_total / size
    return say("loading.bytes", done=f"{done:.1f}", total=f"{total:.1f}", unit=unit)


def describe_left(seconds: float) -> str:
    """How long it still takes, in words."""
    if seconds < 90:
        return say("loading.left.seconds", n=f"{seconds:.0f}")
    return say("loading.left.minutes", n=f"{seconds / 60:.0f}")
