"""Pages -> passages: stretches of one page, cut where a reader would pause.

Passages never overlap, hold every character but white space between them, and `text == page.text[start:end]`. They are
sized in the embedder's tokens, because MiniLM reads 256 and drops the rest without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from contracts import Page, Passage, ReadMethod
from retrieval.headings import is_heading
from retrieval.sentences import split_sentences

# With document name and heading still below MiniLM's 256. On the benchmark 150 found more within a budget of characters
# than 180 (medquad r@4000ch 0.97 against 0.95), and 120 lost whole consultations.
MAX_PASSAGE_TOKENS = 150
_SECTION_SHARE = 0.3  # how full a passage must be to end before a heading ...
_PARAGRAPH_SHARE = 0.35  # ... or at the end of a paragraph
MIN_PART_BYTES = 100  # about 24 English tokens or 33 Chinese characters
_PAUSE = re.compile(r"[;,，；、|:：]\s*|\s+")

Span = tuple[int, int]
Unit = tuple[int, int, int]  # start, end, tokens


def make_passages(
    document_id: str,
    document_name: str,
    pages: Sequence[Page],
    count_tokens: Callable[[str], int],
    max_tokens: int = MAX_PASSAGE_TOKENS,
) -> list[Passage]:
    """Cuts pages into passages of at most `max_tokens` (by `count_tokens`), in reading order, ids numbered from 0."""
    passages: list[Passage] = []
    for page in pages:
        # The few words on a page that counts as unreadable are still the file's own text.
        method = ReadMethod.TEXT if page.method is ReadMethod.EMPTY else page.method
        for start, end in _passage_spans(page.text, count_tokens, max_tokens):
            passages.append(
                Passage(
                    id=f"{document_id}:{len(passages):05d}",
                    document_id=document_id,
                    document_name=document_name,
                    page=page.number,
                    start=start,
                    end=end,
                    text=page.text[start:end],
                    method=method,
                    confidence=page.confidence,
                )
            )
    return passages


def part_spans(text: str) -> list[Span]:
    """The parts of a passage that get a vector each: sentences and lines, short ones joined with those that follow."""
    parts: list[Span] = []
    open_start: int | None = None
    for start, end in split_sentences(text):
        open_start = start if open_start is None else open_start
        if len(text[open_start:end].encode()) >= MIN_PART_BYTES:
            parts.append((open_start, end))
            open_start = None
    if open_start is not None:
        rest = (open_start, len(text.rstrip()))
        if parts and len(text[slice(*rest)].encode()) < MIN_PART_BYTES // 2:
            parts[-1] = (parts[-1][0], rest[1])
        else:
            parts.append(rest)
    return parts


def _passage_spans(text: str, count_tokens: Callable[[str], int], max_tokens: int) -> Iterator[Span]:
    current: Span | None = None
    used = 0
    for start, end, size in _units(text, count_tokens, max_tokens):
        if current and (used + size > max_tokens or _pauses_before(text, current[1], start, end, used / max_tokens)):
            yield current
            current, used = None, 0
        current = (current[0] if current else start, end)
        used += size
    if current:
        yield current


def _pauses_before(text: str, previous_end: int, start: int, end: int, fullness: float) -> bool:
    """Whether a passage that full should rather end here than take the next sentence in."""
    if "\n" in text[previous_end:start] and is_heading(text[start:end]):
        return fullness >= _SECTION_SHARE
    return "\n\n" in text[previous_end:start] and fullness >= _PARAGRAPH_SHARE


def _units(text: str, count_tokens: Callable[[str], int], max_tokens: int) -> Iterator[Unit]:
    """Sentences and lines with their tokens, those that are too long for a passage cut again at a pause."""
    for start, end in split_sentences(text):
        yield from _cut(text, start, end, count_tokens, max_tokens)


def _cut(text: str, start: int, end: int, count_tokens: Callable[[str], int], max_tokens: int) -> Iterator[Unit]:
    size = count_tokens(text[start:end])
    if end - start <= 1 or size <= max_tokens:
        yield start, end, size
        return
    middle = _pause_near((start + end) // 2, text, start, end)
    left, right = _trim(text, start, middle), _trim(text, middle, end)
    for piece in (left, right):
        if piece[0] < piece[1]:
            yield from _cut(text, *piece, count_tokens, max_tokens)


def _pause_near(middle: int, text: str, start: int, end: int) -> int:
    """The end of the pause nearest to the middle; the middle itself where there is none nearby."""
    reach = (end - start) // 4
    pauses = [match.end() for match in _PAUSE.finditer(text, max(start + 1, middle - reach), min(end, middle + reach))]
    return min((p for p in pauses if start < p < end), key=lambda pause: abs(pause - middle), default=middle)


def _trim(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
