"""The sentences that we wrote for the guard: minimal pairs, injections, harmless imperatives. Read from data/,
strictly.

A file is lists under headings ("## act", or "## language split"). Pairs are "harmful | legitimate", and whole acts go
to train, dev or held, so that a figure is of acts that no head has seen. A list marked "fresh" was written after all
others and is for figures alone: what was once looked at is development data. "latest" is the same, and the newest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from zlib import crc32

DATA = Path(__file__).resolve().parent / "data"
SPLITS = ("train", "dev", "held", "fresh", "latest")
_OF_TEN = ("train",) * 6 + ("dev",) * 2 + ("held",) * 2


@dataclass(frozen=True, slots=True)
class Pair:
    """The same act, asked for to do harm and as a clinician would ask of it."""

    act: str
    harmful: str
    legitimate: str
    split: str


@dataclass(frozen=True, slots=True)
class Twin:
    """The same danger, told as it is now and as it is not: denied, past, another person's, of an examination."""

    kind: str  # danger, self-harm or mixed
    now: str
    calm: str
    split: str


@dataclass(frozen=True, slots=True)
class Sentence:
    kind: str  # the heading's first word: a language, or what the sentence is
    split: str
    text: str


def read_pairs() -> list[Pair]:
    """All pairs, English and Chinese; of a heading that names no split ("## act split") a hash of the act chooses it.
    Raises ValueError for a line that is none, naming it."""
    pairs = []
    for path in sorted(DATA.glob("pairs_*.txt")):
        for heading, line in _read_lists(path):
            act, _, named = heading.partition(" ")
            split = _known_split(path, heading, named or _hashed_split(act))
            pairs.append(Pair(act, *_sides(path, line), split))
    return pairs


def read_twins() -> list[Twin]:
    """The twins of data/twins.txt. Raises ValueError for a heading without a split and a line that is none."""
    path, twins = DATA / "twins.txt", []
    for heading, line in _read_lists(path):
        kind, _, split = heading.partition(" ")
        twins.append(Twin(kind, *_sides(path, line), _known_split(path, heading, split)))
    return twins


def read_sentences(name: str) -> list[Sentence]:
    """The sentences of data/<name>.txt. Raises ValueError for a heading without a split."""
    sentences = []
    for heading, line in _read_lists(DATA / f"{name}.txt"):
        kind, _, split = heading.partition(" ")
        sentences.append(Sentence(kind, _known_split(DATA / f"{name}.txt", heading, split), line))
    return sentences


def read_emergencies() -> list[Sentence]:
    """Messages of kind danger, self-harm or calm, to train or dev by a hash where the heading names no split; those for
    figures stand elsewhere. Raises ValueError for a split that is none."""
    path, sentences = DATA / "emergencies.txt", []
    for heading, line in _read_lists(path):
        kind, _, named = heading.partition(" ")
        hashed = "dev" if crc32(line.encode()) % 5 == 0 else "train"
        sentences.append(Sentence(kind, _known_split(path, heading, named or hashed), line))
    return sentences


def _sides(path: Path, line: str) -> tuple[str, str]:
    first, bar, second = map(str.strip, line.partition(" | "))
    if not bar or not first or not second:
        raise ValueError(f"{path.name}: {line!r} is no pair; write its two sides with “ | ” between them.")
    return first, second


def _hashed_split(act: str) -> str:
    return _OF_TEN[crc32(act.encode()) % 10]


def _known_split(path: Path, heading: str, split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"{path.name}: the heading {heading!r} names none of {', '.join(SPLITS)}.")
    return split


def _read_lists(path: Path) -> list[tuple[str, str]]:
    """(heading, line) of every line below a heading; lines above the first, and those that begin with "# ", are
    comments."""
    heading, found = "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ").strip()
        elif heading and line.strip() and not line.startswith("# "):
            found.append((heading, line.strip()))
    return found


# --- pairs with places to fill -----------------------------------------------------------------------------------


def read_filled(num: int = 6) -> list[Pair]:
    """Each pair of slots*.txt with its places filled in so many ways, chosen by a hash; for training only."""
    return [pair for path in sorted(DATA.glob("slots*.txt")) for pair in _filled(_read_lists(path), num)]


def _filled(lists: list[tuple[str, str]], num: int) -> Iterator[Pair]:
    words: dict[str, list[str]] = {}
    for heading, line in lists:
        words.setdefault(heading, []).append(line)
    for frame in words.pop("pairs"):
        names = [name for name in words if f"{{{name}}}" in frame]
        ways = list(product(*(words[name] for name in names)))
        ways.sort(key=lambda way: crc32(f"{frame}{way}".encode()))
        for way in ways[:num]:
            harmful, _, legitimate = frame.format(**dict(zip(names, way, strict=True))).partition(" | ")
            yield Pair("filled", _begun(harmful), _begun(legitimate), "train")


def _begun(text: str) -> str:
    """With a capital letter at its beginning."""
    return text[:1].upper() + text[1:]
