"""Messages -> prompt ids by the checkpoint's own chat template, such that no message's text can open a turn.

Whoever can type or upload text must not be able to speak as another role. `neutralize` takes the markers' brackets
away, whatever their case, width or hidden characters; what remains reads the same to a human and to the model.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from contracts import Message, Role
from model.config import CheckpointError
from model.tokenizer import Tokenizer, read_optional_json

# Turn, reasoning and tool markers of the Ling family and of the templates that users are likely to know.
_MARKER_WORDS = ("role", "think", "tool_call", "tool_response", "tools", "tool", "system", "user", "human", "assistant")
# Possessive (*+): a "<" before a page of spaces must not cost the square of its length.
_MARKERS = (rf"<\s*+/?\s*+(?:{'|'.join(_MARKER_WORDS)})\s*+/?\s*+>", r"<\s*+\|[^<>\n]{0,64}\|\s*+>")
# Brackets that NFKC leaves alone, so that no later normalisation turns them back.
_LOOK_ALIKES = {"<": "‹", ">": "›", "[": "(", "]": ")"}
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
_INVISIBLE = ("Cf", "Mn", "Me", "Cc")  # formatting, combining and control characters
_THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


class ChatTemplate:
    """A checkpoint's template with its tokenizer."""

    def __init__(self, source: str, tokenizer: Tokenizer, variables: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._variables = dict(variables or {})
        self._neutralizer = Neutralizer(tokenizer)
        self._special = _any_of(tokenizer.special_ids)
        try:
            self._template = _make_environment().from_string(source)
        except TemplateError as error:
            raise CheckpointError(f"The checkpoint's chat template is not valid ({error}).") from error

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
        """Reads chat_template.jinja, else chat_template of tokenizer_config.json; CheckpointError if there is none."""
        folder = Path(folder)
        config = read_optional_json(folder / "tokenizer_config.json")
        path = folder / "chat_template.jinja"
        source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
        if not isinstance(source, str):
            raise CheckpointError(f"{folder} holds no chat template: add chat_template.jinja from the model's page.")
        return cls(source, tokenizer, {name: _text_of(config.get(name)) for name in ("bos_token", "eos_token")})

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Prompt ids of a dialogue, up to where the answer begins.

        Special ids come from the template alone: the text between them is encoded with special tokens off.
        """
        ids: list[int] = []
        for piece in self._special.split(self.render(messages)):
            special = self._tokenizer.special_ids.get(piece)
            ids += self._tokenizer.encode(piece) if special is None else [special]
        return ids

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt's text; markers in the messages are neutralised and earlier reasoning is left out."""
        return self.render_raw([{"role": message.role.value, "content": self._clean(message)} for message in messages])

    def render_raw(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The template's output for messages as they are: for text that nobody outside could have written."""
        try:
            return self._template.render(
                messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **self._variables
            )
        except TemplateError as error:
            raise CheckpointError(f"The checkpoint's chat template does not accept this dialogue ({error}).") from error

    def _clean(self, message: Message) -> str:
        text = _THINKING.sub("", message.text) if message.role is Role.ASSISTANT else message.text
        return self._neutralizer.neutralize(text)


class Neutralizer:
    """Takes the brackets off every turn marker and special token in a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokens = {*tokenizer.special_ids, *(token for token in tokenizer.added_tokens if token[0] in _LOOK_ALIKES)}
        contents = sorted({_fold(token)[0] for token in tokens}, key=len, reverse=True)
        self._marker = re.compile("|".join([*_MARKERS, *map(re.escape, contents)]))

    def neutralize(self, text: str) -> str:
        """The text with `<role>` as `‹role›` and `[MASK]` as `(MASK)`; everything else is untouched."""
        while True:  # a marker may stand inside another; each pass takes at least one away
            folded, origins = _fold(text)
            chars = list(text)
            for match in self._marker.finditer(folded):
                first, last = match.start(), match.end() - 1
                chars[origins[first]] = _disarm(folded[first], chars[origins[first]], match.end() - first)
                if folded[last] in _LOOK_ALIKES:
                    chars[origins[last]] = _LOOK_ALIKES[folded[last]]
            disarmed = "".join(chars)
            if disarmed == text:
                return text
            text = disarmed


def _disarm(seen_as: str, char: str, length: int) -> str:
    """What a marker's first character becomes: a look-alike bracket; for a marker without one, a space parts it."""
    if seen_as in _LOOK_ALIKES:
        return _LOOK_ALIKES[seen_as]
    return f"{char} " if length > 1 else " "


def _fold(text: str) -> tuple[str, Sequence[int]]:
    """The text as a normaliser might read it (NFKC, no case, no invisible characters), and where each of its
    characters came from."""
    if text.isascii() and not _CONTROL.search(text):
        return text.lower(), range(len(text))
    folded: list[str] = []
    origins: list[int] = []
    for position, char in enumerate(text):
        if unicodedata.category(char) in _INVISIBLE and not char.isspace():
            continue
        seen_as = unicodedata.normalize("NFKC", char).casefold()
        folded.append(seen_as)
        origins += [position] * len(seen_as)
    return "".join(folded), origins


def _any_of(contents: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts, longest first, as a group: `split` keeps it."""
    ordered = sorted(contents, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else re.compile("((?!))")


def _text_of(token: Any) -> str:
    return token.get("content", "") if isinstance(token, dict) else token or ""


def _make_environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it; sandboxed, since a template is code from whoever made the checkpoint."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _refuse
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(message)
