"""What runs a pass for the engine: new tokens of several sequences in, logits out.

Keys and values lie in blocks that the engine hands out by number (model.block_pool).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.candidates import Logits
from model.config import ModelConfig
from model.kernels.build import KernelsUnavailableError, load_library
from model.kernels.cpu_decoder import BLOCK_TOKENS, CpuDecoder, Pass, Threads, lazy_zeros, token_bytes
from model.kernels.expert_cache import ExpertCache
from model.modeling import BailingMoeV2ForCausalLM
from model.thread_choice import ThreadChoice
from model.traffic import bytes_a_token

REFERENCE = "torch reference"
CACHES: Mapping[str, torch.dtype | None] = {
    "auto": None,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
DEVICES = ("auto", "cpu", "cuda")
MAX_CACHE_BYTES = 2 * 2**30
MAX_SEQUENCES_CACHED = 8


@dataclass(frozen=True, slots=True)
class Slice:
    """New tokens of one sequence, from `first_position` on, which its blocks have room for. num_logits: of how many
    of them, counted from the last, logits are wanted."""

    token_ids: Sequence[int]
    first_position: int
    blocks: Sequence[int]
    num_logits: int


class Backend(Protocol):
    """`name` is shown to users: which kernels run, and why not better ones. bytes_a_token: of weights, that a step of
    one token reads. cache_dtype: of keys and values. cache_layout: what the bytes of a block mean: where it is the
    same, of the same weights, the block_bytes of one process are good in another."""

    config: ModelConfig
    num_blocks: int
    name: str
    bytes_a_token: int
    cache_dtype: torch.dtype
    cache_layout: str
    block_bytes: int

    def forward(self, batch: Sequence[Slice]) -> Logits:
        """Logits [those wanted, V] f32 on the CPU, in the order of slices and of their tokens, or the largest of each
        row and where the others are; until the next call."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Makes a block hold the keys and values of another. Not to be called during a pass."""
        ...

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        """The keys and values of these blocks, block_bytes each, as they lie. No pass may write to them meanwhile."""
        ...

    def write_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        """Puts back what `read_blocks` gave. No pass may use the blocks meanwhile."""
        ...


class CpuBackend:
    """The C++ kernels. fewer: threads that steps are computed with instead where those are faster, as beside a busy
    program; thread_choice says which they are. last_pass: what the last pass computed, for drafters: the states after
    the final norm where keeps_hidden is set, and the residual stream before the layers in tap_layers. last_threads:
    those that it was computed with."""

    keeps_hidden = False
    tap_layers: Sequence[int] = ()
    last_pass: Pass
    last_threads: Threads

    def __init__(
        self,
        model: BailingMoeV2ForCausalLM,
        threads: Threads,
        fewer: Threads | None = None,
        experts: ExpertCache | None = None,
        cache: str = "auto",
    ) -> None:
        """experts: where the routed experts of a model that holds none are read from. cache: see make_backend."""
        self.config = model.config
        self.bytes_a_token = bytes_a_token(model)
        self.cache_dtype = dtype = find_cache_dtype(cache, model.model.norm.weight.dtype)
        self.num_blocks = count_blocks(model.config, dtype)
        self.name = f"C++ {threads.library.variant}, {_name_threads(threads, fewer)}"
        self.thread_choice = ThreadChoice(fewer.num_threads, threads.num_threads) if fewer else None
        self._threads = {pool.num_threads: pool for pool in (threads, fewer) if pool}
        self._model = model
        self.decoder = CpuDecoder(model, threads, self.num_blocks, dtype, experts)
        self._first_moe = self.config.first_k_dense_replace  # every layer from it on is one
        self.cache_layout = f"{threads.library.build} {describe_cache(self.decoder.cache, dtype, self.config)}"
        self.block_bytes = self.decoder.cache[:, :, 0].nbytes
        self._logits = torch.empty(0, self.config.vocab_size)  # kept: fresh memory for 32 answers costs 3 ms of a step

    def forward(self, batch: Sequence[Slice]) -> Tensor:
        ends = 0
        wanted: list[int] = []
        for part in batch:
            ends += len(part.token_ids)
            wanted.extend(range(ends - part.num_logits, ends))
        if len(wanted) > len(self._logits):
            self._logits = torch.empty(len(wanted), self.config.vocab_size)
        observer = self._model.router_observer
        choice = self.thread_choice
        with choice.step(ends) if choice else nullcontext(max(self._threads)) as num_threads:
            self.last_threads = self._threads[num_threads]
            self.last_pass = out = self.decoder.forward(
                [part.token_ids for part in batch],
                [part.first_position for part in batch],
                [part.blocks for part in batch],
                wanted,
                self.keeps_hidden,
                self.tap_layers,
                self.last_threads,
                observer is not None,
                self._logits[: len(wanted)],
            )
        if observer is not None and self._first_moe < self.config.num_hidden_layers:
            observer(out.topk_ids[self._first_moe :], out.router_logits[self._first_moe :], ends)
        return out.logits

    def draft(
        self,
        next_ids: Sequence[Sequence[int]],
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        rows: Sequence[int],
        num_drafts: Sequence[int],
    ) -> list[list[int]]:
        """See model.mtp.MtpBackend."""
        assert self.last_pass.hidden is not None
        hidden, threads = self.last_pass.hidden, self.last_threads
        return self.decoder.draft(next_ids, first_positions, block_tables, hidden, rows, num_drafts, threads)

    def copy_block(self, source: int, target: int) -> None:
        self.decoder.cache[:, :, target] = self.decoder.cache[:, :, source]

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        return read_cache_blocks(self.decoder.cache, blocks)

    def write_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        write_cache_blocks(self.decoder.cache, blocks, data)


class TorchBackend:
    """The plain decoder, a sequence after the other: where there are no kernels, and what they are held against."""

    def __init__(self, model: BailingMoeV2ForCausalLM, why: str = "", cache: str = "auto") -> None:
        if CACHES[cache] not in (None, model.model.norm.weight.dtype):
            raise ValueError(f"Only the C++ kernels store keys and values as {cache}; leave the cache on auto. {why}")
        self.config = config = model.config
        self.bytes_a_token = bytes_a_token(model)
        weight = model.model.norm.weight
        self.num_blocks = count_blocks(config, weight.dtype)
        self.name = f"{REFERENCE} ({why})" if why else REFERENCE
        self._model = model
        shape = (
            config.num_hidden_layers,
            2,
            self.num_blocks,
            BLOCK_TOKENS,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.cache_dtype = weight.dtype
        self._cache = lazy_zeros(shape, weight.dtype).to(weight.device)
        self.cache_layout = (
            f"torch {torch.__version__} {weight.device.type} {describe_cache(self._cache, weight.dtype, config)}"
        )
        self.block_bytes = self._cache[:, :, 0].nbytes

    def forward(self, batch: Sequence[Slice]) -> Tensor:
        logits = []
        with torch.inference_mode():
            for part in batch:
                ids_BS = torch.tensor([part.token_ids], device=self._cache.device)
                out = self._model(ids_BS, cache=_PagedCache(self._cache, part), logits_to_keep=max(part.num_logits, 1))
                if part.num_logits:
                    logits.append(out.logits[0].cpu())
        return torch.cat(logits) if logits else torch.empty(0, self.config.vocab_size)

    def copy_block(self, source: int, target: int) -> None:
        self._cache[:, :, target] = self._cache[:, :, source]

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        return read_cache_blocks(self._cache, blocks)

    def write_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        write_cache_blocks(self._cache, blocks, data)


class _PagedCache:
    """One sequence's blocks behind the decoder's Cache protocol."""

    def __init__(self, cache: Tensor, part: Slice) -> None:
        self._cache = cache
        self._part = part
        self._blocks = torch.tensor(part.blocks, device=cache.device)

    @property
    def num_cached_tokens(self) -> int:
        return self._part.first_position

    def append(self, layer: int, k_BGSC: Tensor, v_BGSC: Tensor) -> tuple[Tensor, Tensor]:
        start, end = self._part.first_position, self._part.first_position + k_BGSC.shape[2]
        places = torch.arange(start, end, device=self._cache.device)
        block, slot = self._blocks[places // BLOCK_TOKENS], places % BLOCK_TOKENS
        both = []
        for which, new_BGSC in enumerate((k_BGSC, v_BGSC)):
            pages = self._cache[layer, which]
            pages[block, slot] = new_BGSC[0].transpose(0, 1)
            both.append(pages[self._blocks].flatten(0, 1)[:end].transpose(0, 1)[None])
        return both[0], both[1]

    def advance(self, num_tokens: int) -> None:
        """Nothing to do: the engine counts."""


def choose_device(wanted: str, kernels: str = "auto") -> torch.device:
    """Where to compute, for one of DEVICES: "auto" takes a CUDA card where there is one and no C++ kernels were asked
    for by name. Raises ValueError for a card that is not there."""
    if wanted not in DEVICES:
        raise ValueError(f"The device is {wanted!r}; use one of {', '.join(DEVICES)}.")
    has_card = torch.cuda.is_available()
    if wanted == "cuda" and not has_card:
        raise ValueError(
            "The device is 'cuda', but torch finds no CUDA card here; use auto, or install torch for CUDA."
        )
    if wanted == "cuda" and kernels not in ("auto", "reference"):
        raise ValueError(f"The kernels {kernels!r} are the processor's; leave them on auto for a card.")
    is_card = wanted == "cuda" or (wanted == "auto" and has_card and kernels in ("auto", "reference"))
    return torch.device("cuda", 0) if is_card else torch.device("cpu")


def make_backend(
    model: BailingMoeV2ForCausalLM,
    num_threads: int | None,
    kernels: str = "auto",
    experts: ExpertCache | None = None,
    cache: str = "auto",
    device: torch.device | None = None,
    baseline: Mapping[int, Sequence[float]] | None = None,
    has_mtp: bool = False,
) -> Backend:
    """The best backend for this model here. kernels: "auto", "reference", or a variant of model.kernels.build.
    num_threads: None lets the C++ kernels choose as they go, between one per core and half as many. experts: where the
    routed experts of a model that holds none are read from. cache: one of CACHES, what keys and values are stored as;
    "auto" is f32 for a model computed in f32, else bf16. int8 takes half of that and is read twice as fast. device: by
    default where the model lies; on a card, experts that it has no room for stay with the processor, by the loads of
    `baseline` the least chosen ones. has_mtp: whether the MTP layer is wanted there.

    Raises KernelsUnavailableError if a variant asked for by name cannot be had, "auto" then serves by torch; ValueError
    for a cache that torch has not.
    """
    find_cache_dtype(cache, model.model.norm.weight.dtype)  # an unknown one, before any thread is started
    device = device or model.device
    if device.type != "cpu":
        return _make_card_backend(model, kernels, cache, device, baseline, has_mtp)
    if kernels == "reference":
        return TorchBackend(model, cache=cache)
    try:
        library = load_library(None if kernels == "auto" else kernels)
        threads = Threads(num_threads or os.cpu_count() or 1, library)
        can_choose = num_threads is None and threads.num_threads > 1
        fewer = Threads(threads.num_threads // 2, library) if can_choose else None
        return CpuBackend(model, threads, fewer, experts, cache)
    except KernelsUnavailableError as error:
        if kernels != "auto":
            raise
        return TorchBackend(model, str(error), cache)


def _make_card_backend(
    model: BailingMoeV2ForCausalLM,
    kernels: str,
    cache: str,
    device: torch.device,
    baseline: Mapping[int, Sequence[float]] | None,
    has_mtp: bool,
) -> Backend:
    from model.gpu_backend import GpuBackend, choose_hot, load_ops

    why = ""
    if kernels == "auto":
        try:
            ops = load_ops()
            hot = choose_hot(model, torch.cuda.mem_get_info(device)[0], baseline)
            return GpuBackend.take(model, device, cache, hot=hot, ops=ops, has_mtp=has_mtp)
        except KernelsUnavailableError as error:
            why = str(error)
    return TorchBackend(model.to(device), why, cache)


def find_cache_dtype(cache: str, computed_in: torch.dtype) -> torch.dtype:
    """What keys and values are stored as by the C++ kernels, for one of CACHES. Raises ValueError for another."""
    if cache not in CACHES:
        raise ValueError(f"The cache is {cache!r}; use one of {', '.join(CACHES)}.")
    return CACHES[cache] or (torch.float32 if computed_in == torch.float32 else torch.bfloat16)


def _name_threads(threads: Threads, fewer: Threads | None) -> str:
    if fewer:
        return f"{fewer.num_threads} or {threads.num_threads} threads"
    return f"{threads.num_threads} thread{'s' if threads.num_threads > 1 else ''}"


def count_blocks(config: ModelConfig, dtype: torch.dtype) -> int:
    """Blocks of the cache: for some sequences of full length, or what fits MAX_CACHE_BYTES; for one at least."""
    a_sequence = -(-config.context_length // BLOCK_TOKENS)
    affordable = MAX_CACHE_BYTES // _block_bytes(config, dtype)
    return max(a_sequence, min(MAX_SEQUENCES_CACHED * a_sequence, affordable)) + 1


def count_cache_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """What the cache takes in memory once all its blocks were used."""
    return count_blocks(config, dtype) * _block_bytes(config, dtype)


def _block_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    return 2 * config.num_layers * token_bytes(config, dtype) * BLOCK_TOKENS


# A block is the third index of a cache; what lies in it is the kernels' affair, so that here it is bytes.


def describe_cache(cache: Tensor, dtype: torch.dtype, config: ModelConfig) -> str:
    """dtype: of the numbers in the cache, whatever tensor holds them. Of the config a digest: the same weights at other
    positions or with another routing give other keys."""
    shape = [*cache.shape[:2], *cache.shape[3:]]
    digest = hashlib.sha256(repr(config).encode()).hexdigest()
    return f"{dtype} {'x'.join(map(str, shape))} {digest[:32]}"


def read_cache_blocks(cache: Tensor, blocks: Sequence[int]) -> bytes:
    chosen = cache[:, :, list(blocks)].movedim(2, 0).contiguous().cpu()
    return chosen.view(torch.uint8).numpy().tobytes()


def write_cache_blocks(cache: Tensor, blocks: Sequence[int], data: bytes) -> None:
    flat = torch.frombuffer(bytearray(data), dtype=cache.dtype)
    chosen = flat.view(len(blocks), *cache.shape[:2], *cache.shape[3:]).movedim(0, 2)
    cache[:, :, list(blocks)] = chosen.to(cache.device)
