"""Mail messages (EML) -> blocks: who, when and what about, then the body; and the files that are attached."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from typing import cast

from retrieval.reading.blocks import Blocks
from retrieval.reading.html import read_html
from retrieval.reading.text import blocks_of, decode

_HEADERS = ("From", "To", "Cc", "Date", "Subject")


def read_mail(data: bytes) -> Blocks:
    message = _parse(data)
    blocks = Blocks()
    blocks.add("\n".join(f"{name}: {' '.join(str(message[name]).split())}" for name in _HEADERS if message[name]))
    body = message.get_body(preferencelist=("plain", "html"))
    if body is not None:
        payload = body.get_payload(decode=True)
        content = payload if isinstance(payload, bytes) else b""
        read = (
            read_html(content)
            if body.get_content_subtype() == "html"
            else _read_plain(content, body.get_content_charset() or "utf-8")
        )
        blocks.texts += read.texts
        blocks.tables += read.tables
    names = [name for name, _ in attachments(data)]
    if names:
        blocks.add("Attachments: " + ", ".join(names))
    return blocks


def attachments(data: bytes) -> list[tuple[str, bytes]]:
    """(name, bytes) of each attached file; a message inside a message is given as a whole."""
    found: list[tuple[str, bytes]] = []
    for part in _parse(data).iter_attachments():
        if part.get_content_type() == "message/rfc822":
            inner = cast(list[EmailMessage], part.get_payload())
            payload = inner[0].as_bytes() if inner else b""
        else:
            payload = cast(bytes, part.get_payload(decode=True) or b"")
        found.append((part.get_filename() or f"attachment {len(found) + 1}", payload))
    return found


def _parse(data: bytes) -> EmailMessage:
    return email.message_from_bytes(data, policy=email.policy.default)


def _read_plain(content: bytes, charset: str) -> Blocks:
    try:
        text = content.decode(charset)
    except (UnicodeDecodeError, LookupError):
        text = decode(content) or content.decode("latin-1")
    return blocks_of(text.replace("\r\n", "\n"))
