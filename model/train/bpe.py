"""Trains the embedded model's tokenizer: byte-level BPE with the family's split rule and special tokens.

Split rule, normaliser and special strings are those of the BailingMoeV2 family (MODEL_SPEC section 4). Knows nothing of
the model.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from model.train.config import TrainConfig
from model.train.corpora import Text
from model.train.examples import ExampleMaker
from model.train.packing import Render

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")  # the family's own (MIT)
_TOKENIZER_CONFIG = {
    "add_bos_token": False,
    "add_eos_token": False,
    "bos_token": "<|startoftext|>",
    "clean_up_tokenization_spaces": False,
    "cls_token": "[CLS]",
    "eos_token": "<|role_end|>",
    "pad_token": "<|endoftext|>",
    "tokenizer_class": "PreTrainedTokenizerFast",
}

SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
START, PAD, END = "<|startoftext|>", "<|endoftext|>", "<|role_end|>"
SPECIALS = (
    START, PAD, "[CLS]", "[gMASK]", END, "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip
# One token each instead of five: they stand in every prompt. Not special, as in the family.
MARKERS = ("<role>", "</role>")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of vocab_size tokens, the special ones included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKERS),
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=24,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    return tokenizer


def write_tokenizer(folder: Path, config: TrainConfig, texts: dict[str, list[Text]], render: Render) -> None:
    """Trains the tokenizer on prompts, answers and texts of the run, or takes that of init_from or meanings_from, and
    writes its files, unless they are there."""
    if (folder / "tokenizer.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if source := config.init_from or config.meanings_from:
        for name in ("tokenizer_config.json", "generation_config.json", "tokenizer.json"):
            shutil.copyfile(source / name, folder / name)
        return
    tokenizer = train_tokenizer(_corpus(config, texts, render), config.model.vocab_size)
    files = {
        "tokenizer_config.json": {**_TOKENIZER_CONFIG, "chat_template": CHAT_TEMPLATE.read_text(encoding="utf-8")},
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": [1, 4], "pad_token_id": 1},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def _corpus(config: TrainConfig, texts: dict[str, list[Text]], render: Render) -> Iterator[str]:
    rng = random.Random(config.seed)
    maker = ExampleMaker(texts)
    for index in range(config.num_tokenizer_groups):
        group = maker.make(f"{config.seed}/tokenizer/{index}", 1.0, 6)
        for item in group.items[:2]:
            yield "\n".join(
                message.text for message in render(item.question, group.passages, item.history, group.patient)
            )
            yield item.answer
    for name, part in texts.items():
        # Chinese has fewer texts and many more characters: with all of them it would take half of the vocabulary.
        for text in rng.sample(part, min(len(part), 3000 if name == "zh" else 4000)):
            yield " ".join(text.sentences)
