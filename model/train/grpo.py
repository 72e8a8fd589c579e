"""Group relative policy optimisation: several answers to a question, each held against their mean.

After Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300) with one update for each draw, so that nothing has to be
clipped, and with the mean over tokens instead of answers (Yu et al. 2025, DAPO, arXiv 2503.14476). Answers are drawn by
a seeded generator, so that a resumed run draws the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import load_model
from model.kv_cache import KVCache
from model.modeling import BailingMoeV2ForCausalLM
from model.train.bpe import write_tokenizer
from model.train.branches import decode
from model.train.config import ConfigError, TrainConfig
from model.train.corpora import Text, split_held_out
from model.train.evaluate import answer
from model.train.examples import ExampleMaker, Group, Item
from model.train.losses import cross_entropy
from model.train.packing import ANSWER, PROMPT, Batch, PackedSequence, Packer, Render, make_batch, shared_length
from model.train.rewards import REWARDS, agreement, total
from model.train.run import Run, Step, prepare

HELD = "held_agreement"  # how the reward that is never trained on is called in the log


class GrpoRun(Run[list[Group]]):
    """texts: the public texts by source. The configuration must name init_from, whose model it also stays near."""

    def __init__(
        self, config: TrainConfig, render: Render, texts: Mapping[str, Sequence[Text]], resume: bool = True
    ) -> None:
        if config.init_from is None:
            raise ConfigError("grpo needs init_from: the folder of a model that has been fine-tuned.")
        if not any(config.rewards.values()):
            raise ConfigError("grpo needs rewards: a weight for at least one of them.")
        train, held_out = split_held_out(texts)
        self.maker, self.held_out = ExampleMaker(train, config.shares), ExampleMaker(held_out, config.shares)
        write_tokenizer(config.output_dir, config, train, render)
        self.packer = Packer(config.output_dir, render)
        super().__init__(config, resume)
        before = load_model(config.init_from, torch.float32) if config.kl_weight else None
        self.reference = prepare(before, self.device) if before is not None else None

    def work(self, pool: int) -> list[list[Group]]:
        config, size = self.config, self.config.size_at(pool / self.config.num_pools)
        seeds = (f"{config.seed}/grpo/{pool}/{index}" for index in range(config.groups_per_pool))
        groups = [self.maker.make(seed, size, config.items_per_group) for seed in seeds]
        return [groups[i : i + config.groups_per_step] for i in range(0, len(groups), config.groups_per_step)]

    def step(self, work: list[Group]) -> Step:
        # 1. answers and what they are worth
        asked = [(group, item) for group in work for item in group.items]
        drawn = [(*of, said, ids) for of, found in zip(asked, self._draw(asked), strict=True) for ids, said in found]
        rewards = [{name: reward(g, i, said) for name, reward in REWARDS.items()} for g, i, said, _ in drawn]
        totals = torch.tensor([total(reward, self.config.rewards) for reward in rewards])
        advantages = relative(totals.view(len(asked), -1)).flatten().to(self.device)
        # 2. one pass over all of them: the passages once, each answer a branch
        packed = [pack_answers(self.packer, g, [(i, ids) for h, i, _, ids in drawn if h is g]) for g in work]
        batch = make_batch(packed, self.config.model.pad_token_id or 0, self.config.multiple)
        is_drawn = (batch.kinds[:, 1:] == ANSWER) & (batch.branches[:, 1:] == batch.branches[:, :-1])
        first = torch.tensor([0, *accumulate(len(g.items) * self.config.samples_per_item for g in work)])
        owner = ((first[:-1, None] + batch.branches[:, 1:])[is_drawn] - 1).to(self.device)
        num_tokens = int((batch.branches >= 0).sum())
        batch, is_drawn = batch.to(self.device), is_drawn.to(self.device)
        log_probs, routers = self._log_probs(self.model, batch, is_drawn)
        loss = -(advantages[owner] * log_probs).mean()
        # 3. what holds it near the model it began with: the k3 estimator of Schulman 2020
        divergence = torch.zeros((), device=self.device)
        if self.reference is not None:
            with torch.no_grad():
                before, _ = self._log_probs(self.reference, batch, is_drawn)
            ratio = before - log_probs
            divergence = (ratio.exp() - ratio - 1).mean()
        means = {name: _mean([reward[name] for reward in rewards]) for name in REWARDS}
        means[HELD] = _mean([agreement(g, i, said) for g, i, said, _ in drawn])
        means["answer_tokens"] = _mean([len(ids) for *_, ids in drawn])
        figures = {name: torch.tensor(value) for name, value in means.items()}
        figures |= {"reward": totals.mean(), "kl": divergence.detach()}
        return Step(loss + self.config.kl_weight * divergence, routers, num_tokens, len(owner), figures)

    def samples(self) -> list[dict[str, Any]]:
        group = self.held_out.make(f"sample/{self.progress.pool}", 0.7, 3)
        said = [(item, answer(self.model, self.packer, group, item, 80)) for item in group.items]
        return [{"question": item.question, "wanted": item.answer, "said": words} for item, words in said]

    def _draw(self, asked: Sequence[tuple[Group, Item]]) -> list[list[tuple[list[int], str]]]:
        """(ids with the end token, text) of each answer, by question."""
        config, stops = self.config, self.packer.tokenizer.stop_ids
        prompts = [[id_ for part in prompt_ids(self.packer, group, item) for id_ in part] for group, item in asked]
        generator = torch.Generator(self.device)
        generator.manual_seed(hash_of(config.seed, self.progress.steps, asked[0][1].question))
        found = draw(
            self.model, prompts, config.samples_per_item, config.max_answer_tokens, config.temperature, stops, generator
        )
        decode_text = self.packer.tokenizer.decode
        return [[(ids, decode_text([i for i in ids if i not in stops])) for ids in answers] for answers in found]

    @staticmethod
    def _log_probs(model: BailingMoeV2ForCausalLM, batch: Batch, is_drawn: Tensor) -> tuple[Tensor, Any]:
        x_BSD, routers = decode(model, batch)
        hidden = model.model.norm(x_BSD[:, :-1][is_drawn])
        return -cross_entropy(model, hidden, batch.ids[:, 1:][is_drawn]), routers


def relative(rewards: Tensor) -> Tensor:
    """Advantages [items, samples]: how far each reward is from its question's mean. Not in standard deviations: where
    answers hardly differ, so should their weights (Liu et al. 2025, "Dr. GRPO", arXiv 2503.20783)."""
    return rewards - rewards.mean(1, keepdim=True)


def prompt_ids(packer: Packer, group: Group, item: Item) -> tuple[list[int], list[int]]:
    """The prompt's tokens: what its passages' questions share, and the rest."""
    prompt = packer.prompt(group, item)
    cut = shared_length([prompt], len(group.passages))
    return packer.encode(prompt[:cut]), packer.encode(prompt[cut:])


def pack_answers(packer: Packer, group: Group, answers: Sequence[tuple[Item, Sequence[int]]]) -> PackedSequence:
    """The passages once, then each question with one drawn answer as a branch."""
    shared, _ = prompt_ids(packer, group, group.items[0])
    prompts = {id(item): prompt_ids(packer, group, item) for item in group.items}
    parts = [(prompts[id(item)], ids) for item, ids in answers]
    if any(head != shared for head, _ in prompts.values()):
        shared = []  # a question with a history of its own
    ids, positions, branches, kinds = list(shared), list(range(len(shared))), [0] * len(shared), [PROMPT] * len(shared)
    for number, ((head, question), drawn) in enumerate(parts, 1):
        before = question if shared else [*head, *question]
        ids += [*before, *drawn]
        positions += range(len(shared), len(shared) + len(before) + len(drawn))
        branches += [number] * (len(before) + len(drawn))
        kinds += [PROMPT] * len(before) + [ANSWER] * len(drawn)
    return PackedSequence(tuple(ids), tuple(positions), tuple(branches), tuple(kinds))


@torch.no_grad()
def draw(
    model: BailingMoeV2ForCausalLM,
    prompts: Sequence[Sequence[int]],
    number: int,
    max_tokens: int,
    temperature: float,
    stop_ids: Sequence[int],
    generator: torch.Generator,
) -> list[list[list[int]]]:
    """`number` answers drawn for each prompt, each with its stop token unless cut off. A prompt is read once; shorter
    ones are padded on the left."""
    device, width = model.device, max(map(len, prompts))
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.dtype
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)[:, None]
    positions = torch.arange(width, device=device) - (width - lengths)
    mask = (positions >= 0).long()
    first = KVCache(model.config, len(prompts), width, dtype, device)
    logits = model(ids, mask, positions.clamp(min=0), first, logits_to_keep=1).logits[:, -1]
    cache = KVCache(model.config, len(prompts) * number, width + max_tokens, dtype, device)
    for layer in range(model.config.num_hidden_layers):
        cache.append(layer, *(part.repeat_interleave(number, 0) for part in first.get(layer)))
    cache.advance(width)
    logits, mask, positions = (part.repeat_interleave(number, 0) for part in (logits, mask, lengths))
    stops, drawn = torch.tensor(stop_ids, device=device), []
    is_open = torch.ones(len(mask), dtype=torch.bool, device=device)
    for _ in range(max_tokens):
        ids = torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator)
        drawn.append(torch.where(is_open, ids[:, 0], -1))
        is_open &= ~torch.isin(ids[:, 0], stops)
        if not is_open.any():
            break
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
        logits = model(ids, mask, positions, cache, logits_to_keep=1).logits[:, -1]
        positions = positions + 1
    torch.clear_autocast_cache()  # weights cast here know no gradient
    answers = [[id_ for id_ in row if id_ >= 0] for row in torch.stack(drawn, 1).tolist()]
    return [answers[i : i + number] for i in range(0, len(answers), number)]


def find_hacking(entries: Sequence[Mapping[str, Any]]) -> str:
    """A sentence if the reward rose while the held one fell, between a run's first and last quarter; "" if not."""
    steps = [entry for entry in entries if "reward" in entry]
    quarter = max(1, len(steps) // 4)
    first, last = steps[:quarter], steps[-quarter:]
    if not steps:
        return ""
    rise = _mean([entry["reward"] for entry in last]) - _mean([entry["reward"] for entry in first])
    fall = _mean([entry[HELD] for entry in first]) - _mean([entry[HELD] for entry in last])
    if rise <= 0 or fall <= 0.02:
        return ""
    return f"The reward rose by {rise:.3f} while the held reward fell by {fall:.3f}: look at the samples of the log."


def hash_of(*parts: object) -> int:
    """A seed from what a draw depends on, the same in every process."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
