"""Fuzzes every reader: corpus files mutated and put through the real reading processes, as uploads are.

    python -m bench.fuzz_parsers --minutes 20 [--seed 1] [--corpus shared/parser_corpus --corpus shared/clinical_docs]

Counts what each file came to: read, refused in one sentence, or a reader that died (which costs one document a
sentence, never the program). A failure is what must not be: an exception that is no DocumentError, a sentence that is
none, a process that outlives its job, or a file that takes longer than the limit. Each failure is kept as (seed, name)
and can be made again; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.report import print_report
from bench.small_files import small_files
from retrieval.errors import DocumentError
from retrieval.parsers import parse
from retrieval.reading.formats import FORMATS, sniff
from retrieval.reading.process import Limits, Readers

MAX_BYTES = 400_000  # of a corpus file: larger ones only make the round slower
MEMORY_MB = 1024
STALL_S = 20.0
MAX_SECONDS = 90.0  # a file may restart its reader a few times, each within the stall
_SPECIAL = (
    b"\x00",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"-1",
    b"4294967296",
    b"../",
    b"<",
    b"&",
    b"%PDF-",
)
_NUMBER = re.compile(rb"\d+")


def mutate(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """One to six changes: bits, bytes, runs, numbers, pieces of other files, an early end."""
    for _ in range(dice.randint(1, 6)):
        change = _inside if data.startswith(b"PK") and dice.random() < 0.8 else dice.choice(_MUTATIONS)
        data = change(data, others, dice)[: 2 * MAX_BYTES]
    return data


def _flip(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 16)):
        if changed:
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _insert(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    at = dice.randint(0, len(data))
    return data[:at] + dice.choice(_SPECIAL) * dice.choice((1, 1, 4, 1000)) + data[at:]


def _remove(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    at = dice.randint(0, len(data))
    return data[:at] + data[at + dice.choice((1, 8, 100, 5000)) :]


def _repeat(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    at = dice.randint(0, len(data))
    return data[:at] + data[at : at + dice.choice((4, 64, 1000))] * dice.choice((2, 50, 500)) + data[at:]


def _number(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    found = list(_NUMBER.finditer(data[:100_000]))
    if not found:
        return _flip(data, others, dice)
    match = dice.choice(found)
    new = dice.choice((b"0", b"-1", b"1", b"99999999", b"2147483648", b"18446744073709551615"))
    return data[: match.start()] + new + data[match.end() :]


def _splice(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    other = dice.choice(others)
    start = dice.randint(0, len(other))
    at = dice.randint(0, len(data))
    return data[:at] + other[start : start + dice.choice((16, 500, 20_000))] + data[at:]


def _cut(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    return data[: dice.randint(0, len(data))]


def _inside(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """A change inside one file of a ZIP archive, packed again: else its checksum hides what stands behind it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {entry.filename: archive.read(entry) for entry in archive.infolist() if entry.file_size < MAX_BYTES}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, zlib.error):
        return _flip(data, others, dice)
    if parts:
        name = dice.choice(sorted(parts))
        parts[name] = dice.choice((_flip, _number, _repeat, _remove, _insert))(parts[name], others, dice)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


_MUTATIONS: tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...] = (
    _flip, _flip, _insert, _remove, _repeat, _number, _number, _splice, _cut,
)  # fmt: skip


def read_one(readers: Readers, name: str, data: bytes, recognise: bool) -> tuple[str, str]:
    """(what became of it, detail); "FAILED" for what must not be."""
    started = time.monotonic()
    try:
        parsed = parse(data, name, max_pages=300, recognise=recognise, readers=readers)
        outcome, detail = "read", f"{len(parsed.pages)} pages"
    except DocumentError as error:
        died = isinstance(error.__cause__, Exception) and "ReaderDied" in type(error.__cause__).__name__
        outcome, detail = ("died" if died else "refused"), str(error)
        if not re.fullmatch(r"[^\n]{10,400}\.", detail):
            outcome = "FAILED"
    except Exception as error:  # noqa: BLE001 - the very thing that is looked for
        outcome, detail = "FAILED", f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - started
    return ("FAILED", f"{seconds:.0f} s; {detail}") if seconds > MAX_SECONDS else (outcome, detail)


class Watch:
    """The largest memory of any reading process seen, and what was left running."""

    def __init__(self) -> None:
        self.peak_mb = 0.0

    def look(self) -> int:
        """How many children there are now."""
        children = psutil.Process().children(recursive=True)
        for child in children:
            try:
                self.peak_mb = max(self.peak_mb, child.memory_info().rss / 2**20)
            except psutil.NoSuchProcess:
                continue
        return len(children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", action="append", type=Path, default=[])
    options = parser.parse_args()
    files = small_files()
    for folder in options.corpus:
        files |= {
            path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix not in (".json", ".xz")
        }
    files = {name: data for name, data in files.items() if 0 < len(data) <= MAX_BYTES}
    print_report("fuzz-parsers", run(files, options.minutes, options.seed))


def run(files: dict[str, bytes], minutes: float, seed: int) -> dict[str, Any]:
    by_type: dict[str, list[str]] = {}
    for name, data in files.items():
        try:
            by_type.setdefault(sniff(data, name), []).append(name)
        except DocumentError:
            continue
    readers, watch = Readers(Limits(MEMORY_MB, STALL_S, recognisers=1)), Watch()
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[dict[str, Any]] = []
    died: list[dict[str, Any]] = []
    others = list(files.values())
    number, end = 0, time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        number += 1
        dice = random.Random(f"{seed}-{number}")
        media_type = dice.choice(sorted(by_type))
        name = dice.choice(by_type[media_type])
        data = mutate(files[name], others, dice)
        outcome, detail = read_one(readers, name, data, recognise=dice.random() < 0.02)
        counts[FORMATS[media_type].label, outcome] += 1
        if watch.look() > 2:  # the spare, and one that is about to become it
            time.sleep(0.5)
            if watch.look() > 2:
                outcome, detail = "FAILED", "a reading process outlived its job"
        record = {"seed": f"{seed}-{number}", "name": name, "detail": detail[:200]}
        if outcome == "FAILED":
            failures.append(record)
            print(record, flush=True)
        elif outcome == "died":
            died.append(record)
    readers.close()
    return {
        "minutes": minutes,
        "seed": seed,
        "files": number,
        "outcomes": {outcome: sum(n for (_, o), n in counts.items() if o == outcome) for _, outcome in sorted(counts)},
        "by_format": {f"{label}: {outcome}": n for (label, outcome), n in sorted(counts.items())},
        "peak_reader_mb": round(watch.peak_mb),
        "left_running": watch.look(),
        "readers_that_died": died[:40],
        "failures": failures,
    }


if __name__ == "__main__":
    main()
