"""The clinical probe set: short clinical texts, each with a question and its right answer, by which two precisions of
one checkpoint are compared; and the clinical prose on which perplexity is measured.

Data, reviewed by clinicians: one YAML list of probes per file in `probes/`, one text per language in `held_text/`. The
loader is strict, because a probe that is silently not there is a regression that is silently not seen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from safety.strict_yaml import load_strict

PROBES = Path(__file__).resolve().parent / "probes"
HELD_TEXT = Path(__file__).resolve().parent / "held_text"
LANGUAGES = ("en", "zh")
CATEGORIES = (
    "doses_units",
    "interactions",
    "contraindications",
    "red_flags",
    "negations",
    "lab_interpretation",
    "differential_diagnosis",
)
_ID = re.compile(rf"({'|'.join(LANGUAGES)})-[a-z]+-\d{{3}}")


@dataclass(frozen=True, slots=True)
class Probe:
    """One item: `answer` is right for `question` given `passage`; `source` is what the clinical content rests on."""

    id: str  # "en-dose-001": language, a word for the category, number
    category: str  # one of CATEGORIES
    language: str  # one of LANGUAGES; not in the file, it is the start of the id
    passage: str
    question: str
    answer: str
    source: str


_KEYS = tuple(field.name for field in fields(Probe) if field.name != "language")


def load_probes(folder: Path = PROBES) -> tuple[Probe, ...]:
    """Reads every *.yaml of the folder, in the order of names and lines. Raises ValueError naming file and id."""
    probes: dict[str, Probe] = {}
    asked: dict[tuple[str, str], str] = {}
    for path in _files(folder, "*.yaml"):
        for probe in _read_file(path):
            where = f"{path.name}, probe {probe.id}"
            if probe.id in probes:
                raise ValueError(f"{where}: the id is used twice; give one probe another id.")
            twin = asked.setdefault((probe.passage, probe.question), probe.id)
            if twin != probe.id:
                raise ValueError(f"{where}: asks the same of the same passage as {twin}; delete one.")
            probes[probe.id] = probe
    return tuple(probes.values())


def load_held_text(folder: Path = HELD_TEXT) -> dict[str, str]:
    """Language -> clinical prose in that language. Raises ValueError where a language has no text."""
    texts = {}
    for language in LANGUAGES:
        path = folder / f"{language}.txt"
        if not path.is_file() or not (text := path.read_text(encoding="utf-8").strip()):
            raise ValueError(f"{path} is missing or empty; put clinical prose of that language there.")
        texts[language] = text
    return texts


def probes_version(probes: Path = PROBES, held_text: Path = HELD_TEXT) -> str:
    """Twelve hexadecimal digits of the SHA-256 over names and bytes of all files: what a report was measured on."""
    digest = hashlib.sha256()
    for path in (*_files(probes, "*.yaml"), *_files(held_text, "*.txt")):
        data = path.read_bytes()
        digest.update(f"{path.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:12]


# --- one file ---------------------------------------------------------------------------------------------------


def _files(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ValueError(f"There is no file {pattern} in {folder}; correct the path.")
    return paths


def _read_file(path: Path) -> Iterator[Probe]:
    try:
        entries = load_strict(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path.name} must hold a list of probes.")
    for number, entry in enumerate(entries, 1):
        yield _read_probe(path.name, number, entry)


def _read_probe(file: str, number: int, entry: Any) -> Probe:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{file}, probe number {number}: must be a mapping of keys to texts.")
    where = f"{file}, probe {entry.get('id', f'number {number}')}"
    if unknown := sorted(str(key) for key in entry if key not in _KEYS):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(_KEYS)}.")
    for key in _KEYS:
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise ValueError(f"{where}: {key} must be a text that is not empty.")
    values = {key: entry[key].strip() for key in _KEYS}
    named = _ID.fullmatch(values["id"])
    if not named:
        raise ValueError(f"{where}: the id must read like en-dose-001, its language one of {', '.join(LANGUAGES)}.")
    if values["category"] not in CATEGORIES:
        raise ValueError(f"{where}: unknown category {values['category']!r}; use one of {', '.join(CATEGORIES)}.")
    return Probe(language=named[1], **values)
