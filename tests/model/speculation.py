"""What the tests of the draft heads share: variants of the kernels, a watched drafter, a crowd that cancels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracts import SamplingParams
from model.cpu_backend import CpuBackend
from model.drafting import Drafter, Grown
from model.engine import Engine
from model.kernels import build
from model.kernels.build import KernelsUnavailableError, best_variant
from model.kernels.cpu_decoder import BLOCK_TOKENS
from model.request import EngineEvent, TokenEvent

GREEDY = SamplingParams(max_tokens=40)
SAMPLED = SamplingParams(temperature=0.3, top_p=0.9, seed=5, max_tokens=40)


def list_variants() -> list[str]:
    """The kernels that this processor runs; where there are none, the module of tests is skipped."""
    try:
        return list(build.VARIANTS)[list(build.VARIANTS).index(best_variant()) :]
    except KernelsUnavailableError as error:
        pytest.skip(f"needs the C++ kernels: {error}", allow_module_level=True)


class Watched:
    """A drafter that keeps every draft, with the text it was to follow, and what the inner one then held in the text's
    full blocks. cache: the inner one's own, [2, blocks, ..]."""

    uses_blocks = True

    def __init__(self, inner: Drafter, cache: Tensor) -> None:
        self.name = inner.name
        self.drafts: list[tuple[list[int], list[int]]] = []
        self.held: list[Tensor] = []
        self._inner = inner
        self._cache = cache

    def draft(self, grown: Sequence[Grown]) -> list[list[int]]:
        drafts = self._inner.draft(grown)
        for part, draft in zip(grown, drafts, strict=True):
            if draft:
                num_full = (part.first_position + part.num_kept) // BLOCK_TOKENS
                self.drafts.append((list(part.token_ids), draft))
                self.held.append(self._cache[:, part.blocks[:num_full]].clone())
        return drafts

    def copy_block(self, source: int, target: int) -> None:
        self._inner.copy_block(source, target)

    def forget(self, key: int) -> None:
        self._inner.forget(key)


def tokens_of(events: Iterator[EngineEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenEvent) and event.token_id is not None]


def check_reuse_changes_no_draft(backend: CpuBackend, drafter: Watched, prompt: list[int]) -> None:
    """The prompt in chunks, after itself, and after another with the same first block but another token behind it,
    where what a head keeps of the block's last token is another."""

    def run(chunk: int, *before: list[int]) -> tuple[list[tuple[list[int], list[int]]], list[Tensor]]:
        engine = Engine(backend, [], chunk, max_draft=4, drafters=[drafter])
        for other in before:
            tokens_of(engine.stream(other, replace(GREEDY, max_tokens=1)))
        drafter.drafts, drafter.held = [], []
        tokens_of(engine.stream(prompt, GREEDY))
        return drafter.drafts, drafter.held

    expected, held = run(256)
    assert len(expected) > 5
    parted = [*prompt[:BLOCK_TOKENS], (prompt[BLOCK_TOKENS] + 1) % 400, *prompt[BLOCK_TOKENS + 1 :]]
    for chunk, before in ((7, []), (256, [prompt[:-1]]), (256, [parted])):
        drafts, held_now = run(chunk, *before)
        assert drafts == expected
        torch.testing.assert_close(held_now, held)


def check_a_crowd_that_cancels(backend: CpuBackend, drafter: Drafter, prompts: list[list[int]]) -> None:
    """Answers that outgrow the cache together, so that some are put off, while others come and go in mid-draft."""
    prompts = [prompt[: BLOCK_TOKENS - 3] for prompt in prompts]
    params = replace(SAMPLED, max_tokens=60)
    alone = [tokens_of(Engine(backend, []).stream(prompt, params)) for prompt in prompts]
    backend.num_blocks = 6  # each answer grows to 3
    engine = Engine(backend, [], prefill_chunk=8, max_draft=9, drafters=[drafter])
    streams = [engine.stream(prompt, params) for prompt in prompts]
    for _ in range(12):
        extra = engine.stream(prompts[0], params)
        for _ in range(4):
            next(extra)
        extra.close()
        assert engine.check_integrity() == []
    texts: list[list[int]] = [[] for _ in prompts]
    for _ in range(200):
        for text, stream in zip(texts, streams, strict=True):
            event = next(stream, None)
            if isinstance(event, TokenEvent) and event.token_id is not None:
                text.append(event.token_id)
    assert texts == alone
    assert engine.load.num_accepted > 0
    assert engine.check_integrity() == []
    assert engine.num_blocks_in_use == 0
