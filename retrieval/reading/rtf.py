"""RTF -> blocks, by striprtf: code pages, Unicode escapes and the cells of tables included."""

from __future__ import annotations

from retrieval.reading.blocks import Blocks
from retrieval.reading.text import blocks_of


def read_rtf(data: bytes) -> Blocks:
    from striprtf.striprtf import rtf_to_text

    text = rtf_to_text(data.decode("latin-1"), errors="replace")
    return blocks_of(text.replace("\r\n", "\n").replace("\r", "\n"))
