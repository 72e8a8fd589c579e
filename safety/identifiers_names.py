"""Names of persons, by a tagger: each token's label from its letters, its neighbours and the labels before it.

An averaged perceptron (Collins, EMNLP 2002) over hashed features, decoded from left to right. It tells places,
addresses and organisations apart only to keep them from passing for persons. Learnt by guard.names_training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt
import regex
from safetensors.numpy import load_file

from safety.lexicon import common_words, eponyms, is_clinical, is_drug, name_parts

WEIGHTS = Path(__file__).resolve().parent / "guard" / "weights" / "names.safetensors"
LABELS = (
    "O",
    "B-person",
    "I-person",
    "B-address",
    "I-address",
    "B-place",
    "I-place",
    "B-organisation",
    "I-organisation",
)
NUM_BUCKETS = 2**16
MAX_TOKENS = 400  # between two looks at the table of weights; a line longer than that is cut
_TOKEN = regex.compile(r"\p{L}[\p{L}\p{M}]*(?:[’'.-]\p{L}[\p{L}\p{M}]*)*|\d+|[^\s\w]|_|\n")
_TITLES = frozenset(
    ["mr", "mrs", "ms", "miss", "mx", "dr", "prof", "professor", "sir", "madam", "nurse", "sister", "doctor"]
)

Token = tuple[str, int, int]  # text, start, end


def name_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each person's name in order. Raises OSError if the tagger's weights are missing."""
    weights = _weights()
    spans = []
    for tokens in pieces(text):
        labels = decode(weights, tokens)
        spans += [(a, b) for kind, a, b in entities(tokens, labels) if kind == "person" and is_name(text[a:b])]
    return spans


def is_name(value: str) -> bool:
    """A title or a mark that stands alone is none."""
    return any(c.isalpha() for c in value) and value.casefold().rstrip(".") not in _TITLES


def pieces(text: str) -> list[list[Token]]:
    """The tokens of a text, cut after each blank line and wherever they are more than MAX_TOKENS."""
    found: list[list[Token]] = [[]]
    for match in _TOKEN.finditer(text):
        token = (match.group(), *match.span())
        is_blank_line = token[0] == "\n" and bool(found[-1]) and found[-1][-1][0] == "\n"
        found[-1].append(token)
        if is_blank_line or len(found[-1]) >= MAX_TOKENS:
            found.append([])
    return [tokens for tokens in found if tokens]


def decode(weights: npt.NDArray[np.float32], tokens: Sequence[Token]) -> list[int]:
    """The index in LABELS of each token. weights: float32 [NUM_BUCKETS, labels]."""
    rows = [features(tokens, place) for place in range(len(tokens))]
    labels: list[int] = []
    before, last = 0, 0
    for row in rows:
        scores = weights[row].sum(0) + weights[history_features(before, last)].sum(0)
        before, last = last, int(scores.argmax())
        labels.append(last)
    return labels


def entities(tokens: Sequence[Token], labels: Sequence[int]) -> list[tuple[str, int, int]]:
    """(kind, start, end) of each run of labels."""
    found: list[tuple[str, int, int]] = []
    open_kind = ""
    for (_, start, end), label in zip(tokens, labels, strict=True):
        prefix, _, kind = LABELS[label].partition("-")
        if prefix == "I" and kind == open_kind:
            found[-1] = (kind, found[-1][1], end)
        elif kind:
            found.append((kind, start, end))
        open_kind = kind
    return found


def history_features(before: int, last: int) -> list[int]:
    return [_bucket(f"t1={last}"), _bucket(f"t2={before},{last}")]


def features(tokens: Sequence[Token], place: int) -> list[int]:
    """Buckets of what can be seen of a token and of two on either side."""
    word = tokens[place][0]
    lower = word.casefold()
    near = {step: tokens[place + step][0] if 0 <= place + step < len(tokens) else "<>" for step in (-2, -1, 1, 2)}
    folded = {step: other.casefold() for step, other in near.items()}
    shape = _shape(word)
    kind = _kind(lower)
    named = [
        "b",
        f"w={lower}",
        f"s={shape}",
        f"k={kind}",
        f"ks={kind},{shape}",
        *(f"p{n}={lower[:n]}" for n in (1, 2, 3)),
        *(f"e{n}={lower[-n:]}" for n in (1, 2, 3, 4)),
        *(f"w{step}={other}" for step, other in folded.items()),
        *(f"s{step}={_shape(other)}" for step, other in near.items()),
        *(f"k{step}={_kind(other)}" for step, other in folded.items()),
        f"w-1w={folded[-1]} {lower}",
        f"ww1={lower} {folded[1]}",
        f"w-2w-1={folded[-2]} {folded[-1]}",
        f"w1w2={folded[1]} {folded[2]}",
        f"c={folded[-1]},{kind},{shape},{folded[1]}",
        f"w-1ks={folded[-1]},{kind},{shape}",
        f"w1ks={folded[1]},{kind},{shape}",
        f"w-2w-1s={folded[-2]} {folded[-1]},{shape}",
        f"sss={_shape(near[-1])},{shape},{_shape(near[1])}",
        f"kkk={_kind(folded[-1])},{kind},{_kind(folded[1])}",
        f"first={place == 0 or near[-1] in '.!?:' + chr(10)},{shape}",
    ]
    return [_bucket(name) for name in named]


@lru_cache(maxsize=50_000)
def _kind(lower: str) -> str:
    """What the word lists say of a word."""
    if lower.rstrip(".") in _TITLES:
        return "title"
    if is_drug(lower):
        return "drug"
    if lower.removesuffix("’s").removesuffix("'s") in eponyms():
        return "eponym"
    if is_clinical(lower):
        return "clinical"
    for kind in ("given", "family"):
        if lower.removesuffix("’s").removesuffix("'s") in name_parts(kind):
            return f"{kind}-{lower in common_words()}"
    return "common" if lower in common_words() else "other"


@lru_cache(maxsize=50_000)
def _shape(word: str) -> str:
    if word.isdigit():
        return f"d{min(len(word), 5)}"
    if not word[0].isalpha():
        return word
    if len(word) == 1 or (len(word) == 2 and word[1] == "."):
        return "X" if word[0].isupper() else "x"
    if word.isupper():
        return "XX"
    return "Xx" if word[0].isupper() else "xx"


@lru_cache(maxsize=200_000)
def _bucket(name: str) -> int:
    return crc32(name.encode()) % NUM_BUCKETS


@cache
def _weights() -> npt.NDArray[np.float32]:
    return np.asarray(load_file(WEIGHTS)["weights"], np.float32)
