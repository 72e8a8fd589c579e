"""Word lists behind the checks, as data that can be edited: drugs, INN stems, measurements, clinical terms, grammar.

A list is read once, at first use. Knows nothing of passages or rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from safety.strict_yaml import load_strict

FOLDER = Path(__file__).resolve().parent
CONCEPTS = FOLDER / "concepts.yaml"
_NAMED = re.compile(r"<(\w+)>")
_MIN_DRUG_LETTERS = 7  # shorter words end like a drug stem too often
_CLINICAL_ENDING = re.compile(
    r"(?:itis|osis|emia|oma|opathy|algia|ectomy|otomy|ostomy|plasty|oscopy|uria|phagia|plegia|paresis|megaly|rrhea|"
    r"rrhage|pnea|cardia|trophy|philia|penia|cytosis|graphy|gram|sclerosis|stenosis)s?$"
)


def data_files() -> list[Path]:
    """Every list that a verdict may hang on, in order of name."""
    return sorted(path for path in FOLDER.iterdir() if path.suffix in (".yaml", ".txt"))


@cache
def drugs() -> frozenset[str]:
    return frozenset(word for line in _lines("drugs.txt") for word in line.split())


@cache
def _not_drugs() -> frozenset[str]:
    return frozenset(word for line in _lines("not_drugs.txt") for word in line.split())


@cache
def _drug_ending() -> re.Pattern[str]:
    return re.compile("(?:" + "|".join(word for line in _lines("drug_stems.txt") for word in line.split()) + ")$")


def is_drug(word: str) -> bool:
    """Whether a lower-case word is a drug's name: listed, or formed with an INN stem."""
    if word in drugs():
        return True
    if len(word) < _MIN_DRUG_LETTERS or word in _not_drugs() or word.endswith("s") or not word.isalpha():
        return False
    return bool(_drug_ending().search(word))


def is_clinical(word: str) -> bool:
    """Whether a lower-case word ends like the name of a disease, finding or procedure."""
    return len(word) > 5 and bool(_CLINICAL_ENDING.search(word))


@cache
def synonyms(name: str) -> dict[tuple[str, ...], str]:
    """Phrase, as a tuple of lower-case words -> the first phrase of its line, for "terms.txt" or "anchors.txt"."""
    table: dict[tuple[str, ...], str] = {}
    for line in _lines(name):
        phrases = line.split()
        for phrase in phrases:
            table.setdefault(tuple(phrase.split("_")), phrases[0])
    return table


ELIDED = "elided"  # of `rivals.txt`: words that are said once for several


def rivals() -> Iterator[tuple[str, list[str]]]:
    """(kind, words) of `rivals.txt`, a line each."""
    for line in _lines("rivals.txt"):
        kind, *words = line.split()
        yield kind, [word.replace("_", " ") for word in words]


@cache
def silent_words() -> frozenset[str]:
    """Words that a claim may add without saying more."""
    return frozenset(word for line in _lines("silent.txt") for word in line.split())


@cache
def common_words() -> frozenset[str]:
    """Words that a claim may use though the record does not."""
    return frozenset(_lines("common_words.txt"))


@cache
def eponyms() -> frozenset[str]:
    """Lower-case names of persons that stand for a disease, sign, test or device."""
    return frozenset(word for line in _lines("eponyms.txt") for word in line.split())


@cache
def name_parts(kind: str) -> frozenset[str]:
    """Lower-case common names; kind is "given" or "family"."""
    return frozenset(word for line in _lines(f"{kind}_names.txt") for word in line.split())


@cache
def chinese_family_names() -> tuple[str, ...]:
    """The longer first."""
    return tuple(word for line in _lines("family_names_zh.txt") for word in line.split())


@cache
def irregular() -> dict[str, str]:
    """Irregular form -> base."""
    return {form: line.split()[0] for line in _lines("irregular.txt") for form in line.split()[1:]}


@cache
def abbreviations() -> frozenset[str]:
    """Abbreviations, without the last stop, after which a sentence goes on."""
    return frozenset(word for line in _lines("abbreviations.txt") for word in line.split())


@cache
def cues() -> dict[str, Any]:
    """Cue phrases of assertion status, as cues.yaml holds them, but for "words", whose names are filled in."""
    data: dict[str, Any] = yaml.safe_load((FOLDER / "cues.yaml").read_text(encoding="utf-8"))
    words = data.pop("words")
    filled: dict[str, Any] = _filled(data, words)
    return filled


def _filled(data: Any, words: Mapping[str, str]) -> Any:
    """The same lists and tables with every phrase filled in."""
    if isinstance(data, dict):
        return {key: _filled(value, words) for key, value in data.items()}
    return fill(data, words) if isinstance(data, str) else [_filled(value, words) for value in data]


def fill(phrase: str, words: Mapping[str, str]) -> str:
    """A phrase with its <names> replaced by their alternatives. Raises KeyError for a name that is none."""
    return _NAMED.sub(lambda match: f"(?:{words[match.group(1)]})", phrase)


@cache
def concepts() -> dict[str, Any]:
    """{"words": name -> alternatives, "concepts": name -> language -> phrases}, as concepts.yaml holds them."""
    data: dict[str, Any] = load_strict(CONCEPTS.read_bytes())
    return data


@cache
def chinese_drugs() -> re.Pattern[str]:
    names = sorted((drug for drug in drugs() if not drug.isascii()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)))


def _lines(name: str) -> Iterator[str]:
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line
