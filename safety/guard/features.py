"""Text -> hashed word 1-2-grams and character 3-5-grams: what a sentence embedding averages away.

One table for both, so that a head is one row of weights. Knows nothing of what is learnt from them.
"""

from __future__ import annotations

import re
from itertools import pairwise
from zlib import crc32

import numpy as np
import numpy.typing as npt

NUM_BUCKETS = 2**16
MAX_CHARACTERS = 600  # of one sentence; what is longer is cut by the caller into sentences
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_]+|[^\w\s]")
_DIGITS = re.compile(r"\d+")

IntArray = npt.NDArray[np.int64]


def hashed_ngrams(text: str) -> IntArray:
    """int64 [N]: the distinct buckets of a text, in order. Case and the value of numbers do not matter; a Chinese
    character counts as a word."""
    words = _WORD.findall(_DIGITS.sub("0", text[:MAX_CHARACTERS].casefold()))
    grams = {f"w{word}" for word in words}
    grams |= {f"w{first} {second}" for first, second in pairwise(words)}
    line = " " + " ".join(words) + " "
    grams |= {f"c{line[at : at + size]}" for size in (3, 4, 5) for at in range(len(line) - size + 1)}
    return np.fromiter(sorted({crc32(gram.encode()) % NUM_BUCKETS for gram in grams}), np.int64)
