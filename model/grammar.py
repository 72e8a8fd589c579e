"""Constraint -> which tokens may come next, by llguidance, over a checkpoint's own vocabulary.

A constraint may come from outside (`bedside serve`), so that it is tried in a process of its own first
(model.grammar_trial) and built with limits; neither happens under a lock of the engine. Special tokens are never
allowed, whatever a grammar says, and end tokens exactly where the text may end. Knows nothing of the model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contracts import Constraint, ConstraintError, ConstraintKind, GenerationError
from model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_TEXT_BYTES = 64 * 1024
TRIAL_CPU_S = 2  # schemas of 60 KB, with 800 variants or 2,000 properties, take 0.2
TRIAL_WALL_S = 60
TRIAL_MB = 1024
# The library's limits. A state of a lexer takes 1 to 2 KB; a step that computes a mask, 17 ms at most.
LIMITS: dict[str, Any] = {
    "max_grammar_size": 100_000,
    "max_lexer_states": 20_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "verbose_errors": False,
}
# On one line, and named here one by one so that a schema's own "x-guidance" changes none of it: white space is where a
# model that has lost its way goes on for ever.
_JSON_OPTIONS: Any = {
    "item_separator": ", ?",
    "key_separator": ": ?",
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "coerce_one_of": False,
    "lenient": False,
}
_TRIAL = Path(__file__).with_name("grammar_trial.py")
_MAX_MESSAGE = 300
_trial_lock = threading.Lock()


class MatcherError(GenerationError):
    """An answer cannot go on in the form that was asked for; other answers are not concerned."""


class GrammarCompiler:
    """Makes matchers over one vocabulary, which it takes over at the first of them (0.8 s for 157,000 tokens).
    Thread-safe. vocab_size: the model's, which may be larger than the tokenizer's."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._is_text_V: NDArray[np.bool_]

    def compile(self, constraint: Constraint) -> GrammarMatcher:
        """A matcher at the beginning of an answer. Raises ConstraintError for a constraint that is malformed, not
        supported, met by no text, or too complex."""
        try:
            import llguidance
        except ImportError as error:
            raise ConstraintError("Structured output needs llguidance: pip install llguidance.") from error
        grammar = _read(constraint)
        _require_harmless(grammar)
        vocabulary = self._load_vocabulary()
        limits = llguidance.LLParserLimits(**LIMITS)
        matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise ConstraintError(_explain(matcher.get_error()))
        return GrammarMatcher(matcher, self._is_text_V)

    def _load_vocabulary(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        with self._lock:
            if self._vocabulary is None:
                wrapped: Any = _Vocabulary(self._tokenizer, self._vocab_size)  # it wants a class of its own
                stop_ids = list(self._tokenizer.stop_ids)
                self._is_text_V = np.array([bool(token) for token in wrapped.tokens])
                self._is_text_V[stop_ids] = True
                self._vocabulary = LLTokenizer(wrapped, n_vocab=self._vocab_size, eos_token=stop_ids)
            return self._vocabulary


class GrammarMatcher:
    """How far one answer has come in its form. For one thread at a time."""

    def __init__(self, matcher: LLMatcher, is_text_V: NDArray[np.bool_]) -> None:
        self._matcher = matcher
        self._is_text_V = is_text_V

    @property
    def is_complete(self) -> bool:
        """Whether the text is whole and nothing may follow it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next [V]. Raises MatcherError if there is none, or the form takes too long."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._require_sound()
        allowed_V = np.unpackbits(bits, count=len(self._is_text_V), bitorder="little").view(np.bool_) & self._is_text_V
        if not allowed_V.any():
            raise MatcherError("No token can follow in the form that was asked for; ask for a simpler one.")
        return allowed_V

    def advance(self, token_id: int) -> None:
        """Takes the token that was chosen. Raises MatcherError if it does not fit."""
        self._matcher.consume_token(token_id)
        self._require_sound()

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of the tokens, from the first, could be taken one after the other."""
        return self._matcher.validate_tokens(list(token_ids))

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            why = _shorten(self._matcher.get_error())
            raise MatcherError(
                f"The answer cannot go on in the form that was asked for ({why}); ask for a simpler one."
            )


class _Vocabulary:
    """A tokenizer's tokens as llguidance takes them over. Special ones have no text, and added ones, such as turn
    markers, count as special: plain tokens can write all that they can."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        added = {token.encode() for token in tokenizer.added_tokens}
        tokens = map(tokenizer.get_bytes, range(vocab_size))
        self.tokens = [b"" if token in added else token for token in tokens]
        self.special_token_ids = [token_id for token_id, token in enumerate(self.tokens) if not token]
        self.eos_token_id = tokenizer.stop_ids[0]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _read(constraint: Constraint) -> str:
    """The constraint in llguidance's own form; it checks grammars and regular expressions only when it builds them."""
    from llguidance import LLMatcher

    num_bytes = len(constraint.text.encode())
    if num_bytes > MAX_TEXT_BYTES:
        raise ConstraintError(f"The form of the answer takes {num_bytes:,} bytes; at most {MAX_TEXT_BYTES:,} do.")
    match constraint.kind:
        case ConstraintKind.REGEX:
            return LLMatcher.grammar_from_regex(constraint.text)
        case ConstraintKind.GRAMMAR:
            return LLMatcher.grammar_from_lark(constraint.text)
        case ConstraintKind.JSON_OBJECT:
            schema: Any = {"type": "object"}
        case ConstraintKind.JSON_SCHEMA:
            try:
                schema = json.loads(constraint.text)
            except (ValueError, RecursionError) as error:
                raise ConstraintError(f"The JSON schema is not JSON ({error}).") from error
    if not isinstance(schema, dict):
        raise ConstraintError("The JSON schema must be an object.")
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(_explain(str(error))) from error


@lru_cache(maxsize=256)
def _require_harmless(grammar: str) -> None:
    """Raises ConstraintError for a grammar that the trial finds wrong, or that it does not survive. One at a time, so
    that many clients with new grammars take one core at most; what was accepted is not tried again."""
    task = {"grammar": grammar, "limits": LIMITS, "seconds": TRIAL_CPU_S, "megabytes": TRIAL_MB}
    with _trial_lock:
        try:
            # -P: the folder of the program is this package's, and its modules would stand before others' of their name.
            done = subprocess.run(
                [sys.executable, "-P", str(_TRIAL)],
                input=json.dumps(task).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=TRIAL_WALL_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ConstraintError("The form of the answer takes too long to check; ask for a simpler one.") from error
    if done.returncode:
        raise ConstraintError("The form of the answer is too complex; ask for a simpler one.")
    if done.stdout:
        raise ConstraintError(_explain(done.stdout.decode(errors="replace")))


def _explain(why: str) -> str:
    return f"The form of the answer cannot be kept: {_shorten(why)}"


def _shorten(why: str) -> str:
    """One line of the library's message, without what is for its makers."""
    line = " ".join(why.split("<")[0].split()) or "no text meets it"
    return line if len(line) <= _MAX_MESSAGE else f"{line[:_MAX_MESSAGE]}…"
