"""Where a quote stands in a page's text that was read in another way: hyphens at line ends, ligatures, spaces, and the
characters that recognition takes for each other.

Both are brought into one form and must then be equal to the last character, so that a number, a unit or a drug's name
is never taken for a similar one: what is not found is not found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_LIGATURE_OR_WIDE = re.compile("[\ufb00-\ufb06\uff01-\uff5e]")  # not digits raised or lowered: 10² is not 102
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff\x02]")
# A hyphen inside a word, whether or not the line ends there; between figures it is a range.
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010\u2011]\s*\n?\s*(?=[^\W\d_])")
_TOKEN = re.compile(r"\s+|rn|vv|.", re.DOTALL)
_ALIKE = {"rn": "m", "vv": "w", "O": "0", "o": "0", "I": "1", "l": "1", "|": "1"}
_ALIKE |= dict.fromkeys("‐‑‒–—−", "-") | dict.fromkeys("‘’ʼ", "'") | dict.fromkeys("“”", '"') | {"µ": "μ"}
_JOINED = re.compile(r"\d[.,/:-]\Z")  # before a figure: it is the end of a longer number
_GOES_ON = re.compile(r"[.,/:-]\d")


def locate(quote: str, text: str, near: int = 0) -> tuple[int, int] | None:
    """(start, end) of the quote in the text, whole words and whole numbers only; the one closest to `near` if it stands
    there more than once; None if it does not."""
    wanted = "".join(form for form, _, _ in _forms(quote)).strip()
    if not any(character.isalnum() for character in wanted):
        return None
    parts = list(_forms(text))
    line = "".join(form for form, _, _ in parts)
    places = [place for place, (form, _, _) in enumerate(parts) for _ in form]
    found = []
    for match in re.finditer(f"(?={re.escape(wanted)})", line):
        first, last = match.start(), match.start() + len(wanted) - 1
        start, end = parts[places[first]][1], parts[places[last]][2]
        if _is_whole(text, start, end):
            found.append((start, end))
    return min(found, key=lambda span: abs(span[0] - near), default=None)


def _forms(text: str) -> Iterator[tuple[str, int, int]]:
    """(form, start, end): what is compared, and the stretch of the text that it stands for."""
    hyphens = {match.start(): match.end() for match in _HYPHEN.finditer(text)}
    place = 0
    while place < len(text):
        if place in hyphens:
            place = hyphens[place]
            continue
        match = _TOKEN.match(text, place)
        assert match  # any character is a token
        token, end = match.group(), match.end()
        if token.isspace():
            yield " ", place, end
        elif not _INVISIBLE.fullmatch(token):
            plain = unicodedata.normalize("NFKC", token) if _LIGATURE_OR_WIDE.fullmatch(token) else token
            yield "".join(_ALIKE.get(part, part) for part in _TOKEN.findall(plain)), place, end
        place = end


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] neither begins nor ends inside a word or a number."""
    before, after = text[max(start - 2, 0) : start], text[end : end + 2]
    first, last = text[start], text[end - 1]
    begins_inside = _is_latin(first) and (_is_latin(before[-1:]) or (first.isdigit() and bool(_JOINED.search(before))))
    ends_inside = _is_latin(last) and (_is_latin(after[:1]) or (last.isdigit() and bool(_GOES_ON.match(after))))
    return not begins_inside and not ends_inside


def _is_latin(character: str) -> bool:
    """Chinese has no spaces, and words that begin anywhere."""
    return character.isalnum() and character < "\u2e80"
