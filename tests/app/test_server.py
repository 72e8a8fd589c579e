"""The server as a client meets it: over a real socket, with the embedded model behind it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema
import pytest
from starlette.testclient import TestClient

from app.config import Settings
from app.server import cut_at_stop, make_app
from contracts import GenerationEnd, Message, Role, SamplingParams, TextChunk, TokenLogprob

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "Question: What is the dose of apixaban?"
MODEL = "Bedside-nano"
MAX_HELD_S = 1.0  # promised: who goes away holds blocks for no longer


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24} | fields


@pytest.fixture
def client(model_server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=model_server.url, trust_env=False, timeout=60) as client:
        yield client


def ask(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json=body(**fields))
    assert response.status_code == 200, response.text
    return response.json()


def text_of(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


def read_stream(client: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/chat/completions", json=body(stream=True, **fields))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [event for event in response.text.split("\n\n") if event.startswith("data: ")]
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def wait_for(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def read_metrics(client: httpx.Client) -> dict[str, float]:
    """Every sample by its name and labels; each line must have the form of the text format."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert response.text.endswith("\n")
    samples: dict[str, float] = {}
    for line in response.text.splitlines():
        if not re.fullmatch(r"# (HELP|TYPE) bedside_\w+ .+", line):
            match = re.fullmatch(r'(bedside_\w+(?:\{\w+="[^"]*"\})?) (\S+)', line)
            assert match, line
            samples[match[1]] = float(match[2])
    return samples


# --- answers ------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_engine_says_in_process(model_server: Any, client: httpx.Client) -> None:
    messages, params = [Message(Role.USER, QUESTION)], SamplingParams(max_tokens=24)
    events = list(model_server.generator.stream(messages, params))
    end = events[-1]
    answer = ask(client)
    assert text_of(answer) == "".join(event.text for event in events if isinstance(event, TextChunk)) != ""
    assert answer["choices"][0]["finish_reason"] == end.finish_reason
    assert answer["usage"] == {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
    }


def test_a_stream_says_the_same_and_then_its_usage(client: httpx.Client) -> None:
    chunks = read_stream(client, stream_options={"include_usage": True})
    whole = ask(client)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == text_of(whole)
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], whole["usage"])
    assert all("usage" not in chunk for chunk in read_stream(client))


def test_a_seed_repeats_a_sampled_text(client: httpx.Client) -> None:
    texts = [text_of(ask(client, temperature=1.5, seed=seed)) for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_string_ends_the_text_before_it(client: httpx.Client) -> None:
    text = text_of(ask(client))
    stop = text[len(text) // 2 :][:4]  # in the midst of tokens, as it comes
    answer = ask(client, stop=["never said", stop])
    streamed = read_stream(client, stop=stop)
    assert text_of(answer) == text[: text.index(stop)]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == text_of(answer)
    assert answer["choices"][0]["finish_reason"] == streamed[-1]["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 24


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "reason"),
    [
        (["ab", "cd", "ef"], ("cde",), "ab", "stop"),
        (["ab", "cd", "xf"], ("cde",), "abcdxf", "length"),  # held back, then released
        (["ab", "cd"], ("cde",), "abcd", "length"),  # held back at the end
        (["abcd"], ("d", "b"), "a", "stop"),  # the first in the text, not in the list
        (["aa", "ab"], ("aab",), "a", "stop"),
    ],
)
def test_a_stop_string_is_found_across_tokens(
    pieces: list[str], stops: tuple[str, ...], text: str, reason: str
) -> None:
    cancel = threading.Event()
    events = [*map(TextChunk, pieces), GenerationEnd("length", 1, len(pieces), 0.0, 0.0)]
    seen = list(cut_at_stop(iter(events), stops, cancel))
    assert "".join(event.text for event in seen if isinstance(event, TextChunk)) == text
    assert isinstance(seen[-1], GenerationEnd)
    assert seen[-1].finish_reason == reason
    assert cancel.is_set() == (reason == "stop")


def test_two_clients_at_once_get_what_each_gets_alone(client: httpx.Client) -> None:
    questions = [QUESTION, "Question: Which allergy is recorded?"]

    def ask_for(question: str) -> str:
        return text_of(ask(client, messages=[{"role": "user", "content": question}]))

    alone = [ask_for(question) for question in questions]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask_for, questions)) == alone


def test_content_may_come_in_text_parts(client: httpx.Client) -> None:
    parts = [{"type": "text", "text": QUESTION[:9]}, {"type": "text", "text": QUESTION[9:]}]
    assert text_of(ask(client, messages=[{"role": "user", "content": parts}])) == text_of(ask(client))


# --- their form ---------------------------------------------------------------------------------------------------

DOSE = {
    "type": "object",
    "properties": {"drug": {"type": "string", "maxLength": 20}, "mg": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["drug", "mg"],
    "additionalProperties": False,
}


def as_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "dose", "strict": True, "schema": schema}}


def test_a_schema_is_met_whole_and_streamed(client: httpx.Client) -> None:
    for fields in ({}, {"temperature": 2, "seed": 5}):
        answer = ask(client, response_format=as_schema(DOSE), max_tokens=120, **fields)
        jsonschema.validate(json.loads(text_of(answer)), DOSE)
        assert answer["choices"][0]["finish_reason"] == "stop"
        chunks = read_stream(client, response_format=as_schema(DOSE), max_tokens=120, **fields)
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text_of(answer)
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_json_object_and_a_regex_are_kept(client: httpx.Client) -> None:
    assert text_of(ask(client, response_format={"type": "json_object"})).startswith("{")
    assert text_of(ask(client, structured_outputs={"regex": "[0-9]{2} mg"})).endswith(" mg")


def test_a_schema_that_cannot_be_kept_is_refused_before_any_work(client: httpx.Client) -> None:
    before = read_metrics(client)["bedside_prompt_tokens_total"]
    for is_stream in (False, True):
        response = client.post(
            "/v1/chat/completions", json=body(response_format=as_schema({"type": "pill"}), stream=is_stream)
        )
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "response_format"
        assert "pill" in response.json()["error"]["message"]
    assert read_metrics(client)["bedside_prompt_tokens_total"] == before


# --- log-probabilities --------------------------------------------------------------------------------------------


def test_log_probabilities_come_in_openais_shape_whole_and_streamed(client: httpx.Client) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    assert b"".join(bytes(token["bytes"]) for token in content).decode() == text_of(answer)
    for token in content:
        likeliest = token["top_logprobs"]
        assert [other["logprob"] for other in likeliest] == sorted((o["logprob"] for o in likeliest), reverse=True)
        assert likeliest[0] == {name: token[name] for name in ("token", "logprob", "bytes")}  # greedy
        assert len(likeliest) == 3
        assert token["logprob"] <= 0
    chunks = read_stream(client, logprobs=True, top_logprobs=3)
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [token for logprobs in streamed if logprobs for token in logprobs["content"]] == content
    assert text_of(answer) == text_of(ask(client))


def test_they_are_told_only_where_they_are_asked_for(client: httpx.Client) -> None:
    assert ask(client)["choices"][0]["logprobs"] is None
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in read_stream(client))
    assert all(token["top_logprobs"] == [] for token in ask(client, logprobs=True)["choices"][0]["logprobs"]["content"])


def test_a_character_of_several_tokens_is_told_in_bytes(client: httpx.Client) -> None:
    form = {"regex": "🩺头"}
    answer = ask(client, structured_outputs=form, logprobs=True)
    content = answer["choices"][0]["logprobs"]["content"]
    assert text_of(answer) == "🩺头"
    assert any("\ufffd" in token["token"] for token in content)
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == "🩺头"


@pytest.mark.parametrize(
    ("pieces", "stop", "told"),
    [
        (["x", "ab", "cd"], "abc", [("x", "x")]),
        (["xa", "bc"], "abc", [("x", "xa")]),  # a token that is half text, half stop
        (["a", "ab"], "ab", [("a", "a")]),
        (["a", "xa"], "ab", [("ax", "a xa"), ("a", "")]),
        (["头", "痛"], "never", [("头", "头"), ("痛", "痛")]),
    ],
)
def test_tokens_go_out_with_the_first_of_their_text(pieces: list[str], stop: str, told: list[tuple[str, str]]) -> None:
    chunks = [TextChunk(piece, (TokenLogprob(piece, piece.encode(), -1.0),)) for piece in pieces]
    events = cut_at_stop(iter([*chunks, GenerationEnd("length", 1, 2, 0.0, 0.0)]), (stop,), threading.Event())
    seen = [event for event in events if isinstance(event, TextChunk)]
    assert [(chunk.text, " ".join(token.text for token in chunk.tokens)) for chunk in seen] == told


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "doctor", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 2}, "n"),
        ({"logprobs": 5}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "loose": 1}}}, "response_format"),
        ({"structured_outputs": {"choice": ["yes"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"temprature": 0.5}, "temprature"),
    ],
)
def test_a_field_that_is_not_honoured_is_refused_by_its_name(
    client: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    response = client.post(
        "/v1/chat/completions", content=json.dumps(body(**fields)), headers={"Content-Type": "application/json"}
    )
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert param.split(".")[-1].split("[")[0] in error["message"]


def test_what_other_servers_default_to_is_accepted(client: httpx.Client) -> None:
    ask(
        client,
        n=1,
        logprobs=False,
        top_logprobs=0,
        presence_penalty=0,
        response_format={"type": "text"},
        tools=None,
        user="ward 3",
    )


def test_an_unknown_model_path_and_body_are_refused_in_openais_form(client: httpx.Client) -> None:
    assert client.post("/v1/chat/completions", json=body(model="gpt-4")).json()["error"]["code"] == "model_not_found"
    assert client.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    for content in ("{", '{"\\ud800": 1}', "[" * 100_000):
        broken = client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
        assert (broken.status_code, broken.json()["error"]["message"]) == (400, "The body is not JSON.")


def test_a_context_that_does_not_fit_is_refused_with_the_numbers_before_any_work(
    model_server: Any, client: httpx.Client
) -> None:
    limit = model_server.generator.info.context_length
    before = read_metrics(client)["bedside_prompt_tokens_total"]
    long = [{"role": "user", "content": "dose " * limit}]
    for is_stream in (False, True):
        response = client.post("/v1/chat/completions", json=body(messages=long, stream=is_stream))
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert f"{limit:,}" in response.json()["error"]["message"]
    assert read_metrics(client)["bedside_prompt_tokens_total"] == before


def test_a_full_queue_is_told_to_come_again(
    model_server: Any, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_server.generator._engine, "_max_waiting", 0)
    for is_stream in (False, True):
        response = client.post("/v1/chat/completions", json=body(stream=is_stream))
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["code"] == "engine_busy"


def test_a_page_elsewhere_cannot_use_the_server_through_a_browser(client: httpx.Client) -> None:
    as_form = {"Content-Type": "text/plain"}  # what a browser sends to another origin without asking first
    assert client.post("/v1/chat/completions", content=json.dumps(body()), headers=as_form).status_code == 415
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400


def test_a_key_is_asked_for(model_server: Any) -> None:
    client = TestClient(make_app(model_server.generator, Settings().sampling, key="s3cret"))
    assert client.post("/v1/chat/completions", json=body()).json()["error"]["code"] == "invalid_api_key"
    assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/models", headers={"Authorization": "Bearer s3cret"}).json()["data"][0]["id"] == MODEL
    assert client.get("/health").json() == {"status": "ok"}


# --- clients that go away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_goes_away_gives_its_blocks_back(
    model_server: Any, client: httpx.Client, is_stream: bool
) -> None:
    generator = model_server.generator
    before = read_metrics(client).get('bedside_requests_total{outcome="cancelled"}', 0)
    # Very hot text: it would go on to the end of the context.
    request = json.dumps(body(stream=is_stream, temperature=2, seed=1, max_tokens=100_000)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(request)}\r\n"
    place = urlsplit(model_server.url)
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + request)
        wait_for(lambda: generator.engine_load.num_running == 1)
        if is_stream:
            assert b"200 OK" in connection.recv(1024)
        assert generator.engine_load.num_blocks_used > 0
    wait_for(lambda: generator.engine_load.num_blocks_used == 0, MAX_HELD_S)
    wait_for(lambda: read_metrics(client).get('bedside_requests_total{outcome="cancelled"}', 0) == before + 1)
    assert generator._engine.check_integrity() == []


# --- what it says of itself ---------------------------------------------------------------------------------------


def test_the_models_and_their_context_are_listed(model_server: Any, client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == MODEL
    assert model["max_model_len"] == model_server.generator.info.context_length


def test_the_metrics_count_what_was_done(client: httpx.Client) -> None:
    before, answer, after = read_metrics(client), ask(client), read_metrics(client)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown(f'bedside_requests_total{{outcome="{answer["choices"][0]["finish_reason"]}"}}') == 1
    assert grown("bedside_prompt_tokens_total") == answer["usage"]["prompt_tokens"]
    assert grown("bedside_completion_tokens_total") == answer["usage"]["completion_tokens"]
    assert grown("bedside_time_to_first_token_seconds_count") == 1
    source = '{source="prompt lookup"}'
    assert 0 <= after[f"bedside_accepted_tokens_total{source}"] <= after[f"bedside_drafted_tokens_total{source}"]
    assert (
        after["bedside_requests_running"] == after["bedside_requests_waiting"] == after["bedside_kv_blocks_used"] == 0
    )
    assert after["bedside_kv_blocks"] > 0
    buckets = [n for name, n in after.items() if name.startswith("bedside_inter_token_latency_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == after["bedside_inter_token_latency_seconds_count"] > 0
    for name in ("expert_load_entropy", "expert_load_busiest", "experts_dead", "experts_flooded"):
        figures = [n for sample, n in after.items() if sample.startswith(f"bedside_{name}{{")]
        assert figures
        assert all(0 <= figure <= 1 for figure in figures)


def test_a_refusal_is_counted(client: httpx.Client) -> None:
    name = 'bedside_requests_total{outcome="refused"}'
    before = read_metrics(client).get(name, 0)
    client.post("/v1/chat/completions", json=body(n=2))
    assert read_metrics(client)[name] == before + 1


def test_the_command_serves_and_its_log_holds_no_contents() -> None:
    environment = os.environ | {"BEDSIDE_THREADS": "1"}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        url = process.stdout.readline().split(" at ")[1].strip().removesuffix("/v1")
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            wait_for(lambda: is_up(client))
            assert text_of(ask(client))
            assert client.get("/health?patient=Margaret").status_code == 200
        process.send_signal(signal.SIGINT)
        log = process.communicate(timeout=60)[0]
    assert "POST /v1/chat/completions" in log
    assert "Margaret" not in log
    assert "apixaban" not in log


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.ConnectError:
        return False


def test_a_port_in_use_is_named_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "app.cli", "serve", "--port", port]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
