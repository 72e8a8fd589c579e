"""The words of every evaluation set, for training to keep clear of (see model/train/cleaning.py)."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from app.evaluation.grounded_items import GROUNDED, SECOND, load_items
from app.evaluation.probes import load_held_text, load_probes


def evaluation_texts(bench: Path) -> Iterator[str]:
    """Passages, questions and answers of the probes and of `eval grounded`, the held text, and the queries of the
    retrieval benchmark where its folder is there. Its documents are the public texts themselves."""
    for probe in load_probes():
        yield from (probe.passage, probe.question, probe.answer)
    yield from load_held_text().values()
    for item in (*load_items(GROUNDED), *load_items(SECOND)):
        yield item.question
        yield from (passage.text for passage in item.passages)
    for path in sorted(bench.glob("*/queries.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            yield from (json.loads(line)["query"] for line in file)
