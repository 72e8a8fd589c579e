"""Word files (DOCX) -> blocks in body order: headings, paragraphs, tables, insertions, text boxes, notes."""

from __future__ import annotations

import io
import re
from typing import Any

from retrieval.reading.blocks import Blocks
from retrieval.reading.packed import check_unpacked

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"


def read_docx(data: bytes) -> Blocks:
    check_unpacked(data, "Word file")
    import docx

    document = docx.Document(io.BytesIO(data))
    blocks = Blocks()
    around = {
        part: list(dict.fromkeys(_docx_text(p._p) for s in document.sections for p in getattr(s, part).paragraphs))
        for part in ("header", "footer")
    }
    blocks.add("\n".join(filter(None, around["header"])))
    _add_docx(document.element.body, blocks)
    blocks.add("\n".join(filter(None, around["footer"])))
    return blocks


def _add_docx(parent: Any, blocks: Blocks) -> None:
    """Adds the paragraphs and tables below an XML element in body order, content controls and insertions included."""
    for child in parent.iterchildren():
        if child.tag == _W + "p":
            text = _docx_text(child)
            style = child.find(f"{_W}pPr/{_W}pStyle")
            level = (
                re.match(r"(?:heading|berschrift|标题)\s*([1-6])|title", style.get(_W + "val"), re.I)
                if style is not None
                else None
            )
            blocks.add(f"# {text}" if level and text else text)
        elif child.tag == _W + "tbl":
            rows = [[_docx_text(cell) for cell in row.iter(_W + "tc")] for row in child.iter(_W + "tr")]
            blocks.add_table(rows)
        elif child.tag in (_W + "sdt", _W + "sdtContent", _W + "customXml", _W + "ins"):
            _add_docx(child, blocks)


def _docx_text(element: Any) -> str:
    """The text of a paragraph or cell, insertions, links and text boxes included; deletions are no longer text."""
    parts: list[str] = []
    for node in element.iter():
        if node.tag == _W + "t" and not any(parent.tag == _FALLBACK for parent in node.iterancestors()):
            parts.append(node.text or "")
        elif node.tag == _W + "tab":
            parts.append("\t")
        elif node.tag in (_W + "br", _W + "cr", _W + "p"):
            parts.append("\n")
    return "\n".join(line.strip() for line in "".join(parts).splitlines() if line.strip())
