"""Supervised fine-tuning of the embedded model from scratch: passages and a question in, a cited answer out.

`train(config, render)` makes the tokenizer, then runs through pools of generated groups; killed at any moment, it goes
on from its last checkpoint and ends with the same weights. The prompt's form is the caller's (`render`): this package
does not know the product. Logs JSON lines to OUTPUT/log.jsonl.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint import save_checkpoint
from model.modeling import BailingMoeV2ForCausalLM, MoE, RouterOutput
from model.train.bpe import write_tokenizer
from model.train.branches import decode
from model.train.circuits import init_circuits
from model.train.config import TrainConfig, load_config
from model.train.corpora import Text, read_texts, split_held_out
from model.train.evaluate import answer
from model.train.examples import ExampleMaker
from model.train.optimizer import make_optimizers
from model.train.packing import ANSWER, PROMPT, Batch, Packer, Render, make_batches


@dataclass(slots=True)
class Progress:
    """Where a run stands: the next batch, and what it has seen."""

    pool: int = 0
    batch: int = 0
    steps: int = 0
    tokens: int = 0
    answer_tokens: int = 0


def train(config_path: str | Path, render: Render, resume: bool = True) -> Path:
    """Trains, or goes on training; returns the folder of the finished checkpoint. Raises ConfigError."""
    config = load_config(config_path)
    return Run(config, render, resume).go()


class Run:
    """One training run: its model, optimisers and place."""

    def __init__(
        self,
        config: TrainConfig,
        render: Render,
        resume: bool = True,
        texts: dict[str, list[Text]] | None = None,
    ) -> None:
        """texts: the public texts by source, read from config.data_dir if not given."""
        self.config = config
        self.folder = config.output_dir
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        train_texts, held_out = split_held_out(read_texts(config.data_dir) if texts is None else texts)
        self.maker, self.held_out = ExampleMaker(train_texts), ExampleMaker(held_out)
        write_tokenizer(self.folder, config, train_texts, render)
        self.packer = Packer(self.folder, render)
        self.model = BailingMoeV2ForCausalLM(config.model)
        get_bytes = self.packer.tokenizer.get_bytes
        init_circuits(self.model, [get_bytes(i).decode("utf-8", "replace") for i in range(config.model.vocab_size)])
        rates = (config.matrix_lr, config.embedding_lr, config.other_lr)
        self.optimizers = make_optimizers(self.model, *rates, config.weight_decay)
        self.progress = Progress()
        if resume and (self.folder / "state.pt").is_file():
            self._load()

    def go(self, max_steps: int | None = None) -> Path:
        """Trains to the end, or for max_steps more steps; saves either way."""
        started = saved = time.monotonic()
        num_steps = 0
        while self.progress.pool < self.config.num_pools:
            for batch in self._remaining_batches():
                record = self._step(batch)
                num_steps += 1
                self._log({"seconds": round(time.monotonic() - started, 1), **record})
                if num_steps == max_steps:
                    return self._save()
                if time.monotonic() - saved > self.config.save_every_s:
                    self._save()
                    saved = time.monotonic()
            self.progress.pool, self.progress.batch = self.progress.pool + 1, 0
            if self.progress.pool % self.config.sample_every_pools == 0:
                self._log_samples()
        return self._save()

    def _remaining_batches(self) -> Iterator[Batch]:
        yield from self.batches(self.progress.pool)[self.progress.batch :]

    def batches(self, pool: int) -> list[Batch]:
        """The batches of a pool: the same whenever it is asked for."""
        config, rng = self.config, random.Random(f"{self.config.seed}/{pool}")
        pad_id = config.model.pad_token_id or 0
        longest = config.size_at(pool / config.num_pools)
        sequences = []
        for index in range(config.groups_per_pool):
            size = longest * rng.uniform(0.3, 1.0)
            group = self.maker.make(f"{config.seed}/{pool}/{index}", size, config.items_per_group)
            sequences.append(self.packer.pack(group, config.max_sequence_tokens))
        return make_batches([s for s in sequences if s is not None], config.tokens_per_batch, pad_id, rng)

    def _step(self, batch: Batch) -> dict[str, Any]:
        # 1. forward and backward
        started = time.monotonic()
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            answer_loss, language_loss, routers = losses(
                self.model, batch, self.config.language_share, self.progress.steps
            )
        (answer_loss + self.config.language_weight * language_loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        # 2. the update, at this moment's rate
        share = (self.progress.pool + self.progress.batch / 100) / self.config.num_pools
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * self.config.lr_factor_at(min(share, 1.0))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        load = balance_experts(self.model, routers, self.config.bias_rate)
        # 3. the books
        num_tokens = int((batch.branches >= 0).sum())
        self.progress.batch += 1
        self.progress.steps += 1
        self.progress.tokens += num_tokens
        self.progress.answer_tokens += int((batch.kinds == ANSWER).sum())
        seconds = time.monotonic() - started
        return {
            "pool": self.progress.pool, "step": self.progress.steps, "tokens": self.progress.tokens,
            "answer_loss": round(answer_loss.item(), 4), "language_loss": round(language_loss.item(), 4),
            "grad_norm": round(norm.item(), 3), "tokens_per_s": round(num_tokens / seconds), "max_load": round(load, 2),
        }  # fmt: skip

    def _log_samples(self) -> None:
        for index in range(2):
            group = self.held_out.make(f"sample/{self.progress.pool}/{index}", 0.7, 2)
            for item in group.items[:2]:
                said = answer(self.model, self.packer, group, item, max_tokens=80)
                self._log({"pool": self.progress.pool, "question": item.question, "wanted": item.answer, "said": said})

    def _log(self, record: dict[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _save(self) -> Path:
        """The state to go on from, and the checkpoint as the product reads it; each replaces the old one at once."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": {name: getattr(self.progress, name) for name in Progress.__slots__},
        }
        path = self.folder / "state.pt"
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        save_checkpoint(self.model, self.folder)
        return self.folder

    def _load(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            rates = [group["base_lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["base_lr"] = rate  # the configuration's, should it have changed
        self.progress = Progress(**state["progress"])


def losses(
    model: BailingMoeV2ForCausalLM, batch: Batch, language_share: float, seed: int
) -> tuple[Tensor, Tensor, list[tuple[MoE, RouterOutput]]]:
    """Mean cross-entropy of answer tokens, of a random share of prompt tokens, and what each router chose.

    Only the rows that are scored pass the head: it is two fifths of the work otherwise.
    """
    # 1. the decoder
    x_BSD, routers = decode(model, batch)
    # 2. token t+1 is scored at t, if both stand in the same branch
    ids, branches, kinds = batch.ids[:, 1:], batch.branches, batch.kinds[:, 1:]
    is_next = branches[:, 1:] == branches[:, :-1]
    chance = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
    is_answer = is_next & (kinds == ANSWER)
    is_language = is_next & (kinds == PROMPT) & (chance < language_share)
    is_scored = is_answer | is_language
    hidden = model.model.norm(x_BSD[:, :-1][is_scored])
    loss = F.cross_entropy(model.lm_head(hidden).float(), ids[is_scored], reduction="none")
    of_answer = is_answer[is_scored]
    zero = loss.sum() * 0
    return loss[of_answer].mean(), loss[~of_answer].mean() if bool((~of_answer).any()) else zero, routers


@torch.no_grad()
def balance_experts(model: BailingMoeV2ForCausalLM, routers: list[tuple[MoE, RouterOutput]], rate: float) -> float:
    """Moves each expert's bias against its load, without a loss (Wang et al. 2024, arXiv 2408.15664). Returns the
    largest load of any expert, as a multiple of an even share."""
    worst = 0.0
    for moe, router in routers:
        load = torch.bincount(router.topk_ids.flatten(), minlength=model.config.num_experts).float()
        moe.gate.expert_bias += rate * torch.sign(load.mean() - load)
        worst = max(worst, (load.max() / load.mean()).item())
    return worst
