"""HTML -> blocks of what a reader sees: no scripts, no navigation, nothing hidden."""

from __future__ import annotations

import re
from typing import Any

from retrieval.reading.blocks import Blocks
from retrieval.reading.text import decode

_HTML_DROPPED = (
    "script",
    "style",
    "noscript",
    "template",
    "nav",
    "head",
    "iframe",
    "object",
    "svg",
    "button",
    "select",
)
_HTML_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_HTML_BLOCK_NAMES = (
    "address article aside blockquote body center dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 "
    "h4 h5 h6 header hr html li main ol p pre section summary table ul"
)
_HTML_BLOCKS = frozenset(_HTML_BLOCK_NAMES.split())


def read_html(data: bytes) -> Blocks:
    import bs4

    text = decode(data)
    soup = bs4.BeautifulSoup(text if text is not None else data, "html.parser")
    for tag in soup.find_all(_HTML_DROPPED):
        tag.decompose()
    for tag in soup.find_all(_is_hidden):
        tag.decompose()
    for comment in soup.find_all(string=lambda s: isinstance(s, bs4.Comment | bs4.Declaration | bs4.Doctype)):
        comment.extract()
    blocks = Blocks()
    _add_html(soup, blocks)
    return blocks


def _is_hidden(tag: Any) -> bool:
    return tag.has_attr("hidden") or _HTML_HIDDEN.search(str(tag.get("style", ""))) is not None


def _add_html(parent: Any, blocks: Blocks) -> None:
    inline: list[str] = []

    def flush() -> None:
        blocks.add("\n".join(" ".join(line.split()) for line in "".join(inline).split("\v")))
        inline.clear()

    for child in parent.children:
        if child.name == "table":
            flush()
            _add_html_table(child, blocks)
        elif child.name and (child.name in _HTML_BLOCKS or child.find(_HTML_BLOCKS)):
            flush()
            if re.fullmatch("h[1-6]", child.name):
                blocks.add("# " + " ".join(child.get_text().split()))
            elif child.name in ("ul", "ol") and not child.find("table"):
                items = (" ".join(item.get_text(" ").split()) for item in child.find_all("li"))
                blocks.add("\n".join(f"- {item}" for item in items if item))
            else:
                _add_html(child, blocks)
        else:
            inline.append("\v" if child.name == "br" else child.get_text())
    flush()


def _add_html_table(table: Any, blocks: Blocks) -> None:
    if table.find("table"):  # a table for layout: what counts are the tables inside
        _add_html_cells(table, blocks)
        return
    if table.caption:
        blocks.add(" ".join(table.caption.get_text(" ").split()))
    blocks.add_table([[cell.get_text(" ") for cell in row.find_all(("td", "th"))] for row in table.find_all("tr")])


def _add_html_cells(table: Any, blocks: Blocks) -> None:
    for cell in table.find_all(("td", "th", "caption")):
        if cell.find_parent("table") is table:
            _add_html(cell, blocks)
