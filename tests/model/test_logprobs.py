"""What an answer tells of its tokens' probabilities, from the engine's logits to the text's bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from contracts import Constraint, ConstraintKind, Message, Role, SamplingParams, TextChunk, TokenLogprob
from model.backend_choice import make_backend
from model.chat_template import ChatTemplate
from model.engine import Engine
from model.generator import LocalGenerator
from model.grammar import GrammarCompiler
from model.request import TokenEvent
from model.tokenizer import Tokenizer
from model.torch_backend import TorchBackend
from tests.model.conftest import TEMPLATE, make_fast_tokenizer, make_model
from tests.model.test_generator import scripted

MODEL = make_model()
TOKENIZER = Tokenizer(make_fast_tokenizer(), stop_ids=(1, 4))
PROMPT = [20 + i % 7 for i in range(40)]
ASKED = SamplingParams(max_tokens=24, logprobs=5)


def events_of(engine: Engine, params: SamplingParams) -> list[TokenEvent]:
    engine.forget_prefixes()
    return [event for event in engine.stream(PROMPT, params) if isinstance(event, TokenEvent)]


@torch.inference_mode()
def model_logprobs(token_ids: list[int]) -> torch.Tensor:
    """[T,V]: what the plain model gives for each token of the answer, without cache and engine."""
    ids = torch.tensor([[*PROMPT, *token_ids]])
    return MODEL(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 1.5, "seed": 1},
        {"temperature": 0.7, "seed": 2, "top_k": 3, "top_p": 0.8, "repetition_penalty": 1.8},
        {"temperature": 1.0, "seed": 3, "constraint": Constraint(ConstraintKind.REGEX, "[a-d ]{80,}")},
    ],
    ids=["greedy", "sampled", "filtered", "constrained"],
)
def test_they_are_the_models_own_whatever_was_done_to_choose(changes: dict) -> None:
    engine = Engine(TorchBackend(MODEL), (), constrain=GrammarCompiler(TOKENIZER, 400).compile)
    events = events_of(engine, replace(ASKED, **changes))
    token_ids = [event.token_id for event in events if event.token_id is not None]
    assert len(token_ids) == 24
    for event, expected in zip(events, model_logprobs(token_ids), strict=False):
        assert event.score is not None
        assert event.score.logprob == pytest.approx(float(expected[event.token_id]), abs=1e-3)
        values, ids = expected.topk(5)
        assert [logprob for _, logprob in event.score.likeliest] == pytest.approx(values.tolist(), abs=1e-3)
        assert event.score.likeliest[0][0] == int(ids[0])
        assert sum(math.exp(logprob) for _, logprob in event.score.likeliest) <= 1 + 1e-6


def test_all_of_a_small_vocabulary_would_sum_to_one() -> None:
    model = make_model(vocab_size=20)
    engine = Engine(TorchBackend(model), ())
    events = [e for e in engine.stream([1, 2, 3], replace(ASKED, logprobs=20)) if isinstance(e, TokenEvent)]
    for event in events:
        assert event.score is not None
        assert sum(math.exp(logprob) for _, logprob in event.score.likeliest) == pytest.approx(1, abs=1e-5)
        assert dict(event.score.likeliest)[event.token_id] == event.score.logprob


def test_only_what_is_asked_for_is_told() -> None:
    engine = Engine(TorchBackend(MODEL), ())
    assert all(event.score is None for event in events_of(engine, replace(ASKED, logprobs=None)))
    for event in events_of(engine, replace(ASKED, logprobs=0)):
        assert event.score is not None
        assert event.score.likeliest == ()
    for number in (-1, 21):
        with pytest.raises(ValueError, match="between 0 and 20"):
            engine.stream(PROMPT, replace(ASKED, logprobs=number))


def test_drafts_change_none_of_them() -> None:
    backend = make_backend(MODEL, 1)
    if isinstance(backend, TorchBackend):
        pytest.skip(f"needs the C++ kernels: {backend.name}")
    drafting = Engine(backend, (), max_draft=6)
    for seed in range(8):
        params = replace(ASKED, temperature=0.3, seed=seed, max_tokens=60)
        assert events_of(drafting, params) == events_of(Engine(backend, ()), params)
    assert drafting.load.num_accepted > 0


# --- as text ----------------------------------------------------------------------------------------------------


def chunks_of(generator: LocalGenerator, params: SamplingParams = ASKED) -> list[TextChunk]:
    stream = generator.stream([Message(Role.USER, "Take 5 mg.")], params)
    return [event for event in stream if isinstance(event, TextChunk)]


def test_tokens_come_with_the_text_they_complete_and_their_bytes_are_the_text() -> None:
    ids = TOKENIZER.encode("mg 🩺 头.")
    chunks = chunks_of(scripted([*ids, 4]))
    assert sum(len(chunk.tokens) for chunk in chunks) == len(ids)
    for chunk in chunks:
        assert b"".join(token.data for token in chunk.tokens).decode() == chunk.text
    split = next(chunk for chunk in chunks if "🩺" in chunk.text)
    assert len(split.tokens) > 1
    assert "\ufffd" in split.tokens[0].text


def test_a_character_cut_off_and_a_token_without_text_are_told_at_the_end() -> None:
    cut = TOKENIZER.encode("🩺")[:2]
    assert [(chunk.text, len(chunk.tokens)) for chunk in chunks_of(scripted(cut))] == [("\ufffd", 2)]
    (chunk,) = chunks_of(scripted([2]))  # [CLS]
    assert (chunk.text, chunk.tokens) == ("", (TokenLogprob("[CLS]", b"", 0.0),))
    assert chunks_of(scripted([2]), replace(ASKED, logprobs=None)) == []


def test_the_likeliest_tokens_have_names_even_where_they_are_no_text() -> None:
    engine = Engine(TorchBackend(MODEL), ())
    info = scripted([]).info
    generator = LocalGenerator(engine, TOKENIZER, ChatTemplate(TEMPLATE, TOKENIZER), info)
    tokens = [t for c in chunks_of(generator, replace(ASKED, temperature=2.0, seed=1, logprobs=20)) for t in c.tokens]
    seen = {alternative.text: alternative for token in tokens for alternative in token.alternatives}
    assert tokens
    assert all(len(token.alternatives) == 20 for token in tokens)
    specials = [seen[name] for name in TOKENIZER.special_ids if name in seen]
    assert specials
    assert all(alternative.data == b"" for alternative in specials)
