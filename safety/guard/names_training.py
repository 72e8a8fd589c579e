"""Trains the tagger of names: averaged perceptron on synthetic texts with spans, and on sentences of records.

Of the public set one text in five is held. Its templates repeat, so that the sentences of name_contexts.txt, which do
not, are the better measure of wordings not seen.
"""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from safety.guard.authored import DATA
from safety.guard.corpus import public_answers
from safety.identifiers_names import LABELS, NUM_BUCKETS, Token, features, history_features, pieces
from safety.lexicon import drugs, eponyms

EPOCHS = 8
SEED = 20261126
_KINDS = {"PERSON": "person", "ADDRESS": "address", "LOCATION": "place", "ORGANIZATION": "organisation"}
_FILLS_A_CONTEXT = 12  # times each sentence of name_contexts.txt is filled in


@dataclass(frozen=True, slots=True)
class Tagged:
    """A text and the spans of its entities: (kind, start, end)."""

    text: str
    spans: tuple[tuple[str, int, int], ...]
    split: str  # train or held


def read_tagged(data: Path) -> list[Tagged]:
    """The public synthetic texts, our sentences filled in, and leaflets without any name. Raises OSError if a set is
    missing."""
    public = list(_public(data))
    names = sorted({t.text[a:b] for t in public if t.split == "train" for kind, a, b in t.spans if kind == "person"})
    leaflets = [Tagged(text, (), "train") for text in public_answers(data)]
    return [*public, *_filled(names), *leaflets]


def _public(data: Path) -> Iterator[Tagged]:
    rows = json.loads(lzma.decompress((data / "safety/presidio_synth/generated_large.json.xz").read_bytes()))
    for row in rows:
        spans = [
            (_KINDS[span["entity_type"]], span["start_position"], span["end_position"])
            for span in row["spans"]
            if span["entity_type"] in _KINDS
        ]
        split = "held" if crc32(row["full_text"].encode()) % 5 == 0 else "train"
        yield Tagged(row["full_text"], tuple(sorted(spans, key=lambda span: span[1])), split)


def _filled(names: Sequence[str]) -> Iterator[Tagged]:
    chooser = random.Random(SEED)
    words = {"drug": sorted(drugs()), "eponym": sorted(eponyms())}
    split = ""
    for line in (DATA / "name_contexts.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            split = line.removeprefix("## ")
        elif split and line:
            for _ in range(_FILLS_A_CONTEXT):
                yield _fill(line, names, words, chooser, split)


def _fill(line: str, names: Sequence[str], words: dict[str, list[str]], chooser: random.Random, split: str) -> Tagged:
    text, spans = "", []
    for piece in line.replace("{", "\0{").replace("}", "}\0").split("\0"):
        kind = piece.strip("{}") if piece.startswith("{") else ""
        if kind in ("person", "last"):
            name = chooser.choice(names)
            word = name.split()[-1] if kind == "last" else name
            spans.append(("person", len(text), len(text) + len(word)))
        elif kind:
            word = chooser.choice(words[kind])
            word = word.capitalize() if kind == "eponym" or not text or chooser.random() < 0.4 else word
        else:
            word = piece
        text += word
    return Tagged(text, tuple(spans), split)


def train(tagged: Sequence[Tagged]) -> npt.NDArray[np.float32]:
    """float32 [NUM_BUCKETS, labels]: the averaged weights."""
    chooser = random.Random(SEED)
    weights = np.zeros((NUM_BUCKETS, len(LABELS)), np.float32)
    totals = np.zeros_like(weights, dtype=np.float64)
    examples = [(tokens, labels) for text in tagged for tokens, labels in labelled(text)]
    cached = [[features(tokens, place) for place in range(len(tokens))] for tokens, _ in examples]
    order, step = list(range(len(examples))), 0
    for _ in range(EPOCHS):
        chooser.shuffle(order)
        for number in order:
            before = last = 0
            for row, truth in zip(cached[number], examples[number][1], strict=True):
                step += 1
                rows = row + history_features(before, last)
                guess = int(weights[rows].sum(0).argmax())
                if guess != truth:
                    for label, change in ((truth, 1.0), (guess, -1.0)):
                        np.add.at(weights[:, label], rows, change)
                        np.add.at(totals[:, label], rows, change * step)
                before, last = last, guess
    return (weights - totals / step).astype(np.float32)


def labelled(tagged: Tagged) -> Iterator[tuple[list[Token], list[int]]]:
    """The pieces of a text with the true label of each token."""
    for tokens in pieces(tagged.text):
        labels, open_span = [], None
        for _, start, end in tokens:
            span = next((s for s in tagged.spans if s[1] < end and start < s[2]), None)
            prefix = "" if span is None else ("I" if span == open_span else "B")
            labels.append(LABELS.index(f"{prefix}-{span[0]}") if span else 0)
            open_span = span
        yield tokens, labels


def save(weights: npt.NDArray[np.float32], path: Path) -> None:
    save_file({"weights": weights.astype(np.float16)}, path)
