"""A training run's settings, read from YAML once; an unknown, missing or malformed key is an error that names it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from model.config import CheckpointError, ModelConfig
from model.train.examples import SHARES
from model.train.rewards import REWARDS

ROOT = Path(__file__).resolve().parents[2]


class ConfigError(ValueError):
    """A training configuration cannot be used; the message names the key."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run. Paths are relative to the repository's root. Progress runs from 0 to 1 over `num_pools` pools."""

    model: ModelConfig
    output_dir: Path
    data_dir: Path
    num_pools: int
    groups_per_pool: int = 64
    items_per_group: int = 8
    tokens_per_batch: int = 6144
    max_sequence_tokens: int = 2048
    max_branch_tokens: int = 1 << 20  # of a sequence's questions and answers; those that do not fit are left out
    num_tokenizer_groups: int = 6000  # of generated examples that the tokenizer is trained on
    seed: int = 1
    matrix_lr: float = 0.02  # Muon: matrices inside the layers
    embedding_lr: float = 0.01  # AdamW: embeddings, of width 0.5
    other_lr: float = 0.003  # AdamW: norms, router
    weight_decay: float = 0.01
    warmup: float = 0.01  # share of the run
    decay: float = 0.4  # share of the run over which the rate falls to zero
    init_from: Path | None = None  # a checkpoint to grow from, with its tokenizer; None: random weights
    meanings_from: Path | None = None  # without init_from: a written reader whose words' meanings to begin with
    decision_weight: float = 1.0  # of the loss where an answer could go another way; its other tokens weigh 1
    language_weight: float = 0.1  # of the loss on prompt tokens; the loss on answer tokens weighs 1
    language_share: float = 0.15  # of the prompt tokens on which it is taken
    look_weight: float = 0.0  # of the loss on where heads look, see pointers.HEADS
    look_until: float = 1.0  # progress at which that loss ends
    bias_rate: float = 0.001  # step of expert_bias against the load
    precision: str = "bfloat16"
    threads: int = 2
    save_every_s: float = 180.0
    sample_every_pools: int = 10
    sizes: tuple[tuple[float, float], ...] = field(default=((0.0, 0.1), (1.0, 1.0)))  # (progress, longest passages)
    shares: dict[str, float] = field(default_factory=dict)  # of situations, see examples.SHARES
    device: str = "cpu"  # or "cuda"
    workers: int = 0  # processes that make examples ahead; 0: this one makes them
    mtp_weight: float = 0.3  # of the MTP layer's loss (DeepSeek-V3, arXiv 2412.19437, section 4.2)
    mtp_from: float = 0.0  # progress from which the MTP layer is trained
    round_from: float = 1.0  # progress from which it learns with its weights rounded to INT4
    log_every: int = 1  # steps; what is logged, a GPU must be waited for
    max_seconds: float = 0.0  # of a call, after which it saves and stops; the schedule runs with it. 0: to the end
    yarn_from: float = 0.0  # progress from which model.rope_scaling holds
    long_sequence_tokens: int = 0  # cpt: of a sequence from yarn_from on; 0: max_sequence_tokens throughout
    rewards: dict[str, float] = field(default_factory=dict)  # grpo: weight of each, see rewards.REWARDS
    samples_per_item: int = 8  # grpo: answers drawn for a question
    temperature: float = 1.0  # grpo: at which they are drawn
    max_answer_tokens: int = 96  # grpo
    groups_per_step: int = 1  # grpo: whose answers are drawn and learnt from together
    kl_weight: float = 0.02  # grpo: what holds the policy near the model it began with

    def __post_init__(self) -> None:
        for name in (
            "num_pools",
            "groups_per_pool",
            "items_per_group",
            "tokens_per_batch",
            "threads",
            "sample_every_pools",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name, known in (("shares", SHARES), ("rewards", REWARDS)):
            strange = sorted(set(getattr(self, name)) - set(known))
            if strange:
                raise ConfigError(f"{name}: unknown name {strange[0]!r}; use {', '.join(known)}.")
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}; use cpu or cuda.")
        if self.precision not in ("bfloat16", "float32"):
            raise ConfigError(f"precision is {self.precision!r}; use bfloat16 or float32.")
        if list(self.sizes) != sorted(self.sizes) or not self.sizes:
            raise ConfigError("sizes must be [progress, size] pairs in order of progress.")

    @property
    def multiple(self) -> int:
        """What sequences are padded to a multiple of."""
        return 64 if self.device == "cuda" else 1

    def size_at(self, progress: float) -> float:
        """How long passages may be at this point of the run: linear between the pairs of `sizes`."""
        before = self.sizes[0]
        for after in self.sizes:
            if progress <= after[0]:
                span = after[0] - before[0]
                share = (progress - before[0]) / span if span else 1.0
                return before[1] + share * (after[1] - before[1])
            before = after
        return before[1]

    def lr_factor_at(self, progress: float) -> float:
        """Warm-up, plateau, linear fall to zero."""
        rise = progress / self.warmup if self.warmup else 1.0
        fall = (1.0 - progress) / self.decay if self.decay else 1.0
        return max(0.0, min(1.0, rise + 0.01, fall))


def load_config(path: str | Path) -> TrainConfig:
    """Reads a YAML file. Raises ConfigError naming the file or the key at fault."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give a training configuration in YAML.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold keys and values.")
    return parse_config(data)


def parse_config(data: dict[str, Any]) -> TrainConfig:
    known = {f.name: f for f in fields(TrainConfig)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(f"Unknown key {unknown[0]!r}; the keys are {', '.join(sorted(known))}.")
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in data]
    if missing:
        raise ConfigError(f"Key {missing[0]!r} is missing.")
    values = {name: _parse(name, str(known[name].type), value) for name, value in data.items()}
    return TrainConfig(**values)


def _parse(name: str, kind: str, value: Any) -> Any:
    if kind == "ModelConfig":
        try:
            return ModelConfig.from_hf(
                {"architectures": ["BailingMoeV2ForCausalLM"], "model_type": "bailing_moe_v2", **value}
            )
        except (CheckpointError, TypeError) as error:
            raise ConfigError(f"model: {error}") from error
    if kind == "dict[str, float]":
        if not isinstance(value, dict) or not all(isinstance(v, int | float) and v >= 0 for v in value.values()):
            raise ConfigError(f"{name} must map names to numbers that are not negative.")
        return {str(key): float(number) for key, number in value.items()}
    if kind in ("Path", "Path | None"):
        return ROOT / str(value)
    if name == "sizes":
        try:
            return tuple((float(progress), float(size)) for progress, size in value)
        except (TypeError, ValueError):
            raise ConfigError("sizes must be a list of [progress, size] pairs.") from None
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wanted = {"int": int, "float": float, "str": str, "bool": bool}[kind]
    if (isinstance(value, bool) and kind != "bool") or not isinstance(value, wanted):
        raise ConfigError(f"{name} is {value!r}; it must be of type {kind}.")
    return value
