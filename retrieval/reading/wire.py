"""Frames between the program and its reading processes: a JSON object and the bytes that go with it.

JSON, not pickle: what a parser that was taken over sends back can be wrong, but cannot run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from contracts import LineBox, Page, ReadMethod

_HEAD = struct.Struct(">IQ")
MAX_JSON_BYTES = 256_000_000
MAX_PAYLOAD_BYTES = 600_000_000

Frame = tuple[dict[str, Any], bytes]


def pack(message: dict[str, Any], payload: bytes = b"") -> bytes:
    text = json.dumps(message, ensure_ascii=True).encode("ascii")
    return _HEAD.pack(len(text), len(payload)) + text + payload


def unpack(read: Callable[[int], bytes]) -> Frame | None:
    """The next frame; None at the end. read(n) gives n bytes, fewer only at the end. Raises ValueError for a frame that
    breaks off or is none."""
    head = read(_HEAD.size)
    if not head:
        return None
    if len(head) < _HEAD.size:
        raise ValueError("a frame breaks off in its head")
    text_size, payload_size = _HEAD.unpack(head)
    if text_size > MAX_JSON_BYTES or payload_size > MAX_PAYLOAD_BYTES:
        raise ValueError("a frame is larger than any can be")
    text, payload = read(text_size), read(payload_size)
    if len(text) < text_size or len(payload) < payload_size:
        raise ValueError("a frame breaks off")
    message = json.loads(text)
    if not isinstance(message, dict):
        raise ValueError("a frame holds no object")
    return message, payload


def page_to_json(page: Page) -> dict[str, Any]:
    return asdict(page)


def page_from_json(value: dict[str, Any]) -> Page:
    lines = tuple(LineBox(**line) for line in value["lines"])
    return Page(**value | {"method": ReadMethod(value["method"]), "lines": lines})
