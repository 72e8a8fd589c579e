from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from contracts import PrefillProgress, SamplingParams
from model.backend import Slice
from model.cpu_backend import CpuBackend
from model.drafting import MAX_PAUSE, Drafter, Grown, Pace
from model.engine import Engine
from model.kernels.build import KernelsUnavailableError, best_variant, load_library
from model.kernels.cpu_decoder import BLOCK_TOKENS, Int4Tiles, Threads, linear
from model.prompt_lookup import NgramIndex, PromptLookup
from model.request import TokenEvent
from model.sampler import SamplerError
from model.torch_backend import TorchBackend
from tests.model.conftest import make_config, make_model

MODEL = make_model()
GREEDY = SamplingParams(max_tokens=40)
SAMPLED = SamplingParams(temperature=0.3, top_p=0.9, repetition_penalty=1.02, seed=5, max_tokens=40)


# --- what is proposed -------------------------------------------------------------------------------------------


def test_what_followed_the_same_words_is_proposed() -> None:
    assert NgramIndex().propose([1, 2, 3, 4, 5, 9, 1, 2], 3) == [3, 4, 5]
    assert NgramIndex().propose([1, 2, 3, 4, 5, 9, 1, 2], 1) == [3]


def test_a_longer_match_wins_and_of_equal_ones_the_latest() -> None:
    assert NgramIndex().propose([7, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2], 1) == [30]
    assert NgramIndex().propose([8, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2], 1) == [40]


@pytest.mark.parametrize("token_ids", [[], [1], [1, 2], [1, 1], [3, 1, 2, 4, 2], [1, 2, 1, 3, 2]])
def test_nothing_is_proposed_where_no_pair_was_seen_before(token_ids: list[int]) -> None:
    assert NgramIndex().propose(token_ids, 8) == []


def test_the_index_follows_the_growing_answer() -> None:
    index, token_ids = NgramIndex(), [5, 6]
    proposed = []
    for token_id in [7, 8, 5, 6, 7, 8, 5]:
        token_ids.append(token_id)
        proposed.append(index.propose(token_ids, 2))
    assert proposed == [[], [], [], [7, 8], [8, 5], [5, 6], [6, 7]]


def test_wrong_drafts_pause_ever_longer_and_a_right_one_ends_that() -> None:
    pace = Pace(8)
    gaps, gap = [], 0
    while len(gaps) < 8:
        if pace.allow(8):
            pace.learn(0)
            gaps.append(gap)
            gap = 0
        else:
            gap += 1
    assert gaps == [0, 1, 2, 4, 8, 16, 32, MAX_PAUSE]
    while not pace.allow(8):
        pass
    pace.learn(1)
    assert pace.allow(8)


def test_drafts_grow_while_they_are_right() -> None:
    pace, lengths = Pace(8), []
    for _ in range(4):
        lengths.append(pace.allow(99))
        pace.learn(lengths[-1])
    assert lengths[0] < lengths[1] < 8
    assert lengths[-1] == 8


# --- what it does to the text -----------------------------------------------------------------------------------


def tokens_of(engine: Engine, prompt: Sequence[int], params: SamplingParams) -> list[int]:
    events = engine.stream(prompt, params)
    return [event.token_id for event in events if isinstance(event, TokenEvent) and event.token_id is not None]


def repetitive_prompts(count: int) -> list[list[int]]:
    """Records of few words, so that most of what a tiny model says was said before."""
    random = torch.Generator().manual_seed(1)
    return [torch.randint(20, 26, (30 + n,), generator=random).tolist() for n in range(count)]


@pytest.fixture(scope="module")
def kernels() -> CpuBackend:
    try:
        return CpuBackend(MODEL, Threads(2))
    except KernelsUnavailableError as error:
        pytest.skip(f"needs the C++ kernels: {error}")


@pytest.fixture(params=["torch", "kernels"])
def backend(request: pytest.FixtureRequest) -> CpuBackend | TorchBackend:
    return TorchBackend(MODEL) if request.param == "torch" else request.getfixturevalue("kernels")


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_text_is_the_same_with_and_without(backend: CpuBackend | TorchBackend, params: SamplingParams) -> None:
    with_drafts = Engine(backend, [], max_draft=6)
    plain = Engine(backend, [], max_draft=0)
    for prompt in repetitive_prompts(25):
        plain.forget_prefixes()  # the two share a cache
        expected = tokens_of(plain, prompt, params)
        with_drafts.forget_prefixes()
        assert tokens_of(with_drafts, prompt, params) == expected
    assert with_drafts.load.num_drafted > with_drafts.load.num_accepted > 0
    assert plain.load.num_drafted == 0
    assert with_drafts.check_integrity() == []


@pytest.fixture(scope="module", params=["best", "avx2"])
def threads(request: pytest.FixtureRequest) -> Threads:
    try:
        return Threads(2, load_library(best_variant() if request.param == "best" else "avx2"))
    except KernelsUnavailableError as error:
        pytest.skip(f"needs the C++ kernels: {error}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_compute_a_row_alike_alone_and_among_others(threads: Threads, dtype: torch.dtype) -> None:
    """To the bit: that is why a draft cannot turn a tie."""
    backend = CpuBackend(make_model().to(dtype), threads)
    text, first = [7 * i % 400 for i in range(60)], 40
    backend.forward([Slice(text[:first], 0, [0, 1], 0)])
    for length in (2, 3, 5, 9, 17):
        together = backend.forward([Slice(text[first : first + length], first, [0, 1], length)]).clone()
        alone = [backend.forward([Slice([text[first + i]], first + i, [0, 1], 1)])[0].clone() for i in range(length)]
        assert torch.equal(together, torch.stack(alone))


def test_an_int4_product_is_alike_for_one_row_and_for_several(threads: Threads) -> None:
    random = torch.Generator().manual_seed(3)
    packed = torch.randint(-(2**31), 2**31 - 1, (72, 12), dtype=torch.int32, generator=random)
    tiles = Int4Tiles(packed, torch.rand(72, 3, generator=random), 96, threads)
    rows = torch.randn(9, 96, generator=random)
    alone = torch.cat([linear(tiles, rows[row : row + 1], threads) for row in range(9)])
    for number in range(2, 10):
        assert torch.equal(linear(tiles, rows[:number], threads), alone[:number])


# --- the books, and the edges -----------------------------------------------------------------------------------


class Chain:
    """A backend whose next token depends on the last one alone: logits[last] [V,V]. Notes what it was asked."""

    name = "chain"

    def __init__(self, logits: torch.Tensor, num_blocks: int = 300) -> None:
        self.config = make_config(vocab_size=len(logits), max_position_embeddings=8192)
        self.num_blocks = num_blocks
        self.batches: list[list[Slice]] = []
        self._logits = logits

    def forward(self, batch: Sequence[Slice]) -> torch.Tensor:
        self.batches.append(list(batch))
        rows = []
        for part in batch:
            assert part.first_position + len(part.token_ids) <= len(part.blocks) * BLOCK_TOKENS
            rows += list(part.token_ids[len(part.token_ids) - part.num_logits :])
        return self._logits[rows]

    def copy_block(self, source: int, target: int) -> None:
        """Nothing to copy: the next token depends on the last one alone."""


def counting(size: int) -> torch.Tensor:
    """After each token the next higher one, after the last the first."""
    return torch.eye(size).roll(1, 1) * 10


def test_drafts_save_passes() -> None:
    backend = Chain(counting(20))
    engine = Engine(backend, [], max_draft=8)
    assert tokens_of(engine, list(range(20)), replace(GREEDY, max_tokens=200)) == [i % 20 for i in range(200)]
    assert len(backend.batches) < 60
    assert engine.load.num_accepted == engine.load.num_drafted > 140


class Guess:
    """A drafter that says of each token which other one follows. Notes whom it was asked about and told to forget."""

    uses_blocks = False

    def __init__(self, name: str, step: int) -> None:
        self.name = name
        self._step = step
        self.known: set[int] = set()

    def draft(self, grown: Sequence[Grown]) -> list[list[int]]:
        self.known |= {part.key for part in grown}
        return [[(part.token_ids[-1] + self._step * (i + 1)) % 20 for i in range(part.limit)] for part in grown]

    def copy_block(self, source: int, target: int) -> None:
        pass

    def forget(self, key: int) -> None:
        self.known.discard(key)


def test_a_source_that_always_lies_costs_nothing_but_drafts() -> None:
    params = replace(GREEDY, max_tokens=100)
    plain, lied_to = Chain(counting(20)), Chain(counting(20))
    expected = tokens_of(Engine(plain, []), [3], params)
    liar = Guess("liar", 2)
    engine = Engine(lied_to, [], max_draft=8, drafters=[liar])
    assert tokens_of(engine, [3], params) == expected
    assert len(lied_to.batches) == len(plain.batches)
    assert 0 < engine.load.num_drafted < 30  # it is asked ever less often
    assert engine.load.num_accepted == 0
    assert liar.known == set()
    assert engine.check_integrity() == []


def test_the_first_source_that_has_a_draft_is_taken_and_each_is_counted_by_itself() -> None:
    engine = Engine(Chain(counting(20)), [], max_draft=8, drafters=[PromptLookup(), Guess("a guess", 1)])
    tokens_of(engine, [3], replace(GREEDY, max_tokens=60))
    lookup, guess = engine.load.drafts
    assert (lookup.source, guess.source) == ("prompt lookup", "a guess")
    assert guess.num_accepted == guess.num_drafted > 10  # the first round through the vocabulary
    assert lookup.num_accepted == lookup.num_drafted > 10  # and what repeats it
    assert (guess.acceptance, engine.load.num_drafted) == (1.0, lookup.num_drafted + guess.num_drafted)


def test_a_source_that_fails_ends_its_requests_and_the_engine_goes_on() -> None:
    class Broken(Guess):
        def draft(self, grown: Sequence[Grown]) -> list[list[int]]:
            if any(part.limit for part in grown):
                raise MemoryError("no room")
            return super().draft(grown)

    drafters: list[Drafter] = [Broken("broken", 1)]
    engine = Engine(Chain(counting(20)), [], max_draft=8, drafters=drafters)
    with pytest.raises(MemoryError, match="no room"):
        tokens_of(engine, [3], GREEDY)
    assert engine.check_integrity() == []
    assert engine.num_blocks_in_use == 0
    assert tokens_of(engine, [3], replace(GREEDY, max_tokens=1)) == [4]


def test_sampled_tokens_follow_the_models_probabilities() -> None:
    """Frequencies after each token, with right and wrong drafts on the way; chi-square, 20 degrees, 1 in 10^4."""
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(2)) * 1.5
    engine = Engine(Chain(logits), [], max_draft=4)
    counts = torch.zeros(5, 5)
    for seed in range(2):
        text = [0, *tokens_of(engine, [0], SamplingParams(temperature=1.0, seed=seed, max_tokens=3000))]
        for before, after in pairwise(text):
            counts[before, after] += 1
    expected = counts.sum(1, keepdim=True) * logits.softmax(-1)
    assert float(((counts - expected) ** 2 / expected).sum()) < 52.4
    assert engine.load.num_drafted > engine.load.num_accepted > 300


def test_a_stop_token_inside_a_draft_ends_the_answer_there() -> None:
    engine = Engine(Chain(counting(20)), [15], max_draft=8)
    prompt = [*range(20), *range(12)]  # 12 to 19 will be drafted, 4 tokens wide at least
    events = [event for event in engine.stream(prompt, GREEDY) if isinstance(event, TokenEvent)]
    assert [event.token_id for event in events] == [12, 13, 14, 15]
    assert events[-1].finish_reason == "stop"
    assert engine.load.num_accepted > 0
    assert engine.num_blocks_in_use == 0
    assert engine.check_integrity() == []


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_no_answer_is_longer_than_asked(max_tokens: int) -> None:
    backend = Chain(counting(10))
    engine = Engine(backend, [], max_draft=8)
    assert len(tokens_of(engine, list(range(10)) * 2, replace(GREEDY, max_tokens=max_tokens))) == max_tokens
    written = max(part.first_position + len(part.token_ids) for batch in backend.batches for part in batch)
    assert written <= 20 + max_tokens - 1


def test_only_what_was_kept_is_found_again(backend: CpuBackend | TorchBackend) -> None:
    """A rejected draft's keys lie in blocks that fill up later; what a follow-up reuses must be the answer's own."""
    engine = Engine(backend, [], max_draft=6)
    for prompt in repetitive_prompts(6):
        said = [*prompt, *tokens_of(engine, prompt, replace(SAMPLED, max_tokens=3 * BLOCK_TOKENS))]
        follow_up = [*said, 30, 31]
        events = list(engine.stream(follow_up, GREEDY))
        assert isinstance(events[0], PrefillProgress)
        reused = [event.token_id for event in events if isinstance(event, TokenEvent)]
        engine.forget_prefixes()
        assert tokens_of(engine, follow_up, GREEDY) == reused
    assert engine.load.num_drafted > engine.load.num_accepted
    assert engine.check_integrity() == []


def test_no_one_is_put_off_for_a_draft() -> None:
    prompt = list(range(20))
    backend = Chain(counting(20), num_blocks=4)
    engine = Engine(backend, [], max_draft=8)
    params = replace(GREEDY, max_tokens=2 * BLOCK_TOKENS - 20)  # two blocks each, and there are no more
    streams = [engine.stream(prompt, params) for _ in range(2)]
    texts: list[list[int]] = [[], []]
    for _ in range(200):
        for text, stream in zip(texts, streams, strict=True):
            event = next(stream, None)
            if isinstance(event, TokenEvent) and event.token_id is not None:
                text.append(event.token_id)
    assert texts == [[i % 20 for i in range(params.max_tokens)]] * 2
    assert sum(part.first_position == 0 for batch in backend.batches for part in batch) == 2
    assert engine.load.num_accepted > 0
    assert engine.check_integrity() == []


def test_broken_numbers_after_a_right_draft_end_the_answer_with_an_error() -> None:
    logits = counting(20)
    logits[15] = float("nan")
    engine = Engine(Chain(logits), [], max_draft=8)
    events = engine.stream([*range(20), *range(12)], GREEDY)
    told = [next(events) for _ in range(5)]
    assert [event.token_id for event in told if isinstance(event, TokenEvent)] == [12, 13, 14, 15]
    with pytest.raises(SamplerError, match="not finite"):
        next(events)
    assert engine.check_integrity() == []
