"""contracts.Generator over an OpenAI-compatible server in the building: vLLM, SGLang, or `bedside serve` elsewhere.

Nothing leaves the building: only loopback and private addresses are spoken to. The address is judged before the first
request, to say so clearly, and again at each connection, before a byte is sent: a name may have moved meanwhile.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.config import EMBEDDED_CHECKPOINT
from app.errors import SettingsError
from contracts import (
    Constraint,
    ConstraintError,
    ConstraintKind,
    ContextLengthError,
    GenerationEnd,
    GenerationError,
    GenerationEvent,
    Message,
    ModelInfo,
    PrefillProgress,
    Queued,
    SamplingParams,
    TextChunk,
    TokenLogprob,
)
from model.chat_template import ChatTemplate, Neutralizer
from model.request import check_params, count_new_tokens, find_deadline
from model.tokenizer import Tokenizer

# RFC 1122, RFC 1918; RFC 4291, RFC 4193.
INSIDE = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
_NETWORKS = tuple(ipaddress.ip_network(network) for network in INSIDE)
# Without the tokenizer: a token is at least one byte, and no template known to us has more of its own than this.
TEMPLATE_TOKENS, TURN_TOKENS = 64, 16
# A long record before a long queue is silent for minutes; Stop works all the while.
_TIMEOUT = httpx.Timeout(10.0, connect=5.0, read=1800.0)
_PROMPT_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
_POLL_S = 0.05


class RemoteGenerator:
    """Answers with a model on a server. Several threads may stream at once; each answer is one connection."""

    def __init__(
        self, url: str, model: str = "", key: str = "", context_length: int = 0, tokenizer_folder: Path | None = None
    ) -> None:
        """Asks the server what it has. model may be left out if there is one only, context_length if the server tells
        it. tokenizer_folder: a checkpoint's tokenizer and chat template, to count tokens exactly; without it a token
        is taken for one byte, which never overflows but leaves much of the context empty.

        Raises SettingsError for an address outside the building or a model that is not there, GenerationError if the
        server is away, CheckpointError if the folder lacks a file."""
        self._url = _read_url(url)
        self._host = self._url.netloc.decode("ascii")
        require_inside(self._url)
        self._tls = ssl.create_default_context()  # the machine's own store: a hospital signs its certificates itself
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        tokenizer = Tokenizer.load(tokenizer_folder or EMBEDDED_CHECKPOINT)
        self._neutralizer = Neutralizer(tokenizer)
        self._tokenizer = tokenizer if tokenizer_folder else None
        self._template = ChatTemplate.load(tokenizer_folder, tokenizer) if tokenizer_folder else None
        name, context = self._choose_model(model, context_length)
        self._info = ModelInfo(
            name, "remote", "", context, num_parameters=0, weights_sha256="", details={"server": self._host}
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def count_tokens(self, text: str) -> int:
        """Tokens of plain text; without the tokenizer at least as many."""
        return len(self._tokenizer.encode(text)) if self._tokenizer else len(text.encode())

    def count_prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the whole prompt; without the tokenizer at least as many."""
        if self._template:
            return len(self._template.encode(messages))
        texts = [self._neutralizer.neutralize(message.text) for message in messages]
        return TEMPLATE_TOKENS + sum(self.count_tokens(text) + TURN_TOKENS for text in texts)

    def stream(
        self, messages: Sequence[Message], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Iterator[GenerationEvent]:
        """As contracts.Generator. `cancel` and the deadline close the connection at once. Raises GenerationError, while
        it is listened to, where the server is away, refuses or breaks off; nothing is tried twice. A server that knows
        no `structured_outputs` may ignore a regular expression."""
        check_params(params)
        num_prompt = self.count_prompt_tokens(messages)
        max_new = count_new_tokens(num_prompt, params.max_tokens, self.info.context_length)
        # The server's tokenizer would read a turn marker in a record as one: see model.chat_template.
        texts = [(message.role.value, self._neutralizer.neutralize(message.text)) for message in messages]
        body = {
            "model": self.info.name,
            "messages": [{"role": role, "content": text} for role, text in texts],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_new,
            **_sampling_fields(params),
        }
        return self._run(body, num_prompt, cancel or threading.Event(), find_deadline(params))

    def _run(
        self, body: Mapping[str, Any], num_prompt: int, cancel: threading.Event, deadline: float
    ) -> Iterator[GenerationEvent]:
        answer = _Answer()
        started = time.perf_counter()
        first = last = started
        try:
            for line in self._post(body, cancel, deadline):
                for event in self._read(answer, line):
                    if isinstance(event, TextChunk):
                        last = time.perf_counter()
                        first = last if first == started else first
                    yield event
        except httpx.HTTPError as error:
            if not cancel.is_set() and time.monotonic() < deadline:
                raise self._away(error) from error
        ours = "cancelled" if cancel.is_set() else "deadline" if time.monotonic() >= deadline else ""
        reason = answer.finish_reason or ours
        if reason not in ("stop", "length", "cancelled", "deadline"):
            raise GenerationError(f"The model server at {self._host} broke off its answer; ask again.")
        num_new = answer.usage.get("completion_tokens", answer.num_chunks)
        rate = (num_new - 1) / (last - first) if last > first else 0.0
        yield GenerationEnd(reason, answer.usage.get("prompt_tokens", num_prompt), num_new, first - started, rate)

    def _post(self, body: Mapping[str, Any], cancel: threading.Event, deadline: float) -> Iterator[str]:
        """The lines of the answer; they end early once `cancel` is set or the time is over."""
        connection = _Connection(self._host)
        with (
            _hang_up_on(cancel, deadline, connection),
            self._client(_TIMEOUT) as client,
            client.stream(
                "POST", self._path("chat/completions"), json=body, extensions={"trace": connection.trace}
            ) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise self._refused(response)
            for line in response.iter_lines():
                if cancel.is_set() or time.monotonic() >= deadline:
                    return
                yield line

    def _read(self, answer: _Answer, line: str) -> list[GenerationEvent]:
        try:
            events = list(answer.read(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GenerationError(f"The model server at {self._host} does not speak OpenAI's protocol.") from error
        if answer.error:
            raise GenerationError(f"The model server at {self._host} failed: {answer.error[:300]}")
        return events

    # --- what the server has ------------------------------------------------------------------------------------

    def _choose_model(self, wanted: str, context_length: int) -> tuple[str, int]:
        models = self._list_models()
        if not wanted and len(models) != 1:
            raise SettingsError(
                f"The server at {self._host} has {', '.join(models)}: name one in BEDSIDE_SERVER_MODEL."
            )
        name = wanted or next(iter(models))
        if name not in models:
            raise SettingsError(f"The server at {self._host} has no model {name!r}, but {', '.join(models)}.")
        told = models[name]
        if not told and not context_length:
            raise SettingsError(
                f"The server at {self._host} does not say how long its context is: set BEDSIDE_SERVER_CONTEXT."
            )
        return name, min(filter(None, (told, context_length)))

    def _list_models(self) -> dict[str, int]:
        """Names and context lengths; 0 where the server does not tell it."""
        trace = _Connection(self._host).trace
        try:
            with self._client(_PROMPT_TIMEOUT) as client:
                response = client.get(self._path("models"), extensions={"trace": trace})
            if response.status_code != 200:
                raise self._refused(response)
            return {model["id"]: int(model.get("max_model_len") or 0) for model in response.json()["data"]}
        except httpx.HTTPError as error:
            raise self._away(error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GenerationError(f"{self._host} does not list models as OpenAI's servers do; see the URL.") from error

    def _client(self, timeout: httpx.Timeout) -> httpx.Client:
        return httpx.Client(trust_env=False, verify=self._tls, timeout=timeout, headers=self._headers)

    def _path(self, name: str) -> str:
        return f"{str(self._url).rstrip('/')}/{name}"

    def _away(self, error: Exception) -> GenerationError:
        return GenerationError(
            f"The model server at {self._host} does not answer ({type(error).__name__}): see that it runs and that "
            "BEDSIDE_SERVER_URL is its address, then ask again."
        )

    def _refused(self, response: httpx.Response) -> Exception:
        try:
            fault = response.json()["error"]
            message, code = str(fault["message"]), fault.get("code")
        except (ValueError, KeyError, TypeError, AttributeError):
            message, code = response.reason_phrase, None
        if response.status_code in (401, 403):
            return GenerationError(f"The model server at {self._host} refuses the key: set BEDSIDE_SERVER_KEY to its.")
        if code == "context_length_exceeded":
            return ContextLengthError(message)
        return GenerationError(f"The model server at {self._host} answers {response.status_code}: {message[:300]}")


class _Answer:
    """What has come so far of one stream of server-sent events."""

    def __init__(self) -> None:
        self.finish_reason = self.error = ""
        self.usage: dict[str, int] = {}
        self.num_chunks = 0

    def read(self, line: str) -> Iterator[GenerationEvent]:
        """The events of one line; the comments are those of our own server."""
        if line.startswith(": "):
            yield from _read_comment(line[2:].split(" "))
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            return
        chunk = json.loads(data)
        if fault := chunk.get("error"):
            self.error = str(fault["message"] if isinstance(fault, dict) else fault)
            return
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            text = choice["delta"].get("content") or ""
            tokens = tuple(map(_read_logprob, (choice.get("logprobs") or {}).get("content") or ()))
            if text or tokens:
                self.num_chunks += 1
                yield TextChunk(text, tokens)


def _read_logprob(told: Mapping[str, Any]) -> TokenLogprob:
    text, data = told["token"], told.get("bytes")
    data = text.encode() if data is None else bytes(data)
    alternatives = tuple(map(_read_logprob, told.get("top_logprobs") or ()))
    return TokenLogprob(text, data, float(told["logprob"]), alternatives)


def _read_comment(words: Sequence[str]) -> Iterator[GenerationEvent]:
    match words:
        case ["queued", place] if place.isdecimal():
            yield Queued(int(place))
        case ["prefill", progress]:
            done, _, total = progress.partition("/")
            if done.isdecimal() and total.isdecimal():
                yield PrefillProgress(int(done), int(total))


def _sampling_fields(params: SamplingParams) -> dict[str, Any]:
    """Filters that are off are left out: servers differ in how they want to be told."""
    fields: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p}
    if params.top_k:
        fields["top_k"] = params.top_k
    if params.repetition_penalty != 1:
        fields["repetition_penalty"] = params.repetition_penalty
    if params.seed is not None:
        fields["seed"] = params.seed
    if params.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": params.logprobs}
    if params.constraint:
        fields |= _constraint_fields(params.constraint)
    return fields


def _constraint_fields(constraint: Constraint) -> dict[str, Any]:
    """OpenAI's field for JSON, vLLM's for a regex. The notation of grammars differs from server to server."""
    match constraint.kind:
        case ConstraintKind.JSON_OBJECT:
            return {"response_format": {"type": "json_object"}}
        case ConstraintKind.JSON_SCHEMA:
            try:
                schema = json.loads(constraint.text)
            except (ValueError, RecursionError) as error:
                raise ConstraintError(f"The JSON schema is not JSON ({error}).") from error
            named = {"name": "answer", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case ConstraintKind.REGEX:
            return {"structured_outputs": {"regex": constraint.text}}
    raise ConstraintError("A model server takes no grammars: use a JSON schema or a regular expression.")


# --- the connection ---------------------------------------------------------------------------------------------


class _Connection:
    """The socket of one request: judged when it is made, and shut from another thread to hang up."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._socket: socket.socket | None = None

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpcore's trace extension: called at each step of the request."""
        if event not in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            return
        stream = info["return_value"]
        address = str(stream.get_extra_info("server_addr")[0])
        if not is_inside(address):
            stream.close()
            raise GenerationError(f"{self._host} is now at {address}, outside the building: nothing was sent there.")
        self._socket = stream.get_extra_info("socket")

    def hang_up(self) -> None:
        """Ends a read that waits. Does nothing before there is a socket, and after it was closed."""
        if self._socket is not None:
            try:
                # Not SSLSocket's own, which takes the TLS layer from under the reader.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            except OSError:
                return


@contextmanager
def _hang_up_on(cancel: threading.Event, deadline: float, connection: _Connection) -> Iterator[None]:
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            if cancel.wait(_POLL_S) or time.monotonic() >= deadline:
                connection.hang_up()
                is_over.wait(_POLL_S)

    threading.Thread(target=watch, name="hang-up", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _read_url(url: str) -> httpx.URL:
    """The base of the interface, which ends in /v1."""
    try:
        parsed = httpx.URL(url.rstrip("/"))
    except httpx.InvalidURL as error:
        raise SettingsError(f"server_url is {url!r}, which is no URL ({error}).") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingsError(f"server_url is {url!r}; it must look like http://10.0.0.5:8000.")
    if parsed.userinfo or parsed.query:
        raise SettingsError("server_url must hold an address only; the key goes into BEDSIDE_SERVER_KEY.")
    return parsed if parsed.path.endswith("/v1") else parsed.copy_with(path=f"{parsed.path.rstrip('/')}/v1")


def require_inside(url: httpx.URL) -> None:
    """Raises SettingsError if the host has an address outside the building, GenerationError if it has none."""
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise GenerationError(
            f"No address is known for {url.host}: see BEDSIDE_SERVER_URL and the name server."
        ) from error
    for address in sorted({str(entry[4][0]) for entry in found}):
        if not is_inside(address):
            raise SettingsError(
                f"server_url names {url.host}, which is {address}: records must not leave the building, so only "
                f"loopback and private addresses are allowed ({', '.join(INSIDE)})."
            )


def is_inside(address: str) -> bool:
    """Whether an IP address is loopback or private."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return any(ip in network for network in _NETWORKS)
