"""Reads the public data beside the checkout into stretches of real text: sentences with the questions they answer.

Only training sources are read, never the evaluation sets. Knows nothing of prompts, tokens or the model.
"""

from __future__ import annotations

import json
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9•(\"“-])|\n+|(?<=[。！？])")
_ABBREVIATION = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|vs|e\.g|i\.e|Fig|approx|No|St|Prof|etc|al|[A-Z])\.$")
_MARKUP = re.compile(r"\*\*|__|^#+\s*|\[\d+\]|</?\w+>", re.MULTILINE)

SECTION_QUESTIONS = {
    "CC": "admission", "ALLERGY": "allergies", "MEDICATIONS": "medications", "PASTMEDICALHX": "problems",
    "PASTSURGICAL": "surgery", "FAM/SOCHX": "family", "PLAN": "plan", "DIAGNOSIS": "diagnosis",
    "ASSESSMENT": "diagnosis",
    "CHIEF COMPLAINT": "admission", "MEDICATIONS ": "medications", "ALLERGIES": "allergies",
    "CURRENT MEDICATIONS": "medications",
    "MEDICAL HISTORY": "problems", "PAST MEDICAL HISTORY": "problems", "SURGICAL HISTORY": "surgery",
    "FAMILY HISTORY": "family", "VITALS": "vitals",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of a source document in sentences. question, if any, is answered by the first `num_answers` of them;
    kind, if any, is the kind of `asks.ASKS` that they answer. group names the document: one group, one subject."""

    source: str
    group: str
    sentences: tuple[str, ...]
    question: str = ""
    kind: str = ""
    num_answers: int = 0


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def split_sentences(text: str) -> list[str]:
    """Sentences and list items, stripped of markup; each stands verbatim in a passage joined from them."""
    parts: list[str] = []
    for piece in _SENTENCE_END.split(_MARKUP.sub("", text)):
        piece = " ".join(piece.split())
        if parts and _ABBREVIATION.search(parts[-1]):
            parts[-1] = f"{parts[-1]} {piece}"
        elif piece:
            parts.append(piece)
    return parts


def read_texts(data: Path) -> dict[str, list[Text]]:
    """Every text by source, but for those of which the sample documents beside the data are made."""
    texts = _read_all(data)
    shown = _sample_documents(data)
    groups = {
        (t.source, t.group)
        for part in texts.values()
        for t in part
        if any(len(s) > 60 and s in shown for s in t.sentences)
    }
    return {name: [t for t in part if (t.source, t.group) not in groups] for name, part in texts.items()}


def split_held_out(
    texts: Mapping[str, Sequence[Text]], one_in: int = 40
) -> tuple[dict[str, list[Text]], dict[str, list[Text]]]:
    """(for training, held out), whole documents at a time, by a hash of their name."""

    def is_held(text: Text) -> bool:
        return zlib.crc32(f"{text.source}/{text.group}".encode()) % one_in == 0

    train = {name: [t for t in part if not is_held(t)] for name, part in texts.items()}
    held = {name: [t for t in part if is_held(t)] for name, part in texts.items()}
    return train, held


def _sample_documents(data: Path) -> str:
    """The words of ../clinical_docs, on one line; the book part is left out: it is a tenth of a training source."""
    path = data.parent / "clinical_docs" / "truth.jsonl.xz"
    rows = read_jsonl(path) if path.is_file() else ()
    return " ".join(" ".join(row["text"].split()) for row in rows if row.get("text") and "long" not in row["file"])


def _read_all(data: Path) -> dict[str, list[Text]]:
    return {
        "medquad": list(_medquad(data)),
        "pubmedqa": list(_pubmedqa(data)),
        "openstax": list(_openstax(data)),
        "notes": [*_aci(data), *_mts(data), *_primock(data)],
        "charts": list(_charts(data)),
        "zh": list(_chinese(data)),
    }


def _medquad(data: Path) -> Iterator[Text]:
    for row in read_jsonl(data / "medquad" / "medquad_qa.jsonl.xz"):
        sentences = [s for s in split_sentences(row["answer"]) if 20 <= len(s) <= 320 and s != "Key Points"]
        if len(sentences) >= 2:
            yield Text("medquad", row["doc"], tuple(sentences[:24]), re.sub(r"\s+\?", "?", row["question"]), "", 1)


def _pubmedqa(data: Path) -> Iterator[Text]:
    for row in read_jsonl(data / "pubmedqa" / "pqal_dev500.jsonl.xz"):
        conclusion = split_sentences(row["long_answer"])
        sentences = [s for c in row["contexts"] for s in split_sentences(c) if len(s) <= 360]
        if conclusion and sentences:
            yield Text("pubmedqa", row["id"], (*conclusion[:3], *sentences), row["question"], "", 1)


def _openstax(data: Path) -> Iterator[Text]:
    for path in sorted((data / "openstax").glob("*_modules.jsonl.xz")):
        for row in read_jsonl(path):
            for index, block in enumerate(re.split(r"\n(?=#+ )", row["text"])):
                sentences = [s for s in split_sentences(block) if 25 <= len(s) <= 320]
                if len(sentences) >= 3:
                    yield Text("openstax", f"{row['id']}", tuple(sentences), f"#{row['title']} {index}")
    for path in sorted((data / "openstax").glob("*_glossary.jsonl.xz")):
        if path.stat().st_size < 100:
            continue
        for row in read_jsonl(path):
            if 20 <= len(row["meaning"]) <= 260:
                term = row["term"].strip()
                yield Text(
                    "glossary",
                    row["module"],
                    (f"{term[0].upper() + term[1:]}: {' '.join(row['meaning'].split())}.",),
                    f"What is {term}?",
                    "",
                    1,
                )


def _aci(data: Path) -> Iterator[Text]:
    for row in read_jsonl(data / "aci_bench" / "encounters.jsonl.xz"):
        for block in re.split(r"\n\s*\n(?=[A-Z][A-Z ,/]+\n)", row["note"].strip()):
            heading, _, body = block.partition("\n")
            yield from _note_text("aci", row["id"], heading.strip(), split_sentences(body))


def _mts(data: Path) -> Iterator[Text]:
    for name in ("train", "val", "test1"):
        for row in read_jsonl(data / "mts_dialog" / f"{name}.jsonl.xz"):
            yield from _note_text("mts", row["id"], row["section"], split_sentences(row["note"]))


def _primock(data: Path) -> Iterator[Text]:
    for row in read_jsonl(data / "primock57" / "consultations.jsonl.xz"):
        yield from _note_text("primock", row["id"], "", split_sentences(row["note"]))


def _note_text(source: str, group: str, section: str, sentences: Sequence[str]) -> Iterator[Text]:
    kept = tuple(s for s in sentences if 5 <= len(s) <= 320)
    if kept and len(" ".join(kept)) >= 20:
        yield Text(source, group, kept, "", SECTION_QUESTIONS.get(section, ""), min(3, len(kept)))


def _charts(data: Path) -> Iterator[Text]:
    """Sections of structured charts; a table row is a sentence, its cells joined as a document reader joins them."""
    for index, row in enumerate(read_jsonl(data / "ccda" / "rendered.jsonl.xz")):
        for block in re.split(r"\n(?=## )", row["text"])[1:]:
            heading, _, body = block.partition("\n")
            cells = [
                [c.strip() for c in line.strip(" |").split("|")]
                for line in body.splitlines()
                if line.startswith("|") and "---" not in line
            ]
            joiner = (" | ", " ", ", ")[index % 3]
            rows = [joiner.join(c for c in line if c) for line in cells[1:]]
            sentences = tuple(r for r in rows if 12 <= len(r) <= 220)
            if sentences:
                title = heading.strip("# ").split(",")[0]
                kind = {"Allergies": "allergies", "Medications": "medications", "Problems": "problems"}.get(title, "")
                yield Text("chart", row["id"], sentences[:16], "", kind, min(4, len(sentences)))


def _chinese(data: Path) -> Iterator[Text]:
    for row in read_jsonl(data / "bentsao_zh" / "qa.jsonl.xz"):
        sentences = split_sentences(row["answer"])
        if sentences and all(6 <= len(s) <= 160 for s in sentences):
            yield Text("zh", row["id"], tuple(sentences), row["question"], "", min(2, len(sentences)))
    for row in read_jsonl(data / "bentsao_zh" / "liver_cancer_multiturn.jsonl.xz"):
        for question, answer in zip(row["turns"][::2], row["turns"][1::2], strict=False):
            sentences = split_sentences(answer["text"])
            if sentences and all(6 <= len(s) <= 160 for s in sentences):
                yield Text("zh", row["id"], tuple(sentences), question["text"], "", min(2, len(sentences)))
