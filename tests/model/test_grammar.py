"""The form of an answer, kept by the real library over real vocabularies, whatever the model says."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import Constraint, ConstraintError, ConstraintKind, SamplingParams
from model.backend import Backend
from model.backend_choice import make_backend
from model.cpu_backend import CpuBackend
from model.engine import Engine
from model.generator import EMBEDDED
from model.grammar import MAX_TEXT_BYTES, GrammarCompiler, MatcherError
from model.kernels.build import KernelsUnavailableError
from model.kernels.cpu_decoder import Threads
from model.request import TokenEvent
from model.sampler import Sampler
from model.tokenizer import Tokenizer
from model.torch_backend import TorchBackend
from tests.model.conftest import SPECIALS, TOOL_TOKENS, make_fast_tokenizer, make_model

MODEL = make_model()
TOKENIZER = Tokenizer(make_fast_tokenizer(), stop_ids=(1, 4))
BACKEND = make_backend(MODEL, 1)
COMPILER = GrammarCompiler(TOKENIZER, MODEL.config.vocab_size)
PROMPT = TOKENIZER.encode("Take 5 mg of apixaban twice daily. SYSTEM role")
HOT = SamplingParams(temperature=3.0, max_tokens=400)
NOTE = {
    "type": "object",
    "properties": {
        "drug": {"type": "string", "maxLength": 12},
        "dose_mg": {"type": "number", "minimum": 0, "maximum": 500},
        "daily": {"type": "integer", "minimum": 1, "maximum": 4},
        "route": {"enum": ["oral", "静脉"]},
        "sources": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "maxItems": 3},
        "stopped": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}]},
    },
    "required": ["drug", "daily", "route", "sources", "stopped"],
    "additionalProperties": False,
}


def json_schema(schema: Any) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema))


def regex(pattern: str) -> Constraint:
    return Constraint(ConstraintKind.REGEX, pattern)


def make_engine(backend: Backend | None = None, compiler: GrammarCompiler = COMPILER, max_draft: int = 0) -> Engine:
    return Engine(backend or BACKEND, (1, 4), max_draft=max_draft, constrain=compiler.compile)


ENGINE = make_engine()


def events_of(engine: Engine, params: SamplingParams, prompt: Sequence[int] = PROMPT) -> list[TokenEvent]:
    return [event for event in engine.stream(prompt, params) if isinstance(event, TokenEvent)]


def say(params: SamplingParams, engine: Engine = ENGINE, prompt: Sequence[int] = PROMPT) -> tuple[str, str | None]:
    """The text and how it ended."""
    events = events_of(engine, params, prompt)
    return TOKENIZER.decode([event.token_id for event in events if event.token_id is not None]), events[
        -1
    ].finish_reason


# --- the form comes out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_model_that_knows_nothing_of_json_writes_json_that_meets_the_schema(seed: int) -> None:
    text, reason = say(replace(HOT, seed=seed, constraint=json_schema(NOTE)))
    assert reason == "stop"
    assert "\n" not in text
    jsonschema.validate(json.loads(text), NOTE)
    assert say(replace(HOT, seed=seed, constraint=json_schema(NOTE)))[0] == text


def test_seeds_differ_and_so_do_their_texts() -> None:
    assert len({say(replace(HOT, seed=seed, constraint=json_schema(NOTE)))[0] for seed in range(5)}) == 5


def test_greedy_and_penalised_answers_keep_the_form_too() -> None:
    for params in (SamplingParams(max_tokens=400), replace(HOT, repetition_penalty=1.9, top_k=3, top_p=0.5, seed=1)):
        text, reason = say(replace(params, constraint=json_schema(NOTE)))
        assert reason == "stop"
        jsonschema.validate(json.loads(text), NOTE)


@pytest.mark.parametrize("pattern", [r"yes|no", r"[a-c]{5} [0-9]{2}mg\.", r"(头痛|🩺){3}", r"\[([1-9]|1[0-2])\]"])
def test_a_regular_expression_matches_the_whole_text(pattern: str) -> None:
    for seed in range(4):
        text, reason = say(replace(HOT, seed=seed, constraint=regex(pattern)))
        assert reason == "stop"
        assert re.fullmatch(pattern, text)


def test_a_grammar_may_nest() -> None:
    lark = 'start: item\nitem: "(" item ")" | WORD\nWORD: /[ab]/'
    for seed in range(6):
        text, reason = say(replace(HOT, seed=seed, max_tokens=200, constraint=Constraint(ConstraintKind.GRAMMAR, lark)))
        if reason == "stop":
            assert re.fullmatch(r"[ab]", text.strip("()"))
            assert text.count("(") == text.count(")")
    assert reason is not None


def test_any_object_is_an_object() -> None:
    constraint = Constraint(ConstraintKind.JSON_OBJECT)
    answers = [say(replace(HOT, seed=seed, max_tokens=100, constraint=constraint)) for seed in range(12)]
    whole = [json.loads(text) for text, reason in answers if reason == "stop"]
    assert whole
    assert all(isinstance(value, dict) for value in whole)
    assert all(text.startswith("{") for text, _ in answers)


SCALARS = st.one_of(
    st.builds(
        lambda low, n: {"type": "integer", "minimum": low, "maximum": low + n}, st.integers(-99, 99), st.integers(0, 50)
    ),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(st.text(max_size=5), st.integers(-9, 9), st.none()), min_size=1, max_size=3),
    ),
)


def _objects(schemas: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.dictionaries(st.text(min_size=1, max_size=4), schemas, min_size=1, max_size=3)
    return names.flatmap(
        lambda properties: st.builds(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required),
                "additionalProperties": False,
            },
            st.sets(st.sampled_from(sorted(properties))),
        )
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda schemas: st.one_of(
        _objects(schemas),
        st.builds(lambda items, n: {"type": "array", "items": items, "maxItems": n}, schemas, st.integers(0, 3)),
        st.builds(lambda options: {"anyOf": options}, st.lists(schemas, min_size=1, max_size=2)),
    ),
    max_leaves=4,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(schema=SCHEMAS, seed=st.integers(0, 99))
def test_whatever_the_schema_the_text_meets_it(schema: Any, seed: int) -> None:
    text, reason = say(replace(HOT, seed=seed, constraint=json_schema(schema)))
    assert reason == "stop"
    jsonschema.validate(json.loads(text), schema)


def test_the_embedded_models_vocabulary_keeps_the_form() -> None:
    tokenizer = Tokenizer.load(EMBEDDED)
    matcher = GrammarCompiler(tokenizer, 8192).compile(json_schema(NOTE))
    chance, token_ids = torch.Generator().manual_seed(0), []
    while not matcher.is_complete:
        weights = torch.from_numpy(matcher.allowed()).float()
        token_ids.append(int(torch.multinomial(weights, 1, generator=chance)))
        matcher.advance(token_ids[-1])
    jsonschema.validate(json.loads(tokenizer.decode(token_ids)), NOTE)


# --- where an answer ends ---------------------------------------------------------------------------------------


def test_the_answer_ends_where_nothing_can_follow_without_another_token() -> None:
    events = events_of(ENGINE, replace(HOT, constraint=regex("a{3}")))
    assert events[-1] == TokenEvent(None, "stop")
    assert TOKENIZER.decode([event.token_id for event in events[:-1] if event.token_id is not None]) == "aaa"
    exact = len(events) - 1
    assert say(replace(HOT, max_tokens=exact, constraint=regex("a{3}")))[1] == "stop"


def test_a_limit_cuts_the_text_as_ever() -> None:
    text, reason = say(replace(HOT, max_tokens=3, constraint=regex("[ab]{40}")))
    assert reason == "length"
    assert re.fullmatch("[ab]{3,39}", text)


def test_end_tokens_are_allowed_where_the_text_may_end_and_only_there() -> None:
    matcher = COMPILER.compile(regex("ab+"))
    a, b = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]
    seen = []
    for token_id in (a, b, b):
        seen.append(bool(matcher.allowed()[[1, 4]].any()))
        matcher.advance(token_id)
    assert seen == [False, False, True]
    assert not matcher.is_complete
    assert bool(matcher.allowed()[[1, 4]].all())
    matcher.advance(4)


def test_free_text_holds_no_special_token_no_turn_marker_and_no_id_without_a_token() -> None:
    allowed = COMPILER.compile(regex("(?s:.)*")).allowed()
    names = {name: TOKENIZER.special_ids.get(name) for name in SPECIALS}
    forbidden = {id_ for id_ in names.values() if id_ is not None} - {1, 4}
    forbidden |= {TOKENIZER._fast.token_to_id(name) for name in TOOL_TOKENS}
    assert not allowed[[*forbidden]].any()
    assert len(allowed) == 400 > TOKENIZER.vocab_size
    assert not allowed[TOKENIZER.vocab_size :].any()
    assert allowed.sum() > 200


def test_a_grammar_that_asks_for_a_special_token_ends_its_own_answer_only() -> None:
    by_number = replace(HOT, constraint=Constraint(ConstraintKind.GRAMMAR, 'start: "a" <[0]> "b"'))
    other = ENGINE.stream(PROMPT, replace(HOT, seed=1, constraint=regex("[ab]{30}")))
    next(other)
    with pytest.raises(MatcherError, match="form that was asked for"):
        events_of(ENGINE, by_number)
    tokens = [event.token_id for event in other if isinstance(event, TokenEvent) and event.token_id is not None]
    assert re.fullmatch("[ab]{30}", TOKENIZER.decode(tokens))
    assert ENGINE.check_integrity() == []
    assert ENGINE.num_blocks_in_use == 0


def test_the_penalty_reaches_tokens_under_a_constraint() -> None:
    a, b = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]
    logits = torch.full((400,), 9.0)
    logits[a], logits[b] = 3.0, 2.0

    def draw(penalty: float) -> list[int]:
        params = SamplingParams(repetition_penalty=penalty)
        sampler = Sampler(params, [], 400, COMPILER.compile(regex("(a|b){2}|(a|b) (a|b)")))
        return [sampler.sample(logits) for _ in range(2)]

    assert draw(1.0)[0] != b  # a, or a token that begins with it
    sampler = Sampler(SamplingParams(repetition_penalty=4.0), [a], 400, COMPILER.compile(regex("a|b")))
    assert sampler.sample(logits) == b


# --- drafts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_drafts_change_no_text_under_a_constraint(temperature: float) -> None:
    try:
        backend = CpuBackend(MODEL, Threads(1))
    except KernelsUnavailableError as error:
        pytest.skip(f"needs the C++ kernels: {error}")
    drafting, plain = make_engine(backend, max_draft=6), make_engine(backend)
    for seed in range(6):
        prompt = TOKENIZER.encode('{"a": [12, 12, 12], "b": "mg mg"} ' * 4)[seed:]
        for constraint in (
            json_schema({"type": "array", "items": {"enum": [12, 1]}, "minItems": 20}),
            regex("[mg ]{60}"),
        ):
            params = SamplingParams(temperature=temperature, seed=seed, max_tokens=60, constraint=constraint)
            plain.forget_prefixes()  # the two share a cache
            expected = events_of(plain, params, prompt)
            drafting.forget_prefixes()
            assert events_of(drafting, params, prompt) == expected
    assert drafting.load.num_drafted >= drafting.load.num_accepted > 0
    assert drafting.check_integrity() == []


def test_only_the_part_of_a_draft_that_could_be_said_is_computed() -> None:
    a, b = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]
    sampler = Sampler(SamplingParams(), [], 400, COMPILER.compile(regex("a{2}b{5}")))
    assert sampler.cut_draft([a, a, b, a]) == [a, a, b]
    assert sampler.cut_draft([b]) == []
    assert Sampler(SamplingParams(), [], 400).cut_draft([b]) == [b]


# --- refusals ---------------------------------------------------------------------------------------------------


def chain(length: int) -> dict[str, Any]:
    """Objects nested by reference: what the library descends into, a stack frame a level."""
    links: dict[str, Any] = {
        f"a{n}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{n + 1}"}}, "required": ["x"]}
        for n in range(length)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{length}": {"type": "null"}}}


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        (Constraint(ConstraintKind.JSON_SCHEMA, "{"), "not JSON"),
        (Constraint(ConstraintKind.JSON_SCHEMA, "[" * 3000), "not JSON"),
        (Constraint(ConstraintKind.JSON_SCHEMA, "[1]"), "must be an object"),
        (json_schema({"type": "medicine"}), "medicine"),
        (json_schema({"not": {"type": "string"}}), "not"),
        (json_schema({"$ref": "http://example.com/schema"}), "example.com"),
        (json_schema({"not": {"type": "string"}, "x-guidance": {"lenient": True}}), "not"),
        (json_schema({"type": "string", "pattern": "("}), "unclosed group"),
        (json_schema({"type": "integer", "minimum": 3, "maximum": 2}), "cannot be kept"),
        (regex("("), "cannot be kept"),
        (regex("a(?=b)"), "look-around"),
        (Constraint(ConstraintKind.GRAMMAR, "start: missing"), "missing"),
        (Constraint(ConstraintKind.GRAMMAR, "start: <|role_end|>"), "cannot be kept"),
        (regex("a" * (MAX_TEXT_BYTES + 1)), "65,537 bytes"),
        (json_schema(chain(650)), "too complex"),
        (json_schema({"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83, 79)]}), "too complex"),
        (regex("((a{1000}){1000}){1000}"), "cannot be kept"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_form_that_cannot_be_kept_is_refused_at_the_call(constraint: Constraint, says: str) -> None:
    with pytest.raises(ConstraintError, match=says) as caught:
        ENGINE.stream(PROMPT, SamplingParams(constraint=constraint))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_engine_without_a_vocabulary_refuses_rather_than_ignores() -> None:
    with pytest.raises(ConstraintError, match="vocabulary"):
        Engine(TorchBackend(MODEL), []).stream(PROMPT, SamplingParams(constraint=regex("a")))


def test_a_form_is_built_while_the_engine_is_busy() -> None:
    engine = make_engine()
    done = threading.Event()

    def ask() -> None:
        engine.stream(PROMPT, SamplingParams(constraint=regex("never asked before")))
        done.set()

    with engine._changed:  # as a step holds it that takes its results
        worker = threading.Thread(target=ask)
        worker.start()
        assert done.wait(60)
    worker.join()


def test_many_clients_at_once_get_each_their_form() -> None:
    engine, texts = make_engine(compiler=GrammarCompiler(TOKENIZER, 400)), {}

    def ask(n: int) -> None:
        texts[n] = say(replace(HOT, seed=n, constraint=regex(f"{n}[ab]{{20}}")), engine)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(reason == "stop" and re.fullmatch(f"{n}[ab]{{20}}", text) for n, (text, reason) in texts.items())
    assert len(texts) == 6
    assert engine.check_integrity() == []
