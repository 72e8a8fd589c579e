"""Text as a checker should read it, with a way back to the text as it was written.

NFKC, hidden and direction-changing characters removed, Unicode tag characters read as the letters they hide, and the
Cyrillic and Greek letters that look Latin read as Latin. Knows nothing of rules.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

# Control, zero-width, bidirectional, variation-selector and filler characters: nothing a reader sees.
_HIDDEN = (
    "\x00-\x08\x0e-\x1f\x7f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0001\U000e007f\U000e0100-\U000e01ef"
)
_IS_HIDDEN = re.compile(f"[{_HIDDEN}]")
# A run of plain characters, or one character with its combining marks.
_PART = re.compile(r"[\t\n\r -~]+(?![\u0300-\u036f])|.[\u0300-\u036f]*", re.DOTALL)
_TAG_FIRST, _TAG_LAST, _TAG_BASE = 0xE0020, 0xE007E, 0xE0000

_LOOKING_LATIN = "аеорсухіјѕһԁԛԝАВЕКМНОРСТУХІЈЅ" + "ονιραυΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"
_LOOK_ALIKES = str.maketrans(_LOOKING_LATIN, "aeopcyxijshdqwABEKMHOPCTYXIJS" + "ovipauABEZHIKMNOPTYX")
_MAY_CHANGE = re.compile(f"[{_HIDDEN}{_LOOKING_LATIN}{chr(_TAG_FIRST)}-{chr(_TAG_LAST)}]")


@dataclass(frozen=True, slots=True)
class NormalisedText:
    """`text` is to be searched; `raw_span` maps a span of it to `raw`. offsets[i] is where character i came from."""

    raw: str
    text: str
    offsets: Sequence[int] | None = None  # None: text and raw are equal

    def raw_span(self, start: int, end: int) -> tuple[int, int]:
        """The span of raw that holds text[start:end], hidden characters inside it included."""
        if self.offsets is None:
            return start, end
        if start >= end:
            return self._raw(start), self._raw(start)
        last = self.offsets[end - 1]
        after = bisect_left(self.offsets, last + 1, lo=end - 1)
        return self._raw(start), self._raw(after)

    def _raw(self, index: int) -> int:
        assert self.offsets is not None
        return self.offsets[index] if index < len(self.offsets) else len(self.raw)


def lower(text: str) -> str:
    """Lower case at equal length: a few letters grow when lowered, which would shift every offset after them."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def normalise(raw: str) -> NormalisedText:
    """Normalises a text of any content; never longer than a small multiple of it."""
    if not _MAY_CHANGE.search(raw) and unicodedata.is_normalized("NFKC", raw):
        return NormalisedText(raw, raw)
    parts: list[str] = []
    offsets: list[int] = []
    for match in _PART.finditer(raw):
        start, end = match.span()
        part = match.group()
        if part.isascii() and part.isprintable():
            offsets.extend(range(start, end))
        else:
            part = _normalise_cluster(part)
            offsets.extend(range(start, end) if len(part) == end - start else [start] * len(part))
        parts.append(part)
    return NormalisedText(raw, "".join(parts), offsets)


def _normalise_cluster(cluster: str) -> str:
    if cluster.isascii():
        return _IS_HIDDEN.sub("", cluster)
    code = ord(cluster[0])
    if _TAG_FIRST <= code <= _TAG_LAST:
        return chr(code - _TAG_BASE)
    return _IS_HIDDEN.sub("", unicodedata.normalize("NFKC", cluster).translate(_LOOK_ALIKES))
