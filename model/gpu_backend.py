"""A pass for the engine on a CUDA card: Triton kernels, and the processor's for experts that the card has no room for.

Where there is no card it runs through Triton's interpreter or the kernels' definitions, which is how it is tested.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.backend import CACHES, Slice, describe_cache, read_cache_blocks, write_cache_blocks
from model.candidates import Candidates
from model.checkpoint import list_shards
from model.config import ModelConfig
from model.kernels.build import KernelsUnavailableError
from model.kernels.cpu_decoder import BLOCK_TOKENS, Pass, Threads
from model.kernels.gpu.buffers import CACHE_KINDS, STEP_ROWS
from model.kernels.gpu.decoder import CHUNK, GpuDecoder
from model.kernels.gpu.offload import ColdExperts
from model.kernels.gpu.top import TopLogits
from model.kernels.gpu.weights import check_supported, take_weights
from model.modeling import BailingMoeV2ForCausalLM, MoE
from model.offload_plan import CARD_RESERVE
from model.roofline import BF16, kv_bytes
from model.traffic import bytes_a_token

MAX_SEQUENCES = 64  # of full length: more blocks than these could fill are not taken


MAX_DRAFT_ROWS = STEP_ROWS // 2  # drafted tokens of a step: with those that 32 answers need anyway it is full


class GpuBackend:
    """The Triton kernels. last_pass: what the last pass computed, on the card: the states after the final norm where
    keeps_hidden is set, and the residual stream before the layers in tap_layers."""

    keeps_hidden = False
    tap_layers: Sequence[int] = ()
    prefill_chunk = CHUNK
    last_pass: Pass

    def __init__(
        self,
        decoder: GpuDecoder,
        name: str,
        bytes_a_token: int,
        observed: BailingMoeV2ForCausalLM | None = None,
    ) -> None:
        """observed: the model whose router_observer is told what the routers chose."""
        self.decoder, self.name, self.bytes_a_token = decoder, name, bytes_a_token
        self.config, self._observed = decoder.config, observed
        self._bytes = decoder.cache.view(torch.uint8)
        self.num_blocks, self.block_bytes = self._bytes.shape[2], self._bytes[:, :, 0].nbytes
        self.cache_dtype = decoder.cache.dtype
        layout = describe_cache(self._bytes, self.cache_dtype, self.config)
        self.cache_layout = f"{_describe_kernels(decoder)} {layout}"
        self._top = TopLogits(STEP_ROWS, self.config.vocab_size, decoder.device, decoder.ops)

    @classmethod
    def take(
        cls,
        model: BailingMoeV2ForCausalLM,
        device: torch.device,
        cache: str = "auto",
        num_blocks: int | None = None,
        hot: Sequence[Sequence[int]] | None = None,
        ops: Any = None,
        has_mtp: bool = False,
    ) -> GpuBackend:
        """Takes the model's weights over, which cannot compute by itself afterwards. hot: the routed experts of each
        layer that go on the card, the others stay with the processor; by default all go. num_blocks: by default what is
        left on the card. ops: by default model.kernels.gpu.ops. has_mtp: whether the MTP layer goes there, if there is
        one and all experts do. Raises KernelsUnavailableError naming what the kernels
        cannot do, the model is then untouched; ValueError for a cache that they have not."""
        check_supported(model)
        if cache == "f32":
            raise ValueError("The card's kernels store keys and values as bf16 or int8, not as f32; use auto.")
        kind = "int8" if CACHES[cache] == torch.int8 else "bf16"
        ops = ops or load_ops()
        num_bytes = bytes_a_token(model)
        has_mtp = has_mtp and hot is None and model.config.num_nextn_predict_layers > 0
        weights = take_weights(model, device, hot, has_mtp)
        cold = None if hot is None else ColdExperts.take(model, hot, Threads(os.cpu_count() or 1))
        num_blocks = num_blocks or _count_blocks(model.config, device, CACHE_KINDS[kind], has_mtp)
        decoder = GpuDecoder(weights, model.config, num_blocks, kind, ops, cold)
        return cls(decoder, _name(device, hot, model.config), num_bytes, model)

    def forward(self, batch: Sequence[Slice]) -> Candidates:
        ends = 0
        wanted: list[int] = []
        for part in batch:
            ends += len(part.token_ids)
            wanted.extend(range(ends - part.num_logits, ends))
        observer = self._observed.router_observer if self._observed else None
        self.last_pass = out = self.decoder.forward(
            [part.token_ids for part in batch],
            [part.first_position for part in batch],
            [part.blocks for part in batch],
            wanted,
            self.keeps_hidden,
            self.tap_layers,
            observer is not None,
        )
        if observer is not None and len(out.topk_ids):
            observer(out.topk_ids.clone(), out.router_logits.clone(), ends)  # the next step writes over them
        return self._top.find(out.logits)  # the one place that waits for the card

    @property
    def has_mtp(self) -> bool:
        return self.decoder.can_draft

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
        return self.decoder.draft(next_ids, first_positions, block_tables, self.last_pass.hidden, rows, num_drafts)

    def copy_block(self, source: int, target: int) -> None:
        self._bytes[:, :, target] = self._bytes[:, :, source]

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        return read_cache_blocks(self._bytes, blocks)

    def write_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        write_cache_blocks(self._bytes, blocks, data)


def load_ops() -> Any:
    """The Triton kernels. Raises KernelsUnavailableError where Triton is not installed."""
    try:
        return importlib.import_module("model.kernels.gpu.ops")
    except ImportError as error:
        raise KernelsUnavailableError(f"Triton cannot be imported ({error})") from error


def has_room(device: torch.device, folder: Path, config: ModelConfig) -> bool:
    """Whether a checkpoint can be read straight to where it will be computed with: whether the card holds its weights
    and one full context."""
    if device.type != "cuda":
        return True
    num_bytes = sum((folder / name).stat().st_size for name in list_shards(folder))
    needed = num_bytes + kv_bytes(config, config.context_length, BF16) + CARD_RESERVE
    return needed < torch.cuda.mem_get_info(device)[0]


def choose_hot(
    model: BailingMoeV2ForCausalLM, free: float, baseline: Mapping[int, Sequence[float]] | None = None
) -> list[list[int]] | None:
    """The routed experts of each layer that `free` bytes of a card hold beside all else and a full context; None: all.

    baseline: each layer's load, as model.router_health.read_baseline gives it; without one the first experts are taken.
    Raises KernelsUnavailableError if not even one expert a layer fits.
    """
    config = model.config
    if model.device.type == "cuda":  # it was read to where it fits
        return None
    layers = model.model.layers[: config.num_hidden_layers]
    num_expert_bytes = sum(_count_bytes(layer.mlp.experts) for layer in layers if isinstance(layer.mlp, MoE))
    num_bytes = sum(map(_count_bytes, (model.model.word_embeddings, model.lm_head, *layers))) - num_expert_bytes
    room = free - CARD_RESERVE - num_bytes - kv_bytes(config, config.context_length, BF16)
    num_hot = int(room / max(num_expert_bytes / config.num_experts, 1))
    if num_hot >= config.num_experts:
        return None
    if num_hot < 1:
        raise KernelsUnavailableError("the card has no room for attention, head and one full context")
    loads = baseline or {}
    return [_most_chosen(loads.get(index), num_hot, config) for index in range(config.num_hidden_layers)]


def _count_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


def _most_chosen(load: Sequence[float] | None, number: int, config: ModelConfig) -> list[int]:
    if load is None:
        return list(range(number))
    return sorted(sorted(range(config.num_experts), key=lambda expert: -load[expert])[:number])


def _count_blocks(config: ModelConfig, device: torch.device, dtype: torch.dtype, has_mtp: bool) -> int:
    """What the card has room for, one full context at least; if that is too much, ValueError says what to do."""
    scale = 0 if dtype == torch.bfloat16 else 4 / config.head_dim
    a_layer = kv_bytes(config, BLOCK_TOKENS, dtype.itemsize + scale) / config.num_hidden_layers
    a_block = a_layer * (config.num_hidden_layers + has_mtp)
    a_sequence = -(-config.context_length // BLOCK_TOKENS) + 1
    if device.type != "cuda":
        return a_sequence
    torch.cuda.empty_cache()  # what the weights lay in before they were laid out anew
    free = torch.cuda.mem_get_info(device)[0] - CARD_RESERVE
    fitting = int(free / a_block)
    if fitting < a_sequence:
        raise ValueError(
            f"The card has room for {max(fitting, 0) * BLOCK_TOKENS:,} tokens beside the weights, and one context has "
            f"{config.context_length:,}; set the cache to int8, or max_position_embeddings in config.json lower."
        )
    return min(fitting, MAX_SEQUENCES * a_sequence)


def _describe_kernels(decoder: GpuDecoder) -> str:
    """What the numbers in the cache depend on beside weights and tokens: the kernels' source, and where it runs."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parent / "kernels" / "gpu").glob("*.py")):
        digest.update(path.read_bytes())
    where = torch.cuda.get_device_name(decoder.device) if decoder.device.type == "cuda" else decoder.ops.__name__
    return f"triton {digest.hexdigest()[:16]} torch {torch.__version__} {where}"


def _name(device: torch.device, hot: Sequence[Sequence[int]] | None, config: ModelConfig) -> str:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreted on the processor"
    if hot is None:
        return f"Triton, {where}"
    return f"Triton, {where}, {len(hot[-1])} of {config.num_experts} experts there and the others on the processor"
