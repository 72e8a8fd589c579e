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
from safety.identifiers_names import LABELS, NUM_BUCKETS, Token, features, history_features, is_name, pieces
from safety.lexicon import drugs, eponyms

EPOCHS = 12
# A name that is missed costs more than a word that is masked, so by so much it has to win in training (the perceptron
# with uneven margins, Li et al., ICML 2002).
MARGIN = 4.0
_PERSON = [LABELS.index(label) for label in ("B-person", "I-person")]
_OTHER = [place for place in range(len(LABELS)) if place not in _PERSON]
SEED = 20261126
_KINDS = {"PERSON": "person", "ADDRESS": "address", "LOCATION": "place", "ORGANIZATION": "organisation"}
_TYPED_SMALL = 0.1  # share of sentences whose names begin with a small letter
_BLENDED = 0.4  # share of names that are put together of two, so that none is known by heart
_NO_NAMES = frozenset(
    ["dr", "mr", "mrs", "ms", "md", "dvm", "dds", "phd", "jr", "sr", "ii", "iii", "iv", "van", "de", "von"]
)
_FILLS_A_CONTEXT = 12  # times each sentence of name_contexts.txt is filled in


@dataclass(frozen=True, slots=True)
class Tagged:
    """A text and the spans of its entities: (kind, start, end)."""

    text: str
    spans: tuple[tuple[str, int, int], ...]
    split: str  # train, held or fresh


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
            if span["entity_type"] in _KINDS and is_name(span["entity_value"])  # it calls a lone "Mr." a person
        ]
        split = "held" if crc32(row["full_text"].encode()) % 5 == 0 else "train"
        yield Tagged(row["full_text"], tuple(sorted(spans, key=lambda span: span[1])), split)


def _filled(names: Sequence[str]) -> Iterator[Tagged]:
    chooser = random.Random(SEED)
    words = {"drug": sorted(filter(str.isascii, drugs())), "eponym": sorted(eponyms())}
    split = ""
    for line in (DATA / "name_contexts.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            split = line.removeprefix("## ")
        elif split and line:
            for _ in range(_FILLS_A_CONTEXT):
                yield _fill(line, names, words, chooser, split)


def _fill(line: str, names: Sequence[str], words: dict[str, list[str]], chooser: random.Random, split: str) -> Tagged:
    text, spans = "", []
    is_typed_small = split == "train" and chooser.random() < _TYPED_SMALL
    for piece in line.replace("{", "\0{").replace("}", "}\0").split("\0"):
        kind = piece.strip("{}") if piece.startswith("{") else ""
        if kind in ("person", "first", "last"):
            word = _part(_blend(names, chooser) if split == "train" else chooser.choice(names), kind)
            word = word.lower() if is_typed_small else word
            spans.append(("person", len(text), len(text) + len(word)))
        elif kind:
            word = chooser.choice(words[kind])
            word = word.capitalize() if kind == "eponym" or not text or chooser.random() < 0.4 else word
        else:
            word = piece
        text += word
    return Tagged(text, tuple(spans), split)


def _blend(names: Sequence[str], chooser: random.Random) -> str:
    """A name, or one whose words begin as in one name and end as in another."""
    one, other = chooser.choice(names).split(), chooser.choice(names).split()
    if chooser.random() >= _BLENDED:
        return " ".join(one)
    return " ".join(a[: (len(a) + 1) // 2] + b[len(b) // 2 :].lower() for a, b in zip(one, other, strict=False))


def _part(name: str, kind: str) -> str:
    """A full name, or its first or last word that is no title."""
    words = [word for word in name.split() if word.rstrip(".").lower() not in _NO_NAMES and len(word) > 2] or [name]
    return name if kind == "person" else words[0 if kind == "first" else -1]


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
                scores = weights[rows].sum(0)
                if truth in _PERSON:
                    scores[_OTHER] += MARGIN
                guess = int(scores.argmax())
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
