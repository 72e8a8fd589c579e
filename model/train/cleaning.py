"""Makes public texts fit to be trained on: cleans them, drops near duplicates and whatever an evaluation set holds.

Near duplicates are found by MinHash (Broder 1997) over runs of words, in bands, and confirmed by their Jaccard index;
contamination by runs of 13 words that stand in an evaluation text, as GPT-3 did it (Brown et al. 2020, arXiv
2005.14165, appendix C). A Chinese character counts as a word. Everything is deterministic.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.train.corpora import Text

NGRAM = 13
SHINGLE = 5
NUM_BANDS, ROWS_PER_BAND = 8, 4  # two texts of Jaccard 0.8 meet in a band with 98 %
SAME = 0.8
_PRIME = (1 << 61) - 1
_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W_]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufeff\u200b-\u200f\ufffd]")
_SPACE = re.compile(r"[ \t\u00a0\u3000]+")
_RUN = re.compile(r"([!?.,;:！？。，、~—-])\1{3,}")
_ADVERT = re.compile(
    r"https?://|www\.|\b\d{3,4}-\d{7,8}\b|微信|QQ[:：]?\d|加盟|咨询电话|点击(?:咨询|这里)|免费(?:咨询|热线)"
)
_LETTER = re.compile(r"[^\W\d_]")
MIN_LETTERS = 0.3  # share of letters below which a sentence is a table's remains or noise


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was kept, and how many texts went for which reason."""

    texts: dict[str, list[Text]]
    dropped: dict[str, int]


def prepare(texts: dict[str, list[Text]], evaluation: Iterable[str]) -> Cleaned:
    """Every text cleaned, once, and in no evaluation text; `evaluation` holds the latter's words."""
    contaminated, dropped, kept = Contamination(evaluation), defaultdict[str, int](int), dict[str, list[Text]]()
    for source, part in texts.items():
        clean = [text for text in map(clean_text, part) if text is not None]
        unique = drop_near_duplicates(clean)
        kept[source] = [text for text in unique if not contaminated.holds(_words_of(text))]
        dropped["unclean"] += len(part) - len(clean)
        dropped["duplicate"] += len(clean) - len(unique)
        dropped["evaluation"] += len(unique) - len(kept[source])
    return Cleaned(kept, dict(dropped))


def clean_text(text: Text) -> Text | None:
    """The text without unclean sentences; None if none is left, or an answer to its question was among them."""
    cleaned = [clean_sentence(sentence) for sentence in text.sentences]
    if not all(cleaned[: text.num_answers]) or not any(cleaned):
        return None
    return replace(text, sentences=tuple(filter(None, cleaned)), question=clean_sentence(text.question))


def clean_sentence(sentence: str) -> str:
    """NFC, without control characters and long runs of a mark; "" for an advertisement or what is hardly letters."""
    plain = _RUN.sub(r"\1", _SPACE.sub(" ", _CONTROL.sub("", unicodedata.normalize("NFC", sentence)))).strip()
    letters = len(_LETTER.findall(plain))
    return "" if _ADVERT.search(plain) or letters < MIN_LETTERS * len(plain) else plain


# --- near duplicates --------------------------------------------------------------------------------------------


def drop_near_duplicates(texts: Sequence[Text]) -> list[Text]:
    """The first of each set of near duplicates, in order."""
    rng = np.random.default_rng(0)
    slopes, offsets = rng.integers(1, 1 << 31, (2, NUM_BANDS * ROWS_PER_BAND), dtype=np.uint64)
    bands: dict[bytes, list[int]] = defaultdict(list)
    kept: list[Text] = []
    shingles: list[frozenset[int]] = []
    for text in texts:
        mine = _shingles(_words_of(text))
        hashes = np.fromiter(mine, np.uint64, len(mine))
        signature = ((hashes[:, None] * slopes + offsets) % np.uint64(_PRIME)).min(0).reshape(NUM_BANDS, -1)
        keys = [bytes([band]) + rows.tobytes() for band, rows in enumerate(signature)]
        near = {index for key in keys for index in bands[key]}
        if any(_jaccard(mine, shingles[index]) >= SAME for index in sorted(near)):
            continue
        for key in keys:
            bands[key].append(len(kept))
        kept.append(text)
        shingles.append(mine)
    return kept


def _shingles(words: Sequence[str]) -> frozenset[int]:
    runs = (words[start : start + SHINGLE] for start in range(max(1, len(words) - SHINGLE + 1)))
    return frozenset(zlib.crc32(" ".join(run).encode()) for run in runs)


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)


# --- evaluation sets --------------------------------------------------------------------------------------------


class Contamination:
    """The runs of NGRAM words of the evaluation texts; a shorter text counts as one run."""

    def __init__(self, evaluation: Iterable[str]) -> None:
        self._runs = {run for text in evaluation for run in _runs(words(text))}
        self._lengths = sorted({length for _, length in self._runs})

    def holds(self, found: Sequence[str]) -> bool:
        """Whether any run of the words stands in an evaluation text."""
        return any(run in self._runs for length in self._lengths for run in _runs(found, length))


MIN_RUN = 8  # words of a whole evaluation text below which its recurrence says nothing


def _runs(found: Sequence[str], length: int = NGRAM) -> Iterator[tuple[int, int]]:
    if len(found) < length:
        length = len(found)
        if length < MIN_RUN:
            return
    for start in range(len(found) - length + 1):
        yield zlib.crc32("\0".join(found[start : start + length]).encode()), length


def words(text: str) -> list[str]:
    """Words in lower case; a Chinese character is a word."""
    return _WORD.findall(text.casefold())


def _words_of(text: Text) -> list[str]:
    return words(" ".join((text.question, *text.sentences)))
