"""Carries calibration text through the model a layer at a time, and quantizes each weight by GPTQ on what reaches it.

Every layer sees the outputs of the quantized layers before it. The mathematics are model.modeling's; the routed experts
are read, quantized and run one by one, so that a whole layer of them is never in memory.

Suffixes: B sequences, S positions, T tokens (B S), D hidden, I inputs of a weight, n tokens of one expert.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.modeling import DecoderLayer, MoE, MTPLayer, RMSNorm, Rotary
from model.quantize.gptq import quantize_gptq
from model.quantize.rtn import PackedWeight, dequantize_rows, pack_rows, quantize_rtn
from model.quantize.shards import Plan, Shard, ShardWriter, run_ordered
from model.quantize.source import QuantizeOptions, Source
from model.tokenizer import Tokenizer

SEQUENCE_LENGTH = 512
MIN_TOKENS = 64
PIECE_TOKENS = 2048
# Of a weight's columns. With fewer inputs the Hessian is blind in most directions, and GPTQ no better than rounding: on
# the embedded model every share from 0 to 1/2 gave the same KL (0.0052 from 1,024 tokens, 0.0039 from 3,584).
MIN_ROWS_SHARE = 0.125


def read_calibration(folder: Path, text: str, max_tokens: int) -> Tensor:
    """Ids [B,S] of a text's first tokens, S at most 512; the last sequence is dropped if it would be shorter.

    Raises ValueError for a text of fewer than 64 tokens.
    """
    ids = Tokenizer.load(folder).encode(text)[:max_tokens]
    if len(ids) < MIN_TOKENS:
        raise ValueError(f"The calibration text has {len(ids)} tokens; GPTQ needs {MIN_TOKENS} and better thousands.")
    length = min(SEQUENCE_LENGTH, len(ids))
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


@dataclass(frozen=True, slots=True)
class _Solved:
    name: str
    weight: PackedWeight
    method: str


class Calibration:
    """The residual stream [B,S,D] of the calibration text before `layer`."""

    def __init__(self, source: Source, plan: Plan, options: QuantizeOptions, ids_BS: Tensor) -> None:
        self._source, self._plan, self._options, self._ids_BS = source, plan, options, ids_BS
        self._dtype = torch.bfloat16 if source.dtype == torch.bfloat16 else torch.float32
        positions = torch.arange(ids_BS.shape[1])[None]
        self._cos, self._sin = (table.to(self._dtype) for table in Rotary(source.config)(positions))
        self.hidden = self._embed(ids_BS)

    def quantize_layer(self, shard: Shard, writer: ShardWriter, pool: ThreadPoolExecutor) -> None:
        """Writes all of a layer's tensors and moves the residual stream behind it."""
        assert shard.layer is not None
        for name in shard.names:
            if name not in self._plan.quantized:
                writer.copy(name)
        prefix = f"model.layers.{shard.layer}"
        with torch.no_grad():
            layer = self._build_layer(shard, prefix)
            x_BSD = self._join_next(layer, prefix, writer) if isinstance(layer, MTPLayer) else self.hidden
            x_BSD = x_BSD + self._attend(layer, prefix, x_BSD, writer)
            h_TD = _by_sequence(layer.post_attention_layernorm, x_BSD).flatten(0, 1)
            if isinstance(layer.mlp, MoE):
                y_TD = self._mix(layer.mlp, f"{prefix}.mlp", h_TD, writer, pool)
            else:
                y_TD = self._feed_forward(f"{prefix}.mlp", h_TD, writer)
            self.hidden = x_BSD + y_TD.view_as(x_BSD)

    def _embed(self, ids_BS: Tensor) -> Tensor:
        """Reads the rows that are needed of an embedding that may take a gigabyte."""
        name = "model.word_embeddings.weight"
        ids, where = ids_BS.unique(return_inverse=True)
        rows = [self._source.read_rows(name, token_id, token_id + 1) for token_id in ids.tolist()]
        return torch.cat(rows).to(self._dtype)[where]

    def _build_layer(self, shard: Shard, prefix: str) -> DecoderLayer:
        """The layer with its norms and router; its linear weights have no memory."""
        config = self._source.config
        assert shard.layer is not None
        with torch.device("meta"):
            layer = (MTPLayer if shard.layer >= config.num_hidden_layers else DecoderLayer)(config, shard.layer)
        small = {name: self._source.read(name) for name in shard.names if name not in self._source.linears}
        state = {
            name.removeprefix(f"{prefix}."): tensor if ".gate." in name else tensor.to(self._dtype)
            for name, tensor in small.items()
        }
        layer.load_state_dict(state, strict=False, assign=True)
        return layer

    def _join_next(self, layer: MTPLayer, prefix: str, writer: ShardWriter) -> Tensor:
        norm = RMSNorm(self._source.config.hidden_size, self._source.config.rms_norm_eps)
        norm.weight = nn.Parameter(self._source.read("model.norm.weight").to(self._dtype))
        embed_BSD = self._embed(F.pad(self._ids_BS[:, 1:], (0, 1)))
        last_BSD = _by_sequence(norm, self.hidden)
        both = torch.cat((_by_sequence(layer.enorm, embed_BSD), _by_sequence(layer.hnorm, last_BSD)), dim=-1)
        return F.linear(both, self._settle([f"{prefix}.eh_proj.weight"], both.flatten(0, 1), writer))

    def _attend(self, layer: DecoderLayer, prefix: str, x_BSD: Tensor, writer: ShardWriter) -> Tensor:
        h_BSD = _by_sequence(layer.input_layernorm, x_BSD)
        qkv = self._settle([f"{prefix}.attention.query_key_value.weight"], h_BSD.flatten(0, 1), writer)
        layer.attention.query_key_value.weight = nn.Parameter(qkv)
        layer.attention.dense = nn.Identity()  # type: ignore[assignment]  # what would go into it is wanted first
        heads_BSI = _by_sequence(lambda h: layer.attention(h, self._cos, self._sin, None, None, layer.index), h_BSD)
        return F.linear(heads_BSI, self._settle([f"{prefix}.attention.dense.weight"], heads_BSI.flatten(0, 1), writer))

    def _feed_forward(self, prefix: str, h_TD: Tensor, writer: ShardWriter) -> Tensor:
        gate_up = self._settle([f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight"], h_TD, writer)
        inner_TF = torch.cat([_activate(h, gate_up) for h in h_TD.split(PIECE_TOKENS)])
        return F.linear(inner_TF, self._settle([f"{prefix}.down_proj.weight"], inner_TF, writer))

    def _mix(self, moe: MoE, prefix: str, h_TD: Tensor, writer: ShardWriter, pool: ThreadPoolExecutor) -> Tensor:
        """Each expert on the tokens the router sends it; the workers take one expert each."""
        pieces = [moe.gate(h) for h in h_TD.split(PIECE_TOKENS)]
        topk_ids_TK = torch.cat([piece.topk_ids for piece in pieces])
        topk_weights_TK = torch.cat([piece.topk_weights for piece in pieces])
        y_TD = torch.zeros_like(h_TD, dtype=torch.float32)

        def run_expert(expert: int) -> tuple[Tensor, Tensor, list[_Solved]]:
            token_n, slot_n = (topk_ids_TK == expert).nonzero(as_tuple=True)
            own = f"{prefix}.experts.{expert}"
            h_nD = h_TD[token_n]
            gate_up, solved = self._solve([f"{own}.gate_proj.weight", f"{own}.up_proj.weight"], h_nD)
            inner_nF = _activate(h_nD, gate_up)
            down, solved_down = self._solve([f"{own}.down_proj.weight"], inner_nF)
            out_nD = F.linear(inner_nF, down).float() * topk_weights_TK[token_n, slot_n, None]
            return token_n, out_nD, solved + solved_down

        experts = [(expert,) for expert in range(self._source.config.num_experts)]
        for token_n, out_nD, solved in run_ordered(pool, run_expert, experts):
            y_TD.index_add_(0, token_n, out_nD)
            for item in solved:
                writer.put(item.name, item.weight, item.method)
        y_TD = y_TD.to(h_TD.dtype)
        if moe.shared_experts is None:
            return y_TD
        return y_TD + self._feed_forward(f"{prefix}.shared_experts", h_TD, writer)

    def _settle(self, names: list[str], x_TI: Tensor, writer: ShardWriter) -> Tensor:
        """Quantizes and writes weights with the same inputs; returns them as a reader will have them, row on row."""
        weight, solved = self._solve(names, x_TI)
        for item in solved:
            writer.put(item.name, item.weight, item.method)
        return weight

    def _solve(self, names: list[str], x_TI: Tensor) -> tuple[Tensor, list[_Solved]]:
        sources = [self._source.read(name) for name in names]
        if names[0] not in self._plan.quantized:
            return torch.cat(sources).to(self._dtype), []
        options, dtype = self._options, self._source.dtype
        method = "gptq" if len(x_TI) >= MIN_ROWS_SHARE * x_TI.shape[1] else "rtn"
        if method == "gptq":
            try:
                q_OI, scales_ON = quantize_gptq(
                    torch.cat(sources), sum_squares(x_TI), options.group_size, dtype, act_order=options.act_order
                )
            except ArithmeticError:
                method = "rtn"
        if method == "gptq":
            rows = [len(weight) for weight in sources]
            parts = zip(q_OI.split(rows), scales_ON.split(rows), sources, strict=True)
            packed = [pack_rows(q, scales, weight) for q, scales, weight in parts]
        else:
            packed = [quantize_rtn(weight, options.group_size, dtype) for weight in sources]
        weights = [dequantize_rows(p, x_TI.shape[1], self._dtype) for p in packed]
        solved = [_Solved(name, p, method) for name, p in zip(names, packed, strict=True)]
        return torch.cat(weights), solved


def _activate(h: Tensor, gate_up: Tensor) -> Tensor:
    gate, up = F.linear(h, gate_up).chunk(2, dim=-1)
    return F.silu(gate) * up


def _by_sequence(function: Callable[[Tensor], Tensor], x_BSD: Tensor) -> Tensor:
    """A sequence at a time, since norms and attention take several times their input in float32."""
    return torch.cat([function(x_1SD) for x_1SD in x_BSD.split(1)])


def sum_squares(x_TI: Tensor) -> Tensor:
    """X^T X in f32; its factor 2 in the paper's Hessian does not change the result."""
    total = torch.zeros(x_TI.shape[1], x_TI.shape[1])
    for piece in x_TI.split(PIECE_TOKENS):
        x_nI = piece.float()
        total.addmm_(x_nI.T, x_nI)
    return total
