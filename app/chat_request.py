"""The body of POST /v1/chat/completions -> what our generator is asked.

A field whose meaning we do not honour is refused by its name, never ignored: an answer that quietly left out a
`response_format` would be taken for what it is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from contracts import Constraint, ConstraintKind, Message, Role, SamplingParams
from model.request import MAX_LOGPROBS

MAX_STOPS = 16
_ROLES = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}
# Sampling fields with their inclusive limits, which are those of the settings.
_NUMBERS: Mapping[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 2),
    "top_p": (float, 0.01, 1),
    "top_k": (int, 0, 1_000_000),
    "repetition_penalty": (float, 0.5, 2),
    "max_tokens": (int, 1, 2**31 - 1),
    "max_completion_tokens": (int, 1, 2**31 - 1),
    "seed": (int, 0, 2**63 - 1),
    "top_logprobs": (int, 0, MAX_LOGPROBS),
}
# Fields that other servers know: only the value that asks for nothing is accepted. null counts as left out.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "min_p": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "store": (False,),
}
_TAKEN = {
    "model",
    "messages",
    "stop",
    "stream",
    "stream_options",
    "logprobs",
    "response_format",
    "structured_outputs",
    "user",  # changes no answer
}


class ApiError(Exception):
    """A request that gets no answer, in the terms of OpenAI's error object. param: the field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def kind(self) -> str:
        return {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )

    def as_json(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    messages: tuple[Message, ...]
    params: SamplingParams
    stop: tuple[str, ...] = ()
    is_stream: bool = False
    wants_usage: bool = False  # as a last chunk of the stream


def parse_chat(body: Any, defaults: SamplingParams) -> ChatRequest:
    """Raises ApiError (400) naming the first field that is missing, malformed or not supported."""
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be one JSON object.")
    given = {name: value for name, value in body.items() if value is not None}
    _refuse_others(given)
    if not isinstance(given.get("model"), str):
        raise ApiError(400, "model must be the name of a model that GET /v1/models lists.", "model")
    is_stream = _read_flag(given, "stream")
    return ChatRequest(
        given["model"],
        _read_messages(given.get("messages")),
        _read_params(given, defaults),
        _read_stop(given.get("stop", [])),
        is_stream,
        _read_stream_options(given.get("stream_options"), is_stream),
    )


def _refuse_others(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise ApiError(400, f"{name} is not supported by this server; leave it out.", name, "unsupported_value")
        elif name not in _NUMBERS and name not in _TAKEN:
            raise ApiError(400, f"{name} is not a field this server knows; leave it out.", name, "unknown_parameter")


def _read_flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false.", name)
    return value


def _read_params(given: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    values = {name: _read_number(name, given[name]) for name in _NUMBERS if name in given}
    limit = values.pop("max_completion_tokens", None)  # OpenAI's newer name
    if limit is not None and values.setdefault("max_tokens", limit) != limit:
        raise ApiError(400, "max_tokens and max_completion_tokens differ; give one.", "max_tokens")
    values["logprobs"] = _read_logprobs(given, values.pop("top_logprobs", 0))
    return replace(defaults, **values, constraint=_read_constraint(given))


def _read_logprobs(given: Mapping[str, Any], num_likeliest: int) -> int | None:
    if _read_flag(given, "logprobs"):
        return num_likeliest
    if num_likeliest:
        raise ApiError(400, "top_logprobs is for logprobs: true only; leave it out.", "top_logprobs")
    return None


def _read_constraint(given: Mapping[str, Any]) -> Constraint | None:
    """From OpenAI's response_format; or from vLLM's structured_outputs, of which a regex is taken."""
    by_format = _read_response_format(given.get("response_format", {"type": "text"}))
    options = given.get("structured_outputs")
    if options is None:
        return by_format
    if not isinstance(options, dict) or set(options) != {"regex"} or not isinstance(options["regex"], str):
        raise ApiError(400, "structured_outputs may hold a regex, nothing else.", "structured_outputs")
    if by_format:
        raise ApiError(400, "response_format and structured_outputs both name a form; give one.", "structured_outputs")
    return Constraint(ConstraintKind.REGEX, options["regex"])


def _read_response_format(value: Any) -> Constraint | None:
    match value:
        case {"type": "text", **others} if not others:
            return None
        case {"type": "json_object", **others} if not others:
            return Constraint(ConstraintKind.JSON_OBJECT)
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema, **notes}, **others} if (
            not others and not set(notes) - {"name", "description", "strict"}  # which change no answer: ours is strict
        ):
            return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema, ensure_ascii=False))
    raise ApiError(
        400,
        'response_format must be {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": '
        '{"name": …, "schema": {…}, "strict": true}}.',
        "response_format",
    )


def _read_number(name: str, value: Any) -> Any:
    kind, low, high = _NUMBERS[name]
    kinds = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        what = "whole number" if kind is int else "number"
        raise ApiError(400, f"{name} must be a {what} from {low:g} to {high:g}.", name)
    return value


def _read_stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ApiError(400, "stop must be a text or a list of texts, none empty.", "stop")
    if len(stops) > MAX_STOPS:
        raise ApiError(400, f"stop holds {len(stops)} texts; at most {MAX_STOPS} are possible.", "stop")
    return tuple(stops)


def _read_stream_options(options: Any, is_stream: bool) -> bool:
    if options is None:
        return False
    if not is_stream:
        raise ApiError(400, "stream_options is for stream: true only; leave it out.", "stream_options")
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise ApiError(400, "stream_options may hold include_usage, nothing else.", "stream_options")
    return _read_flag(options, "include_usage")


def _read_messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ApiError(400, "messages must be a list of at least one message.", "messages")
    return tuple(_read_message(message, f"messages[{number}]") for number, message in enumerate(value))


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise ApiError(400, f"{where} must be an object with role and content.", where)
    for name, value in message.items():
        if name not in ("role", "content") and value not in (None, []):
            raise ApiError(400, f"{where}.{name} is not supported by this server; leave it out.", f"{where}.{name}")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ApiError(400, f"{where}.role must be one of {', '.join(_ROLES)}.", f"{where}.role")
    return Message(_ROLES[role], _read_content(message.get("content"), f"{where}.content"))


def _read_content(content: Any, where: str) -> str:
    """A text, or a list of text parts; images and sound are refused."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where} must be a text.", where)
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(400, f"{where} may hold text parts only: this model reads text.", where)
    return "".join(part["text"] for part in content)
