"""BailingMoeV2 in plain torch, top to bottom: the definition that every kernel and every precision is held against.

Token ids in, logits out; for inference and for training. Knows nothing of files, text, sampling or requests.
Parameter names are the checkpoint's, but for the routed experts, which are stacked: see `Experts`.

Shape suffixes: B sequences, T tokens (flattened over B and S), S positions of this call, P cached and new positions,
D hidden, H query heads, G kv heads, C head dim, R rotary dim, E experts, K experts per token, F expert hidden, V vocab.

Precision: norms, rotary angles, the router and the sum over experts are float32, as the reference does it; the rest
runs in the dtype of the weights, or of autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig


class Cache(Protocol):
    """Where keys and values of earlier positions rest; `model.kv_cache.KVCache` is one."""

    @property
    def num_cached_tokens(self) -> int: ...

    def append(self, layer: int, k_BGSC: Tensor, v_BGSC: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new keys and values of a layer; returns all of that layer, [B,G,P,C] each."""
        ...

    def advance(self, num_tokens: int) -> None:
        """Called once per forward pass, after every layer has appended."""
        ...


@dataclass(frozen=True, slots=True)
class RouterOutput:
    """One MoE layer's choice: logits [T,E] f32 before the sigmoid, topk_ids [T,K] i64, topk_weights [T,K] f32."""

    logits: Tensor
    topk_ids: Tensor
    topk_weights: Tensor


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What a pass computed. `logits` [B,S,V] f32 (S: the last `logits_to_keep` positions); `last_hidden` [B,S,D]
    after the final norm; `hidden` the embeddings and each layer's residual stream; `router` {layer: RouterOutput}.
    The mtp fields are None unless asked for: row t predicts token t+2, and the last row saw token 0 for t+1."""

    logits: Tensor
    last_hidden: Tensor
    hidden: tuple[Tensor, ...] = ()
    router: dict[int, RouterOutput] | None = None
    mtp_logits: Tensor | None = None
    mtp_hidden: Tensor | None = None
    mtp_router: RouterOutput | None = None


RouterObserver = Callable[[Sequence[Tensor] | Tensor, Sequence[Tensor] | Tensor, int], None]
"""(topk_ids, logits, T) of a pass, called at its end: [T,K] and [T,E] of each MoE layer in order, or each as one tensor
with the layers first. It must be quick, and nothing may write to the tensors afterwards."""


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # The reference rounds to the input dtype before it multiplies by the weight; in bf16 the order shows.
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype) * self.weight


# --- positions --------------------------------------------------------------------------------------------------


def rope_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """inv_freq [R/2] f32 on the CPU and the factor for cos and sin (1.0 without YaRN)."""
    R = config.rotary_dim
    exponent = torch.arange(0, R, 2, dtype=torch.int64, device="cpu").float() / R
    inv_freq = 1.0 / config.rope_theta**exponent
    yarn = config.rope_scaling
    if yarn is None:
        return inv_freq, 1.0

    def dim_of(rotations: float) -> float:
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return R * math.log(turns) / (2 * math.log(config.rope_theta))

    low = max(math.floor(dim_of(yarn.beta_fast)), 0)
    high = min(math.ceil(dim_of(yarn.beta_slow)), R - 1)
    span = (high - low) or 0.001
    ramp = ((torch.arange(R // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0, 1)
    factor = yarn.attention_factor or 0.1 * math.log(yarn.factor) + 1.0
    return inv_freq * (1 - ramp) + inv_freq / yarn.factor * ramp, factor


class Rotary:
    """cos and sin of positions. Not a module: its frequencies must stay float32 whatever the model is cast to."""

    def __init__(self, config: ModelConfig) -> None:
        self.inv_freq, self.attention_factor = rope_frequencies(config)

    def __call__(self, position_ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B,1,S,R/2] f32, ready to broadcast over heads."""
        if self.inv_freq.device != position_ids_BS.device:
            self.inv_freq = self.inv_freq.to(position_ids_BS.device)
        angle = position_ids_BS[:, None, :, None].float() * self.inv_freq
        return angle.cos() * self.attention_factor, angle.sin() * self.attention_factor


def rotate(x_BNSC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the first R dims of each head, halves paired (a, b) -> (a cos - b sin, b cos + a sin); the rest passes."""
    half = cos.shape[-1]
    a, b, rest = x_BNSC.split((half, half, x_BNSC.shape[-1] - 2 * half), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


# --- attention --------------------------------------------------------------------------------------------------


def make_mask(B: int, S: int, num_cached: int, attention_mask_BP: Tensor | None, device: torch.device) -> Tensor | None:
    """Boolean mask [B or 1,1,S,P], True where a query may look; None where plain causal attention is meant.

    A masked position still sees itself: a row with nothing to see would be NaN and spoil the values of later rows.
    """
    P = num_cached + S
    is_padded = attention_mask_BP is not None and not bool(attention_mask_BP.all())
    if not is_padded and (num_cached == 0 or S == 1):
        return None
    query_S1 = torch.arange(num_cached, P, device=device)[:, None]
    key_1P = torch.arange(P, device=device)[None, :]
    causal_SP = key_1P <= query_S1
    if not is_padded or attention_mask_BP is None:
        return causal_SP[None, None]
    if attention_mask_BP.shape != (B, P):
        raise ValueError(f"attention_mask has shape {tuple(attention_mask_BP.shape)}; it must be {(B, P)}.")
    return ((causal_SP & attention_mask_BP.bool()[:, None, :]) | (key_1P == query_S1))[:, None]


class Attention(nn.Module):
    """Grouped-query attention; q and k are normalised per head, then rotated."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        H, G, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.num_heads, self.num_kv_heads, self.head_dim = H, G, C
        self.query_key_value = nn.Linear(config.hidden_size, (H + 2 * G) * C, bias=False)
        self.query_layernorm = RMSNorm(C, config.rms_norm_eps)
        self.key_layernorm = RMSNorm(C, config.rms_norm_eps)
        self.dense = nn.Linear(H * C, config.hidden_size, bias=False)

    def forward(
        self, x_BSD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None, layer: int
    ) -> Tensor:
        B, S, _ = x_BSD.shape
        H, G, C = self.num_heads, self.num_kv_heads, self.head_dim
        # Rows of the fused weight: all query heads, then all key heads, then all value heads.
        qkv_BNSC = self.query_key_value(x_BSD).view(B, S, H + 2 * G, C).transpose(1, 2)
        q, k, v = qkv_BNSC.split((H, G, G), dim=1)
        # Under autocast the norm weights are float32 and would lift q and k above v.
        q = rotate(self.query_layernorm(q).to(v.dtype), cos, sin)
        k = rotate(self.key_layernorm(k).to(v.dtype), cos, sin)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        if S == 1:
            # One query per head: the heads of a group stand in the query axis, so the cache is read in place.
            out = F.scaled_dot_product_attention(q.reshape(B, G, H // G, C), k, v, attn_mask=mask)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=H != G)
        return self.dense(out.reshape(B, H, S, C).transpose(1, 2).reshape(B, S, H * C))


# --- feed-forward -----------------------------------------------------------------------------------------------


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)): the dense layers and the shared expert."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Sigmoid scores; the best groups, then the best experts within them, chosen by score + bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.register_buffer("expert_bias", torch.zeros(config.num_experts))
        self.expert_bias: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Router:
        """Moves with the model but keeps expert_bias float32: in bf16 its steps of 1e-3 would vanish."""
        bias = self.expert_bias
        super()._apply(fn, recurse)
        if self.expert_bias.dtype != torch.float32:
            self.expert_bias = bias.to(self.expert_bias.device)
        return self

    def forward(self, x_TD: Tensor) -> RouterOutput:
        config = self.config
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.float(), self.weight.float())
        scores_TE = logits_TE.sigmoid()
        topk_ids_TK = self._choose(scores_TE.detach() + self.expert_bias)
        # The bias steers the choice only; the weights are the scores themselves.
        weights_TK = scores_TE.gather(1, topk_ids_TK)
        if config.num_experts_per_tok > 1:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return RouterOutput(logits_TE, topk_ids_TK, weights_TK * config.routed_scaling_factor)

    def _choose(self, choice_TE: Tensor) -> Tensor:
        return keep_best_groups(choice_TE, self.config).topk(self.config.num_experts_per_tok, dim=-1).indices


def keep_best_groups(choice_TE: Tensor, config: ModelConfig) -> Tensor:
    """Scores [T,E] with -inf at the experts outside each token's best groups, as the router chooses them."""
    if config.topk_group == config.n_group:
        return choice_TE
    by_group = choice_TE.view(-1, config.n_group, config.experts_per_group)
    group_scores = by_group.topk(min(2, config.experts_per_group), dim=-1).values.sum(-1)
    kept = group_scores.topk(config.topk_group, dim=-1, sorted=False).indices
    is_out = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, kept, False)
    # -inf, not 0: with negative biases a masked 0 would win.
    return by_group.masked_fill(is_out[..., None], float("-inf")).view_as(choice_TE)


class Experts(nn.Module):
    """The routed experts, stacked: gate_up_proj [E,2F,D] (gate rows, then up rows) and down_proj [E,D,F].

    A checkpoint holds them one by one as `experts.{e}.gate_proj|up_proj|down_proj.weight`; `model.checkpoint` maps.
    all_at_once: every token passes every expert, and those it did not choose weigh 0. E/K times the arithmetic, but a
    GPU need not be waited for: the faster way there to train few small experts.
    """

    all_at_once = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, D, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * width, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, width))

    def forward(self, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> Tensor:
        """Weighted sum of each token's experts, [T,D]."""
        if self.all_at_once:
            return self._run_all(x_TD, topk_ids_TK, topk_weights_TK)
        # unbind, not indexing: its backward is one stack instead of a full-size gradient per expert.
        gate_up, down = self.gate_up_proj.unbind(0), self.down_proj.unbind(0)

        def run_expert(expert: int, x_nD: Tensor) -> Tensor:
            gate, up = F.linear(x_nD, gate_up[expert]).chunk(2, dim=-1)
            return F.linear(F.silu(gate) * up, down[expert])

        return mix_experts(x_TD, topk_ids_TK, topk_weights_TK, len(down), run_expert)

    def _run_all(self, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> Tensor:
        E, D, width = self.down_proj.shape
        weights_TE = topk_weights_TK.new_zeros(len(x_TD), E).scatter(1, topk_ids_TK, topk_weights_TK)
        gate_TEF, up_TEF = F.linear(x_TD, self.gate_up_proj.flatten(0, 1)).view(-1, E, 2, width).unbind(2)
        act_TEF = F.silu(gate_TEF) * up_TEF * weights_TE[..., None].to(gate_TEF.dtype)
        return F.linear(act_TEF.flatten(1), self.down_proj.transpose(0, 1).reshape(D, E * width)).to(x_TD.dtype)


def mix_experts(
    x_TD: Tensor,
    topk_ids_TK: Tensor,
    topk_weights_TK: Tensor,
    num_experts: int,
    run_expert: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """Weighted sum of each token's experts, [T,D]. Tokens are sorted by expert: run_expert(expert, x [n,D]) -> [n,D] is
    called once for each expert that any token chose."""
    T, K = topk_ids_TK.shape
    flat_ids = topk_ids_TK.reshape(-1)
    order = flat_ids.argsort(stable=True)
    counts = torch.bincount(flat_ids, minlength=num_experts).tolist()
    parts = x_TD.index_select(0, order // K).split(counts)
    outputs = [run_expert(expert, x_nD) for expert, x_nD in enumerate(parts) if counts[expert]]
    y_TKD = torch.cat(outputs).index_select(0, order.argsort()).view(T, K, -1)
    return (y_TKD.float() * topk_weights_TK[..., None]).sum(1).to(x_TD.dtype)


class MoE(nn.Module):
    """Routed experts plus the shared one, which every token passes unscaled."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        width = config.moe_intermediate_size * config.num_shared_experts
        self.shared_experts = MLP(config.hidden_size, width) if width else None

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, RouterOutput]:
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        router = self.gate(x_TD)
        y_BSD = self.experts(x_TD, router.topk_ids, router.topk_weights).view_as(x_BSD)
        if self.shared_experts is not None:
            y_BSD = y_BSD + self.shared_experts(x_BSD)
        return y_BSD, router


# --- the decoder ------------------------------------------------------------------------------------------------


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        is_moe = config.is_moe_layer(index)
        self.mlp: MoE | MLP = MoE(config) if is_moe else MLP(config.hidden_size, config.intermediate_size)

    def forward(
        self, x_BSD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, RouterOutput | None]:
        x_BSD = x_BSD + self.attention(self.input_layernorm(x_BSD), cos, sin, mask, cache, self.index)
        h_BSD = self.post_attention_layernorm(x_BSD)
        y_BSD, router = self.mlp(h_BSD) if isinstance(self.mlp, MoE) else (self.mlp(h_BSD), None)
        return x_BSD + y_BSD, router


class MTPLayer(DecoderLayer):
    """Multi-token prediction: joins the next token's embedding to this position's hidden state."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__(config, index)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.final_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def join(self, embed_BSD: Tensor, hidden_BSD: Tensor) -> Tensor:
        """The layer's input from embed(token t+1) and the main model's state at t, after its final norm."""
        return self.eh_proj(torch.cat((self.enorm(embed_BSD), self.hnorm(hidden_BSD)), dim=-1))


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        # A random tensor on the meta device makes torch import its compiler, which takes seconds of every start.
        if not self.weight.is_meta:
            super().reset_parameters()


class BailingMoeV2Model(nn.Module):
    """Embedding, layers and final norm; holds the MTP layer too, since the checkpoint numbers it among the layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        kinds = [DecoderLayer] * config.num_hidden_layers + [MTPLayer] * config.num_nextn_predict_layers
        self.layers = nn.ModuleList(kind(config, index) for index, kind in enumerate(kinds))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class BailingMoeV2ForCausalLM(nn.Module):
    """The whole decoder. New weights are random; `model.checkpoint.load_model` fills them from a folder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = BailingMoeV2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rotary = Rotary(config)
        self.router_observer: RouterObserver | None = None
        self.init_weights()
        self.tie_weights()

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in. The head may be quantized and the embedding stay as stored; a norm never does."""
        return self.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.word_embeddings.weight.device

    def init_weights(self) -> None:
        """Matrices from N(0, initializer_range) by torch's global seed; norms stay 1 and expert_bias 0."""
        for parameter in self.parameters():
            if parameter.dim() > 1 and not parameter.is_meta:
                nn.init.normal_(parameter, std=self.config.initializer_range)

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.word_embeddings.weight

    def forward(
        self,
        input_ids_BS: Tensor,
        attention_mask_BS: Tensor | None = None,
        position_ids_BS: Tensor | None = None,
        cache: Cache | None = None,
        *,
        output_router: bool = False,
        output_hidden: bool = False,
        output_mtp: bool = False,
        logits_to_keep: int = 0,
    ) -> ModelOutput:
        """One pass over new tokens.

        input_ids_BS [B,S] i64; attention_mask_BS [B,cached+S], 0 on padding; position_ids_BS [B,S], by default counted
        on from the cache (never derived from the mask); logits_to_keep n computes logits of the last n positions only.
        """
        # 1. positions and mask, shared by all layers
        B, S = input_ids_BS.shape
        num_cached = 0 if cache is None else cache.num_cached_tokens
        if position_ids_BS is None:
            position_ids_BS = torch.arange(num_cached, num_cached + S, device=input_ids_BS.device)[None]
        mask = make_mask(B, S, num_cached, attention_mask_BS, input_ids_BS.device)
        # 2. the layers
        x_BSD = self.model.word_embeddings(input_ids_BS)
        cos, sin = (table.to(x_BSD.dtype) for table in self.rotary(position_ids_BS))
        hidden, routers = [x_BSD], dict[int, RouterOutput]()
        for index, layer in enumerate(self.model.layers[: self.config.num_hidden_layers]):
            x_BSD, router = layer(x_BSD, cos, sin, mask, cache)
            if output_hidden:
                hidden.append(x_BSD)
            if router is not None and (output_router or self.router_observer is not None):
                routers[index] = router
        if self.router_observer is not None and routers:
            seen = routers.values()
            self.router_observer([router.topk_ids for router in seen], [router.logits for router in seen], B * S)
        # 3. the head
        last_hidden = self.model.norm(x_BSD)
        logits = self.lm_head(last_hidden[:, -logits_to_keep:]).float()
        # 4. the token after next
        mtp: dict[str, Any] = {}
        if output_mtp and self.config.num_nextn_predict_layers:
            mtp = self._predict_token_after_next(input_ids_BS, last_hidden, cos, sin, mask, cache)
        if cache is not None:
            cache.advance(S)
        return ModelOutput(
            logits,
            last_hidden,
            hidden=tuple(hidden) if output_hidden else (),
            router=routers if output_router else None,
            **mtp,
        )

    def _predict_token_after_next(
        self,
        input_ids_BS: Tensor,
        last_hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
    ) -> dict[str, Any]:
        layer = self.model.layers[self.config.num_hidden_layers]
        assert isinstance(layer, MTPLayer)
        next_ids_BS = F.pad(input_ids_BS[:, 1:], (0, 1))  # the last position's next token is not known: 0
        joined = layer.join(self.model.word_embeddings(next_ids_BS), last_hidden)
        x_BSD, router = layer(joined, cos, sin, mask, cache)
        mtp_hidden = layer.final_layernorm(x_BSD)
        return {"mtp_logits": self.lm_head(mtp_hidden).float(), "mtp_hidden": mtp_hidden, "mtp_router": router}
