"""Messages in, streamed text out: the in-process implementation of contracts.Generator.

Joins engine, tokenizer and chat template of one checkpoint folder. Knows nothing of patients, prompts or pages.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from contracts import (
    GenerationEnd,
    GenerationEvent,
    Message,
    ModelInfo,
    PrefillProgress,
    Queued,
    SamplingParams,
    TextChunk,
    TokenLogprob,
)
from model.backend import Backend
from model.backend_choice import choose_device, make_backend
from model.chat_template import ChatTemplate
from model.checkpoint import (
    PRECISIONS,
    default_dtype,
    find_precision,
    load_hashed_model,
    stored_dtype,
    weights_sha256,
)
from model.config import CheckpointError, ModelConfig
from model.cpu_backend import CpuBackend
from model.drafting import MAX_DRAFT, Drafter
from model.eagle3 import Eagle3Drafter, LoadedHead, load_head
from model.engine import PREFILL_CHUNK, Engine
from model.gpu_backend import MAX_DRAFT_ROWS, GpuBackend, has_room
from model.grammar import GrammarCompiler
from model.kernels.expert_cache import ExpertCache
from model.modeling import BailingMoeV2ForCausalLM
from model.mtp import MtpDrafter
from model.packed.load import PackedModel, load_packed
from model.packed.manifest import is_packed
from model.packed.verify import GuardedBackend
from model.prepared import PromptKeeper
from model.prompt_lookup import PromptLookup
from model.quantized import count_parameters, name_quantization
from model.request import EngineEvent, EngineLoad, TokenScore, TokenStreamer
from model.router_health import RouterHealth, RouterSnapshot, read_baseline
from model.tokenizer import Detokenizer, Tokenizer
from model.torch_backend import REFERENCE
from model.weights import ProgressCallback

EMBEDDED = Path(__file__).parent / "embedded"


class LocalGenerator:
    """Answers with a model in this process. Several threads may stream at once."""

    def __init__(
        self,
        engine: TokenStreamer,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        info: ModelInfo,
        routers: RouterHealth | None = None,
        backend: Backend | None = None,
        experts: ExpertCache | None = None,
    ) -> None:
        """backend: what the engine computes with, for those who measure it. experts: where it reads them from the disk
        as they are chosen."""
        self._experts = experts
        self._engine = engine
        self._tokenizer = tokenizer
        self._template = template
        self._info = info
        self._routers = routers
        self.backend = backend

    @classmethod
    def load(
        cls,
        folder: str | Path,
        dtype: str | torch.dtype | None = None,
        threads: int | None = None,
        kernels: str = "auto",
        cache: str = "auto",
        draft_head: str | Path | None = None,
        weights: str = "auto",
        expert_bytes: int | None = None,
        device: str = "auto",
        card_drafts: bool = True,
        *,
        on_progress: ProgressCallback | None = None,
        cancel: threading.Event | None = None,
    ) -> LocalGenerator:
        """Loads a checkpoint folder, or a packed one. dtype: what to compute in, "f32" or "bf16", by default f32 for a
        small model and bf16, or as stored, for a large one; or "nf4" or "int8", to quantize plain weights. threads: by
        default as many as prove best, one per core at most. kernels, cache: see model.backend_choice.make_backend.
        draft_head: folder of an EAGLE-3 head, which then drafts in place of the checkpoint's own MTP layer. weights,
        expert_bytes: how a packed folder is held, see model.packed.load. device: see
        model.backend_choice.choose_device; a packed folder is the processor's. card_drafts: whether there are drafts on
        a card, too. Raises CheckpointError naming what is wrong with a folder, ValueError for an unknown precision or a
        card that is not there, KernelsUnavailableError, LoadCancelled once `cancel` is set."""
        folder = Path(folder)
        find_precision(dtype)
        place = choose_device("cpu" if is_packed(folder) and device == "auto" else device, kernels)
        torch.set_num_threads(threads or os.cpu_count() or 1)
        tokenizer = Tokenizer.load(folder)
        template = ChatTemplate.load(folder, tokenizer)
        config = ModelConfig.from_hf(folder)
        baseline = read_baseline(folder, config)  # before minutes of reading weights
        head = load_head(draft_head, config) if draft_head else None
        packed = _load_packed(folder, dtype, kernels, weights, expert_bytes, cache, on_progress, cancel)
        if packed is not None:
            model, sha256 = packed.model, packed.manifest.source_sha256
        else:
            dtype = dtype or (torch.bfloat16 if place.type == "cuda" else default_dtype(folder))
            where = place if has_room(place, folder, config) else "cpu"
            model, sha256 = load_hashed_model(folder, dtype, where, on_progress=on_progress, cancel=cancel)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise CheckpointError(
                f"{folder.name}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model only "
                f"{model.config.vocab_size:,}; they do not belong together."
            )
        routers = RouterHealth(model, baseline)
        model.router_observer = routers.observe
        experts = packed.experts if packed else None
        info = describe_model(folder, model, tokenizer, sha256)  # before its weights are taken over
        backend = make_backend(model, threads, kernels, experts, cache, place, baseline, card_drafts)
        drafters = make_drafters(backend, model, head, card_drafts)
        held = {"keys and values": str(backend.cache_dtype).removeprefix("torch.")}
        held |= packed.describe() if packed else {}
        details = dict(info.details) | held | _describe_drafters(drafters, head)
        info = replace(info, kernels=backend.name, details=details)
        compiler = GrammarCompiler(tokenizer, model.config.vocab_size)
        engine = Engine(
            GuardedBackend(backend, packed.guard) if packed else backend,
            tokenizer.stop_ids,
            prefill_chunk=backend.prefill_chunk if isinstance(backend, GpuBackend) else PREFILL_CHUNK,
            max_draft=count_draft_rows(backend) if drafters else 0,
            constrain=compiler.compile,
            drafters=drafters,
            draft_length=MAX_DRAFT,
        )
        return cls(engine, tokenizer, template, info, routers, backend, experts)

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def engine_load(self) -> EngineLoad:
        """Requests and cache blocks at this moment."""
        load = self._engine.load
        return load if self._experts is None else replace(load, experts=self._experts.counts)

    @property
    def threads(self) -> str:
        """What a token is computed with at present and why; "" where there is nothing to choose."""
        choice = self.backend.thread_choice if isinstance(self.backend, CpuBackend) else None
        return choice.describe() if choice else ""

    @property
    def prompt_keeper(self) -> PromptKeeper | None:
        """Keeps the beginnings of prompts beyond this process; None if the engine cannot."""
        # A draft head has keys of its own outside the cache: without them it would draft nonsense after a kept prompt.
        if not isinstance(self._engine, Engine) or "draft head" in self._info.details:
            return None
        computed_in = self._info.details.get("computed in", "")
        return PromptKeeper(self._engine, f"{self._info.weights_sha256} {self._info.precision} {computed_in}")

    def router_health(self, lifetime: bool = False) -> RouterSnapshot:
        """How the MoE routers chose lately, or since the model was loaded; see model.router_health."""
        return self._routers.snapshot(lifetime) if self._routers else RouterSnapshot((), 0, 0, False)

    def restart_router_window(self) -> None:
        """Judges the routers by the tokens from now on."""
        if self._routers:
            self._routers.restart_window()

    def count_tokens(self, text: str) -> int:
        """Tokens of plain text, without any turn markers."""
        return len(self._tokenizer.encode(text))

    def count_prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the whole prompt as the chat template renders it."""
        return len(self._template.encode(messages))

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the whole prompt, as `stream` puts it before the engine."""
        return self._template.encode(messages)

    def stream(
        self, messages: Sequence[Message], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Iterator[GenerationEvent]:
        """Yields PrefillProgress and TextChunk, the last event a GenerationEnd. Raises at the call, before any work:
        ContextLengthError if the prompt and one token do not fit, ConstraintError if the answer's form cannot be kept,
        ValueError for a parameter out of range, EngineBusyError where too many wait."""
        prompt_ids = self._template.encode(messages)
        return self._run(self._engine.stream(prompt_ids, params, cancel), len(prompt_ids))

    def _run(self, stream: Generator[EngineEvent, None, None], num_prompt: int) -> Iterator[GenerationEvent]:
        detokenizer = Detokenizer(self._tokenizer)
        tokens: list[TokenLogprob] = []  # whose text is not out yet
        started = time.perf_counter()
        first = last = started
        num_new, reason = 0, "cancelled"
        # closing: a consumer that stops listening must free the request's cache at once.
        with closing(stream) as events:
            for event in events:
                if isinstance(event, Queued | PrefillProgress):
                    yield event
                    continue
                reason = event.finish_reason or reason
                if event.token_id is None or reason == "stop":
                    continue
                last = time.perf_counter()
                first = first if num_new else last
                num_new += 1
                if event.score:
                    tokens.append(self._name(event.token_id, event.score))
                if text := detokenizer.add(event.token_id):
                    yield TextChunk(text, tuple(tokens))
                    tokens.clear()
        text = detokenizer.finish()
        if text or tokens:
            yield TextChunk(text, tuple(tokens))
        yield GenerationEnd(
            reason,
            prompt_tokens=num_prompt,
            completion_tokens=num_new,
            ttft_s=first - started,
            tokens_per_s=(num_new - 1) / (last - first) if last > first else 0.0,
        )

    def _name(self, token_id: int, score: TokenScore) -> TokenLogprob:
        def name(token_id: int, logprob: float, alternatives: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
            tokenizer = self._tokenizer
            return TokenLogprob(tokenizer.get_name(token_id), tokenizer.get_bytes(token_id), logprob, alternatives)

        return name(token_id, score.logprob, tuple(name(*pair) for pair in score.likeliest))


def make_drafters(
    backend: Backend, model: BailingMoeV2ForCausalLM, head: LoadedHead | None, card_drafts: bool = True
) -> list[Drafter]:
    """In order of preference. The C++ kernels compute a row always alike, without which a draft may turn a tie, and so
    do the card's as far as it was looked at (docs/gpu.md): there not without card_drafts, and EAGLE-3 heads, which read
    the processor's states, not at all."""
    drafters: list[Drafter] = [PromptLookup()]
    if isinstance(backend, GpuBackend):
        return [*drafters, *([MtpDrafter(backend)] if backend.has_mtp else [])] if card_drafts else []
    if not isinstance(backend, CpuBackend):
        return []
    if head is not None:
        drafters.append(Eagle3Drafter(head.head, backend, model))
    elif model.config.num_nextn_predict_layers:
        drafters.append(MtpDrafter(backend))
    return drafters


def count_draft_rows(backend: Backend) -> int:
    """Drafted tokens that a step of all answers together takes."""
    return MAX_DRAFT_ROWS if isinstance(backend, GpuBackend) else MAX_DRAFT


def _describe_drafters(drafters: Sequence[Drafter], head: LoadedHead | None) -> dict[str, str]:
    details = {
        "drafts by": ", ".join(drafter.name for drafter in drafters) or "nothing: these kernels may round rows unalike"
    }
    return details | ({} if head is None else {"draft head": f"{head.name}, sha256 {head.sha256}"})


def _load_packed(
    folder: Path,
    dtype: str | torch.dtype | None,
    kernels: str,
    weights: str,
    expert_bytes: int | None,
    cache: str,
    on_progress: ProgressCallback | None,
    cancel: threading.Event | None,
) -> PackedModel | None:
    """The model of a packed folder, watched from behind; None for another folder."""
    if not is_packed(folder):
        if weights in ("map", "disk"):
            raise ValueError(
                f"weights is {weights!r}, which {folder.name} is not packed for: run `bedside pack` first."
            )
        return None
    computed_in, quantization = find_precision(dtype)
    if quantization is not None:
        raise CheckpointError(f"{folder.name} is packed as it was stored; leave the precision {quantization!r} out.")
    packed = load_packed(
        folder, computed_in, kernels, weights, expert_bytes, cache, on_progress=on_progress, cancel=cancel
    )
    if packed.was_trusted and packed.mode != "disk":  # there the disk is the answers'; `bedside doctor` looks
        packed.guard.verify_in_background()
    return packed


def describe_model(
    folder: Path,
    model: BailingMoeV2ForCausalLM,
    tokenizer: Tokenizer,
    sha256: str | None = None,
    kernels: str = REFERENCE,
) -> ModelInfo:
    """What is shown and recorded of a loaded model. Without `sha256` the weights are read once more for it."""
    quantization, computed_in = name_quantization(model), name_precision(model.dtype)
    config = model.config
    is_plain = quantization is None or config.quantization_config is None
    is_embedded = folder.resolve() == EMBEDDED.resolve()
    return ModelInfo(
        name="Bedside nano" if is_embedded else folder.resolve().name,
        precision=quantization or computed_in,
        kernels=kernels,
        context_length=config.context_length,
        num_parameters=count_parameters(model),
        weights_sha256=sha256 or weights_sha256(folder),
        is_embedded=is_embedded,
        details={
            "layers": config.num_hidden_layers,
            "experts": f"{config.num_experts}, {config.num_experts_per_tok} a token",
            "computed in": computed_in,
            "stored as": name_precision(stored_dtype(config)) if is_plain else str(quantization),
            "end tokens": ", ".join(map(str, tokenizer.stop_ids)),
        },
    )


def name_precision(dtype: torch.dtype) -> str:
    """The name of a dtype among PRECISIONS."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)
