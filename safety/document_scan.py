"""What a document may hide in its letters: look-alikes from other scripts, characters nobody sees, encoded sentences.

A model check in form, rules in substance: it needs what patterns over sentences cannot say. Hidden layout (white, tiny,
off the page) is seen where the file is read, in retrieval.hidden_text.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator, Sequence

from contracts import Direction, Finding, Verdict
from safety.model_check import ModelInput
from safety.sentences import sentence_spans

SOURCE = "OWASP Top 10 for LLM Applications 2025, LLM01 Prompt Injection; Unicode Technical Standard 39"
DEADLINE_S = 10.0
_CHARACTERS_A_SECOND = 20_000.0
_MIN_HIDDEN = 3  # one soft hyphen or joiner is typography
_LOOK_ALIKE = r"[аеорсухіјѕһԁԛԝАВЕКМНОРСТУХІЈЅοΟΑΒΕΖΗΙΚΜΝΡΤΥΧ]"
_MIXED_WORD = re.compile(rf"\b(?=\w*[a-zA-Z])(?=\w*{_LOOK_ALIKE})\w{{4,}}\b")
_HIDDEN = re.compile(
    "(?<=[^\\W_])[\u200b-\u200f\u2060-\u2064\ufeff](?=[^\\W_])|[\u202a-\u202e\u2066-\u2069]|[\U000e0020-\U000e007e]"
)
_BASE64 = re.compile(
    r"(?<![A-Za-z0-9+/])(?:[A-Za-z0-9+/]{4}){6,}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?(?![A-Za-z0-9+/=])"
)
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:[0-9a-fA-F]{2}[ :]?){16,}(?![0-9a-fA-F])")
_WORDS = re.compile(r"[^\W\d_]{2,}")
_READ_SCRIPTS = ("LATIN", "CJK", "GREEK", "FULLWIDTH", "IDEOGRAPHIC")  # Greek as symbols among Latin
_MIN_FOREIGN = 15  # letters of a script that nobody here reads
_MESSAGES = {
    "disguised": "This sentence mixes look-alike letters of different scripts, or holds characters that cannot be "
    "seen, as text that is to slip past a reader does. It is kept from the model.",
    "encoded": "This line holds a sentence in an encoding that people do not read: “{decoded}”. It was not obeyed and "
    "is kept from the model.",
    "unchecked-language": "This part is in a script that the checks cannot read; look through it before relying on an "
    "answer about it.",
}


class DocumentScan:
    """contracts: safety.model_check.ModelCheck."""

    name = "scan"
    version = "1"
    directions = frozenset({Direction.DOCUMENT})

    def deadline_s(self, given: ModelInput) -> float:
        return DEADLINE_S + len(given.text) / _CHARACTERS_A_SECOND

    def check(self, given: ModelInput) -> Sequence[Finding]:
        return [*_disguised(given.text), *_encoded(given.text), *_foreign(given.text)]


def _disguised(text: str) -> Iterator[Finding]:
    places = [match.start() for match in _MIXED_WORD.finditer(text)]
    hidden = [match.start() for match in _HIDDEN.finditer(text)]
    if not places and len(hidden) < _MIN_HIDDEN:
        return
    for start, end in sentence_spans(text):
        has_look_alikes = any(start <= place < end for place in places)
        if has_look_alikes or sum(start <= place < end for place in hidden) >= _MIN_HIDDEN:
            yield _finding("disguised", Verdict.HOLD, text, start, end)


def _encoded(text: str) -> Iterator[Finding]:
    for pattern, decode in ((_BASE64, _from_base64), (_HEX, _from_hex)):
        for match in pattern.finditer(text):
            if (decoded := _as_sentence(decode(match.group()))) is not None:
                yield _finding("encoded", Verdict.HOLD, text, *match.span(), decoded=decoded[:200])


def _foreign(text: str) -> Iterator[Finding]:
    """One notice over the stretch from the first to the last letter of scripts that nobody reads."""
    places = [
        place
        for place, character in enumerate(text)
        if character > "\u024f"
        and character.isalpha()
        and not unicodedata.name(character, "UNKNOWN").startswith(_READ_SCRIPTS)
    ]
    if len(places) >= _MIN_FOREIGN:
        yield _finding("unchecked-language", Verdict.NOTICE, text, places[0], places[-1] + 1)


def _from_base64(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _from_hex(value: str) -> bytes:
    digits = re.sub(r"[ :]", "", value)
    return bytes.fromhex(digits[: len(digits) // 2 * 2])


def _as_sentence(data: bytes) -> str | None:
    """The text, if the bytes are readable words with spaces between."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    is_readable = bool(text) and sum(character.isprintable() for character in text) > 0.95 * len(text)
    return text if is_readable and " " in text and len(_WORDS.findall(text)) >= 3 else None


def _finding(kind: str, severity: Verdict, text: str, start: int, end: int, **words: str) -> Finding:
    message = _MESSAGES[kind].format(**words)
    return Finding(f"scan.{kind}", severity, start, end, message, SOURCE, text[start:end])
