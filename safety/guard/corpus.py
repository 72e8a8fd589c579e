"""What the heads are trained on and measured by: public sets in a data folder beside the checkout, and our own
sentences.

`read_corpus` gives, for each target, texts with a label, the set they come from and a split. Whole acts, categories and
documents go to one split, never their pieces. Knows nothing of features or heads.
"""

from __future__ import annotations

import csv
import json
import lzma
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from safety.guard.authored import read_emergencies, read_filled, read_pairs, read_sentences, read_twins
from safety.guard.conformal import has_han
from safety.sentences import sentence_spans

_PUBLIC_SPLITS = ("train",) * 8 + ("dev", "held")
_MAX_SENTENCE = 400  # characters
_MOST_ASKED = 1200  # Chinese questions, whole, for the thresholds


@dataclass(frozen=True, slots=True)
class Example:
    text: str
    is_positive: bool
    source: str
    split: str  # train, dev, held or fresh
    weight: float = 1.0
    pair: str = ""  # which minimal pair it belongs to


def read_corpus(target: str, data: Path) -> list[Example]:
    """The examples of one target, without repeats. data: the folder of the public sets, see MODEL_CARD.md.

    Raises OSError if a set is missing."""
    examples = _READERS[target](data)
    unique: dict[str, Example] = {}
    for example in examples:
        unique.setdefault(example.text.casefold(), example)
    return list(unique.values())


# --- targets ----------------------------------------------------------------------------------------------------


def _harm(data: Path) -> Iterator[Example]:
    for pair in read_pairs():
        yield Example(pair.harmful, True, "pairs", pair.split, 5.0, pair.harmful)
        yield Example(pair.legitimate, False, "pairs", pair.split, 5.0, pair.harmful)
        if pair.split == "dev":
            yield from _parts(pair.legitimate, "pairs")
    for sentence in read_sentences("despair"):  # an emergency, and no request to do harm
        yield Example(sentence.text, False, sentence.kind, sentence.split, 5.0)
    for sentence in read_emergencies():
        yield Example(sentence.text, False, f"authored_{sentence.kind}", sentence.split, 2.0)
    for twin in read_twins():
        for text in (twin.now, twin.calm):
            yield Example(text, False, "twin", twin.split, 1.0)
    for pair in read_filled():
        yield Example(pair.harmful, True, "filled", "train", 1.0, pair.harmful)
        yield Example(pair.legitimate, False, "filled", "train", 1.0, pair.harmful)
    # So rare an alarm as is promised takes many to see.
    asked = [row["ask"] for row in _rows(data / "toyhom_zh/internal_medicine_qa.jsonl.xz")[1::4]]
    for text in asked[:_MOST_ASKED]:
        yield Example(text, False, "toyhom_question", "dev")
    for text in _sentences(asked):
        yield Example(text, False, "toyhom_sentence", "dev")
    for text in _med_safety(data):
        yield Example(text, True, "medsafetybench", _split(text), 4.0)  # few beside so many pairs
    yield from _benign_requests(data)
    for text in [*_turns(data)[::4], *_sentences(_notes(data))[::12]]:
        yield Example(text, False, "clinical", _split(text))


def _override(data: Path) -> Iterator[Example]:
    """Requests to the program that would lift its rules or turn it against its user."""
    for sentence in read_sentences("injections"):
        if sentence.kind.endswith("-override"):
            yield Example(sentence.text, True, sentence.kind, sentence.split, 6.0)
        else:
            yield Example(sentence.text, False, sentence.kind, sentence.split)
    for row in _json(data / "safety/notinject/valid.json"):
        yield Example(row["prompt"], row["label"] == 1, "notinject_valid", _split(row["prompt"]), 4.0)
    for text in [text for group in _json(data / "safety/bipia/text_attack_train.json").values() for text in group]:
        yield Example(text, False, "bipia", _split(text))
    yield from _benign_requests(data)
    for text in [*_turns(data)[::4], *_sentences(_notes(data))[::12]]:
        yield Example(text, False, "clinical", _split(text))


def _errand(data: Path) -> Iterator[Example]:
    """Sentences of a document that ask something of whoever processes it: orders to a machine, and errands."""
    for sentence in read_sentences("injections"):
        yield Example(sentence.text, True, sentence.kind, sentence.split, 6.0)
    for name in ("text", "code"):
        for category, texts in _json(data / f"safety/bipia/{name}_attack_train.json").items():
            for text in (line for attack in texts for line in _lines(attack)):
                yield Example(text, True, f"bipia_{name}", _split(category), 2.0)
    for sentence in read_sentences("benign"):
        if sentence.kind == "note":
            yield Example(sentence.text, False, "authored", sentence.split, 6.0)
    clinical = [*_sentences(_notes(data)), *_turns(data)[::3], *_sentences(public_answers(data))]
    for text in clinical:
        yield Example(text, False, "clinical", _split(text))
    for text in [row["question"] for row in _rows(data / "medquad/medquad_qa.jsonl.xz")[::4]]:
        yield Example(text, False, "medquad", _split(text))


def _emergency(data: Path) -> Iterator[Example]:
    """What says that somebody is in danger now, by himself too; a question of knowledge does not."""
    return _in_danger(("danger", "self-harm", "mixed"), data)


def _self_harm(data: Path) -> Iterator[Example]:
    return _in_danger(("self-harm",), data)


def _in_danger(kinds: Sequence[str], data: Path) -> Iterator[Example]:
    named = [(sentence, f"authored_{sentence.kind}", sentence.kind in kinds) for sentence in read_emergencies()]
    named += [(sentence, sentence.kind, sentence.kind == "despair") for sentence in read_sentences("despair")]
    for sentence, source, is_positive in named:
        yield Example(sentence.text, is_positive, source, sentence.split, 4.0)
        if sentence.split == "dev" and not is_positive and not has_han(sentence.text):
            yield from _parts(sentence.text, source)
    for twin in read_twins():
        if twin.kind in kinds:  # their sides come together, and what tells them apart is what is learnt
            pair = f"{kinds[-1]}: {twin.now}"  # its own for each target
            yield Example(twin.now, True, "twin", twin.split, 4.0, pair)
            yield Example(twin.calm, False, "twin", twin.split, 4.0, pair)
        elif twin.kind != "mixed":
            yield Example(twin.now, False, "twin_danger", twin.split, 2.0)
            yield Example(twin.calm, False, "twin", twin.split, 2.0)
    for sentence in read_sentences("benign"):
        if sentence.kind != "ask":  # clinicians ask about emergencies too
            yield Example(sentence.text, False, f"authored_{sentence.kind}", sentence.split, 2.0)
    for example in _public_requests(data):
        yield replace(example, weight=0.5) if example.source in _MIXED else example
    for text in [*_turns(data)[::4], *_sentences(_notes(data))[::12]]:
        yield Example(text, False, "clinical", _split(text), 0.5)


_READERS = {"harm": _harm, "override": _override, "errand": _errand, "emergency": _emergency, "self-harm": _self_harm}
_MIXED = ("toyhom", "toyhom_sentence")  # patients' own questions: a few of them are urgent


# --- sets -------------------------------------------------------------------------------------------------------


def _benign_requests(data: Path) -> Iterator[Example]:
    for sentence in read_sentences("benign"):
        yield Example(sentence.text, False, f"authored_{sentence.kind}", sentence.split, 5.0)
    yield from _public_requests(data)


def _public_requests(data: Path) -> Iterator[Example]:
    asked = [row["ask"] for row in _rows(data / "toyhom_zh/internal_medicine_qa.jsonl.xz")[::4]]
    sets = {
        "medquad": [row["question"] for row in _rows(data / "medquad/medquad_qa.jsonl.xz")[::3]],
        "toyhom": asked,
        "toyhom_sentence": _sentences(asked),  # a question is judged by its sentences too, and most of these only tell
        "bentsao": [row["question"] for row in _rows(data / "bentsao_zh/qa.jsonl.xz")[::6]],
        "medmcqa": [row["question"] for row in _rows(data / "medmcqa/medmcqa_dev_part.jsonl.xz")[::2]],
        "pubmedqa": [row["question"] for row in _rows(data / "pubmedqa/pqal_dev500.jsonl.xz")],
        "presidio": [row["full_text"] for row in _json(data / "safety/presidio_synth/generated_large.json.xz")[::3]],
    }
    for source, texts in sets.items():
        for text in texts:
            yield Example(text, False, source, _split(text))
    for row in _json(data / "safety/notinject/valid.json"):
        if row["label"] == 0:
            yield Example(row["prompt"], False, "notinject_valid", _split(row["prompt"]), 4.0)


def _med_safety(data: Path) -> list[str]:
    folder = data / "safety/medsafetybench"
    texts = [row["request"] for row in _rows(folder / "harmful_requests_categories_1_8_sample.jsonl.xz")]
    for path in sorted(folder.glob("train/*/*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            texts += [row["harmful_medical_request"] for row in csv.DictReader(file)]
    return texts


def _notes(data: Path) -> list[str]:
    notes = [row["note"] for row in _rows(data / "aci_bench/encounters.jsonl.xz")]
    notes += [row["note"] for row in _rows(data / "mts_dialog/train.jsonl.xz")]
    return notes + [row["text"][:6000] for row in _rows(data / "ccda/rendered.jsonl.xz")[::6]]


def public_answers(data: Path) -> list[str]:
    """Leaflets in English, advice in Chinese: what else a record may hold."""
    texts = [row["answer"][:1500] for row in _rows(data / "medquad/medquad_qa.jsonl.xz")[::40]]
    texts += [row["answer"] for row in _rows(data / "toyhom_zh/internal_medicine_qa.jsonl.xz")[::12]]
    return texts + [row["answer"] for row in _rows(data / "bentsao_zh/qa.jsonl.xz")[::12]]


def _turns(data: Path) -> list[str]:
    """What was said in consultations, speaker's names left out."""
    lines = [line for row in _rows(data / "mts_dialog/train.jsonl.xz") for line in row["dialogue"].splitlines()]
    return [line.partition(":")[2].strip() for line in lines if 8 < len(line.partition(":")[2]) < _MAX_SENTENCE]


# --- helpers ----------------------------------------------------------------------------------------------------


def _parts(text: str, source: str) -> list[Example]:
    """The sentences of a harmless text, if it has several: for the thresholds of sentences beside their whole."""
    parts = _sentences([text])
    return [Example(part, False, f"{source}_sentence", "dev") for part in parts] if len(parts) > 1 else []


def _sentences(texts: list[str]) -> list[str]:
    found = (text[a:b] for text in texts for a, b in sentence_spans(text))
    return [sentence for sentence in found if 3 < len(sentence) < _MAX_SENTENCE]


def _lines(attack: str) -> list[str]:
    """An attack as a scan by sentence meets it; a line that says nothing by itself is left out."""
    return [text for text in _sentences([attack]) if sum(map(str.isalpha, text)) > 8]


def _rows(path: Path) -> list[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _json(path: Path) -> Any:
    data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    return json.loads(data)


def _split(text: str) -> str:
    return _PUBLIC_SPLITS[crc32(text.encode()) % 10]


# --- what is trained on -----------------------------------------------------------------------------------------

# Of the large public sets so many examples a target are enough; our own sentences are taken whole.
_MOST = {
    "medsafetybench": 3500,
    "clinical": 2700,
    "medquad": 400,
    "toyhom": 300,
    "toyhom_sentence": 1000,
    "bentsao": 200,
    "medmcqa": 1300,
    "pubmedqa": 400,
    "presidio": 600,
}
_MOST_OF = {
    "errand": {"clinical": 3000},
    "emergency": {"toyhom_sentence": 250, "clinical": 500, "presidio": 150, "medmcqa": 300},
}
_EASY = {"override": 3, "self-harm": 3}  # their negatives are easy: a third


def training_set(examples: Sequence[Example], target: str, seed: int) -> list[Example]:
    """The examples of the train split that a target is trained on, in random order."""
    chosen, taken = [], Counter[str]()
    shuffled = [example for example in examples if example.split == "train"]
    random.Random(seed).shuffle(shuffled)
    for example in shuffled:
        most = (_MOST | _MOST_OF.get(target, {})).get(example.source, len(shuffled))
        if taken[example.source] < most // _EASY.get(target, 1):
            taken[example.source] += 1
            chosen.append(example)
    return chosen
