"""Continual pre-training: plain text, every token scored, with a long-context phase at the end.

Documents stand one after the other, closed by the end token, in sequences of equal length; from `yarn_from` on these
are `long_sequence_tokens` long and positions are stretched by YaRN (Peng et al. 2023, arXiv 2309.00071).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch

from model.train.bpe import write_tokenizer
from model.train.config import TrainConfig
from model.train.corpora import Text, split_held_out
from model.train.examples import ExampleMaker
from model.train.losses import losses
from model.train.packing import ANSWER, Batch, Packer, Render
from model.train.run import Run, Step

RECORDS = 0.2  # share of invented records among the documents


class CptRun(Run[Batch]):
    """texts: the public texts by source; one document in forty is held out, as in the stages after this one."""

    def __init__(
        self, config: TrainConfig, render: Render, texts: Mapping[str, Sequence[Text]], resume: bool = True
    ) -> None:
        train, _ = split_held_out(texts)
        self.maker = ExampleMaker(train, config.shares)
        self.documents = join_documents(train)
        write_tokenizer(config.output_dir, config, train, render)
        self.packer = Packer(config.output_dir, render)
        super().__init__(config, resume)

    def work(self, pool: int) -> list[Batch]:
        config = self.config
        is_long = config.long_sequence_tokens and pool / config.num_pools >= config.yarn_from
        length = config.long_sequence_tokens if is_long else config.max_sequence_tokens
        rows = max(1, config.tokens_per_batch // length)
        ids = self._stream(pool)
        batches = []
        for _ in range(max(1, config.groups_per_pool // rows)):
            table = torch.tensor([[next(ids) for _ in range(length)] for _ in range(rows)])
            zeros = torch.zeros_like(table)
            batches.append(Batch(table, torch.arange(length).expand_as(table), zeros, zeros + ANSWER, length))
        return batches

    def step(self, work: Batch) -> Step:
        return losses(self.model, work, self.config, self.progress.steps, self.share)

    def _stream(self, pool: int) -> Iterator[int]:
        """Tokens of documents drawn at random, without end."""
        rng = random.Random(f"{self.config.seed}/cpt/{pool}")
        for number in iter(int, None):
            if not self.documents or rng.random() < RECORDS:
                group = self.maker.make(f"{self.config.seed}/cpt/{pool}/{rng.random()}/{number}", 1.0, 1, "record")
                text = "\n\n".join(passage.text for passage in group.passages)
            else:
                text = rng.choice(self.documents)
            yield from self.packer.encode(f"{text}<|endoftext|>")


def join_documents(texts: Mapping[str, Sequence[Text]]) -> list[str]:
    """The texts of each document, one after the other, each with the question it answers."""
    documents: dict[tuple[str, str], list[str]] = defaultdict(list)
    for part in texts.values():
        for text in part:
            head = [text.question] if text.question and not text.question.startswith("#") else []
            documents[text.source, text.group].append("\n".join([*head, " ".join(text.sentences)]))
    return ["\n\n".join(parts) for parts in documents.values()]
