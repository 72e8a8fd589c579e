"""`bedside serve`: the engine behind an OpenAI-compatible interface.

POST /v1/chat/completions, GET /v1/models, GET /health, GET /metrics. One generation is one thread, which iterates the
engine; the event loop hands its events on. A client that goes away is noticed by the loop, and its cancel is read by
the engine before the next step. Knows nothing of patients, documents and checks.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.chat_request import ApiError, ChatRequest, parse_chat
from app.metrics import ServerMetrics
from contracts import (
    ConstraintError,
    ContextLengthError,
    GenerationEnd,
    GenerationError,
    GenerationEvent,
    PrefillProgress,
    Queued,
    SamplingParams,
    TextChunk,
    TokenLogprob,
)
from model.generator import LocalGenerator
from model.request import EngineBusyError

_LOG = logging.getLogger(__name__)
MAX_BODY_BYTES = 16 * 1024**2  # 128K tokens of text are below 1 MB
RETRY_AFTER_S = 5
CLIENT_GONE = 499  # nginx' number for it; nobody reads it
_T = TypeVar("_T")


def make_app(
    generator: LocalGenerator, defaults: SamplingParams, key: str = "", allowed_hosts: tuple[str, ...] = ("*",)
) -> Starlette:
    """defaults: for the sampling fields a request leaves out. key: what clients must show as a bearer token, if any.
    allowed_hosts: names a request may call this server by, against pages elsewhere that rebind a name of their own."""
    server = ChatServer(generator, defaults, key)
    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/models", server.list_models),
        Route("/health", server.health),
        Route("/metrics", server.show_metrics),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)],
        exception_handlers={ApiError: _show_api_error, HTTPException: _show_http_error},
    )


class ChatServer:
    """The four endpoints over one generator."""

    def __init__(self, generator: LocalGenerator, defaults: SamplingParams, key: str) -> None:
        self._generator = generator
        # As with other servers, only the context limits an answer whose length nobody limited.
        self._defaults = replace(defaults, max_tokens=generator.info.context_length)
        self._key = key
        self._metrics = ServerMetrics()
        self._model = generator.info.name.replace(" ", "-")
        self._started = int(time.time())

    def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    def list_models(self, request: Request) -> Response:
        self._require_key(request)
        context = self._generator.info.context_length
        model = {"id": self._model, "object": "model", "created": self._started, "owned_by": "bedside"}
        return JSONResponse({"object": "list", "data": [{**model, "max_model_len": context}]})

    def show_metrics(self, request: Request) -> Response:
        self._require_key(request)
        text = self._metrics.render(self._generator.engine_load, self._generator.router_health())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def chat(self, request: Request) -> Response:
        try:
            self._require_key(request)
            chat = parse_chat(await _read_json(request), self._defaults)
            if chat.model != self._model:
                message = f"There is no model {chat.model!r} here; this server has {self._model}."
                raise ApiError(404, message, "model", "model_not_found")
            return await self._answer(request, chat)
        except Exception as error:  # the edge of a request: any fault becomes its answer
            raise self._note_error(error) from error

    async def _answer(self, request: Request, chat: ChatRequest) -> Response:
        cancel = threading.Event()
        events = iterate_in_thread(lambda: self._generate(chat, cancel), cancel)
        if not chat.is_stream:
            return await self._answer_whole(request, chat, events)
        first = await anext(events)  # what is refused is refused with a status, before the stream begins
        return EventStream(self._write_stream(chat, first, events), cancel)

    def _generate(self, chat: ChatRequest, cancel: threading.Event) -> Iterator[GenerationEvent]:
        last, is_first = time.perf_counter(), True
        for event in cut_at_stop(self._generator.stream(chat.messages, chat.params, cancel), chat.stop, cancel):
            if isinstance(event, TextChunk):
                now = time.perf_counter()
                self._metrics.observe_text(now - last, is_first)
                last, is_first = now, False
            elif isinstance(event, GenerationEnd):
                self._metrics.finish(event)
            yield event

    async def _answer_whole(
        self, request: Request, chat: ChatRequest, events: AsyncGenerator[GenerationEvent]
    ) -> Response:
        answer = asyncio.ensure_future(_collect(events))
        gone = asyncio.ensure_future(_wait_until_gone(request))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return Response(status_code=CLIENT_GONE)
            text, tokens, end = answer.result()
        finally:
            gone.cancel()
            answer.cancel()  # which ends `events`, and that sets its cancel
        message = {"role": "assistant", "content": text}
        logprobs = None if chat.params.logprobs is None else _logprobs(tokens)
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": end.finish_reason}
        return JSONResponse(self._head("chat.completion") | {"choices": [choice], "usage": _usage(end)})

    async def _write_stream(
        self, chat: ChatRequest, first: GenerationEvent, events: AsyncGenerator[GenerationEvent]
    ) -> AsyncIterator[str]:
        """Server-sent events; the place in the queue and the prompt's progress go as comments, which clients skip."""
        head = self._head("chat.completion.chunk")
        if chat.wants_usage:
            head["usage"] = None
        try:
            yield _chunk(head, {"role": "assistant", "content": ""})
            async for event in _chain(first, events):
                match event:
                    case Queued(place):
                        yield f": queued {place}\n\n"
                    case PrefillProgress(done, total):
                        yield f": prefill {done}/{total}\n\n"
                    case TextChunk(text, tokens):
                        yield _chunk(head, {"content": text}, tokens)
                    case GenerationEnd() as end:
                        yield _chunk(head, {}, finish_reason=end.finish_reason)
                        if chat.wants_usage:
                            yield _data(head | {"choices": [], "usage": _usage(end)})
        except Exception as error:  # noqa: BLE001 - the edge of a stream: its status is out, so the error is its end
            yield _data(self._note_error(error).as_json())
        yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self._model}
        return head | {"system_fingerprint": self._generator.info.weights_sha256[:16]}

    def _require_key(self, request: Request) -> None:
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._key and not hmac.compare_digest(shown.encode(), self._key.encode()):
            raise ApiError(401, "This server wants its key as a bearer token.", code="invalid_api_key")

    def _note_error(self, error: Exception) -> ApiError:
        """The error as a client sees it, counted."""
        shown = _as_api_error(error)
        self._metrics.count("busy" if shown.status == 429 else "refused" if shown.status < 500 else "error")
        return shown


class EventStream(StreamingResponse):
    """Sets `cancel` once the response is over, however it ends: complete, cut off or never begun."""

    def __init__(self, content: AsyncIterator[str], cancel: threading.Event) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel.set()


async def iterate_in_thread(make: Callable[[], Iterator[_T]], cancel: threading.Event) -> AsyncGenerator[_T]:
    """The items of a blocking iterator, which a thread of its own makes and exhausts. Sets `cancel` at its end."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def put(item: _T | Exception | None) -> None:
        if not loop.is_closed():  # at the end of the program nobody listens any more
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def work() -> None:
        try:
            for item in make():
                put(item)
            put(None)
        except Exception as error:  # noqa: BLE001 - raised again where the items are awaited
            put(error)

    threading.Thread(target=work, name="generate", daemon=True).start()
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        cancel.set()


def cut_at_stop(
    events: Iterator[GenerationEvent], stops: tuple[str, ...], cancel: threading.Event
) -> Iterator[GenerationEvent]:
    """Ends the text before the first of the stop strings, and the generation with it. Text that may be the beginning
    of one is held back."""
    held, is_found = _Held(), False
    for event in events:
        if isinstance(event, TextChunk) and not is_found:
            held.add(event)
            at = min((at for stop in stops if (at := held.text.find(stop)) >= 0), default=-1)
            if is_found := at >= 0:
                cancel.set()  # the generator tells the tokens so far in its end, which still comes
            chunk = held.take(at if is_found else len(held.text) - _count_doubtful(held.text, stops))
            if chunk.text:
                yield chunk
        elif isinstance(event, GenerationEnd):
            chunk = TextChunk("") if is_found else held.take_all()
            if chunk.text or chunk.tokens:
                yield chunk
            yield replace(event, finish_reason="stop") if is_found else event
        elif not isinstance(event, TextChunk):
            yield event


class _Held:
    """Text that is not out yet, and its tokens: each goes out with the first of its own text."""

    def __init__(self) -> None:
        self.text = ""
        self._tokens: deque[TokenLogprob] = deque()
        self._num_ahead = 0  # bytes of the tokens that are out whose text is not

    def add(self, chunk: TextChunk) -> None:
        self.text += chunk.text
        self._tokens += chunk.tokens

    def take(self, num_chars: int) -> TextChunk:
        """The first of the text with the tokens that begin in it."""
        text, self.text = self.text[:num_chars], self.text[num_chars:]
        num_bytes = len(text.encode()) - self._num_ahead
        tokens = []
        while self._tokens and num_bytes > 0:
            tokens.append(self._tokens.popleft())
            num_bytes -= len(tokens[-1].data)
        self._num_ahead = max(-num_bytes, 0)
        return TextChunk(text, tuple(tokens))

    def take_all(self) -> TextChunk:
        return TextChunk(self.text, tuple(self._tokens))


def _count_doubtful(text: str, stops: tuple[str, ...]) -> int:
    """Characters at the end of the text that are the beginning of a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


# --- what goes over the wire ------------------------------------------------------------------------------------


async def _read_json(request: Request) -> Any:
    # A page in a browser cannot send this type to another origin without asking first, which is never granted.
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise ApiError(415, "The body must be JSON: send Content-Type: application/json.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"The body is larger than {MAX_BODY_BYTES // 1024**2} MiB.")
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair can be written, but is no text
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "The body is not JSON.") from error
    return value


async def _collect(events: AsyncGenerator[GenerationEvent]) -> tuple[str, list[TokenLogprob], GenerationEnd]:
    pieces: list[str] = []
    tokens: list[TokenLogprob] = []
    async for event in events:
        if isinstance(event, TextChunk):
            pieces.append(event.text)
            tokens += event.tokens
        elif isinstance(event, GenerationEnd):
            end = event
    return "".join(pieces), tokens, end


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _chain(first: _T, others: AsyncGenerator[_T]) -> AsyncIterator[_T]:
    yield first
    async for item in others:
        yield item


def _chunk(
    head: Mapping[str, Any],
    delta: Mapping[str, str],
    tokens: Sequence[TokenLogprob] = (),
    finish_reason: str | None = None,
) -> str:
    logprobs = _logprobs(tokens) if tokens else None
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return _data({**head, "choices": [choice]})


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    def show(token: TokenLogprob) -> dict[str, Any]:
        return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data)}

    content = [show(token) | {"top_logprobs": [show(other) for other in token.alternatives]} for token in tokens]
    return {"content": content, "refusal": None}


def _data(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _usage(end: GenerationEnd) -> dict[str, int]:
    total = end.prompt_tokens + end.completion_tokens
    return {"prompt_tokens": end.prompt_tokens, "completion_tokens": end.completion_tokens, "total_tokens": total}


def _as_api_error(error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case ClientDisconnect():  # in the midst of its own request
            return ApiError(CLIENT_GONE, "The client went away.")
        case EngineBusyError():
            return ApiError(429, str(error), code="engine_busy")
        case ContextLengthError():
            return ApiError(400, str(error), "messages", "context_length_exceeded")
        case ConstraintError():
            return ApiError(400, str(error), "response_format")
        case GenerationError():
            return ApiError(500, str(error), code="generation_failed")
        case ValueError():  # the layers' errors for bad input; a dialogue that the chat template does not accept
            return ApiError(400, str(error), "messages")
    _LOG.error("a request failed", exc_info=error)
    return ApiError(500, "The request failed inside the server; see its log.", code="internal_error")


async def _show_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status == 429 else None
    return JSONResponse(error.as_json(), error.status, headers)


async def _show_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(ApiError(error.status_code, error.detail).as_json(), error.status_code, error.headers)
