"""Where heads are told to look, and the loss of not looking there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from model.train.branches import decode
from model.train.packing import ANSWER, DECISION, PackedSequence, make_batches
from model.train.pointers import HEADS, NUM_ROWS, Look, Watch
from model.train.sft import SftRun
from tests.model.training import TEXTS, make_config, render


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SftRun:
    folder: Path = tmp_path_factory.mktemp("pointers")
    return SftRun(make_config(folder, look_weight=1.0), render, TEXTS)


def pack(run: SftRun, seed: str, items: int = 3) -> PackedSequence:
    packed = run.packer.pack(run.maker.make(seed, 0.2, items), 4000, with_looks=True)
    assert packed is not None
    return packed


def test_an_answer_looks_at_the_token_that_it_says_next(run: SftRun) -> None:
    names = [name.strip() for name in run.packer.name_tokens(512)]
    checked = 0
    for seed in range(12):
        packed = pack(run, f"source/{seed}")
        for look, here, low, high in packed.looks:
            said = names[packed.ids[here + 1]] if look == Look.SOURCE else ""
            if look == Look.SOURCE:
                assert high == low + 1
                assert packed.kinds[here + 1] in (ANSWER, DECISION)
            if len(said) > 2:  # of shorter ones some are cut differently where a line begins
                assert names[packed.ids[low]] == said
                checked += 1
    assert checked > 50


def test_before_a_sentence_it_looks_at_the_line_and_everywhere_at_earlier_tokens(run: SftRun) -> None:
    packed = pack(run, "line")
    text = run.packer.tokenizer.decode
    answers = text([i for i, kind in zip(packed.ids, packed.kinds, strict=True) if kind in (ANSWER, DECISION)])
    lines = [
        text(list(packed.ids[low:high])).strip(" \n.") for look, _, low, high in packed.looks if look == Look.CHOICE
    ]
    assert lines
    assert all(line[:-1] in answers for line in lines)
    assert {look for look, *_ in packed.looks} == set(Look)
    for look, here, low, high in packed.looks:
        assert 0 <= low < high <= here + 1, look
        assert packed.branches[low] in (0, packed.branches[here])


def test_the_loss_is_minus_the_logarithm_of_the_attention_that_falls_there(run: SftRun) -> None:
    torch.manual_seed(0)
    batch = make_batches([pack(run, "a"), pack(run, "b", 2)], 9999, 1, random.Random(0))[0]
    assert batch.looks is not None
    rows, width = batch.ids.shape
    layer, group, look = HEADS[1]
    q, k = torch.randn(rows, 4, width, 8), torch.randn(rows, 2, width, 8)
    watch = Watch(batch.looks, batch.mask)
    watch(layer, q, k)
    scores = (q[:, group * 2] @ k[:, group].mT / 8**0.5).masked_fill(~batch.mask[:, 0], float("-inf"))
    attention = scores.softmax(-1)
    expected = [
        -attention[row, here, low:high].sum().log()
        for row in range(rows)
        for here, low, high in batch.looks[row, look].tolist()
        if here >= 0
    ]
    torch.testing.assert_close(watch.losses[look][0], torch.stack(expected).mean())


def test_told_heads_learn_to_look(run: SftRun) -> None:
    batch = run.work(0)[0]
    assert batch.looks is not None
    assert batch.looks.shape[1:] == (len(Look), NUM_ROWS, 3)

    def missed() -> float:
        watch = Watch(batch.looks, batch.mask)
        with torch.no_grad():
            decode(run.model, batch, watch)
        return float(watch.total())

    before = missed()
    for _ in range(12):
        run._update(batch, 1, is_logged=False)
    assert missed() < 0.8 * before
