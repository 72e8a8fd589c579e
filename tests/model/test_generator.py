from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from contracts import (
    ContextLengthError,
    GenerationEnd,
    GenerationEvent,
    Generator,
    LoadCancelled,
    LoadProgress,
    Message,
    ModelInfo,
    PrefillProgress,
    Role,
    SamplingParams,
    TextChunk,
)
from model.chat_template import ChatTemplate
from model.checkpoint import WEIGHTS, save_checkpoint
from model.config import CheckpointError
from model.engine import Engine
from model.fake import FakeEngine, FakeGenerator
from model.generator import LocalGenerator
from model.tokenizer import Tokenizer
from tests.model.conftest import TEMPLATE, make_fast_tokenizer, make_model
from tests.model.quantized_checkpoints import encode_int4, write_quantized

QUESTION = [Message(Role.SYSTEM, "Take 5 mg."), Message(Role.USER, "头痛三天?")]
PARAMS = SamplingParams(max_tokens=30)


def text_of(events: Iterator[GenerationEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextChunk))


def scripted(token_ids: list[int], stop_ids: tuple[int, ...] = (4,)) -> LocalGenerator:
    tokenizer = Tokenizer(make_fast_tokenizer(), stop_ids)
    info = ModelInfo("scripted", "f32", "none", 4096, 0, "")
    return LocalGenerator(FakeEngine(token_ids, stop_ids), tokenizer, ChatTemplate(TEMPLATE, tokenizer), info)


@pytest.fixture(scope="module")
def local(checkpoint: Path) -> Generator:
    return LocalGenerator.load(checkpoint)


def test_answer_streams_and_ends(local: Generator) -> None:
    events = list(local.stream(QUESTION, PARAMS))
    assert isinstance(events[0], PrefillProgress)
    end = events[-1]
    assert isinstance(end, GenerationEnd)
    assert end.prompt_tokens == local.count_prompt_tokens(QUESTION)
    assert end.finish_reason in ("stop", "length")
    assert 0 < end.completion_tokens <= 30
    assert end.ttft_s > 0
    assert text_of(iter(events)) == text_of(local.stream(QUESTION, PARAMS))


def test_info_says_what_answers(local: Generator, checkpoint: Path) -> None:
    info = local.info
    assert (info.name, info.precision, info.context_length) == (checkpoint.name, "f32", 512)
    assert info.num_parameters > 0
    assert len(info.weights_sha256) == 64
    assert not info.is_embedded


def test_small_model_stored_in_bf16_is_computed_in_f32(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    save_checkpoint(make_model(), tmp_path, torch.bfloat16)
    info = LocalGenerator.load(tmp_path).info
    assert (info.precision, info.details["stored as"]) == ("f32", "bf16")


def test_precision_is_chosen_by_name(checkpoint: Path) -> None:
    assert LocalGenerator.load(checkpoint, dtype="bf16").info.precision == "bf16"
    with pytest.raises(ValueError, match="Unknown precision 'int3'"):
        LocalGenerator.load(checkpoint, dtype="int3")


@pytest.fixture
def quantized(checkpoint: Path, tmp_path: Path) -> Path:
    """The same folder in INT4."""
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    write_quantized(tmp_path, encode_int4(16), {"quant_method": "compressed-tensors"})
    return tmp_path


def test_quantized_folder_answers_and_says_what_it_is(quantized: Path, local: LocalGenerator) -> None:
    generator = LocalGenerator.load(quantized)
    info = generator.info
    assert info.precision == "int4 (group 16)"
    assert (info.details["computed in"], info.details["stored as"]) == ("f32", "int4 (group 16)")
    assert info.num_parameters == local.info.num_parameters
    *_, end = generator.stream(QUESTION, PARAMS)
    assert isinstance(end, GenerationEnd)
    assert end.completion_tokens > 0
    details = LocalGenerator.load(quantized, dtype="bf16").info.details
    assert details["computed in"] == "bf16"


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_plain_folder_is_quantized_by_name(precision: str, checkpoint: Path) -> None:
    generator = LocalGenerator.load(checkpoint, dtype=precision)
    assert (generator.info.precision, generator.info.details["stored as"]) == (precision, "f32")
    assert list(generator.stream(QUESTION, PARAMS))


def test_files_are_hashed_once_and_the_hash_is_kept(quantized: Path) -> None:
    digest = hashlib.sha256((quantized / WEIGHTS).read_bytes()).hexdigest()
    (quantized / "SHA256SUMS").write_text(f"{digest}  {WEIGHTS}\n")
    seen: list[LoadProgress] = []
    info = LocalGenerator.load(quantized, on_progress=seen.append).info
    assert info.weights_sha256 == digest
    finished = [progress.step for progress in seen if progress.bytes_done == progress.bytes_total]
    assert finished == ["verifying", "reading"]


def test_loading_is_cancelled(checkpoint: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(LoadCancelled):
        LocalGenerator.load(checkpoint, cancel=cancel)


def test_text_is_whole_and_end_tokens_are_not_text() -> None:
    ids = Tokenizer(make_fast_tokenizer()).encode("头痛 🩺.")
    events = list(scripted([*ids, 4, *ids]).stream(QUESTION, PARAMS))
    assert text_of(iter(events)) == "头痛 🩺."
    assert events[-1].finish_reason == "stop"
    assert events[-1].completion_tokens == len(ids)


def test_answer_cut_inside_a_character_says_so() -> None:
    ids = Tokenizer(make_fast_tokenizer()).encode("🩺")
    events = list(scripted(ids[:2]).stream(QUESTION, PARAMS))
    assert text_of(iter(events)) == "\ufffd"
    assert events[-1].finish_reason == "length"


def test_stop_ends_the_answer_with_what_was_said(local: Generator) -> None:
    cancel = threading.Event()
    events = local.stream(QUESTION, PARAMS, cancel)
    next(events)
    cancel.set()
    *_, end = events
    assert isinstance(end, GenerationEnd)
    assert (end.finish_reason, end.completion_tokens) == ("cancelled", 0)


def test_listener_that_leaves_gives_its_blocks_back(local: LocalGenerator) -> None:
    engine = local._engine
    assert isinstance(engine, Engine)
    events = local.stream(QUESTION, PARAMS)
    next(events)
    assert engine.num_blocks_in_use
    events.close()  # type: ignore[attr-defined]
    assert engine.num_blocks_in_use == 0


def test_prompt_longer_than_the_context_is_refused_at_the_call(local: Generator) -> None:
    with pytest.raises(ContextLengthError, match="512"):
        local.stream([Message(Role.USER, "x " * 600)], PARAMS)


def test_counts_are_of_the_models_tokens(local: Generator) -> None:
    assert local.count_tokens("") == 0
    assert local.count_tokens("Take 5 mg") < local.count_tokens("Take 5 mg of apixaban")
    more = local.count_prompt_tokens([*QUESTION, Message(Role.USER, "x")])
    assert more > local.count_prompt_tokens(QUESTION) > local.count_tokens("头痛三天?")


def test_tokenizer_of_another_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    fast = make_fast_tokenizer()
    fast.add_tokens([f"word{n}" for n in range(100)])
    fast.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="do not belong together"):
        LocalGenerator.load(tmp_path)


# --- the fakes keep the same contract ---------------------------------------------------------------------------


def test_fake_says_its_lines_in_turn_and_keeps_the_prompts() -> None:
    fake: Generator = FakeGenerator(["First answer.", "Second\nanswer."], prefill_steps=2)
    events = list(fake.stream(QUESTION, PARAMS))
    assert [type(event) for event in events[:3]] == [PrefillProgress, PrefillProgress, TextChunk]
    assert text_of(iter(events)) == "First answer."
    assert [text_of(fake.stream(QUESTION, PARAMS)) for _ in range(2)] == ["Second\nanswer."] * 2
    assert fake.prompts == [QUESTION] * 3  # type: ignore[attr-defined]


def test_fake_answers_by_a_function_of_the_messages() -> None:
    fake = FakeGenerator(lambda messages: messages[-1].text.upper())
    assert text_of(fake.stream([Message(Role.USER, "dose of x?")], PARAMS)) == "DOSE OF X?"


def test_fake_hears_stop_at_once_and_keeps_limits() -> None:
    cancel = threading.Event()
    fake = FakeGenerator(["a b c d"], context_length=20, delay_s=60)
    events = fake.stream(QUESTION, PARAMS, cancel)
    cancel.set()
    assert [event.finish_reason for event in events if isinstance(event, GenerationEnd)] == ["cancelled"]
    *_, end = FakeGenerator(["a b c d"]).stream(QUESTION, SamplingParams(max_tokens=2))
    assert isinstance(end, GenerationEnd)
    assert (end.finish_reason, end.completion_tokens) == ("length", 2)
    with pytest.raises(ContextLengthError):
        fake.stream([Message(Role.USER, "word " * 20)], PARAMS)
