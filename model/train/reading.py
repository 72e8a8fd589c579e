"""The stage that makes a reader: a start whose weights are written, but for what words mean, which is learned here.

`Teacher` gives vectors of English texts; this package does not know whose. Logs JSON lines to OUTPUT/log.jsonl.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint import save_checkpoint
from model.modeling import BailingMoeV2ForCausalLM
from model.train.bpe import write_tokenizer
from model.train.config import TrainConfig
from model.train.corpora import Text, split_held_out
from model.train.examples import ExampleMaker, Group
from model.train.lines import split_lines
from model.train.matching import Asked, Matcher, ask, calibrate, distil, learn, score_lines
from model.train.packing import Packer, Render
from model.train.reader import init_reader
from model.train.reader_rounding import round_learned

Teacher = Callable[[list[str]], Tensor]
NUM_WORDS, NUM_SENTENCES = 14_000, 12_000
EPOCHS = 6
MORE = 6e-4  # learning rate once INT4's weights are fixed
ABSTAINS = 0.84  # share of unanswerable generated questions at which the threshold is set
_GROUPS_PER_STEP = 12
_WORD = re.compile(r"[A-Za-z][a-zA-Z-]{2,}")


def make_reader(
    config: TrainConfig, render: Render, texts: Mapping[str, Sequence[Text]], teacher: Teacher | None = None
) -> Path:
    """Learns for num_pools steps, writes the reader and saves it as a checkpoint in output_dir, which is returned."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    train, held_out = split_held_out(texts)
    write_tokenizer(config.output_dir, config, train, render)
    packer = Packer(config.output_dir, render)
    tokens = packer.name_tokens(config.model.vocab_size)
    matcher = Matcher(config.model.vocab_size)
    maker = ExampleMaker(train, config.shares)

    def log(record: dict[str, object]) -> None:
        with (config.output_dir / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    # 1. what a teacher knows of words
    if teacher is not None:
        wanted = collect_texts(maker, train, rng)
        ids = [packer.encode(f" {text}")[:40] for text in wanted]
        log({"distilled": len(ids), "loss": round(distil(matcher, ids, teacher(wanted), EPOCHS, rng), 4)})

    # 2. which line a question asks for
    def batch(step: int) -> list[Asked]:
        size = rng.uniform(0.15, 1.0)
        groups = [maker.make(f"{config.seed}/{step}/{i}", size, config.items_per_group) for i in range(24)]
        found = [asked for group in groups if (asked := to_asked(packer, tokens, group))]
        spare = (len(found) - _GROUPS_PER_STEP) // 2  # of like length, or most of a batch is padding
        return sorted(found, key=lambda asked: len(asked.ids))[max(0, spare) :][:_GROUPS_PER_STEP]

    learn(matcher, tokens, batch, config.num_pools, rng, lambda record: log(dict(record)))
    # 3. the same with the feed-forward weights that INT4 leaves; half of what that changes is kept, which does better
    # on other data than all of it (Wortsman et al. 2022, arXiv 2109.01903)
    round_learned(matcher)
    before = [parameter.detach().clone() for parameter in matcher.parameters()]
    num_more = config.num_pools // 4
    learn(matcher, tokens, lambda step: batch(config.num_pools + step), num_more, rng, lambda r: log(dict(r)), MORE)
    with torch.no_grad():
        for parameter, earlier in zip(matcher.parameters(), before, strict=True):
            parameter.lerp_(earlier, 0.5)
    # 4. when to say nothing
    others = ExampleMaker(held_out, config.shares)
    groups = [others.make(f"limit/{i}", 0.8, config.items_per_group) for i in range(80)]
    calibrate(matcher, tokens, [asked for group in groups if (asked := to_asked(packer, tokens, group))], ABSTAINS)
    for kind in ("record", "text"):
        groups = [others.make(f"held/{kind}/{i}", 0.8, config.items_per_group, kind) for i in range(40)]
        log({kind: score(matcher, packer, tokens, groups)})
    # 5. the decoder
    model = BailingMoeV2ForCausalLM(config.model)
    init_reader(model, tokens, matcher)
    save_checkpoint(model, config.output_dir)
    return config.output_dir


def collect_texts(maker: ExampleMaker, texts: Mapping[str, Sequence[Text]], rng: random.Random) -> list[str]:
    """The commonest English words, sentences of the texts, and lines and questions of invented records."""
    counts: Counter[str] = Counter()
    sentences: list[str] = []
    for text in (text for source, part in texts.items() if source != "zh" for text in part):
        for sentence in text.sentences:
            counts.update(word.lower() for word in _WORD.findall(sentence))
            if 20 < len(sentence) < 140:
                sentences.append(sentence)
    of_records: list[str] = []
    for number in range(800):
        group = maker.make(f"words/{number}", 0.5, 6, "record")
        for passage in group.passages:
            of_records += [line for line in passage.text.split("\n") if 8 < len(line) < 120][:3]
        of_records += [item.question for item in group.items]
    words = [word for word, _ in counts.most_common(NUM_WORDS)]
    half = NUM_SENTENCES // 2
    found = [part if len(part) <= half else rng.sample(part, half) for part in (sentences, of_records)]
    return [*words, *found[0], *found[1]]


def to_asked(packer: Packer, tokens: Sequence[str], group: Group) -> Asked | None:
    """The group in tokens; None where nothing is asked of its passages."""
    prompt = packer.prompt(group, replace(group.items[0], history=()))
    prompt = prompt[: prompt.rfind("\n\nQuestion: ") + 2]
    ids, spans = packer.encode_spans(prompt)
    lines = split_lines([tokens[id_] for id_ in ids])
    starts, place = [], 0
    for key, passage in enumerate(group.passages, 1):
        place = prompt.index("\n", prompt.index(f"[{key}] {passage.document_name}, page {passage.page}", place)) + 1
        starts.append(place)
    questions = []
    for item in group.items:
        gold: set[int] = set()
        for claim in item.claims:
            pattern = re.compile(r"\s+".join(map(re.escape, claim.text.split())))
            if match := pattern.search(prompt, starts[claim.passage]):
                gold |= {
                    lines.line[i] for i, (begin, end) in enumerate(spans) if match.start() <= begin < end <= match.end()
                }
        if not item.said and bool(gold) == bool(item.claims):
            question = packer.encode(f"Question: {item.question}<|role_end|>")
            questions.append((tuple(question), frozenset(gold)))
    return Asked(tuple(ids), lines, tuple(questions)) if questions else None


@torch.no_grad()
def score(matcher: Matcher, packer: Packer, tokens: Sequence[str], groups: Sequence[Group]) -> dict[str, float]:
    """How often each of `score_lines` comes, as shares of the answerable and of the unanswerable questions."""
    rng, counts = random.Random(0), Counter[str]()
    for group in groups:
        if asked := to_asked(packer, tokens, group):
            counts.update(score_lines(*ask(matcher, tokens, [asked], rng, 0.3)))
    shares: dict[str, float] = {}
    for names in (("right", "wrong", "says nothing"), ("abstains", "invents")):
        total = sum(counts[name] for name in names)
        shares |= {name: round(counts[name] / max(total, 1), 3) for name in names}
    return shares
