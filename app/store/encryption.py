"""AES-256-GCM for every column that holds a patient's words, and the key file it hangs on.

A column of type EncryptedText, EncryptedBytes or EncryptedJSON rests as nonce (12 bytes) + ciphertext + tag, so that a
copied database, backup or write-ahead log tells nothing without the key. Knows nothing of the tables.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Engine, LargeBinary
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from app.errors import SettingsError, StorageError

KEY_BYTES = 32
NONCE_BYTES = 12  # random: safe for 2**32 values under one key (NIST SP 800-38D, 8.3)


class Cipher:
    """Seals and opens bytes under one 32-byte key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise SettingsError(f"The encryption key has {len(key)} bytes; it must have {KEY_BYTES}.")
        self._key = key
        self._aes = AESGCM(key)

    def seal(self, plain: bytes, context: bytes = b"") -> bytes:
        """The value encrypted under a fresh nonce; the same value never looks the same twice. context: where it
        belongs, which is not stored, and without which it does not open."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aes.encrypt(nonce, plain, context)

    def open(self, sealed: bytes, context: bytes = b"") -> bytes:
        """The value again; StorageError if the key or the context is another or a byte was changed."""
        try:
            return self._aes.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
        except InvalidTag:
            raise StorageError(
                "The database cannot be decrypted with this key; restore the key file that belongs to it."
            ) from None

    def fingerprint(self, data: bytes) -> str:
        """A keyed hash (HMAC-SHA256, hex): equal for equal bytes, and nothing to look up without the key."""
        return hmac.new(self._key, data, hashlib.sha256).hexdigest()


# A column type meets its key through the engine's dialect: tables are one for all, keys one per database.
_CIPHERS: WeakKeyDictionary[Dialect, Cipher] = WeakKeyDictionary()


def attach_cipher(engine: Engine, cipher: Cipher) -> None:
    """Lets the encrypted columns of every statement on this engine use the cipher."""
    _CIPHERS[engine.dialect] = cipher


class _Encrypted(TypeDecorator[Any]):
    """Base of the encrypted column types. None stays NULL."""

    impl = LargeBinary
    cache_ok = True
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        return None if value is None else _CIPHERS[dialect].seal(type(self).encode(value))

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> Any:
        return None if value is None else type(self).decode(_CIPHERS[dialect].open(value))


class EncryptedBytes(_Encrypted):
    cache_ok = True
    encode = staticmethod(bytes)
    decode = staticmethod(bytes)


class EncryptedText(_Encrypted):
    """Any str, also with the lone surrogates that broken PDF fonts yield."""

    cache_ok = True
    encode = staticmethod(lambda text: text.encode("utf-8", "surrogatepass"))
    decode = staticmethod(lambda data: data.decode("utf-8", "surrogatepass"))


class EncryptedJSON(_Encrypted):
    """Whatever JSON can say; tuples come back as lists."""

    cache_ok = True
    encode = staticmethod(lambda value: json.dumps(value, separators=(",", ":")).encode("ascii"))
    decode = staticmethod(json.loads)


def parse_key(text: str) -> bytes:
    """The key that a setting or key file holds in base64; SettingsError if it is anything else."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise SettingsError(f"The encryption key must be {KEY_BYTES} bytes in base64; restore it from your backup.")
    return key


def read_key_file(path: Path) -> bytes | None:
    """The key in the file; None if there is no file. Raises SettingsError for a damaged one."""
    try:
        return parse_key(path.read_text("ascii"))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise SettingsError(f"The key file {path.name} is damaged; restore it from your backup.") from None
    except OSError as error:
        raise StorageError(f"The key file {path.name} cannot be read ({error.strerror}); check its owner.") from None


def create_key_file(path: Path) -> bytes:
    """A new random key, readable by its owner alone and on disk before it is used; the file's own key if another
    process was quicker. StorageError if it cannot be written."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    key = secrets.token_bytes(KEY_BYTES)
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(key) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # unlike a rename, never replaces a key that is there
        except FileExistsError:
            return read_key_file(path) or key
        sync_folder(path.parent)
        return key
    except OSError as error:
        raise StorageError(f"The key file cannot be written ({error.strerror}); free space or check rights.") from None
    finally:
        draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes new names in the folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
