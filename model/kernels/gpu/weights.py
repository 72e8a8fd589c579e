"""A model's weights in the layout of the card's kernels: taken over from a loaded model, one layer at a time.

What is taken is gone from the model, so that no weight exists twice for longer than one part of a layer. Suffixes as in
model.kernels.gpu.layout; E counts the shared experts too where they stand in the routed ones' stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.kernels.build import KernelsUnavailableError
from model.kernels.gpu.layout import (
    FP8_BLOCK,
    SLAB_ROWS,
    Fp8Weight,
    Weight,
    dequantize,
    pack_fp8_weight,
    pack_int4_weight,
    shape_of,
)
from model.modeling import MLP, BailingMoeV2ForCausalLM, DecoderLayer, Experts, MoE, MTPLayer, Rotary
from model.quantized import DenseMatrix, Fp8Matrix, Int4Matrix, Matrix, QuantizedExperts, list_matrices

PACKED_AT_ONCE = 2**28  # weights; packing INT4 takes some 10 bytes of scratch for each


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """A dense layer, or shared experts that are stored otherwise than the routed ones: stacks of one expert."""

    gate_up: Weight
    down: Weight


@dataclass(frozen=True, slots=True)
class MoeWeights:
    """router bf16 [E,D], bias f32 [E]. gate_up [E,2F,D] and down [E,D,F]; the last num_shared of the stack are the
    shared experts, unless they lie in `shared`. places i32 [1 + E]: where in the stack expert e lies, at e + 1, and -1
    for one that is computed elsewhere, or for no expert, at 0; None: all are here, in order."""

    router: Tensor
    bias: Tensor
    gate_up: Weight
    down: Weight
    num_shared: int
    shared: MlpWeights | None
    places: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    input_norm: Tensor
    qkv: Weight
    query_norm: Tensor
    key_norm: Tensor
    dense: Weight
    post_norm: Tensor
    mlp: MoeWeights | MlpWeights


@dataclass(frozen=True, slots=True)
class MtpWeights:
    """The MTP layer. join [D,2D]: from the next token's embedding and this one's state, each after its norm."""

    layer: LayerWeights
    embedding_norm: Tensor
    hidden_norm: Tensor
    join: Weight
    final_norm: Tensor


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """embedding bf16 [V,D]; norm bf16 [D]; cos and sin f32 [P,R/2] of every position. mtp: None where nothing is to be
    drafted by it."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Weight
    cos: Tensor
    sin: Tensor
    mtp: MtpWeights | None = None

    @property
    def nbytes(self) -> int:
        """Memory of all of them; a tied head counts once."""
        held: list[Weight] = [self.embedding, self.norm, self.cos, self.sin]
        held += [] if self.head is self.embedding else [self.head]
        layers = list(self.layers)
        if self.mtp is not None:
            layers.append(self.mtp.layer)
            held += [self.mtp.embedding_norm, self.mtp.hidden_norm, self.mtp.join, self.mtp.final_norm]
        for layer in layers:
            held += [layer.input_norm, layer.qkv, layer.query_norm, layer.key_norm, layer.dense, layer.post_norm]
            mlps = [layer.mlp, layer.mlp.shared] if isinstance(layer.mlp, MoeWeights) else [layer.mlp]
            held += [weight for mlp in mlps if mlp for weight in (mlp.gate_up, mlp.down)]
            held += [layer.mlp.router, layer.mlp.bias] if isinstance(layer.mlp, MoeWeights) else []
        return sum(weight.nbytes for weight in held)


def check_supported(model: BailingMoeV2ForCausalLM) -> None:
    """Raises KernelsUnavailableError naming the first thing about the model that the card's kernels cannot do."""
    config = model.config
    if model.dtype != torch.bfloat16:
        raise KernelsUnavailableError("the card's kernels compute in bf16; set the precision to bf16")
    C = config.head_dim
    if C < 16 or C & (C - 1):
        raise KernelsUnavailableError(f"heads of {C} dims; the card's kernels need a power of two from 16 on")
    for width in (config.hidden_size, config.moe_intermediate_size, config.intermediate_size):
        if width % 16:
            raise KernelsUnavailableError(f"{width} channels; the card's kernels need multiples of 16")
    for name, matrix in list_matrices(model):
        if not isinstance(matrix, DenseMatrix | Int4Matrix | Fp8Matrix):
            raise KernelsUnavailableError(f"no kernels on the card for {matrix.precision} ({name})")


def make_rotary(config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin f32 [P, R/2] of every position of the context, YaRN's factor included."""
    cos, sin = Rotary(config)(torch.arange(config.context_length)[None])
    return cos[0, 0].to(device), sin[0, 0].to(device)


def take_weights(
    model: BailingMoeV2ForCausalLM,
    device: torch.device,
    hot: Sequence[Sequence[int]] | None = None,
    has_mtp: bool = False,
) -> DecoderWeights:
    """Moves a model's weights, wherever they lie, to the device and into the kernels' layout; its modules lose them as
    they go, but for the embedding and the norms. hot: of each layer, the routed experts to be taken, by default all;
    the others stay in the model. The MTP layer is taken too with has_mtp, whole, and else left where it is."""
    check_supported(model)
    decoder, config = model.model, model.config
    embedding = decoder.word_embeddings.weight.detach().to(device)
    layers = []
    for index, layer in enumerate(decoder.layers[: config.num_hidden_layers]):
        assert isinstance(layer, DecoderLayer)
        layers.append(_take_layer(layer, device, None if hot is None else hot[index]))
    head = embedding if config.tie_word_embeddings else _take(model.lm_head, device)
    cos, sin = make_rotary(config, device)
    mtp = _take_mtp(decoder.layers[config.num_hidden_layers], device) if has_mtp else None
    return DecoderWeights(embedding, tuple(layers), decoder.norm.weight.detach().to(device), head, cos, sin, mtp)


def _take_mtp(layer: nn.Module, device: torch.device) -> MtpWeights:
    assert isinstance(layer, MTPLayer)
    norms = (layer.enorm, layer.hnorm, layer.final_layernorm)
    embedding_norm, hidden_norm, final_norm = (norm.weight.detach().to(device) for norm in norms)
    join = _take(layer.eh_proj, device)
    return MtpWeights(_take_layer(layer, device, None), embedding_norm, hidden_norm, join, final_norm)


def _take_layer(layer: DecoderLayer, device: torch.device, hot: Sequence[int] | None) -> LayerWeights:
    attention, mlp = layer.attention, layer.mlp
    norms = (layer.input_layernorm, attention.query_layernorm, attention.key_layernorm, layer.post_attention_layernorm)
    input_norm, query_norm, key_norm, post_norm = (norm.weight.detach().to(device) for norm in norms)
    return LayerWeights(
        input_norm,
        _take(attention.query_key_value, device),
        query_norm,
        key_norm,
        _take(attention.dense, device),
        post_norm,
        _take_moe(mlp, device, hot) if isinstance(mlp, MoE) else _take_mlp(mlp, device),
    )


def _take_moe(moe: MoE, device: torch.device, hot: Sequence[int] | None) -> MoeWeights:
    gate_up, down = _take_experts(moe.experts, device, hot)
    shared = None if moe.shared_experts is None else _take_mlp(moe.shared_experts, device)
    num_shared = 0
    if shared and (_form(shared.gate_up), _form(shared.down)) == (_form(gate_up), _form(down)):
        gate_up, down = _stack(gate_up, shared.gate_up), _stack(down, shared.down)
        num_shared, shared = 1, None
    return MoeWeights(
        moe.gate.weight.detach().to(device),
        moe.gate.expert_bias.detach().float().to(device),
        gate_up,
        down,
        num_shared,
        shared,
        None if hot is None else _place(hot, moe.gate.config.num_experts, num_shared).to(device),
    )


def _place(hot: Sequence[int], num_experts: int, num_shared: int) -> Tensor:
    """MoeWeights.places for a stack of these routed experts and the shared ones."""
    places = torch.full((1 + num_experts + num_shared,), -1, dtype=torch.int32)
    experts = [*hot, *range(num_experts, num_experts + num_shared)]
    places[torch.tensor(experts) + 1] = torch.arange(len(experts), dtype=torch.int32)
    return places


def _take_mlp(mlp: MLP, device: torch.device) -> MlpWeights:
    gate, up, down = (_take(linear, device) for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    return MlpWeights(_map(_join_rows(gate, up), lambda t: t[None]), _map(down, lambda t: t[None]))


def _take_experts(experts: nn.Module, device: torch.device, hot: Sequence[int] | None) -> tuple[Weight, Weight]:
    """The stacks of a layer, packed some experts at a time."""
    if isinstance(experts, Experts):
        chosen = slice(None) if hot is None else list(hot)
        taken = experts.gate_up_proj.detach()[chosen].to(device), experts.down_proj.detach()[chosen].to(device)
        if hot is None:
            release(experts)
        return taken
    assert isinstance(experts, QuantizedExperts)
    numbers = list(range(experts.down_proj.shape[0])) if hot is None else list(hot)
    step = max(PACKED_AT_ONCE // (experts.down_proj.shape[-1] * experts.down_proj.shape[-2]), 1)
    parts = [numbers[first : first + step] for first in range(0, len(numbers), step)]

    def pack_gate_up(part: Sequence[int]) -> Weight:
        return _join_rows(*(_pack(stack, device, part) for stack in (experts.gate_proj, experts.up_proj)))

    gate_up = _gather(map(pack_gate_up, parts), len(numbers))
    down = _gather((_pack(experts.down_proj, device, part) for part in parts), len(numbers))
    if hot is None:
        release(experts)
    return gate_up, down


def _gather(parts: Iterable[Weight], num_experts: int) -> Weight:
    """One stack of parts that are made one after the other, so that it does not exist twice."""
    whole: Any = None
    first = 0
    for part in parts:
        if whole is None:
            whole = _map(part, lambda t: t.new_empty(num_experts, *t.shape[1:]))
        size = len(next(iter(_tensors(part).values())))
        for name, source in _tensors(part).items():
            _tensors(whole)[name][first : first + size] = source
        first += size
    return whole


def _take(module: nn.Module, device: torch.device) -> Weight:
    """A matrix [O, I], which the module loses."""
    taken = module.weight.detach().to(device) if isinstance(module, nn.Linear) else _pack(module, device)
    if isinstance(module, Matrix):
        release(module)
    elif isinstance(module, nn.Linear):
        module.weight = nn.Parameter(torch.empty(0, dtype=module.weight.dtype), requires_grad=False)
    return taken


def _pack(matrix: nn.Module, device: torch.device, part: Sequence[int] | None = None) -> Weight:
    """part: experts of a stack; None for a single matrix. What the kernels cannot read packed becomes bf16."""
    assert isinstance(matrix, Matrix)
    if isinstance(matrix, Int4Matrix) and matrix.zeros is None and matrix.g_idx is None and _has_groups(matrix):
        packed, scales = (_choose(t, part).to(device) for t in (matrix.packed, matrix.scales))
        return pack_int4_weight(packed, scales, matrix.shape[-1], matrix.group_size)
    if isinstance(matrix, Fp8Matrix) and matrix.block == (FP8_BLOCK, FP8_BLOCK):
        return pack_fp8_weight(*(_choose(t, part).to(device) for t in (matrix.weight, matrix.scale_inv)))
    if part is None:
        return matrix.dequantize(dtype=torch.bfloat16).to(device)
    return torch.stack([matrix.dequantize(expert, torch.bfloat16).to(device) for expert in part])


def _has_groups(matrix: Int4Matrix) -> bool:
    """Whether pack_int4_weight takes them: multiples of 64 columns, or one group for a short row."""
    return matrix.group_size % 64 == 0 or (matrix.group_size >= matrix.shape[-1] and matrix.shape[-1] <= 128)


def _choose(tensor: Tensor, part: Sequence[int] | None) -> Tensor:
    return tensor if part is None else tensor[list(part)]


def release(module: nn.Module) -> None:
    """Lets a module's weights and buffers go."""
    for each in module.modules():
        for name in list(each._parameters):
            each._parameters[name] = None
        for name in list(each._buffers):
            each._buffers[name] = None


def _tensors(weight: Weight) -> dict[str, Tensor]:
    if isinstance(weight, Tensor):
        return {"": weight}
    return {"words": weight.words, "scales": weight.scales}


def _rebuild(weight: Weight, tensors: dict[str, Tensor], **changes: int) -> Weight:
    """Another weight of the same kind."""
    return tensors[""] if isinstance(weight, Tensor) else replace(weight, **tensors, **changes)  # type: ignore[arg-type]


def _map(weight: Weight, change: Callable[[Tensor], Tensor]) -> Weight:
    return _rebuild(weight, {name: change(tensor) for name, tensor in _tensors(weight).items()})


def _form(weight: Weight) -> tuple[object, ...]:
    """Weights of one form and of as many rows can stand in one stack."""
    return type(weight), *shape_of(weight), getattr(weight, "group", 0)


def _stack(one: Weight, other: Weight) -> Weight:
    """The experts of one stack behind those of another of the same form."""
    others = _tensors(other)
    return _rebuild(one, {name: torch.cat((tensor, others[name])) for name, tensor in _tensors(one).items()})


def _join_rows(gate: Weight, up: Weight) -> Weight:
    """One matrix, or stack, with up's rows behind gate's; in bf16 where they cannot be joined as they are."""
    rows = 2 * shape_of(gate)[0]
    unit = 1 if isinstance(gate, Tensor) else FP8_BLOCK if isinstance(gate, Fp8Weight) else SLAB_ROWS
    if _form(gate) != _form(up) or (rows // 2) % unit:
        return torch.cat([dequantize(weight).to(torch.bfloat16) for weight in (gate, up)], -2)
    ups = _tensors(up)
    joined = {
        name: torch.cat((tensor, ups[name]), -3 if name == "words" else -2) for name, tensor in _tensors(gate).items()
    }
    return _rebuild(gate, joined, num_rows=rows)
