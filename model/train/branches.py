"""The decoder's pass over packed branches: same parameters and mathematics as `model.modeling`, less attention work.

What all branches share attends causally to itself, without a mask; only the rest needs one. Measured on one Zen 4 core
at 700 tokens a sequence, attention was two fifths of a step. `tests/model/test_train.py` holds it against the decoder.

Shape suffixes as in `model.modeling`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.modeling import Attention, BailingMoeV2ForCausalLM, DecoderLayer, MoE, MTPLayer, RMSNorm, rotate
from model.train.packing import Batch
from model.train.pointers import Watch

Routers = list[tuple[MoE, Tensor]]
"""Each MoE layer of a pass with the experts that it chose, [T,K] i64."""


def decode(model: BailingMoeV2ForCausalLM, batch: Batch, watch: Watch | None = None) -> tuple[Tensor, Routers]:
    """The residual stream [B,S,D] before the final norm, and what each router chose; watch sees queries and keys."""
    x_BSD = model.model.word_embeddings(batch.ids)
    dtype = _computing_dtype(x_BSD)
    cos, sin = (table.to(dtype) for table in model.rotary(batch.positions))
    num_shared = batch.num_shared
    routers: Routers = []
    mask = _as_bias(batch.mask[:, :, num_shared:], dtype)
    for layer in model.model.layers[: model.config.num_hidden_layers]:
        assert isinstance(layer, DecoderLayer)
        x_BSD, chosen = _run_layer(layer, x_BSD, cos, sin, mask, num_shared, watch)
        if chosen is not None:
            assert isinstance(layer.mlp, MoE)
            routers.append((layer.mlp, chosen))
    return x_BSD, routers


def decode_mtp(model: BailingMoeV2ForCausalLM, batch: Batch, hidden_BSD: Tensor) -> tuple[Tensor, Routers]:
    """The MTP layer's state [B,S,D] after its final norm, from the decoder's after its own, and what its router chose.

    Where a token has no one next token, as the last that all branches share, the padding's embedding stands for it."""
    layer = model.model.layers[model.config.num_hidden_layers]
    assert isinstance(layer, MTPLayer)
    assert isinstance(layer.mlp, MoE)
    pad_id = model.config.pad_token_id or 0
    next_ids, next_branches = (F.pad(x[:, 1:], (0, 1), value=v) for x, v in ((batch.ids, pad_id), (batch.branches, -1)))
    next_ids = next_ids.masked_fill(next_branches != batch.branches, pad_id)
    joined = layer.join(model.model.word_embeddings(next_ids).to(hidden_BSD.dtype), hidden_BSD)
    dtype = _computing_dtype(joined)
    cos, sin = (table.to(dtype) for table in model.rotary(batch.positions))
    mask = _as_bias(batch.mask[:, :, batch.num_shared :], dtype)
    x_BSD, chosen = _run_layer(layer, joined, cos, sin, mask, batch.num_shared)
    assert chosen is not None
    return layer.final_layernorm(x_BSD), [(layer.mlp, chosen)]


def _computing_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    """f32, in one kernel with its weight: those of a training run are f32 too."""
    return F.rms_norm(x.float(), norm.weight.shape, norm.weight, norm.eps)


def _as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a token may look and -inf elsewhere: made once, where attention would make it in every layer."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _run_layer(
    layer: DecoderLayer,
    x_BSD: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    num_shared: int,
    watch: Watch | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A layer's output, and the experts [T,K] that its router chose."""
    q, k, v = project(layer.attention, _norm(layer.input_layernorm, x_BSD), cos, sin)
    if watch is not None:
        watch(layer.index, q, k)
    x_BSD = x_BSD + attend(layer.attention, q, k, v, mask, num_shared)
    h_BSD = _norm(layer.post_attention_layernorm, x_BSD)
    if isinstance(layer.mlp, MoE):
        y_BSD, router = layer.mlp(h_BSD)
        return x_BSD + y_BSD, router.topk_ids
    return x_BSD + layer.mlp(h_BSD), None


def project(attention: Attention, x_BSD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B,H,S,C], keys and values [B,G,S,C], turned by their positions."""
    B, S, _ = x_BSD.shape
    H, G, C = attention.num_heads, attention.num_kv_heads, attention.head_dim
    qkv_BNSC = attention.query_key_value(x_BSD).view(B, S, H + 2 * G, C).transpose(1, 2)
    q, k, v = qkv_BNSC.split((H, G, G), dim=1)
    q = rotate(_norm(attention.query_layernorm, q).to(v.dtype), cos, sin).to(v.dtype)
    k = rotate(_norm(attention.key_layernorm, k).to(v.dtype), cos, sin).to(v.dtype)
    return q, k, v


def attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, num_shared: int) -> Tensor:
    """mask [B,1,S-num_shared,S] is for the positions after the first num_shared, which all rows share."""
    B, H, S, C = q.shape
    G = k.shape[1]
    if q.is_cuda:  # no kernel there takes both a mask and fewer key heads than query heads
        k, v = (part.repeat_interleave(H // G, dim=1) for part in (k, v))
        G = H
    parts = []
    if num_shared:
        first_q, first_k, first_v = (part[:, :, :num_shared] for part in (q, k, v))
        parts.append(F.scaled_dot_product_attention(first_q, first_k, first_v, is_causal=True, enable_gqa=H != G))
    if num_shared < S:
        parts.append(F.scaled_dot_product_attention(q[:, :, num_shared:], k, v, attn_mask=mask, enable_gqa=H != G))
    out_BHSC = torch.cat(parts, dim=2)
    return attention.dense(out_BHSC.transpose(1, 2).reshape(B, S, H * C))
