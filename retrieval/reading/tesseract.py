"""The program tesseract, where the hospital has installed it: reads a page that rapidocr cannot.

Run as a child of the reading process, under the same limits. The only file that starts it.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import lru_cache

from PIL import Image

from retrieval.reading.layout import Box

_FOLDERS = os.pathsep.join((os.defpath, "/usr/local/bin", "/opt/homebrew/bin"))
_LANGUAGES = ("eng", "chi_sim")  # of those installed
_TIMEOUT_S = 120
_MIN_WORD_CONFIDENCE = 0.3
_DPI = 200

Word = tuple[str, float, Box]  # text, confidence 0..1, place in pixels


@lru_cache(maxsize=1)
def version() -> str:
    """Such as "tesseract 5.3.0"; "" where it is not installed or does not start."""
    lines = _run(["--version"]).split("\n")
    return lines[0].strip() if lines[0].startswith("tesseract ") else ""


@lru_cache(maxsize=1)
def languages() -> tuple[str, ...]:
    """Of those that we use, the ones that are installed."""
    installed = _run(["--list-langs"]).split()
    return tuple(language for language in _LANGUAGES if language in installed)


def read_lines(image: Image.Image) -> list[list[Word]]:
    """The lines of a page that stands upright, in order of reading; none where it cannot be read."""
    if not languages():
        return []
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=1)
    options = ["stdin", "stdout", "-l", "+".join(languages()), "--psm", "3", "--dpi", str(_DPI), "tsv"]
    return list(_lines(_run(options, png.getvalue()).splitlines()))


def _lines(rows: Sequence[str]) -> Iterator[list[Word]]:
    """From its table: level, page, block, paragraph, line, word, left, top, width, height, confidence, text."""
    line: list[Word] = []
    place: list[str] = []
    for row in rows:
        cells = row.split("\t")
        if len(cells) != 12 or cells[0] != "5":
            continue
        if line and cells[1:5] != place:
            yield line
            line = []
        place = cells[1:5]
        left, top, width, height = map(float, cells[6:10])
        confidence = float(cells[10]) / 100
        if cells[11].strip() and confidence >= _MIN_WORD_CONFIDENCE:
            line.append((cells[11].strip(), confidence, (left, top, left + width, top + height)))
    if line:
        yield line


def _run(options: Sequence[str], stdin: bytes = b"") -> str:
    """What it prints; "" where it cannot be started, fails or takes too long."""
    program = shutil.which("tesseract", path=_FOLDERS)
    if program is None:
        return ""
    environment = {"OMP_THREAD_LIMIT": "1"}  # pages are recognised two at a time
    try:
        done = subprocess.run(
            [program, *options], input=stdin, capture_output=True, timeout=_TIMEOUT_S, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
