"""Every operation of the GPU in plain torch: the definition that the Triton kernels are held against, in float64.

Same names and arguments as in model.kernels.gpu.ops; results are written into the tensors given for them. Knows nothing
of Triton and runs anywhere, so that what is built on the operations can be tested without a card.

Suffixes: T tokens (rows of a step), D hidden, H query heads, G kv heads, C head dim, R rotary dim, E experts, S slots
(a token's experts, shared ones last), F expert hidden, V vocab, M blocks of a table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.cpu_decoder import BLOCK_TOKENS
from model.kernels.gpu.buffers import AttentionScratch, ExpertScratch, Routing
from model.kernels.gpu.layout import Weight, dequantize

WIDE = torch.float64


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, out_ND: Tensor, rows_N: Tensor | None = None) -> None:
    """out = RMSNorm(x): rounded to out's dtype, then times weight. rows_N i64: of these rows of x only."""
    x = (x_TD if rows_N is None else x_TD[rows_N]).to(WIDE)
    normed = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    out_ND.copy_(normed.to(out_ND.dtype).to(WIDE) * weight_D.to(WIDE))


def add_norm(
    residual_TD: Tensor, y_TSD: Tensor, factors_TS: Tensor | None, weight_D: Tensor, eps: float, out_TD: Tensor
) -> None:
    """residual += sum over slots of factors y (None: all 1), in place; out = RMSNorm(residual). A slot whose factor is
    0 counts as nothing, whatever y holds there."""
    y = y_TSD.to(WIDE)
    if factors_TS is not None:
        y = torch.where(factors_TS[..., None] == 0, 0.0, y * factors_TS.to(WIDE)[..., None])
    residual_TD.copy_(residual_TD.to(WIDE) + y.sum(1))
    rms_norm(residual_TD, weight_D, eps, out_TD)


def linear(x_TI: Tensor, weight: Weight, out_TO: Tensor) -> None:
    """out = x W^T, accumulated in float32. x bf16, rows at any distance; out bf16 or f32."""
    out_TO.copy_(x_TI.to(WIDE) @ dequantize(weight, WIDE).T)


def project(
    x_TD: Tensor,
    weight: Weight,
    qkv_TN: Tensor,
    arrivals: Tensor,
    q_weight_C: Tensor,
    k_weight_C: Tensor,
    eps: float,
    cos_PR: Tensor,
    sin_PR: Tensor,
    positions_T: Tensor,
    slots_T: Tensor,
    pages: Tensor,
    q_out_THC: Tensor,
) -> None:
    """qkv = x W^T, which is scratch, and norm_rope_store of it. x's rows at any distance, all else contiguous. arrivals
    i32 of buffers.make_head_arrivals, all 0 between calls."""
    linear(x_TD, weight, qkv_TN)
    norm_rope_store(qkv_TN, q_weight_C, k_weight_C, eps, cos_PR, sin_PR, positions_T, slots_T, pages, q_out_THC)


def norm_rope_store(
    qkv_TN: Tensor,
    q_weight_C: Tensor,
    k_weight_C: Tensor,
    eps: float,
    cos_PR: Tensor,
    sin_PR: Tensor,
    positions_T: Tensor,
    slots_T: Tensor,
    pages: Tensor,
    q_out_THC: Tensor,
) -> None:
    """Normalises and rotates each head of q and k; q goes to q_out, k and v into the cache.

    qkv bf16 [T, (H + 2 G) C]: all query heads, then key heads, then value heads. cos, sin [P, R/2] of every position,
    YaRN's factor included. positions i32 [T]. slots i32 [T]: block x BLOCK_TOKENS + place in it, -1: not to be stored.
    pages: one layer of buffers.make_cache; int8 and fp8 are stored with the scale max|v|/127 or /448 of their vector.
    """
    H, C = q_out_THC.shape[1:]
    qkv = qkv_TN.unflatten(-1, (-1, C)).to(WIDE)
    G = (qkv.shape[1] - H) // 2
    cos, sin = (table[positions_T.long()].to(WIDE)[:, None] for table in (cos_PR, sin_PR))
    q, k, v = qkv.split((H, G, G), 1)
    q, k = (_rotate(_norm_heads(x, w, eps, qkv_TN.dtype), cos, sin) for x, w in ((q, q_weight_C), (k, k_weight_C)))
    q_out_THC.copy_(q)
    for which, vectors in enumerate((k, v)):
        for vector_GC, slot in zip(vectors, slots_T.tolist(), strict=True):
            if slot >= 0:
                _store(pages[which, slot // BLOCK_TOKENS], slot % BLOCK_TOKENS, vector_GC)


def attend_decode(
    q_THC: Tensor, pages: Tensor, tables_TM: Tensor, lengths_T: Tensor, out_TE: Tensor, scratch: AttentionScratch
) -> None:
    """Attention of single rows over their blocks. tables i32 [T, M]: a row's blocks in order; lengths i32 [T]: how many
    keys it sees, itself included, or 0 for a row that is only filling: its result is 0. out bf16 [T, H C]. Rows of the
    same sequence repeat its table, each with its own length. Tables and lengths may be read while the kernel launched
    just ahead still runs."""
    C = q_THC.shape[2]
    for t, length in enumerate(lengths_T.tolist()):
        k, v = (_gather(pages[which], tables_TM[t], length, C) for which in (0, 1))
        out_TE[t] = _attend(q_THC[t][:, None].to(WIDE), k, v).flatten() if length else 0


def attend_prefill(
    q_THC: Tensor,
    pages: Tensor,
    tables_BM: Tensor,
    starts_B1: Tensor,
    lengths_B: Tensor,
    max_tokens: int,
    out_TE: Tensor,
) -> None:
    """Causal attention of runs of rows over their blocks, which hold what came before them and themselves.

    starts i32 [B + 1]: sequence b has the rows starts[b] to starts[b + 1]; lengths i32 [B]: its keys after this call,
    so that its last row sees all of them, the one before one less. max_tokens: of the longest run of rows.
    """
    C = q_THC.shape[2]
    for b, (first, end) in enumerate(zip(starts_B1.tolist()[:-1], starts_B1.tolist()[1:], strict=True)):
        length = int(lengths_B[b])
        k, v = (_gather(pages[which], tables_BM[b], length, C) for which in (0, 1))
        out_TE[first:end] = _attend(q_THC[first:end].transpose(0, 1).to(WIDE), k, v).transpose(0, 1).flatten(1)


def add_norm_route(
    residual_TD: Tensor,
    y_TD: Tensor,
    norm_D: Tensor,
    eps: float,
    normed_TD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor,
    routing: Routing,
    slots_T: Tensor | None,
    logits_TE: Tensor,
    ids_TS: Tensor,
    factors_TS: Tensor,
    arrivals_T: Tensor,
) -> None:
    """residual += y, in place; normed = RMSNorm(residual); and each token's experts by it, see `route`. arrivals i32
    [T], all 0 between calls."""
    add_norm(residual_TD, y_TD[:, None], None, norm_D, eps, normed_TD)
    route(normed_TD, weight_ED, bias_E, routing, slots_T, logits_TE, ids_TS, factors_TS)


def route(
    x_TD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor,
    routing: Routing,
    slots_T: Tensor | None,
    logits_TE: Tensor,
    ids_TS: Tensor,
    factors_TS: Tensor,
) -> None:
    """Each token's experts: logits f32 before the sigmoid; ids i32, best first, then the shared ones; factors f32.

    x bf16, weight bf16; all arithmetic float32, see model.modeling.Router. A row whose slot is -1 is only filling: its
    ids are -1 and its factors 0. The second half of add_norm_route, no operation of its own.
    """
    logits_TE.copy_(x_TD.to(WIDE) @ weight_ED.to(WIDE).T)
    scores = logits_TE.to(WIDE).sigmoid()
    choice = scores + bias_E.to(WIDE)
    by_group = choice.unflatten(1, (routing.num_groups, -1))
    group_scores = by_group.topk(min(2, by_group.shape[-1]), -1).values.sum(-1)
    kept = group_scores.topk(routing.top_groups, -1).indices
    is_out = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, kept, False)
    ids = by_group.masked_fill(is_out[..., None], float("-inf")).flatten(1).topk(routing.top_k, -1).indices
    factors = scores.gather(1, ids)
    if routing.top_k > 1:
        factors = factors / (factors.sum(-1, keepdim=True) + 1e-20)
    shared = torch.arange(routing.num_experts, routing.num_experts + routing.num_shared).expand(len(ids), -1)
    ids_TS.copy_(torch.cat((ids, shared.to(ids.device)), 1))
    factors_TS.copy_(F.pad(factors * routing.scale, (0, routing.num_shared), value=1.0))
    if slots_T is not None:
        ids_TS[slots_T < 0] = -1
        factors_TS[slots_T < 0] = 0


def experts(
    x_TD: Tensor, ids_TS: Tensor, gate_up: Weight, down: Weight, out_TSD: Tensor, scratch: ExpertScratch
) -> None:
    """out[t, s] = down_e(silu(gate_e x_t) * up_e x_t), e = ids[t, s]; nothing is written where e is -1.

    gate_up: stack [E, 2 F, D], gate rows before up rows; down: stack [E, D, F]; F a multiple of 16. out bf16. One
    expert with ids 0 is a plain MLP. What the slots add up to is add_norm's affair.
    """
    gate_up_EFD, down_EDF = dequantize(gate_up, WIDE), dequantize(down, WIDE)
    for t, ids_S in enumerate(ids_TS.tolist()):
        for s, expert in enumerate(ids_S):
            if expert >= 0:
                gate, up = (gate_up_EFD[expert] @ x_TD[t].to(WIDE)).chunk(2)
                out_TSD[t, s] = down_EDF[expert] @ (F.silu(gate) * up).to(x_TD.dtype).to(WIDE)


def top_logits(logits_NV: Tensor, values_Nk: Tensor, ids_Nk: Tensor, is_finite_N: Tensor, keys: Tensor) -> None:
    """The k largest logits of each row, largest first, the lower id first among equals: values f32, ids i32 [N, k], k a
    power of two up to 64. is_finite bool [N]: whether a row holds neither NaN nor infinity; if not, its rest is void.

    What sampling needs: top-k and nucleus over k candidates, by the request's own generator on the CPU, choose the very
    token that they would among all V; k = 1 is greedy. keys: scratch, of buffers.make_keys.
    """
    is_finite_N.copy_(logits_NV.isfinite().all(-1))
    values, ids = logits_NV.sort(stable=True, dim=-1, descending=True)
    values_Nk.copy_(values[:, : values_Nk.shape[1]])
    ids_Nk.copy_(ids[:, : ids_Nk.shape[1]])


def penalize(logits_NV: Tensor, is_seen_NV: Tensor, penalty_N: Tensor) -> None:
    """Repetition penalty in place: logits of seen tokens (bool) divided by it if positive, else multiplied."""
    penalized = torch.where(logits_NV > 0, logits_NV / penalty_N[:, None], logits_NV * penalty_N[:, None])
    logits_NV.copy_(torch.where(is_seen_NV, penalized, logits_NV))


def _norm_heads(x: Tensor, weight_C: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    normed = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (normed.to(dtype).to(WIDE) * weight_C.to(WIDE)).to(dtype).to(WIDE)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    a, b, rest = x.split((half, half, x.shape[-1] - 2 * half), -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def _store(page_GE: Tensor, place: int, vector_GC: Tensor) -> None:
    C = vector_GC.shape[-1]
    vectors = page_GE[:, : BLOCK_TOKENS * C].unflatten(-1, (BLOCK_TOKENS, C))
    if page_GE.dtype == torch.bfloat16:
        vectors[:, place] = vector_GC.to(torch.bfloat16)
        return
    limit = 127.0 if page_GE.dtype == torch.int8 else 448.0
    scale = vector_GC.to(torch.bfloat16).abs().amax(-1).float() / limit
    scaled = vector_GC.to(torch.bfloat16).float() / scale.clamp(min=1e-30)[:, None]
    rounded = scaled.round() if page_GE.dtype == torch.int8 else scaled
    vectors[:, place] = rounded.to(page_GE.dtype)
    _scales(page_GE, C)[:, place] = scale


def _scales(pages: Tensor, head_dim: int) -> Tensor:
    """The scales of int8 or fp8 pages, f32 [..., BLOCK_TOKENS], in place."""
    return pages.view(torch.uint8).view(torch.float32)[..., BLOCK_TOKENS * head_dim // 4 :]


def _gather(pages: Tensor, table_M: Tensor, length: int, head_dim: int) -> Tensor:
    """Keys or values [G, length, C] f64 of a sequence."""
    chosen = pages[table_M[: -(-length // BLOCK_TOKENS)].long()]
    vectors = chosen[..., : BLOCK_TOKENS * head_dim].unflatten(-1, (BLOCK_TOKENS, head_dim)).to(WIDE)
    if pages.dtype != torch.bfloat16:
        vectors = vectors * _scales(chosen, head_dim).to(WIDE)[..., None]
    return vectors.transpose(0, 1).flatten(1, 2)[:, :length]


def _attend(q_HSC: Tensor, k_GPC: Tensor, v_GPC: Tensor) -> Tensor:
    """[H,S,C]; the last of S sees all P keys."""
    S, P = q_HSC.shape[1], k_GPC.shape[1]
    k, v = (x.repeat_interleave(len(q_HSC) // len(x), 0) for x in (k_GPC, v_GPC))
    scores = q_HSC @ k.transpose(1, 2) / q_HSC.shape[-1] ** 0.5
    is_future = torch.arange(P)[None] > torch.arange(P - S, P)[:, None]
    return scores.masked_fill(is_future.to(scores.device), float("-inf")).softmax(-1) @ v
