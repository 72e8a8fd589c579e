"""What the three stages share: a run that steps through pools of work, logs, saves and goes on to the bit.

A stage says what the work of a pool is and how a piece of it becomes a loss; the update, the balance of the experts,
the log and the state are here. Knows nothing of what is trained on. Logs JSON lines to OUTPUT/log.jsonl.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from model.checkpoint import load_model, save_checkpoint
from model.modeling import BailingMoeV2ForCausalLM, Experts, Rotary
from model.train.branches import Routers
from model.train.config import TrainConfig
from model.train.grow import grow
from model.train.meanings import give_meanings
from model.train.optimizer import make_optimizers
from model.train.prefetch import prefetch
from model.train.rounding import rounded
from model.train.state import has_state, load_state, save_state

Work = TypeVar("Work")
SHARP = 1.7  # of queries and keys at first: at 1 a head can hardly look at one token of a thousand


@dataclass(slots=True)
class Progress:
    """Where a run stands: the next piece of work, and what it has seen."""

    pool: int = 0
    batch: int = 0
    steps: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0  # counted only where max_seconds ends the run


@dataclass(frozen=True, slots=True)
class Step:
    """What a piece of work gave: the loss to descend, what each router chose, tokens seen and figures (of no
    dimension) for the log."""

    loss: Tensor
    routers: Routers
    num_tokens: int
    num_answer_tokens: int
    figures: dict[str, Tensor] = field(default_factory=dict)


class Run(Generic[Work]):
    """One training run: its model, optimisers and place."""

    def __init__(self, config: TrainConfig, resume: bool = True) -> None:
        self.config, self.folder = config, config.output_dir
        self.device = torch.device(config.device)
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.model = prepare(make_model(config), self.device)
        rates = (config.matrix_lr, config.embedding_lr, config.other_lr)
        self.optimizers = make_optimizers(self.model, *rates, config.weight_decay)
        self.progress = Progress()
        if resume and has_state(self.folder):
            self._load()

    # --- what a stage says ---------------------------------------------------------------------------------------

    def work(self, pool: int) -> Sequence[Work]:
        """The pieces of work of a pool: the same whenever it is asked for."""
        raise NotImplementedError

    def step(self, work: Work) -> Step:
        """The loss of a piece of work, under autocast."""
        raise NotImplementedError

    def samples(self) -> list[dict[str, Any]]:
        """What the model says now, for the log."""
        return []

    # --- the run -------------------------------------------------------------------------------------------------

    def go(self, max_steps: int | None = None) -> Path:
        """Trains to the end, or for max_steps more steps; saves either way."""
        started = saved = time.monotonic()
        spent = self.progress.seconds
        num_steps = 0
        pools = range(self.progress.pool, self.config.num_pools)
        for work in prefetch(self.work, pools, self.config.workers):
            for piece in work[self.progress.batch :]:
                is_logged = self.progress.steps % self.config.log_every == 0
                record = self._update(piece, len(work), is_logged)
                num_steps += 1
                seconds = time.monotonic() - started
                if is_logged:
                    self.log({"seconds": round(seconds, 1), **record})
                if self.config.max_seconds:
                    self.progress.seconds = spent + seconds
                if num_steps == max_steps or 0 < self.config.max_seconds <= self.progress.seconds:
                    return self.save()
                if time.monotonic() - saved > self.config.save_every_s:
                    self.save()
                    saved = time.monotonic()
            self.progress.pool, self.progress.batch = self.progress.pool + 1, 0
            if self.progress.pool % self.config.sample_every_pools == 0:
                for sample in self.samples():
                    self.log({"pool": self.progress.pool, **sample})
        return self.save()

    @property
    def share(self) -> float:
        """How much of the run is done, in whole pools or, where it is the shorter way to the end, in time."""
        of_time = self.progress.seconds / self.config.max_seconds if self.config.max_seconds else 0.0
        return max(self.progress.pool / self.config.num_pools, of_time)

    def _update(self, piece: Work, num_pieces: int, is_logged: bool) -> dict[str, Any]:
        """One step; what it tells of itself is waited for only where it is logged."""
        # 1. forward and backward
        started = time.monotonic()
        self.model.train()
        set_context(self.model, self.config, self.share)
        with rounded(self.model) if self.share >= self.config.round_from else nullcontext():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                step = self.step(piece)
            step.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        # 2. the update, at this moment's rate
        share = max(self.share, (self.progress.pool + self.progress.batch / num_pieces) / self.config.num_pools)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * self.config.lr_factor_at(min(share, 1.0))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        load = balance_experts(self.model, step.routers, self.config.bias_rate)
        # 3. the books
        self.progress.batch += 1
        self.progress.steps += 1
        self.progress.tokens += step.num_tokens
        self.progress.answer_tokens += step.num_answer_tokens
        if not is_logged:
            return {}
        figures = {name: round(float(value), 4) for name, value in step.figures.items()}
        seconds = time.monotonic() - started
        return {
            "pool": self.progress.pool, "step": self.progress.steps, "tokens": self.progress.tokens, **figures,
            "grad_norm": round(float(norm), 3), "tokens_per_s": round(step.num_tokens / seconds),
            "max_load": round(float(load), 2),
        }  # fmt: skip

    def log(self, record: dict[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def save(self) -> Path:
        """The state to go on from, and the checkpoint as the product reads it; each replaces the old one at once."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in values.items()}
        save_state(self.folder, tensors, asdict(self.progress))
        save_checkpoint(self.model, self.folder)
        return self.folder

    def _load(self) -> None:
        tensors, numbers = load_state(self.folder)
        prefix = "model."
        state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        self.model.load_state_dict(state)
        for number, optimizer in enumerate(self.optimizers):
            whole = optimizer.state_dict()  # groups and rates are the configuration's, should it have changed
            for name, tensor in tensors.items():
                kind, _, rest = name.partition(".")
                owner, _, place = rest.partition(".")
                if kind == "optimizer" and int(owner) == number:
                    index, key = place.split(".")
                    value = tensor.squeeze() if key == "step" else tensor
                    whole["state"].setdefault(int(index), {})[key] = value
            optimizer.load_state_dict(whole)
        self.progress = Progress(**numbers)


@torch.no_grad()
def make_model(config: TrainConfig) -> BailingMoeV2ForCausalLM:
    """The model to begin with: that of init_from, with room added where the configuration is larger, or random weights
    whose layers add nothing yet, so that the first steps are not spent on unlearning noise."""
    if config.init_from is not None:
        return grow(load_model(config.init_from, torch.float32), config.model)
    model = BailingMoeV2ForCausalLM(config.model)
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.dense.weight", "down_proj.weight", "down_proj")):
            parameter.zero_()
        elif name.endswith(("query_layernorm.weight", "key_layernorm.weight")):
            parameter.fill_(SHARP)
    if config.meanings_from is not None:
        give_meanings(model, config.meanings_from)
    return model


def prepare(model: BailingMoeV2ForCausalLM, device: torch.device) -> BailingMoeV2ForCausalLM:
    """The model on its device, which is told what is faster there."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for 0.2 s whenever a batch has a new shape
    for module in model.modules():
        if isinstance(module, Experts):
            module.all_at_once = device.type == "cuda"
    return model.to(device)


def set_context(model: BailingMoeV2ForCausalLM, config: TrainConfig, share: float) -> None:
    """Switches YaRN on from `yarn_from` on: before, positions are those of the original context."""
    wanted = config.model if share >= config.yarn_from else replace(config.model, rope_scaling=None)
    if model.config != wanted:
        model.config, model.rotary = wanted, Rotary(wanted)


@torch.no_grad()
def balance_experts(model: BailingMoeV2ForCausalLM, routers: Routers, rate: float) -> Tensor:
    """Moves each expert's bias against its load, without a loss (Wang et al. 2024, arXiv 2408.15664). Returns the
    largest load of any expert, as a multiple of an even share."""
    worst = []
    for moe, chosen in routers:
        bias = moe.gate.expert_bias
        ids = chosen.flatten()
        load = torch.zeros_like(bias).index_add_(0, ids, torch.ones_like(ids, dtype=bias.dtype))
        bias += rate * torch.sign(load.mean() - load)
        worst.append(load.max() / load.mean())
    return torch.stack(worst).max() if worst else torch.zeros(())
