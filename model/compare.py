"""How far one model's arithmetic is from another's over the same token ids: what a lower precision changed, and where.

The reference runs wholly first and leaves a trace on disk, then the candidate is held against it, so that the two never
have to be in memory together. Token ids in, figures out; knows nothing of text, folders of checkpoints or thresholds.

Two passes over the candidate. Running freely, it gives what a reader would meet: KL, the next token, experts chosen.
Piece by piece, each layer and each single expert is given the *reference's* input: its error is then its own, not what
it inherited, so that one damaged expert or router stands out where it is, however much ordinary rounding lies around
it. An expert that a text hardly ever chooses is tried all the same.

Shape suffixes: S positions of a sequence, N scored positions, D hidden, V vocab, E experts, K experts per token,
L layers, I positions whose vectors every expert is tried on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import ModelConfig
from model.modeling import BailingMoeV2ForCausalLM, DecoderLayer, ModelOutput, MoE, RouterOutput

MAX_TRACED_TOKENS = 8192  # positions whose hidden states are kept: at 103 B (33 states of 4096 f32) 4.4 GB of disk
NUM_EXPERT_INPUTS = 16  # at 103 B the outputs of all experts for them take 2.1 GB
_TINY = 1e-12

Progress = Callable[[int, int], None]  # (sequences done, of all)
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One text to run. Predictions from position `scored_from` on are compared; `group` names what it counts towards
    in the perplexities ("" for none)."""

    token_ids: tuple[int, ...]
    scored_from: int = 0
    group: str = ""


@dataclass(slots=True)
class Trace:
    """What the reference computed: log-probabilities [N,V], hidden states [L+1,S,D] and, per MoE layer, the outputs of
    its experts [E,I,D] as f32 in files of `folder`; experts chosen {layer: [S,K]} per sequence and the inputs of the
    experts {layer: [I,D]} in memory."""

    folder: Path
    sequences: tuple[TokenSequence, ...]
    shape: tuple[int, ...]
    experts: list[dict[int, Tensor]] = field(default_factory=list)
    expert_inputs: dict[int, Tensor] = field(default_factory=dict)

    @property
    def log_probs_path(self) -> Path:
        return self.folder / "log_probs.f32"

    @property
    def hidden_path(self) -> Path:
        return self.folder / "hidden.f32"

    @property
    def expert_outputs_path(self) -> Path:
        return self.folder / "expert_outputs.f32"

    @property
    def traced(self) -> tuple[int, ...]:
        """Indices of the sequences, evenly spread, whose hidden states are kept."""
        num_tokens = sum(len(sequence.token_ids) for sequence in self.sequences)
        return tuple(range(0, len(self.sequences), -(-num_tokens // MAX_TRACED_TOKENS) or 1))


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """One layer. `error`: median over positions of |out' - out| / |out - in|, both given the reference's input.
    `router_overlap`: mean share of the experts chosen that are the same, given the reference's input; `experts_overlap`
    and `experts_equal` (share of positions with the same set): the same when running freely. `expert_error`: median
    over experts of the median of |y' - y| / |y| for the reference's inputs; `worst_expert` has the highest,
    `worst_expert_error`. All but `error` are None for a dense layer."""

    layer: int
    error: float
    router_overlap: float | None = None
    experts_overlap: float | None = None
    experts_equal: float | None = None
    expert_error: float | None = None
    worst_expert: int | None = None
    worst_expert_error: float | None = None


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """kl [N] f32: KL(reference || candidate) in nats at each scored position; kl_means {group: its mean}; perplexity
    {group: (reference, candidate)} of the named groups; top1_agreement: share of scored positions with the same
    likeliest token; embedding_error: relative, of the word embeddings; head_kl: mean KL of norm and head, given the
    reference's last hidden state; num_traced_tokens: positions of the piece-by-piece pass."""

    kl: Floats
    kl_means: dict[str, float]
    top1_agreement: float
    perplexity: dict[str, tuple[float, float]]
    layers: tuple[LayerComparison, ...]
    embedding_error: float
    head_kl: float
    num_traced_tokens: int


# --- the reference ----------------------------------------------------------------------------------------------


def record_trace(
    model: BailingMoeV2ForCausalLM,
    sequences: Sequence[TokenSequence],
    folder: Path,
    on_progress: Progress = lambda done, total: None,
) -> Trace:
    """Runs the reference over the sequences and writes its trace into an existing folder.

    Raises OSError if the disk cannot hold it, before any work where that can be known.
    """
    trace = Trace(folder, tuple(sequences), shape_of(model.config))
    _require_space(trace, model)
    kept = set(trace.traced)
    with trace.log_probs_path.open("wb") as log_probs, trace.hidden_path.open("wb") as hidden:
        for index, sequence in enumerate(trace.sequences):
            output = _run(model, sequence, output_hidden=index in kept)
            _append(log_probs, _score(output.logits, sequence))
            if index in kept:
                _append(hidden, torch.cat(output.hidden))
            routers = output.router or {}
            trace.experts.append({layer: _sorted_ids(router).cpu() for layer, router in routers.items()})
            on_progress(index + 1, len(trace.sequences))
    with torch.inference_mode():
        _record_experts(trace, model)
    return trace


def _record_experts(trace: Trace, model: BailingMoeV2ForCausalLM) -> None:
    """Keeps what enters the experts of each MoE layer at positions spread over the traced sequences, and what each of
    the experts makes of it."""
    sources = trace.traced[:: -(-len(trace.traced) // NUM_EXPERT_INPUTS)]
    num_each = -(-NUM_EXPERT_INPUTS // len(sources))
    inputs: dict[int, list[Tensor]] = {}
    for index, hidden_LSD in zip(trace.traced, _read_hidden(trace, model), strict=True):
        if index in sources:
            # Not the first positions: they attend to little and are alike.
            places = torch.linspace(0, hidden_LSD.shape[1] - 1, num_each + 1).long()[1:]
            for layer, h_SD in _expert_inputs(model, hidden_LSD):
                inputs.setdefault(layer, []).append(h_SD[places])
    trace.expert_inputs = {layer: torch.cat(rows)[:NUM_EXPERT_INPUTS] for layer, rows in inputs.items()}
    with trace.expert_outputs_path.open("wb") as file:
        for layer, inputs_ID in trace.expert_inputs.items():
            _append(file, _run_experts(model, layer, inputs_ID))


def _expert_inputs(model: BailingMoeV2ForCausalLM, hidden_LSD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(layer, [S,D] f32) of what enters the experts, from the states that enter the layers."""
    hidden_LSD = hidden_LSD.to(model.device, model.dtype)
    cos, sin = _rotary(model, hidden_LSD.shape[1])
    for index, layer in enumerate(_layers(model)):
        if model.config.is_moe_layer(index):
            x_BSD = hidden_LSD[index][None]
            x_BSD = x_BSD + layer.attention(layer.input_layernorm(x_BSD), cos, sin, None, None, index)
            yield index, layer.post_attention_layernorm(x_BSD)[0].float().cpu()


def _run_experts(model: BailingMoeV2ForCausalLM, layer: int, inputs_ID: Tensor) -> Tensor:
    """Every expert's output for every input, [E,I,D] f32."""
    num_experts = model.config.num_experts
    x_TD = inputs_ID.to(model.device, model.dtype).repeat(num_experts, 1)
    ids_T1 = torch.arange(num_experts, device=model.device).repeat_interleave(len(inputs_ID))[:, None]
    mlp = _layers(model)[layer].mlp
    assert isinstance(mlp, MoE)
    y_TD = mlp.experts(x_TD, ids_T1, torch.ones_like(ids_T1, dtype=torch.float32))
    return y_TD.float().view(num_experts, -1, x_TD.shape[-1])


def _require_space(trace: Trace, model: BailingMoeV2ForCausalLM) -> None:
    config = model.config
    num_scored = sum(len(sequence.token_ids) - sequence.scored_from for sequence in trace.sequences)
    num_traced = sum(len(trace.sequences[index].token_ids) for index in trace.traced)
    num_vectors = num_traced * (config.num_hidden_layers + 1)
    num_vectors += config.num_hidden_layers * config.num_experts * NUM_EXPERT_INPUTS
    needed = 4 * (num_scored * config.vocab_size + num_vectors * config.hidden_size)
    free = shutil.disk_usage(trace.folder).free
    if needed > free:
        raise OSError(
            f"The comparison needs {needed / 1e9:,.1f} GB for the reference's outputs, but {trace.folder} has "
            f"{free / 1e9:,.1f} GB free; set TMPDIR to a larger disk or use fewer items."
        )


def _append(file: BinaryIO, tensor: Tensor) -> None:
    file.write(tensor.float().cpu().contiguous().numpy().data)


# --- the candidate ----------------------------------------------------------------------------------------------


def compare_to(
    trace: Trace, model: BailingMoeV2ForCausalLM, on_progress: Progress = lambda done, total: None
) -> ModelComparison:
    """Holds the candidate against a reference's trace. Raises ValueError if the two are not of one shape."""
    if shape_of(model.config) != trace.shape:
        raise ValueError(
            "Reference and candidate are different models: layers, experts or vocabulary of their config.json differ."
        )
    free, stages = _FreeRun(), _StageErrors(model.config.num_hidden_layers)
    log_probs = _read_log_probs(trace, model.config.vocab_size)
    hidden = _read_hidden(trace, model)
    kept = set(trace.traced)
    for index, sequence in enumerate(trace.sequences):
        reference_NV = next(log_probs)
        free.add(sequence, reference_NV, _run(model, sequence), trace.experts[index])
        if index in kept:
            with torch.inference_mode():
                stages.add(model, sequence, next(hidden), trace.experts[index], reference_NV)
        on_progress(index + 1, len(trace.sequences))
    with torch.inference_mode():
        expert_errors = _compare_experts(trace, model)
    return ModelComparison(
        kl=np.concatenate(free.kl),
        kl_means=free.kl_means(trace.sequences),
        top1_agreement=float(np.concatenate(free.is_top1_equal).mean()),
        perplexity=free.perplexity(),
        layers=tuple(stages.summarize(n, free, expert_errors) for n in range(stages.num_layers)),
        embedding_error=_median(stages.embedding),
        head_kl=float(np.concatenate(stages.head_kl).mean()),
        num_traced_tokens=sum(map(len, stages.embedding)),
    )


def _compare_experts(trace: Trace, model: BailingMoeV2ForCausalLM) -> dict[int, Floats]:
    """{layer: the median relative error of each expert, [E]}."""
    errors = {}
    with trace.expert_outputs_path.open("rb") as file:
        for layer, inputs_ID in trace.expert_inputs.items():
            y_EID = _read(file, (model.config.num_experts, *inputs_ID.shape))
            error_EI = _relative(_run_experts(model, layer, inputs_ID).cpu() - y_EID, y_EID)
            errors[layer] = np.median(error_EI, axis=1)
    return errors


class _FreeRun:
    """Sums of the candidate running by itself."""

    def __init__(self) -> None:
        self.kl: list[Floats] = []
        self.is_top1_equal: list[NDArray[np.bool_]] = []
        self.overlap: dict[int, list[Floats]] = {}
        self._loss: dict[str, list[tuple[Floats, Floats]]] = {}

    def add(
        self, sequence: TokenSequence, reference_NV: Tensor, output: ModelOutput, experts: dict[int, Tensor]
    ) -> None:
        candidate_NV = _score(output.logits, sequence).cpu()
        self.kl.append(kl_divergence(reference_NV, candidate_NV).numpy())
        self.is_top1_equal.append((reference_NV.argmax(-1) == candidate_NV.argmax(-1)).numpy())
        for layer, router in (output.router or {}).items():
            self.overlap.setdefault(layer, []).append(overlap(experts[layer], _sorted_ids(router).cpu()).numpy())
        if sequence.group:
            targets_N = torch.tensor(sequence.token_ids[sequence.scored_from + 1 :])
            losses = tuple(-rows[: len(targets_N)].gather(1, targets_N[:, None])[:, 0].numpy()
                           for rows in (reference_NV, candidate_NV))  # fmt: skip
            self._loss.setdefault(sequence.group, []).append((losses[0], losses[1]))

    def kl_means(self, sequences: Sequence[TokenSequence]) -> dict[str, float]:
        """The mean KL of each group, "" included."""
        parts: dict[str, list[Floats]] = {}
        for sequence, kl in zip(sequences, self.kl, strict=True):
            parts.setdefault(sequence.group, []).append(kl)
        return {group: float(np.concatenate(found).mean()) for group, found in parts.items()}

    def perplexity(self) -> dict[str, tuple[float, float]]:
        """exp of the mean loss of each group, of reference and candidate."""
        result = {}
        for group, pairs in self._loss.items():
            reference, candidate = (np.concatenate(losses) for losses in zip(*pairs, strict=True))
            result[group] = (float(np.exp(reference.mean())), float(np.exp(candidate.mean())))
        return result


class _StageErrors:
    """Errors of embedding, each layer and the head, each given the reference's own input; one entry a position."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.embedding: list[Floats] = []
        self.head_kl: list[Floats] = []
        self._error: list[list[Floats]] = [[] for _ in range(num_layers)]
        self._router_overlap: dict[int, list[Floats]] = {}

    def add(
        self,
        model: BailingMoeV2ForCausalLM,
        sequence: TokenSequence,
        hidden_LSD: Tensor,
        experts: dict[int, Tensor],
        reference_NV: Tensor,
    ) -> None:
        hidden_LSD = hidden_LSD.to(model.device)
        ids_BS = _ids(model, sequence)
        embedded_SD = model.model.word_embeddings(ids_BS)[0].float()
        self.embedding.append(_relative(embedded_SD - hidden_LSD[0], hidden_LSD[0]))
        dtype = model.dtype
        cos, sin = _rotary(model, ids_BS.shape[1])
        for index, layer in enumerate(_layers(model)):
            x_SD, y_SD = hidden_LSD[index], hidden_LSD[index + 1]
            out_BSD, router = layer(x_SD[None].to(dtype), cos, sin, None, None)
            self._error[index].append(_relative(out_BSD[0].float() - y_SD, y_SD - x_SD))
            if router is not None:
                same = overlap(experts[index], _sorted_ids(router).cpu())
                self._router_overlap.setdefault(index, []).append(same.numpy())
        last_BSD = model.model.norm(hidden_LSD[-1:].to(dtype))
        head_NV = _score(model.lm_head(last_BSD).float(), sequence).cpu()
        self.head_kl.append(kl_divergence(reference_NV, head_NV).numpy())

    def summarize(self, layer: int, free: _FreeRun, expert_errors: dict[int, Floats]) -> LayerComparison:
        error = _median(self._error[layer])
        if layer not in expert_errors:
            return LayerComparison(layer, error)
        same, of_experts = np.concatenate(free.overlap[layer]), expert_errors[layer]
        worst = int(np.nan_to_num(of_experts, nan=np.inf).argmax())
        return LayerComparison(
            layer,
            error,
            router_overlap=float(np.concatenate(self._router_overlap[layer]).mean()),
            experts_overlap=float(same.mean()),
            experts_equal=float((same == 1).mean()),
            expert_error=float(np.median(of_experts)),
            worst_expert=worst,
            worst_expert_error=float(of_experts[worst]),
        )


# --- measures ---------------------------------------------------------------------------------------------------


def kl_divergence(reference_NV: Tensor, candidate_NV: Tensor) -> Tensor:
    """KL(reference || candidate) [N] in nats of log-probabilities [N,V]; what rounding makes negative is 0."""
    return (reference_NV.exp() * (reference_NV - candidate_NV)).sum(-1).clamp_min(0)


def overlap(ids_TK: Tensor, others_TK: Tensor) -> Tensor:
    """Share [T] f32 of the experts of each row that stand in the other's row too, whatever their order."""
    return (ids_TK[:, :, None] == others_TK[:, None, :]).any(-1).float().mean(-1)


def _relative(difference_SD: Tensor, of_SD: Tensor) -> Floats:
    return (difference_SD.norm(dim=-1) / (of_SD.norm(dim=-1) + _TINY)).cpu().numpy()


def _median(parts: Sequence[Floats]) -> float:
    values = np.concatenate(parts)
    return float(np.median(values)) if len(values) else float("nan")


# --- running ----------------------------------------------------------------------------------------------------


def _run(model: BailingMoeV2ForCausalLM, sequence: TokenSequence, output_hidden: bool = False) -> ModelOutput:
    with torch.inference_mode():
        return model(_ids(model, sequence), output_router=True, output_hidden=output_hidden)


def _layers(model: BailingMoeV2ForCausalLM) -> list[DecoderLayer]:
    layers = list(model.model.layers)[: model.config.num_hidden_layers]
    return [layer for layer in layers if isinstance(layer, DecoderLayer)]


def _rotary(model: BailingMoeV2ForCausalLM, num_positions: int) -> tuple[Tensor, Tensor]:
    cos, sin = model.rotary(torch.arange(num_positions, device=model.device)[None])
    return cos.to(model.dtype), sin.to(model.dtype)


def _ids(model: BailingMoeV2ForCausalLM, sequence: TokenSequence) -> Tensor:
    return torch.tensor([sequence.token_ids], device=model.device)


def _score(logits_BSV: Tensor, sequence: TokenSequence) -> Tensor:
    """Log-probabilities [N,V] f32 of the scored positions."""
    return logits_BSV[0, sequence.scored_from :].float().log_softmax(-1)


def _sorted_ids(router: RouterOutput) -> Tensor:
    return router.topk_ids.sort(-1).values


def shape_of(config: ModelConfig) -> tuple[int, ...]:
    """What two models must have in common: layers, hidden size, experts, experts per token, vocabulary."""
    return (config.num_hidden_layers, config.hidden_size, config.num_experts, config.num_experts_per_tok,
            config.vocab_size)  # fmt: skip


def _read_log_probs(trace: Trace, vocab_size: int) -> Iterator[Tensor]:
    with trace.log_probs_path.open("rb") as file:
        for sequence in trace.sequences:
            num_scored = len(sequence.token_ids) - sequence.scored_from
            yield _read(file, (num_scored, vocab_size))


def _read_hidden(trace: Trace, model: BailingMoeV2ForCausalLM) -> Iterator[Tensor]:
    config = model.config
    with trace.hidden_path.open("rb") as file:
        for index in trace.traced:
            num_tokens = len(trace.sequences[index].token_ids)
            yield _read(file, (config.num_hidden_layers + 1, num_tokens, config.hidden_size))


def _read(file: BinaryIO, shape: tuple[int, ...]) -> Tensor:
    data = file.read(4 * int(np.prod(shape)))
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(shape)
