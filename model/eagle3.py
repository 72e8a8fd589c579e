"""Drafts by an EAGLE-3 head (arXiv 2503.01840): a decoder layer trained to foretell one model from its inner states.

Checkpoint layout as SGLang's SpecForge and the paper's authors publish it: `fc` joins the target's residual stream at
three layers; a Llama layer `midlayer`, whose attention reads the next token's embedding and that state side by side; a
vocabulary of its own, part of the target's. Row t, with the embedding of token t + 1, predicts token t + 2; its state
before the last norm stands for the joined one where a draft goes on. Knows nothing of requests.

Shape suffixes: N rows, D hidden, H query heads, G kv heads, C head dim, P positions, V the target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoint import WEIGHTS, weights_sha256
from model.config import CheckpointError, ModelConfig, read_json
from model.cpu_backend import CpuBackend
from model.drafting import Grown
from model.kernels.cpu_decoder import BLOCK_TOKENS, lazy_zeros
from model.modeling import MLP, BailingMoeV2ForCausalLM, RMSNorm, rotate
from model.safetensors_file import SafetensorsFile
from model.weights import FLOATS, Weights

ARCHITECTURE = "LlamaForCausalLMEagle3"
NUM_TAPS = 3
# Published variants whose mathematics are others.
_UNSUPPORTED = (
    *("attention_bias", "mlp_bias", "use_sliding_window", "tie_word_embeddings"),
    *("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"),
)
_NUMBERS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """Shape of a head. tap_layers: which of the target's states it reads, as CpuDecoder.forward counts them."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    draft_vocab_size: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    tap_layers: tuple[int, ...]

    @classmethod
    def from_hf(cls, folder: Path, target: ModelConfig) -> Eagle3Config:
        """Reads the folder's config.json; raises CheckpointError for what is missing, unknown, or not the target's."""
        data = read_json(folder / "config.json")
        if ARCHITECTURE not in (data.get("architectures") or []):
            raise CheckpointError(f"{folder.name}: the draft head must be of the architecture {ARCHITECTURE}.")
        _check_features(data)
        numbers = {name: _number(data, name) for name in _NUMBERS}
        for name in ("hidden_size", "vocab_size"):
            if numbers[name] != getattr(target, name):
                raise CheckpointError(
                    f"{folder.name}: the draft head's {name} is {numbers[name]:,}, the model's "
                    f"{getattr(target, name):,}; it was made for another model."
                )
        config = cls(
            **numbers,
            draft_vocab_size=_number(data, "draft_vocab_size"),
            head_dim=_number(data, "head_dim", numbers["hidden_size"] // numbers["num_attention_heads"]),
            rms_norm_eps=float(data.get("rms_norm_eps") or 1e-6),
            rope_theta=float(_rope_fields(data).get("rope_theta") or data.get("rope_theta") or 10000.0),
            tap_layers=_tap_layers(data, target.num_hidden_layers),
        )
        if config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
            raise CheckpointError(f"{folder.name}: config.json: heads that do not group, or of an odd head_dim.")
        return config


class Eagle3Attention(nn.Module):
    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        D, C = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(2 * D, config.num_attention_heads * C, bias=False)
        self.k_proj = nn.Linear(2 * D, config.num_key_value_heads * C, bias=False)
        self.v_proj = nn.Linear(2 * D, config.num_key_value_heads * C, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * C, D, bias=False)


class Eagle3Layer(nn.Module):
    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm, self.hidden_norm = RMSNorm(D, eps), RMSNorm(D, eps)
        self.self_attn = Eagle3Attention(config)
        self.post_attention_layernorm = RMSNorm(D, eps)
        self.mlp = MLP(D, config.intermediate_size)


class Eagle3Head(nn.Module):
    """The head's weights, under the checkpoint's names. embed_tokens is the target's where it has none of its own."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        self.config = config
        D = config.hidden_size
        self.fc = nn.Linear(NUM_TAPS * D, D, bias=False)
        self.midlayer = Eagle3Layer(config)
        self.norm = RMSNorm(D, config.rms_norm_eps)
        self.lm_head = nn.Linear(D, config.draft_vocab_size, bias=False)
        self.embed_tokens: nn.Embedding | None = None
        # Draft id i is the target's token i + d2t[i]; t2d is true where the target's token has a draft id.
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
        self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.d2t: Tensor
        self.t2d: Tensor


@dataclass(frozen=True, slots=True)
class LoadedHead:
    """A head as it was read. sha256: of its weights, as checkpoint.weights_sha256 gives it."""

    head: Eagle3Head
    name: str
    sha256: str


def load_head(folder: str | Path, target: ModelConfig) -> LoadedHead:
    """The head of a folder with config.json and model.safetensors, as stored. Raises CheckpointError naming the file,
    field or tensor that is missing, left over, of another shape than the target asks for, or damaged."""
    folder = Path(folder)
    config = Eagle3Config.from_hf(folder, target)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} holds no {WEIGHTS}; a draft head of another format must be converted first.")
    sha256 = weights_sha256(folder)
    with torch.device("meta"):
        head = Eagle3Head(config)
    with SafetensorsFile(folder / WEIGHTS) as file:
        weights = Weights({WEIGHTS: file}, dict.fromkeys(file.tensors, WEIGHTS))
        if "embed_tokens.weight" in weights:
            with torch.device("meta"):
                head.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        for name, tensor in head.state_dict().items():
            weights.check(name, FLOATS if tensor.is_floating_point() else (tensor.dtype,), tuple(tensor.shape))
        weights.check_all_used()
        head.load_state_dict({name: weights.read(name) for name in head.state_dict()}, assign=True)
    _check_vocabulary(head, folder.name)
    return LoadedHead(head.eval().requires_grad_(False), folder.resolve().name, sha256)


class Eagle3Drafter:
    """The Drafter over a head and the backend of its target. Its keys and values lie in blocks of its own, which have
    the same numbers as the target's: so they are found again, and freed, with them."""

    name = "EAGLE-3 head"
    uses_blocks = True

    def __init__(self, head: Eagle3Head, backend: CpuBackend, model: BailingMoeV2ForCausalLM) -> None:
        """Computes in the model's dtype."""
        self._head = head.to(model.dtype)
        self._backend = backend
        backend.tap_layers = head.config.tap_layers
        config = head.config
        self._embedding_VD = (head.embed_tokens or model.model.word_embeddings).weight
        self._target_ids = torch.arange(config.draft_vocab_size) + head.d2t
        shape = (2, backend.num_blocks, BLOCK_TOKENS, config.num_key_value_heads, config.head_dim)
        self.cache = lazy_zeros(shape, model.dtype)
        half = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
        self._inv_freq = 1.0 / config.rope_theta**half

    @torch.inference_mode()
    def draft(self, grown: Sequence[Grown]) -> list[list[int]]:
        parts = [part for part in grown if part.num_kept]
        drafts: dict[int, list[int]] = {part.key: [] for part in grown}
        if not parts:
            return list(drafts.values())
        # 1. every row into the cache, and on from the last row of those that want a draft
        rows = [row for part in parts for row in range(part.first_row, part.first_row + part.num_kept)]
        taps_NTD = self._backend.last_pass.taps[:, rows].to(self._embedding_VD.dtype)
        hidden_ND = self._head.fc(taps_NTD.transpose(0, 1).flatten(1))
        ids = [token_id for part in parts for token_id in part.next_ids]
        owners = [part for part in parts for _ in range(part.num_kept)]
        positions = [part.first_position + i for part in parts for i in range(part.num_kept)]
        is_last = [pos + 1 == part.first_position + part.num_kept for part, pos in zip(owners, positions, strict=True)]
        asked = [row for row, part in enumerate(owners) if is_last[row] and part.limit]
        while True:
            hidden_ND = self._run_layer(ids, hidden_ND, owners, positions, asked)
            owners, positions = [owners[row] for row in asked], [positions[row] for row in asked]
            if not owners:
                return [drafts[part.key] for part in grown]
            # 2. what each drafts, and on from there where more is wanted
            logits = self._head.lm_head(self._head.norm(hidden_ND))
            ids = self._target_ids[logits.argmax(-1)].tolist()
            for part, token_id in zip(owners, ids, strict=True):
                drafts[part.key].append(token_id)
            going = [row for row, part in enumerate(owners) if len(drafts[part.key]) < part.limit]
            owners, ids = [owners[row] for row in going], [ids[row] for row in going]
            positions, hidden_ND = [positions[row] + 1 for row in going], hidden_ND[going]
            asked = list(range(len(going)))

    def copy_block(self, source: int, target: int) -> None:
        self.cache[:, target] = self.cache[:, source]

    def forget(self, key: int) -> None:
        """Nothing to do: what the head keeps lies in blocks that the engine counts."""

    def _run_layer(
        self, ids: list[int], hidden_ND: Tensor, owners: list[Grown], positions: list[int], asked: list[int]
    ) -> Tensor:
        """Keys and values of all rows into the cache; the states of those asked [.., D], before the last norm."""
        layer, config = self._head.midlayer, self._head.config
        if not ids:
            return hidden_ND
        attention, C = layer.self_attn, config.head_dim
        x_NE = torch.cat((layer.input_layernorm(self._embedding_VD[ids]), layer.hidden_norm(hidden_ND)), dim=-1)
        angles = torch.tensor(positions)[:, None, None].float() * self._inv_freq
        cos, sin = angles.cos().to(x_NE.dtype), angles.sin().to(x_NE.dtype)
        places = [
            (part.blocks[pos // BLOCK_TOKENS], pos % BLOCK_TOKENS) for part, pos in zip(owners, positions, strict=True)
        ]
        block, slot = torch.tensor(places).unbind(1)
        self.cache[0, block, slot] = rotate(attention.k_proj(x_NE).unflatten(-1, (-1, C)), cos, sin)
        self.cache[1, block, slot] = attention.v_proj(x_NE).unflatten(-1, (-1, C))
        q_NHC = rotate(attention.q_proj(x_NE[asked]).unflatten(-1, (-1, C)), cos[asked], sin[asked])
        mixed = [
            self._attend(q_HC, owners[row].blocks, positions[row] + 1) for q_HC, row in zip(q_NHC, asked, strict=True)
        ]
        hidden_ND = hidden_ND[asked]
        if mixed:
            hidden_ND = hidden_ND + attention.o_proj(torch.stack(mixed))
        return hidden_ND + layer.mlp(layer.post_attention_layernorm(hidden_ND))

    def _attend(self, q_HC: Tensor, blocks: Sequence[int], num_seen: int) -> Tensor:
        """[H x C]: one row over a sequence's first num_seen positions."""
        blocks = blocks[: -(-num_seen // BLOCK_TOKENS)]
        k_PGC, v_PGC = self.cache[:, blocks].flatten(1, 2)[:, :num_seen]
        out = F.scaled_dot_product_attention(
            q_HC[None, :, None], k_PGC.transpose(0, 1)[None], v_PGC.transpose(0, 1)[None], enable_gqa=True
        )
        return out.flatten()


def _check_features(data: Mapping[str, Any]) -> None:
    """Refuses what would change the mathematics."""
    for name in _UNSUPPORTED:
        if data.get(name):
            raise CheckpointError(f"The draft head's config.json: {name} is on, which is not supported.")
    if data.get("hidden_act") not in (None, "silu") or data.get("num_hidden_layers") != 1:
        raise CheckpointError("The draft head's config.json: it must have one layer, and silu for hidden_act.")
    rope = _rope_fields(data)
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise CheckpointError("The draft head's config.json: rope_scaling is not supported; it must be null.")


def _rope_fields(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """`rope_scaling`, or `rope_parameters` as transformers 5 writes it (theta inside)."""
    return data.get("rope_scaling") or data.get("rope_parameters") or {}


def _number(data: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = data.get(name) or default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"The draft head's config.json: {name} is {value!r}; it must be a whole number above 0.")
    return value


def _tap_layers(data: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """Which states are read: n is the input of the target's layer n.

    Without a list, that of the published implementations. In a list, some count a layer's output and some its input:
    SGLang tells them apart by the first, since it is the output of layer 1 that both begin with (pull request 25454).
    """
    given = data.get("eagle_config") or data
    layers = given.get("eagle_aux_hidden_state_layer_ids") or (2, num_layers // 2, num_layers - 3)
    if layers[0] == 1:
        layers = [layer + 1 for layer in layers]
    if len(layers) != NUM_TAPS or not all(0 <= layer <= num_layers for layer in layers):
        raise CheckpointError(
            f"The draft head reads the layers {list(layers)}, which a model of {num_layers} layers does not have; name "
            f"{NUM_TAPS} of them as eagle_aux_hidden_state_layer_ids in its config.json."
        )
    return tuple(layers)


def _check_vocabulary(head: Eagle3Head, name: str) -> None:
    ids = torch.arange(len(head.d2t)) + head.d2t
    known = torch.zeros_like(head.t2d)
    known[ids.clamp(0, len(known) - 1)] = True
    if not 0 <= int(ids.min()) <= int(ids.max()) < len(known) or not torch.equal(known, head.t2d):
        raise CheckpointError(f"{name}: d2t and t2d name different tokens; copy the draft head again.")
