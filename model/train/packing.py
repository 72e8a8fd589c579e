"""Groups -> training batches: the passages once, then every question with its answer as a branch of its own.

A branch sees the passages and itself, at the positions it would have alone, so that eight questions cost little more
than one and each trains exactly the prompt that the product sends.

Shape suffixes: B sequences, S positions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor

from contracts import Message, Passage, Patient
from model.chat_template import ChatTemplate
from model.tokenizer import Tokenizer
from model.train.examples import Group, Item
from model.train.lines import Lines, split_lines
from model.train.pointers import NUM_ROWS, Look, Source, Span, look_at_lines, look_at_source, shifted, spread

NUM_OPENING_TOKENS = 3  # by then a sentence is one of the passages' and no other
Render = Callable[[str, Sequence[Passage], Sequence[tuple[str, str]], Patient | None], list[Message]]
PROMPT, ANSWER, UNSCORED, DECISION = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class PackedSequence:
    """One group in tokens. branch 0 is what all share; kind says how the token itself is scored: as part of a prompt,
    of an answer, as a token of an answer at which it could go another way, or not at all; looks what positions are told
    to look at."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]
    kinds: tuple[int, ...]
    looks: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """ids, positions, branches, kinds: [B,S] i64 each. num_shared: how many leading positions, padding among them, the
    branches of a sequence share; counted before the batch goes to a device, which need not be waited for. looks
    [B,K,R,3] i64: of each `Look` the position and the interval that it looks into, -1 where there is none."""

    ids: Tensor
    positions: Tensor
    branches: Tensor
    kinds: Tensor
    num_shared: int
    looks: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        ids, positions, branches, kinds = map(move, (self.ids, self.positions, self.branches, self.kinds))
        return Batch(ids, positions, branches, kinds, self.num_shared, None if self.looks is None else move(self.looks))

    @property
    def mask(self) -> Tensor:
        """[B,1,S,S] True where a token may look: earlier, in the shared part or in its own branch."""
        S = self.ids.shape[1]
        is_earlier = torch.ones(S, S, dtype=torch.bool, device=self.ids.device).tril()
        query, key = self.branches[:, :, None], self.branches[:, None, :]
        return (is_earlier & ((key == 0) | (key == query)))[:, None]


class Packer:
    """Writes groups in the tokens of one checkpoint folder's tokenizer and chat template."""

    def __init__(self, folder: Path, render: Render) -> None:
        self.tokenizer = Tokenizer.load(folder)
        self.template = ChatTemplate.load(folder, self.tokenizer)
        self._render = render
        # The rendered prompt holds special tokens on purpose: here their text is the token.
        self._encoder = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        self._end = "<|role_end|>"
        self._names = self.name_tokens(self._encoder.get_vocab_size())

    def list_tokens(self, number: int) -> list[str]:
        """The text of each of the first `number` ids."""
        return [self.tokenizer.get_bytes(id_).decode("utf-8", "replace") for id_ in range(number)]

    def name_tokens(self, number: int) -> list[str]:
        """The same, with the names of those that have no text, such as <|role_end|>."""
        return [text or self._encoder.id_to_token(id_) or "" for id_, text in enumerate(self.list_tokens(number))]

    def messages(self, group: Group, item: Item) -> list[Message]:
        return self._render(item.question, group.passages, item.history, group.patient)

    def prompt(self, group: Group, item: Item) -> str:
        return self.template.render(self.messages(group, item))

    def pack(
        self, group: Group, max_tokens: int, max_rest: int = 1 << 30, with_looks: bool = False
    ) -> PackedSequence | None:
        """None if the passages alone do not fit; branches that do not fit, or exceed max_rest in all, are left out.
        with_looks: with what its positions look at (`pointers.py`)."""
        prompts = [self.prompt(group, item) for item in group.items]
        cut = shared_length(prompts, len(group.passages))
        shared, spans = self.encode_spans(prompts[0][:cut])
        looks = look_at_lines(self._split(shared), 0, -1) if with_looks else []
        source = Source.of(prompts[0][:cut], spans, group.passages) if with_looks and cut else None
        ids, positions, branches, kinds = (
            list(shared),
            list(range(len(shared))),
            [0] * len(shared),
            [PROMPT] * len(shared),
        )
        for number, (prompt, item) in enumerate(zip(prompts, group.items, strict=True), 1):
            question, (answer, spans) = self.encode(prompt[cut:]), self.encode_spans(item.answer + self._end)
            size = len(question) + len(answer)
            if len(ids) + size > min(max_tokens, len(shared) + max_rest):
                break
            if source is not None:
                looks += look_at_lines(self._split(question), len(ids), len(shared) - 1)
                looks += look_at_source(source, item, spans, (len(ids), len(ids) + len(question)))
            ids += question + answer
            positions += range(len(shared), len(shared) + size)
            branches += [number] * size
            kinds += [PROMPT] * len(question) + answer_kinds([self.tokenizer.get_bytes(id_) for id_ in answer])
        has_branch = len(ids) > len(shared)
        parts = (tuple(ids), tuple(positions), tuple(branches), tuple(kinds), spread(looks))
        return PackedSequence(*parts) if has_branch else None

    def _split(self, ids: Sequence[int]) -> Lines:
        return split_lines([self._names[id_] for id_ in ids])

    def encode(self, text: str) -> list[int]:
        """Tokens of a rendered text, in which special tokens stand for themselves."""
        return self._encoder.encode(text, add_special_tokens=False).ids

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The same, and of each token where it begins and ends in the text."""
        encoding = self._encoder.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets


def answer_kinds(tokens: Sequence[bytes]) -> list[int]:
    """The kind of each token of an answer: DECISION where a sentence begins, where its citation opens and in the
    citation's number; the rest follows from what stands in the passage. The end token has no bytes."""
    kinds, since_start, is_open = [], 0, False
    for token in tokens:
        is_decision = since_start < NUM_OPENING_TOKENS or is_open or token.endswith(b"[")
        kinds.append(DECISION if is_decision or not token else ANSWER)
        is_open = token.endswith(b"[") or (is_open and token.isdigit())
        since_start = 0 if token.startswith((b"].", b"]\xe3")) else since_start + 1
    return kinds


def shared_length(prompts: Sequence[str], num_passages: int) -> int:
    """Characters that all prompts share, up to a blank line: there a token ends, whatever follows."""
    first, last = min(prompts), max(prompts)  # what these two share, all share
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    shared = first[:length]
    cut = shared.rfind("\n\n") + 2
    return cut if num_passages and cut > 1 else 0


def make_batches(
    sequences: Sequence[PackedSequence], tokens_per_batch: int, pad_id: int, rng: random.Random, multiple: int = 1
) -> list[Batch]:
    """Sequences of like length together, at most tokens_per_batch with padding (one sequence may exceed it)."""
    batches: list[list[PackedSequence]] = []
    for sequence in sorted(sequences, key=lambda s: s.branches.count(0)):
        if not batches or sum(_widths([*batches[-1], sequence], multiple)) * (len(batches[-1]) + 1) > tokens_per_batch:
            batches.append([])
        batches[-1].append(sequence)
    rng.shuffle(batches)
    return [make_batch(batch, pad_id, multiple) for batch in batches]


def _widths(sequences: Sequence[PackedSequence], multiple: int) -> tuple[int, int]:
    """The longest shared part and the longest rest."""
    shared = max(s.branches.count(0) for s in sequences)
    rest = max(len(s.ids) - s.branches.count(0) for s in sequences)
    return shared, -(-(shared + rest) // multiple) * multiple - shared


def make_batch(sequences: Sequence[PackedSequence], pad_id: int, multiple: int = 1) -> Batch:
    """The sequences, their shared parts padded to the longest and the rest likewise, and all of it to a multiple: a
    GPU's attention asks for whole blocks."""
    num_shared, num_rest = _widths(sequences, multiple)
    own = [s.branches.count(0) for s in sequences]

    def rows(name: str, filler: int) -> Tensor:
        values = [getattr(s, name) for s in sequences]
        padded = [
            [*row[:n], *[filler] * (num_shared - n), *row[n:], *[filler] * (num_rest - len(row) + n)]
            for row, n in zip(values, own, strict=True)
        ]
        return torch.tensor(padded, dtype=torch.int64)

    looks = None
    if any(s.looks for s in sequences):
        looks = torch.full((len(sequences), len(Look), NUM_ROWS, 3), -1)
        for row, (sequence, first) in enumerate(zip(sequences, own, strict=True)):
            for look in Look:
                spans = [shifted(span, first, num_shared - first) for span in sequence.looks if span[0] == look]
                if spans:
                    looks[row, look, : len(spans)] = torch.tensor(spans)
    return Batch(
        rows("ids", pad_id), rows("positions", 0), rows("branches", -1), rows("kinds", UNSCORED), num_shared, looks
    )
