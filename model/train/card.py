"""Finishes a run: exports its checkpoint, measures it on held-out questions and writes its model card.

The figures are measured, the rest of the card is the text below. The prompt's form is the caller's (`render`).
"""

from __future__ import annotations

import json
from datetime import date
from itertools import pairwise
from pathlib import Path

from safetensors import safe_open

from model.train.evaluate import evaluate
from model.train.export import EMBEDDED, export
from model.train.packing import Render
from model.train.score import Figures

CARD = """# Bedside's embedded model, first version

A nano BailingMoeV2 of {params} M parameters (bf16, {megabytes} MB) trained from scratch on {date}. It has one job: to
answer a question from numbered passages in their own words, ending each sentence with the passage's number, and to say
"The passages do not say." when they do not hold the answer. It is the demo's model, not a medical model: it knows no
medicine, and everything that it says is checked against the passages before it is shown.

## Form

5 layers (the first dense), hidden 320, 6 query and 3 key-value heads of 64, 16 experts in 4 groups (2 groups and
4 experts per token, one shared), sigmoid routing with a bias for selection only, tied embeddings, 8,192 byte-level BPE
tokens (digits one by one; mostly English, a little Chinese), context 2,048 tokens. No MTP layer, no YaRN. Same code
path and chat template as the full-size family (template: MIT, Ling-V2). Prompts of more than about 900 tokens were rare
in training: keep the evidence short.

## Training

- Hardware: 2 CPU cores, shared with other work; about {minutes} minutes.
- {steps} steps, {tokens} tokens. Training loss {loss} per answer token (mean of the last 20 steps).
- Starting weights look a line up, copy it and cite its passage already (`model/train/circuits.py`, `citing.py`);
  Muon and AdamW; expert bias moved against the load, without an auxiliary loss. Learning rates and length were
  adjusted while it ran, so `bedside train` with `configs/nano.yaml` gives a sibling, not these very weights.
- Examples are generated (`model/train/examples.py`): invented records (letters, laboratory tables, medication lists,
  FHIR lines, one drug in four with an invented name) and public texts with questions about their sentences; about a
  fifth cannot be answered; some follow other questions; some passages hold instructions that must not be obeyed.

| source | licence | used for |
|---|---|---|
| MedQuAD (abachaa/MedQuAD) | CC BY 4.0 | questions and answers by section |
| PubMedQA (pubmedqa/pubmedqa), development folds | MIT | questions on abstracts |
| OpenStax: Pharmacology and Population Health for Nurses, Microbiology, Anatomy 2e | CC BY 4.0 | sentences, terms |
| ACI-Bench, MTS-Dialog (abachaa) | CC BY 4.0 | clinical notes by section |
| PriMock57 (babylonhealth) | CC BY 4.0 | clinical notes |
| sample C-CDA charts (jmandel/sample_ccdas), HL7 C-CDA-Examples | CC BY 4.0, CC0 | chart rows |
| Huatuo-Llama-Med-Chinese (SCIR-HI) | Apache-2.0 | Chinese form; machine-written, no source of medical truth |
| invented records (this repository) | Apache-2.0 | everything that a record holds |

One document in forty of each source was held out; the sample documents beside the data were left out, and no
benchmark file was read.

## Figures

Held-out questions, passages of size {size}, greedy, **before** the product's output check:

| | invented records | held-out texts |
|---|---|---|
{table}

Measured with `model.train.evaluate.evaluate(folder, data, render, num_groups={num_groups}, size={size})`.

## Limits

- It was trained for minutes, where such a model needs hours. Of what it says, {verbatim_record} (records) and
  {verbatim_text} (texts) stands word for word in the passage that it cites; the product shows quotes in place of
  the rest.
- It copies; it does not add, compare, convert, translate or reason, and "latest" or "highest" mean nothing to it.
- Handwriting recognised badly, tables cut into pieces and sentences over two passages are beyond it.
- Chinese is a guest: about 4 % of the examples.
- Not a medical device. Not to be used without the product's checks.
"""
_ROWS = (
    ("Answerable questions", "num_answerable"),
    ("Unanswerable questions", "num_unanswerable"),
    ("Token F1 against the wanted answer", "f1"),
    ("Answers exactly as wanted", "exact"),
    ("Sentences said that stand word for word in the passage they cite", "verbatim"),
    ("Sentences that cite a right passage", "cited_right"),
    ("Abstained although the answer was there", "false_abstention"),
    ("Abstained when it was not there", "abstention"),
)


def finish(
    run_dir: Path, data_dir: Path, render: Render, folder: Path = EMBEDDED, num_groups: int = 30, size: float = 0.7
) -> dict[str, Figures]:
    """Exports run_dir into folder, evaluates it there and writes folder/MODEL_CARD.md; returns the figures."""
    export(run_dir, folder)
    figures = evaluate(folder, data_dir, render, num_groups, size)
    text = write_card(run_dir / "log.jsonl", folder / "model.safetensors", figures, num_groups, size)
    (folder / "MODEL_CARD.md").write_text(text, encoding="utf-8")
    return figures


def write_card(log: Path, weights: Path, figures: dict[str, Figures], num_groups: int, size: float) -> str:
    """The card of a run from its log, its weights and its figures."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [entry for entry in entries if "answer_loss" in entry]
    last = steps[-20:]
    with safe_open(weights, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    record, text = figures["record"], figures["text"]
    return CARD.format(
        params=f"{sum(map(_product, shapes)) / 1e6:.1f}",
        megabytes=f"{weights.stat().st_size / 1e6:.0f}",
        date=date.today().isoformat(),
        minutes=f"{_seconds(steps) / 60:.0f}",
        steps=f"{steps[-1]['step']:,}",
        tokens=f"{steps[-1]['tokens']:,}",
        loss=f"{sum(entry['answer_loss'] for entry in last) / len(last):.2f}",
        size=size,
        num_groups=num_groups,
        table="\n".join(f"| {label} | {_show(record, name)} | {_show(text, name)} |" for label, name in _ROWS),
        verbatim_record=_show(record, "verbatim"),
        verbatim_text=_show(text, "verbatim"),
    )


def _seconds(steps: list[dict[str, float]]) -> float:
    """Time spent in all starts of a run: its clock begins anew at each."""
    ends = [a["seconds"] for a, b in pairwise(steps) if b["seconds"] < a["seconds"]]
    return sum(ends) + steps[-1]["seconds"]


def _show(figures: Figures, name: str) -> str:
    value = getattr(figures, name)
    return str(value) if name.startswith("num_") else f"{100 * value:.0f} %"


def _product(shape: list[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
