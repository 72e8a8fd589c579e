"""A tree of plain nodes, drawn in the browser with the theme's colours: for what Streamlit's own elements cannot show.

Text stays text: the browser side (element.js) creates every node itself and knows no markup, so nothing in a record,
a name or an answer can become HTML. Knows nothing of turns and patients; how things look stands in element.css.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

_FOLDER = Path(__file__).resolve().parent
_ELEMENT = st.components.v2.component(
    "bedside_element",
    html='<div class="root"></div>',
    css=(_FOLDER / "element.css").read_text(encoding="utf-8"),
    js=(_FOLDER / "element.js").read_text(encoding="utf-8"),
)


@dataclass(frozen=True, slots=True)
class Node:
    """One HTML element. style is a class of element.css; press is sent to Python when the element is pressed, except
    that {"copy": text, "done": label} copies the text in the browser."""

    tag: str
    children: tuple[Node | str, ...] = ()
    style: str = ""
    press: Mapping[str, Any] | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


def node(
    tag: str, *children: Node | str | None, style: str = "", press: Mapping[str, Any] | None = None, **attributes: str
) -> Node:
    """A node; a child None is left out, and an attribute's underscore becomes a hyphen (aria_label)."""
    present = tuple(child for child in children if child is not None)
    return Node(tag, present, style, press, {name.replace("_", "-"): value for name, value in attributes.items()})


def draw(
    nodes: Sequence[Node],
    key: str,
    on_press: Callable[[Mapping[str, Any]], None] | None = None,
    follow: bool = False,
) -> None:
    """Draws the nodes. on_press gets what the pressed node sends, and in `narrow` whether the window is a phone's,
    before the next run. follow keeps the end of the nodes in view while they grow."""

    def call() -> None:
        if on_press and (pressed := st.session_state[key].press):
            on_press(pressed)

    data = {"nodes": [_to_data(child) for child in nodes], "follow": follow}
    _ELEMENT(key=key, data=data, on_press_change=call, width="stretch")


def _to_data(child: Node | str) -> dict[str, Any] | str:
    if isinstance(child, str):
        return child
    data: dict[str, Any] = {"t": child.tag, "c": child.style, "a": dict(child.attributes)}
    return data | {"p": dict(child.press) if child.press else None, "k": [_to_data(inner) for inner in child.children]}
