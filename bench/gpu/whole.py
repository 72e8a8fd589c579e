"""The whole model on the card: what it takes there, its tokens a second, and that a step in a graph is the same."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from bench.gpu.cases import GIB
from bench.gpu.clock import Clock
from bench.gpu.operations import measure_error
from bench.gpu.random_weights import RandomWeights
from contracts import SamplingParams
from model.config import ModelConfig
from model.engine import Engine
from model.gpu_backend import GpuBackend
from model.kernels.cpu_decoder import BLOCK_TOKENS
from model.kernels.gpu import reference
from model.kernels.gpu.buffers import STEP_ROWS
from model.kernels.gpu.decoder import GpuDecoder
from model.request import TokenEvent

CHECKED_EXPERTS = 16
CHECK_TOKENS = 96


def check_decoder(config: ModelConfig, clock: Clock, ops: Any) -> dict[str, float]:
    """Two layers of full width with few experts, prefill and batched steps: error against the definitions, and of a
    captured step against one that was not captured, which must be none."""
    few = min(config.num_experts, CHECKED_EXPERTS)
    config = replace(config, num_hidden_layers=2, first_k_dense_replace=1, num_experts=few, max_position_embeddings=512)
    weights = RandomWeights(config, clock.device, seed=3).draw_model()
    makers = ((ops, True), (ops, False), (reference, False))
    decoders = [GpuDecoder(weights, config, 16, "bf16", each, None, 128, graphs) for each, graphs in makers]
    draw = random.Random(0)
    texts = [[draw.randrange(config.vocab_size) for _ in range(n)] for n in (CHECK_TOKENS, 7, 33)]
    tables = [[3, 1, 5, 0], [7, 2], [9, 8]]
    rows = list(range(sum(map(len, texts))))
    results = [decoder.forward(texts, [0] * 3, tables, rows) for decoder in decoders]
    alike = (results[0].topk_ids == results[2].topk_ids).all(-1).all(0)
    errors = {"prefill": measure_error(results[0].logits[alike], results[2].logits[alike])}
    decode, captured = [], []
    for step in range(3):
        new, positions = [[step + 1]] * 3, [len(text) + step for text in texts]
        results = [decoder.forward(new, positions, tables) for decoder in decoders]
        alike = (results[0].topk_ids == results[2].topk_ids).all(-1).all(0)
        if bool(alike.any()):
            decode.append(measure_error(results[0].logits[alike], results[2].logits[alike]))
        captured.append(measure_error(results[0].logits, results[1].logits))
    return errors | {"decode": max(decode, default=float("inf")), "a captured step": max(captured)}


def check_rows(config: ModelConfig, clock: Clock, ops: Any) -> tuple[float, bool]:
    """The largest error of a row among up to STEP_ROWS against the same row alone, and whether there was none at all,
    without which a draft may turn a near tie."""
    config = replace(config, num_hidden_layers=2, first_k_dense_replace=1, max_position_embeddings=512)
    if clock.is_card:
        config = replace(config, num_experts=CHECKED_EXPERTS)
    decoder = GpuDecoder(RandomWeights(config, clock.device, seed=3).draw_model(), config, 16, "bf16", ops, None, 128)
    decoder.forward([list(range(1, 34))], [0], [[3, 1]])
    alone, errors, is_same = decoder.forward([[5]], [33], [[3, 1]]).logits.clone(), [], True
    for others in (1, 7, 15, 31, STEP_ROWS - 1):
        tables = [[3, 1], *([5 + row % 8] for row in range(others))]
        row = decoder.forward([[5], *([row] for row in range(others))], [33] + [0] * others, tables).logits[:1]
        errors.append(measure_error(row, alone))
        is_same &= torch.equal(row, alone)
    return max(errors), is_same


class WholeModel:
    """A model of random weights with a cache for one long context."""

    def __init__(self, config: ModelConfig, context: int, clock: Clock, ops: Any, chunk: int) -> None:
        self.config = replace(config, max_position_embeddings=context + 8 * BLOCK_TOKENS)
        self._clock = clock
        if clock.is_card:
            torch.cuda.reset_peak_memory_stats(clock.device)
        weights = RandomWeights(self.config, clock.device).draw_model(has_mtp=True)
        self.weight_bytes = weights.nbytes
        self._num_blocks = -(-self.config.context_length // BLOCK_TOKENS) + 1
        self.decoder = GpuDecoder(weights, self.config, self._num_blocks, "bf16", ops, None, chunk)
        self._draw = random.Random(0)

    def describe_memory(self) -> tuple[float, str]:
        """GiB in all, and of what."""
        cache = self.decoder.cache.nbytes
        if not self._clock.is_card:
            return (self.weight_bytes + cache) / GIB, "no card"
        whole = torch.cuda.max_memory_reserved(self._clock.device) / GIB
        return whole, f"weights {self.weight_bytes / GIB:.1f} GiB, keys and values {cache / GIB:.1f}"

    def time_prefill(self, num_tokens: int) -> float:
        """Seconds to the logits of the prompt's last token, launches included."""
        prompt, blocks = self._draw_prompt(num_tokens), list(range(-(-num_tokens // BLOCK_TOKENS)))
        return self._clock.time_once(lambda: self.decoder.forward([prompt], [0], [blocks], output_router=False))

    def time_decode(self, batch: int, context: int, num_steps: int) -> tuple[float, float]:
        """Median seconds of a step: as the program does it, where the host chooses the next step by the tokens of this
        one; and of the graph alone."""
        tables = self._read_prompts(batch, context)
        tokens, seconds = [[1]] * batch, []
        for step in range(num_steps):
            started = time.perf_counter()
            logits = self.decoder.forward(tokens, [context + step] * batch, tables).logits
            tokens = logits.argmax(-1, keepdim=True).tolist()
            seconds.append(time.perf_counter() - started)
        forward = self.decoder.forward
        alone = self._clock.time_once(lambda: [forward(tokens, [context] * batch, tables) for _ in range(num_steps)])
        return statistics.median(seconds), alone / num_steps

    def time_drafts(self, batch: int, context: int, drafted: int, num_steps: int) -> float:
        """Median seconds of a step whose answers carry drafts of so many tokens that all stay, and of drafting anew:
        the most work that a step can have."""
        tables = self._read_prompts(batch, context)
        tokens, seconds = [[1] * (1 + drafted)] * batch, []
        rows, starts = range(batch * (1 + drafted)), [context] * batch
        for _ in range(num_steps):
            started = time.perf_counter()
            out = self.decoder.forward(tokens, starts, tables, rows, output_hidden=True, output_router=False)
            assert out.hidden is not None
            next_ids = out.logits.argmax(-1).view(batch, -1).tolist()
            drafts = self.decoder.draft(next_ids, starts, tables, out.hidden, rows, [drafted] * batch)
            tokens = [[ids[-1], *draft] for ids, draft in zip(next_ids, drafts, strict=True)]
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def time_engine(self, batch: int, context: int, num_tokens: int) -> float:
        """Seconds a step of so many greedy answers through the engine: logits to the host, sampling, scheduling."""
        backend = GpuBackend(self.decoder, "bench", 0)
        engine = Engine(backend, (), prefill_chunk=self.decoder.chunk)
        params = SamplingParams(max_tokens=num_tokens)
        streams = [engine.stream(self._draw_prompt(context), params) for _ in range(batch)]
        started, stamps = [next_token(stream) for stream in streams], [time.perf_counter()]
        for _ in range(num_tokens - 1):
            started = [next_token(stream) for stream in streams]
            stamps.append(time.perf_counter())
        assert all(token is not None for token in started)
        return statistics.median(after - before for before, after in pairwise(stamps))

    def _read_prompts(self, batch: int, context: int) -> list[list[int]]:
        width = -(-(context + 128) // BLOCK_TOKENS)
        tables = [list(range(row * width, (row + 1) * width)) for row in range(batch)]
        for table in tables:
            self.decoder.forward([self._draw_prompt(context)], [0], [table])
        return tables

    def _draw_prompt(self, num_tokens: int) -> list[int]:
        return [self._draw.randrange(self.config.vocab_size) for _ in range(num_tokens)]


def next_token(stream: Any) -> int | None:
    for event in stream:
        if isinstance(event, TokenEvent):
            return event.token_id
    return None
