"""What a checkpoint's config.json says about the decoder, checked once and frozen.

Field names are the checkpoint's own. Knows nothing of torch or of weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURE = "BailingMoeV2ForCausalLM"
MODEL_TYPES = ("bailing_moe", "bailing_moe_v2")


class CheckpointError(ValueError):
    """A checkpoint folder cannot be used as it is; the message names the field, file or tensor at fault."""


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """`rope_scaling` of type yarn: stretches `original_max_position_embeddings` positions by `factor`."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None  # None: 0.1 ln(factor) + 1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and constants of a BailingMoeV2 decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    num_shared_experts: int = 1
    first_k_dense_replace: int = 1
    routed_scaling_factor: float = 1.0
    partial_rotary_factor: float = 1.0
    rope_theta: float = 10000.0
    rope_scaling: YarnScaling | None = None
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    num_nextn_predict_layers: int = 0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    model_type: str = MODEL_TYPES[0]
    torch_dtype: str = "float32"  # what the weights are stored in
    quantization_config: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise CheckpointError(f"config.json: {name} is {getattr(self, name)!r}; it must be above zero.")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise CheckpointError(f"config.json: {name} is {getattr(self, name)!r}; it must not be negative.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError("config.json: num_attention_heads must be a multiple of num_key_value_heads.")
        if self.num_experts % self.n_group:
            raise CheckpointError("config.json: num_experts must be a multiple of n_group.")
        if not self.topk_group <= self.n_group:
            raise CheckpointError("config.json: topk_group must not exceed n_group.")
        if self.num_experts_per_tok > self.topk_group * self.experts_per_group:
            raise CheckpointError("config.json: num_experts_per_tok exceeds the experts in topk_group groups.")
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise CheckpointError(f"config.json: partial_rotary_factor gives {self.rotary_dim} rotary dims; need even.")
        if self.num_nextn_predict_layers > 1:
            raise CheckpointError("config.json: num_nextn_predict_layers above 1 is not supported; set it to 0 or 1.")

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def experts_per_group(self) -> int:
        return self.num_experts // self.n_group

    @property
    def num_layers(self) -> int:
        """Decoder layers and the MTP layer, which follows them in the checkpoint's numbering and in the cache."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    @property
    def context_length(self) -> int:
        """Longest sequence in tokens, YaRN's stretch included."""
        if self.rope_scaling is None:
            return self.max_position_embeddings
        stretched = int(self.rope_scaling.original_max_position_embeddings * self.rope_scaling.factor)
        return max(self.max_position_embeddings, stretched)

    def is_moe_layer(self, index: int) -> bool:
        return index >= self.first_k_dense_replace

    @classmethod
    def from_hf(cls, source: Mapping[str, Any] | str | Path) -> ModelConfig:
        """Reads a parsed config.json, its path, or a checkpoint folder; what does not fit raises CheckpointError."""
        data = source if isinstance(source, Mapping) else read_json(_config_path(Path(source)))
        _check_architecture(data)
        _check_features(data)
        rope = _rope_fields(data)
        values: dict[str, Any] = {name: _number(data, name, kind) for name, kind in _REQUIRED.items()}
        values |= {name: _number(data, name, kind) for name, kind in _OPTIONAL.items() if data.get(name) is not None}
        values.setdefault("head_dim", values["hidden_size"] // max(values["num_attention_heads"], 1))
        values["rope_theta"] = _number(rope if "rope_theta" in rope else data, "rope_theta", float)
        values["partial_rotary_factor"] = _partial_rotary_factor(data, rope, values["head_dim"])
        return cls(
            **values,
            rope_scaling=_read_yarn(rope, values["max_position_embeddings"]),
            tie_word_embeddings=bool(data.get("tie_word_embeddings", False)),
            eos_token_ids=as_ids(data.get("eos_token_id")),
            model_type=str(data.get("model_type") or MODEL_TYPES[0]),
            torch_dtype=str(data.get("dtype") or data.get("torch_dtype") or "float32").removeprefix("torch."),
            quantization_config=data.get("quantization_config"),
        )

    def to_hf(self) -> dict[str, Any]:
        """The config.json that `from_hf` reads back to an equal config."""
        names = [*_REQUIRED, *_OPTIONAL, "rope_theta"]
        data: dict[str, Any] = {"architectures": [ARCHITECTURE], "model_type": self.model_type}
        data |= {name: getattr(self, name) for name in names}
        data |= {"partial_rotary_factor": self.partial_rotary_factor, "tie_word_embeddings": self.tie_word_embeddings}
        data |= {"hidden_act": "silu", "score_function": "sigmoid", "norm_topk_prob": True, "use_qk_norm": True}
        data |= {"torch_dtype": self.torch_dtype, "rope_scaling": _write_yarn(self.rope_scaling)}
        data["eos_token_id"] = self.eos_token_ids[0] if len(self.eos_token_ids) == 1 else list(self.eos_token_ids)
        if self.quantization_config is not None:
            data["quantization_config"] = dict(self.quantization_config)
        return data


# What changes the result silently must be stated: published copies of this architecture disagree on the defaults.
_REQUIRED: dict[str, type] = {
    "vocab_size": int,
    "hidden_size": int,
    "intermediate_size": int,
    "moe_intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
    "num_experts": int,
    "num_experts_per_tok": int,
    "n_group": int,
    "topk_group": int,
    "routed_scaling_factor": float,
    "rms_norm_eps": float,
    "max_position_embeddings": int,
}
# A wrong default here would ask for tensors that are not there.
_OPTIONAL: dict[str, type] = {
    "head_dim": int,
    "num_shared_experts": int,
    "first_k_dense_replace": int,
    "num_nextn_predict_layers": int,
    "initializer_range": float,
    "bos_token_id": int,
    "pad_token_id": int,
}
_NOT_NEGATIVE = ("num_shared_experts", "first_k_dense_replace", "num_nextn_predict_layers", "routed_scaling_factor")
_POSITIVE = tuple(name for name in (*_REQUIRED, "head_dim", "rope_theta") if name not in _NOT_NEGATIVE)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint; a missing or malformed file raises CheckpointError naming it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; give the folder of a complete checkpoint.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); copy the checkpoint again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object; copy the checkpoint again.")
    return data


def as_ids(value: Any) -> tuple[int, ...]:
    """Token ids from a field that holds one id, a list of them, or null."""
    if value is None:
        return ()
    return tuple(int(item) for item in value) if isinstance(value, list | tuple) else (int(value),)


def _config_path(path: Path) -> Path:
    return path / "config.json" if path.is_dir() else path


def _check_architecture(data: Mapping[str, Any]) -> None:
    """`architectures` decides: Ling-1 models share the model_type bailing_moe but not the mathematics."""
    names = data.get("architectures") or []
    if ARCHITECTURE not in names:
        found = repr(names[0]) if names else "not named"
        raise CheckpointError(f"config.json: the architecture is {found}, but only {ARCHITECTURE} is supported.")
    if data.get("model_type") not in MODEL_TYPES:
        raise CheckpointError(
            f"config.json: model_type {data.get('model_type')!r} is not supported; use one of {', '.join(MODEL_TYPES)}."
        )


def _check_features(data: Mapping[str, Any]) -> None:
    """Refuses what would silently change the mathematics."""
    for name in ("use_bias", "use_qkv_bias", "norm_head"):
        if data.get(name):
            raise CheckpointError(f"config.json: {name} is true, which this decoder does not implement.")
    expected = {"hidden_act": "silu", "score_function": "sigmoid"}
    for name, value in expected.items():
        if data.get(name) not in (None, value):
            raise CheckpointError(f"config.json: {name} is {data[name]!r}; this decoder implements {value!r} only.")


def _number(data: Mapping[str, Any], name: str, kind: type) -> Any:
    value = data.get(name)
    if value is None:
        raise CheckpointError(f"config.json: {name} is missing.")
    if isinstance(value, bool) or not isinstance(value, int | float) or kind(value) != value:
        raise CheckpointError(f"config.json: {name} is {value!r}; it must be a {kind.__name__}.")
    return kind(value)


def _rope_fields(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """`rope_scaling`, or `rope_parameters` as transformers 5 writes it (theta inside)."""
    rope = data.get("rope_scaling") or data.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"config.json: rope_scaling is {rope!r}; it must be an object or null.")
    return rope


def _partial_rotary_factor(data: Mapping[str, Any], rope: Mapping[str, Any], head_dim: int) -> float:
    """partial_rotary_factor; Ling-1T gives rotary_dim instead; else the whole head."""
    for fields in (data, rope):
        if fields.get("partial_rotary_factor") is not None:
            return float(_number(fields, "partial_rotary_factor", float))
    return _number(data, "rotary_dim", int) / head_dim if data.get("rotary_dim") else 1.0


def _read_yarn(rope: Mapping[str, Any], max_position_embeddings: int) -> YarnScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "yarn":
        raise CheckpointError(f"config.json: rope_scaling of type {kind!r} is not supported; use yarn or null.")
    original = rope.get("original_max_position_embeddings") or max_position_embeddings
    factor = _number(rope, "factor", float)
    if factor < 1:
        raise CheckpointError(f"config.json: rope_scaling.factor is {factor:g}; it must be at least 1.")
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=int(original),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        attention_factor=rope.get("attention_factor"),
    )


def _write_yarn(yarn: YarnScaling | None) -> dict[str, Any] | None:
    if yarn is None:
        return None
    data = {"type": "yarn", "factor": yarn.factor, "beta_fast": yarn.beta_fast, "beta_slow": yarn.beta_slow}
    data["original_max_position_embeddings"] = yarn.original_max_position_embeddings
    return data | ({} if yarn.attention_factor is None else {"attention_factor": yarn.attention_factor})
