"""Cuts streamed text into claims: whole sentences, list items and table rows, however the stream was chunked.

A claim leaves the splitter only when its end is certain, so that what is checked is what is shown. Knows nothing of
passages or verdicts.
"""

from __future__ import annotations

import re

from safety.sentences import is_abbreviation

# "[1]", "[1, 2]", "[1-3]", "[1][2]"; full-width brackets too.
_MARK = r"[\[【]\d{1,4}(?:\s?[,，、–-]\s?\d{1,4})*[\]】]"
_CITATION = re.compile(_MARK)
_CITATIONS = re.compile(rf"(?:[ \t]*{_MARK})+")
_UNFINISHED_MARK = re.compile(r"[ \t]*[\[【][\d,，、–\- ]*$")
_MARKUP = re.compile(r"^\s*(?:[-*•·・#>]+\s+|\(?\d{1,2}[.)、]\s+)+|\*\*|__|`")
_STOP = re.compile(r"[.!?]+|[。！？]+|\n")
_CLOSERS = re.compile(r"[\"'”’)』」）*_]*")
_LIST_NUMBER = re.compile(r"\s*\(?\d{1,3}$")
_SPACE_BEFORE_STOP = re.compile(r"[ \t]+([.,;:!?。，；：])")


class ClaimSplitter:
    """`feed` streamed text and take the claims that are complete; `flush` gives what remains."""

    def __init__(self) -> None:
        self._buffer = ""

    def feed(self, text: str) -> list[str]:
        """Claims completed by this text, in order, without surrounding white space."""
        self._buffer += text
        return self._take(is_final=False)

    def flush(self) -> list[str]:
        """The claims that remain once the stream has ended."""
        claims = self._take(is_final=True)
        rest, self._buffer = self._buffer.strip(), ""
        return [*claims, rest] if rest else claims

    def _take(self, is_final: bool) -> list[str]:
        claims = []
        while (cut := _first_cut(self._buffer, is_final)) is not None:
            claim, self._buffer = self._buffer[:cut].strip(), self._buffer[cut:]
            if claim:
                claims.append(claim)
        return claims


def citations_of(claim: str) -> tuple[int, ...]:
    """Passage indices the claim names, counted from 0, in order and without repeats: "[2][1, 3]" -> (1, 0, 2)."""
    indices: list[int] = []
    for mark in _CITATION.findall(claim):
        for part in re.split(r"[,，、]", mark[1:-1]):
            first, _, last = re.sub(r"\s", "", part).replace("–", "-").partition("-")
            indices += range(int(first) - 1, min(int(last or first), int(first) + 50))
    return tuple(dict.fromkeys(index for index in indices if index >= 0))


def strip_citations(claim: str) -> str:
    """The claim without its citation marks."""
    return _SPACE_BEFORE_STOP.sub(r"\1", _CITATIONS.sub("", claim)).rstrip(" \t")


def _first_cut(text: str, is_final: bool) -> int | None:
    """Where the first claim ends; None while more text could still change that."""
    for match in _STOP.finditer(text):
        if match.group() == "\n":
            return match.end()
        if text.lstrip().startswith("|"):
            continue  # a table row is one claim
        end = _CLOSERS.match(text, match.end()).end()  # type: ignore[union-attr]  # it can match nothing
        marks = _CITATIONS.match(text, end)
        end = marks.end() if marks else end
        rest = text[end:]
        if not is_final and (not rest.strip(" \t") or _UNFINISHED_MARK.fullmatch(rest)):
            return None
        if _is_boundary(text[: match.start()], match.group(), bool(marks), rest):
            return end
    return None


def _is_boundary(before: str, stop: str, has_marks: bool, rest: str) -> bool:
    if not before.strip() or _LIST_NUMBER.fullmatch(before):
        return False
    if has_marks or stop[0] in "。！？":
        return True
    if rest and not rest[0].isspace():
        return False  # a decimal, an abbreviation's inner stop, a web address
    if rest.strip(" \t") and rest.lstrip(" \t")[0].islower():
        return False
    return stop[0] != "." or not is_abbreviation(before)


def unmarked(claim: str) -> str:
    """The claim without citations, list marks and emphasis."""
    return _MARKUP.sub("", strip_citations(claim))
