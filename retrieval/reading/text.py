"""Plain text and Markdown in whatever encoding they come -> blocks."""

from __future__ import annotations

import codecs
import re

from retrieval.errors import DocumentError
from retrieval.headings import is_heading
from retrieval.reading.blocks import Blocks


def read_text(data: bytes) -> Blocks:
    text = decode(data)
    if text is None:
        raise DocumentError("This text file holds binary data or an unknown encoding; save it as UTF-8.")
    return blocks_of(text)


def blocks_of(text: str) -> Blocks:
    """Paragraphs of a text; lines that an editor wrapped are joined."""
    blocks = Blocks()
    for block in re.split(r"\n\s*\n", _unwrap(text)):
        blocks.add(block)
    return blocks


def decode(data: bytes) -> str | None:
    """Text in UTF-8, UTF-16, GB18030 or Latin-1, with \\n line ends; None if it is no text."""
    text = _decode_bytes(data)
    if text is None:
        return None
    odd = sum((c < " " and c not in "\t\n\r\f\x0b") or c in "\x7f\ufffd" for c in text)
    if odd > 0.01 * len(text):
        return None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")


def _decode_bytes(data: bytes) -> str | None:
    encoding = _encoding(data)
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data)  # incremental: a sample may end inside a character
    except UnicodeDecodeError:
        return None


def _encoding(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = data[:4000].count(0)
    if zeros > 0.2 * len(data[:4000]):  # UTF-16 without a mark: every other byte of ASCII is 0
        return "utf-16-le" if data[1:4000:2].count(0) > data[0:4000:2].count(0) else "utf-16-be"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        pass
    else:
        return "utf-8"
    # In GB18030 bytes above 0x80 come in pairs; in Latin-1 an accented letter mostly stands alone between ASCII ones.
    runs = re.findall(rb"[\x81-\xfe]+", data)
    paired = sum(len(run) for run in runs if len(run) % 2 == 0)
    return "gb18030" if paired > 0.6 * sum(map(len, runs)) else "cp1252" if _is_cp1252(data) else "latin-1"


def _is_cp1252(data: bytes) -> bool:
    return not re.search(rb"[\x81\x8d\x8f\x90\x9d]", data)


def _unwrap(text: str) -> str:
    """Joins lines that an editor wrapped: those after which the next word would have gone over the width."""
    lines = [line.rstrip() for line in text.split("\n")]
    width = max((len(line) for line in lines), default=0)
    if not 50 <= width <= 130 or sum(len(line) > 0.85 * width for line in lines) < 3:
        return text
    joined: list[str] = []
    previous = ""
    for line in lines:
        word = line.split(maxsplit=1)[0] if line.strip() else ""
        is_wrapped = previous and word and line[0].isalnum() and len(previous) + 1 + len(word) > width
        if is_wrapped and not _opens_item(line) and not is_heading(previous) and "|" not in line:
            joined[-1] += " " + line
        else:
            joined.append(line)
        previous = line
    return "\n".join(joined)


def _opens_item(line: str) -> bool:
    return re.match(r"\d{1,3}[.)]\s", line) is not None
