"""The sentences that we wrote for the guard: minimal pairs, injections, harmless imperatives. Read from data/,
strictly.

A file is lists under headings ("## act", or "## language split"). Pairs are "harmful | legitimate", and whole acts go
to train, dev or held, so that a figure is of acts that no head has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

DATA = Path(__file__).resolve().parent / "data"
SPLITS = ("train", "dev", "held")
_OF_TEN = ("train",) * 6 + ("dev",) * 2 + ("held",) * 2


@dataclass(frozen=True, slots=True)
class Pair:
    """The same act, asked for to do harm and as a clinician would ask of it."""

    act: str
    harmful: str
    legitimate: str

    @property
    def split(self) -> str:
        return _OF_TEN[crc32(self.act.encode()) % 10]


@dataclass(frozen=True, slots=True)
class Sentence:
    kind: str  # the heading's first word: a language, or what the sentence is
    split: str
    text: str


def read_pairs() -> list[Pair]:
    """All pairs, English and Chinese. Raises ValueError for a line that is none, naming it."""
    pairs = []
    for path in sorted(DATA.glob("pairs_*.txt")):
        for act, line in _read_lists(path):
            harmful, bar, legitimate = line.partition(" | ")
            if not bar or not harmful.strip() or not legitimate.strip():
                raise ValueError(f"{path.name}: {line!r} is no pair; write “harmful | legitimate”.")
            pairs.append(Pair(act, harmful.strip(), legitimate.strip()))
    return pairs


def read_sentences(name: str) -> list[Sentence]:
    """The sentences of data/<name>.txt. Raises ValueError for a heading without a split."""
    sentences = []
    for heading, line in _read_lists(DATA / f"{name}.txt"):
        kind, _, split = heading.partition(" ")
        if split not in SPLITS:
            raise ValueError(f"{name}.txt: the heading {heading!r} names none of {', '.join(SPLITS)}.")
        sentences.append(Sentence(kind, split, line))
    return sentences


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


# --- synthetic pairs --------------------------------------------------------------------------------------------


def read_synthetic(num_frames: int = 7) -> list[tuple[str, bool]]:
    """(text, whether it is harmful): each act of acts.txt in num_frames frames of each kind, chosen by a hash so that
    every run has the same. For training only."""
    frames: dict[str, list[str]] = {"harmful": [], "right": [], "protective": []}
    for heading, line in _read_lists(DATA / "frames.txt"):
        frames[heading].append(line)
    texts = []
    for _, line in _read_lists(DATA / "acts.txt"):
        do, doing, right = (part.strip() for part in line.split("|"))
        for kind, lines in frames.items():
            ranked = sorted(lines, key=lambda frame: crc32(f"{frame}{do}".encode()))
            for frame in ranked[:num_frames]:
                texts.append((frame.format(do=do, doing=doing, right=right), kind == "harmful"))
    return texts
