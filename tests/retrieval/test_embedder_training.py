"""The tuning of the Chinese embedder: what it learns, what it writes, and that the program takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from retrieval.multilingual.corpus import Pair
from retrieval.multilingual.embedder import MultilingualEmbedder
from retrieval.multilingual.packed import find_file, open_packed
from retrieval.multilingual.training import FIRST_TUNED, TuningPlan, save, tune

RECORD = yaml.safe_load(Path(__file__).with_name("chinese_record.yaml").read_text(encoding="utf-8"))


def test_tuning_brings_questions_to_their_answers_and_is_read_by_the_program(tmp_path: Path) -> None:
    texts = RECORD["passages"]
    pairs = [Pair((question,), texts[wanted], "note", True) for question, wanted in RECORD["questions"].items()]
    held = sum(pair.is_held for pair in pairs)
    assert 0 < held < len(pairs) / 2
    losses: list[float] = []
    plan = TuningPlan(epochs=4, batch=32, warmup_steps=1)
    tuned = tune(open_packed(find_file()), pairs, plan, lambda step, steps, loss: losses.append(loss))
    assert len(losses) == plan.epochs
    assert losses[-1] < losses[0] - 0.2
    assert 0 <= tuned.recall_after <= 1
    path = tmp_path / "tuned.safetensors"
    save(tuned.tensors, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    learnt = [pair for pair in pairs if not pair.is_held]
    embedder = MultilingualEmbedder(threads=1, tuned=path)
    questions = embedder.embed([pair.questions[0] for pair in learnt])
    answers = np.concatenate(embedder.embed_parts([p.answer for p in learnt], [[(0, len(p.answer))] for p in learnt]))
    assert ((questions @ answers.T).argmax(1) == np.arange(len(learnt))).mean() > 0.8
    assert {name.split(".")[2] for name in tuned.tensors if name.startswith("encoder.")} == {
        str(number) for number in range(FIRST_TUNED, 12)
    }
