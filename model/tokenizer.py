"""Text <-> token ids by a checkpoint's tokenizer.json (byte-level BPE), and which ids end an answer.

Text given to `encode` never becomes a special id. Knows nothing of turns: see model.chat_template.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from model.config import CheckpointError, as_ids, read_json


class Tokenizer:
    """A checkpoint's vocabulary. `stop_ids` are all end tokens that tokenizer, generation config and config name."""

    def __init__(self, fast: FastTokenizer, stop_ids: Iterable[int] = ()) -> None:
        fast.encode_special_tokens = True  # the text of a special token is just text
        self._fast = fast
        added = fast.get_added_tokens_decoder()
        self.special_ids = {token.content: id_ for id_, token in added.items() if token.special}
        self.added_tokens = frozenset(token.content for token in added.values())
        self.stop_ids = tuple(sorted(set(stop_ids)))
        self._hidden_ids = frozenset(self.special_ids.values()) | frozenset(self.stop_ids)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads tokenizer.json and the end tokens of a checkpoint folder; CheckpointError if it cannot."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; copy the tokenizer's files into the checkpoint folder.")
        try:
            fast = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower for a malformed file
            raise CheckpointError(f"{path} cannot be read ({error}); copy the file again.") from error
        return cls(fast, _read_stop_ids(Path(folder), fast))

    @property
    def vocab_size(self) -> int:
        return self._fast.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self._fast.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.get_bytes, token_ids)).decode("utf-8", "replace")

    def get_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; none for special and end tokens, and for ids the vocabulary leaves empty."""
        token = self._fast.id_to_token(token_id)
        if token is None or token_id in self._hidden_ids:
            return b""
        if token in self.added_tokens:
            return token.encode()
        return b"".join(_BYTE_OF[char] if char in _BYTE_OF else char.encode() for char in token)

    def get_name(self, token_id: int) -> str:
        """A token's text to show alone: with U+FFFD for a part of a character, and the name of a special or end token;
        "" for ids the vocabulary leaves empty."""
        token = self.get_bytes(token_id)
        return token.decode("utf-8", "replace") if token else self._fast.id_to_token(token_id) or ""


class Detokenizer:
    """Text of a growing answer, piece by piece and in whole characters only."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """The text this token completes; "" while a character is unfinished."""
        return self._decoder.decode(self._tokenizer.get_bytes(token_id))

    def finish(self) -> str:
        """What is left at the end: U+FFFD if the last character never got its bytes, else ""."""
        return self._decoder.decode(b"", final=True)


def read_optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that a checkpoint may lack."""
    return read_json(path) if path.is_file() else {}


def _read_stop_ids(folder: Path, fast: FastTokenizer) -> list[int]:
    eos_token = read_optional_json(folder / "tokenizer_config.json").get("eos_token")
    if isinstance(eos_token, dict):
        eos_token = eos_token.get("content")
    named = fast.token_to_id(eos_token) if eos_token else None
    if eos_token and named is None:
        raise CheckpointError(f"tokenizer_config.json: eos_token {eos_token!r} is not in tokenizer.json.")
    stop_ids = list(as_ids(named))
    for name in ("generation_config.json", "config.json"):
        stop_ids += as_ids(read_optional_json(folder / name).get("eos_token_id"))
    if not stop_ids:
        raise CheckpointError(f"{folder} names no end token: add eos_token_id to generation_config.json.")
    return stop_ids


def _byte_alphabet() -> dict[str, bytes]:
    """The character each byte has in a byte-level vocabulary: printable Latin-1 stands for itself, the other bytes
    follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    pairs = [*zip(printable, printable, strict=True), *((byte, 256 + n) for n, byte in enumerate(others))]
    return {chr(code): bytes([byte]) for byte, code in pairs}


_BYTE_OF = _byte_alphabet()
