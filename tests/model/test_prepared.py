"""What was computed once is put back to the bit, and nothing else is ever taken for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import pytest
import torch

from contracts import PrefillProgress, SamplingParams
from model.backend import Backend, Slice
from model.cpu_backend import CpuBackend
from model.engine import Engine
from model.kernels.build import KernelsUnavailableError
from model.kernels.cpu_decoder import BLOCK_TOKENS, Threads
from model.mtp import MtpDrafter
from model.prepared import PreparedError, PromptKeeper
from model.request import TokenEvent
from model.torch_backend import TorchBackend
from tests.model.conftest import make_model
from tests.model.test_mtp import make_foretelling_model

MODEL = make_model()
GREEDY = SamplingParams(max_tokens=12)
RECORD = [7 * i % 400 for i in range(4 * BLOCK_TOKENS)]
QUESTION = [*RECORD, *range(30, 50)]
NEVER = threading.Event()


class Watched:
    """A backend of its own that keeps the logits it gave and counts the tokens it computed."""

    def __init__(self, inner: Backend, num_blocks: int = 0) -> None:
        self.inner, self.config, self.name = inner, inner.config, inner.name
        self.num_blocks = num_blocks or inner.num_blocks
        self.cache_layout, self.block_bytes = inner.cache_layout, inner.block_bytes
        self.copy_block, self.read_blocks, self.write_blocks = inner.copy_block, inner.read_blocks, inner.write_blocks
        self.num_computed = 0
        self.logits: list[torch.Tensor] = []

    def forward(self, batch: Sequence[Slice]) -> torch.Tensor:
        self.num_computed += sum(len(part.token_ids) for part in batch)
        self.logits.append(self.inner.forward(batch))
        return self.logits[-1]


def make_backend(kind: str, dtype: torch.dtype = torch.float32) -> Backend:
    model = make_model().to(dtype)
    try:
        return TorchBackend(model) if kind == "torch" else CpuBackend(model, Threads(2))
    except KernelsUnavailableError as error:
        pytest.skip(f"needs the C++ kernels: {error}")


@pytest.fixture(params=["torch", "kernels"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def start(kind: str, model: str = "weights f32", **changes: object) -> tuple[Watched, Engine, PromptKeeper]:
    """The next start of the program: an empty cache."""
    backend = Watched(make_backend(kind), **changes)  # type: ignore[arg-type]
    engine = Engine(backend, [])
    return backend, engine, PromptKeeper(engine, model)


def tokens_of(engine: Engine, prompt: Sequence[int]) -> list[int]:
    events = engine.stream(prompt, GREEDY)
    return [event.token_id for event in events if isinstance(event, TokenEvent) and event.token_id is not None]


def export_record(kind: str) -> list[bytes]:
    _, _, keeper = start(kind)
    assert keeper.compute(RECORD, NEVER)
    return list(keeper.export(RECORD))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_come_back_to_the_bit_wherever_they_are_put(kind: str, dtype: torch.dtype) -> None:
    one, other = make_backend(kind, dtype), make_backend(kind, dtype)
    one.forward([Slice(RECORD, 0, [4, 2, 3, 1], 0)])
    data = one.read_blocks([4, 2, 3, 1])
    assert len(data) == 4 * one.block_bytes
    assert one.cache_layout == other.cache_layout
    other.write_blocks([5, 0, 7, 6], data)
    assert other.read_blocks([5, 0, 7, 6]) == data
    rest = QUESTION[len(RECORD) :]
    assert torch.equal(
        one.forward([Slice(rest, len(RECORD), [4, 2, 3, 1, 8], 20)]),
        other.forward([Slice(rest, len(RECORD), [5, 0, 7, 6, 9], 20)]),
    )


def test_a_restored_record_gives_the_same_numbers_and_is_not_read_again(kind: str) -> None:
    usual, engine, keeper = start(kind)
    assert keeper.compute(RECORD, NEVER)
    pieces = list(keeper.export(RECORD))
    expected = tokens_of(engine, QUESTION)
    backend, engine, keeper = start(kind)
    assert keeper.restore(QUESTION, iter(pieces)) == len(RECORD)
    assert keeper.count_known(RECORD) == len(RECORD)
    assert next(engine.stream(QUESTION, GREEDY)) == PrefillProgress(len(QUESTION), len(QUESTION))
    assert backend.num_computed == len(QUESTION) - len(RECORD)
    keeper.forget()
    assert keeper.restore(QUESTION, iter(pieces)) == len(RECORD)
    backend.logits.clear()
    assert tokens_of(engine, QUESTION) == expected
    assert torch.equal(backend.logits[0], usual.logits[1])
    assert engine.check_integrity() == []
    assert engine.num_blocks_in_use == 0


def test_many_small_pieces_are_as_good_as_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = export_record(kind)
    monkeypatch.setattr("model.prepared.PIECE_BYTES", 1)
    pieces = export_record(kind)
    assert len(pieces) == 1 + len(RECORD) // BLOCK_TOKENS
    assert b"".join(pieces) == b"".join(whole)
    _, _, keeper = start(kind)
    assert keeper.restore(QUESTION, iter(pieces)) == len(RECORD)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda pieces: [], "no header"),
        (lambda pieces: [b"{", *pieces[1:]], "no header"),
        (lambda pieces: [b"[" * 100_000, *pieces[1:]], "no header"),
        (lambda pieces: [b'{"digests":[]}', *pieces[1:]], "another text"),
        (lambda pieces: [pieces[0][:-4] + b'0"]}', *pieces[1:]], "another text"),
        (lambda pieces: pieces[:1], "its end is missing"),
        (lambda pieces: [*pieces[:-1], pieces[-1][:-1]], "not whole blocks"),
        (lambda pieces: [*pieces, pieces[-1]], "not whole blocks"),
    ],
)
def test_what_is_damaged_is_refused_and_the_answer_is_the_same(spoil, says: str) -> None:  # type: ignore[no-untyped-def]
    pieces = export_record("torch")
    backend, engine, keeper = start("torch")
    with pytest.raises(PreparedError, match=says):
        keeper.restore(QUESTION, iter(spoil(pieces)))
    assert keeper.count_known(RECORD) == 0
    assert engine.check_integrity() == []
    answer = tokens_of(engine, QUESTION)
    assert backend.num_computed == len(QUESTION) + len(answer) - 1
    assert answer == tokens_of(start("torch")[1], QUESTION)


def test_another_model_layout_or_text_is_refused(kind: str) -> None:
    pieces = export_record(kind)
    for model in ("weights bf16", "other f32"):
        with pytest.raises(PreparedError, match="another"):
            start(kind, model)[2].restore(QUESTION, iter(pieces))
    for backend in (
        make_backend("torch" if kind == "kernels" else "kernels"),
        make_backend(kind, torch.bfloat16),
        TorchBackend(make_model(rope_theta=5e5)),
    ):
        with pytest.raises(PreparedError, match="another"):
            PromptKeeper(Engine(backend, []), "weights f32").restore(QUESTION, iter(pieces))
    for place in (0, BLOCK_TOKENS, len(RECORD) - 1):
        other = list(QUESTION)
        other[place] += 1
        with pytest.raises(PreparedError, match="another"):
            start(kind)[2].restore(other, iter(pieces))
    with pytest.raises(PreparedError, match="another"):
        start(kind)[2].restore(QUESTION[: len(RECORD) - 1], iter(pieces))


def test_only_what_is_computed_wholly_is_exported() -> None:
    _, _, keeper = start("torch")
    assert keeper.compute(RECORD[:-1], NEVER)
    with pytest.raises(PreparedError, match="Not all"):
        next(keeper.export(RECORD))
    with pytest.raises(PreparedError, match="Not all"):
        next(keeper.export(RECORD[:-1]))
    assert keeper.trim(RECORD[:-1]) == RECORD[: 3 * BLOCK_TOKENS]
    assert next(keeper.export(keeper.trim(RECORD[:-1])))


def test_preparing_stops_at_once_and_what_was_read_is_not_read_again() -> None:
    backend = Watched(make_backend("torch"))
    busy = threading.Event()

    class Interrupting(Watched):
        def forward(self, batch: Sequence[Slice]) -> torch.Tensor:
            busy.set()
            return super().forward(batch)

    engine = Engine(Interrupting(backend), [], prefill_chunk=BLOCK_TOKENS)
    keeper = PromptKeeper(engine, "weights")
    assert not keeper.compute(RECORD, busy)
    assert backend.num_computed == BLOCK_TOKENS
    assert keeper.compute(RECORD, NEVER)
    assert backend.num_computed == len(RECORD)
    assert engine.check_integrity() == []


def test_a_running_answer_is_not_put_off_for_a_prepared_record() -> None:
    pieces = export_record("torch")
    _, engine, keeper = start("torch", num_blocks=5)
    events = engine.stream([5] * (BLOCK_TOKENS + 1), GREEDY)
    next(events)
    assert keeper.restore(QUESTION, iter(pieces)) == 0
    events.close()
    assert keeper.restore(QUESTION, iter(pieces)) == len(RECORD)
    assert engine.check_integrity() == []


def test_the_header_tells_nothing_of_the_text() -> None:
    header = json.loads(export_record("torch")[0])
    assert set(header) == {"version", "model", "layout", "digests"}
    assert len(header["digests"]) == len(RECORD) // BLOCK_TOKENS


def test_a_drafting_layers_keys_come_along_and_the_token_after_a_block_counts() -> None:
    """An MTP layer's keys are computed from the next token too: the drafts after a restored record are the same."""
    counts, texts = [], []
    pieces: list[bytes] = []
    for is_restored in (False, True):
        backend = CpuBackend(make_foretelling_model(), Threads(2))
        engine = Engine(backend, [], max_draft=4, drafters=[MtpDrafter(backend)])
        keeper = PromptKeeper(engine, "weights")
        record = keeper.trim([*RECORD, 7])
        assert len(record) == len(RECORD) + 1
        assert len(keeper.trim(RECORD)) == len(RECORD) - BLOCK_TOKENS + 1
        prompt = [*record, *range(30, 50)]
        if is_restored:
            with pytest.raises(PreparedError, match="another"):
                keeper.restore([*RECORD, 8, *range(30, 50)], iter(pieces))
            assert keeper.restore(prompt, iter(pieces)) == len(RECORD)
        else:
            assert keeper.compute(record, NEVER)
            pieces = list(keeper.export(record))
        texts.append(tokens_of(engine, prompt))
        counts.append((engine.load.num_drafted, engine.load.num_accepted))
        assert engine.check_integrity() == []
    assert texts[0] == texts[1]
    assert counts[0] == counts[1]
    assert counts[0][1] > 0
