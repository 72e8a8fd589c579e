"""Supervised fine-tuning: passages and a question in, a cited answer out.

The tokenizer is trained first, unless the folder has one; the prompt's form is the caller's (`render`): this package
does not know the product.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from model.train.bpe import write_tokenizer
from model.train.config import TrainConfig
from model.train.corpora import Text, split_held_out
from model.train.evaluate import answer
from model.train.examples import ExampleMaker
from model.train.losses import losses
from model.train.packing import Batch, Packer, Render, make_batches
from model.train.run import Run, Step


class SftRun(Run[Batch]):
    """texts: the public texts by source; one document in forty is held out for the samples of the log."""

    def __init__(
        self, config: TrainConfig, render: Render, texts: Mapping[str, Sequence[Text]], resume: bool = True
    ) -> None:
        train, held_out = split_held_out(texts)
        self.maker, self.held_out = ExampleMaker(train, config.shares), ExampleMaker(held_out, config.shares)
        write_tokenizer(config.output_dir, config, train, render)
        self.packer = Packer(config.output_dir, render)
        super().__init__(config, resume)

    def work(self, pool: int) -> list[Batch]:
        config, rng = self.config, random.Random(f"{self.config.seed}/{pool}")
        longest = config.size_at(pool / config.num_pools)
        is_told = config.look_weight > 0 and pool / config.num_pools < config.look_until
        sequences = []
        for index in range(config.groups_per_pool):
            size = longest * rng.uniform(0.3, 1.0)
            group = self.maker.make(f"{config.seed}/{pool}/{index}", size, config.items_per_group)
            sequences.append(self.packer.pack(group, config.max_sequence_tokens, config.max_branch_tokens, is_told))
        fitting = [s for s in sequences if s is not None]
        return make_batches(fitting, config.tokens_per_batch, config.model.pad_token_id or 0, rng, config.multiple)

    def step(self, work: Batch) -> Step:
        return losses(self.model, work, self.config, self.progress.steps, self.share)

    def samples(self) -> list[dict[str, Any]]:
        found = []
        for index in range(2):
            group = self.held_out.make(f"sample/{self.progress.pool}/{index}", 0.7, 2)
            for item in group.items[:2]:
                said = answer(self.model, self.packer, group, item, max_tokens=80)
                found.append({"question": item.question, "wanted": item.answer, "said": said})
        return found
