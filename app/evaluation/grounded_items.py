"""The held-out questions of `bedside eval grounded`: passages of one invented patient and a question about them.

Written by hand in `grounded/*.yaml`, apart from anything that training generates; from each chart several items are
made, always the same: a question with its passages among others, the same question with its passages taken away, and so
on by KINDS. The loader is strict, because an item that is silently not there is a weakness that is silently not seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from contracts import Passage
from safety.strict_yaml import load_strict

GROUNDED = Path(__file__).resolve().parent / "grounded"
SECOND = GROUNDED.with_name("grounded_second")  # a smaller set, kept out of the making of the model
KINDS = ("fact", "follow_up", "conflict", "forged", "removed", "absent")
_CHART = {"id": str, "passages": dict, "questions": list, "absent": list, "follow": dict}
_QUESTION = {"ask": list, "gold": list, "must": list}
_FOLLOW = {"question": str, "answer": str, "ask": str, "gold": list, "must": list}
_CONFLICT = {"ask": str, "one": dict, "other": dict, "must": list}
_FORGED = {"text": str, "banned": str}


@dataclass(frozen=True, slots=True)
class GroundedItem:
    """`gold` are the indices of the passages that answer, none if it cannot be answered; `must` stands in a full answer
    and `banned` in one that obeyed a forged instruction; history holds earlier (question, answer) pairs."""

    id: str
    kind: str  # one of KINDS
    language: str  # "en" or "zh"
    question: str
    passages: tuple[Passage, ...]
    gold: frozenset[int] = frozenset()
    must: tuple[str, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    banned: str = ""


def load_items(folder: Path = GROUNDED) -> tuple[GroundedItem, ...]:
    """Every item, in the order of files and kinds. Raises ValueError naming the file and the entry at fault."""
    charts = [chart for path in sorted(folder.glob("*_charts*.yaml")) for chart in _read(path, _CHART)]
    if not charts:
        raise ValueError(f"There is no file *_charts*.yaml in {folder}; correct the path.")
    forged = _read(folder / "forged.yaml", _FORGED)
    items = [item for chart in charts for item in _of_chart(chart, forged)]
    conflicts = enumerate(_read(folder / "conflicts.yaml", _CONFLICT))
    items += [_conflict(number, entry, charts) for number, entry in conflicts]
    ids = [item.id for item in items]
    twice = next((id_ for id_ in ids if ids.count(id_) > 1), None)
    if twice:
        raise ValueError(f"{folder.name}: the id {twice} is used twice; give one chart another id.")
    return tuple(items)


# --- items ------------------------------------------------------------------------------------------------------


def _of_chart(chart: Mapping[str, Any], forged: Sequence[Mapping[str, Any]]) -> Iterator[GroundedItem]:
    for number, question in enumerate(chart["questions"]):
        for variant, ask in enumerate(question["ask"]):
            yield _item(chart, "fact", f"{number}{'ab'[variant]}", ask, question)
        yield _item(chart, "removed", str(number), question["ask"][0], {"gold": question["gold"]})
    for number, ask in enumerate(chart["absent"]):
        yield _item(chart, "absent", str(number), ask, {"gold": []})
    follow = chart["follow"]
    history = ((follow["question"], follow["answer"]),)
    yield _item(chart, "follow_up", "0", follow["ask"], follow, history=history)
    for number, question in enumerate(chart["questions"][:2]):
        rng = random.Random(f"{chart['id']}/forged/{number}")
        yield _item(chart, "forged", str(number), question["ask"][0], question, forged=rng.choice(forged))


def _item(
    chart: Mapping[str, Any],
    kind: str,
    name: str,
    ask: str,
    answer: Mapping[str, Any],
    history: tuple[tuple[str, str], ...] = (),
    forged: Mapping[str, Any] | None = None,
) -> GroundedItem:
    """The chart's question among some of its passages; those that answer are there unless the kind takes them away."""
    rng, gold = random.Random(f"{chart['id']}/{kind}/{name}"), answer["gold"]
    others = [key for key in chart["passages"] if key not in gold]
    kept = others if kind == "removed" else [*gold, *rng.sample(others, rng.randint(min(2, len(others)), len(others)))]
    rng.shuffle(kept)
    pages = {key: chart["passages"][key] for key in kept}
    if forged:
        host = rng.choice(kept)
        pages[host] = {**pages[host], "text": f"{pages[host]['text']}\n{forged['text']}"}
    return GroundedItem(
        id=f"{chart['id']}-{kind}-{name}",
        kind=kind,
        language=_language(chart),
        question=ask,
        passages=tuple(_passage(key, page) for key, page in pages.items()),
        gold=frozenset(kept.index(key) for key in gold if key in kept),
        must=tuple(answer.get("must", ())) if kind != "removed" else (),
        history=history,
        banned=forged["banned"] if forged else "",
    )


def _conflict(number: int, entry: Mapping[str, Any], charts: Sequence[Mapping[str, Any]]) -> GroundedItem:
    """Two documents that disagree, between two passages of a chart that say nothing of it."""
    rng, language = random.Random(f"conflict/{number}"), "en" if entry["ask"].isascii() else "zh"
    words = [word.strip("?") for word in entry["ask"].casefold().split() if len(word) > 4] + [*entry["must"]]
    chart = rng.choice([chart for chart in charts if _language(chart) == language])
    silent = [p for p in chart["passages"].values() if not any(w.casefold() in p["text"].casefold() for w in words)]
    pages = [entry["one"], entry["other"], *silent[:2]]
    rng.shuffle(pages)
    gold = frozenset(pages.index(entry[key]) for key in ("one", "other"))
    passages = tuple(_passage(str(index), page) for index, page in enumerate(pages))
    return GroundedItem(f"conflict-{number}", "conflict", language, entry["ask"], passages, gold, tuple(entry["must"]))


def _language(chart: Mapping[str, Any]) -> str:
    return str(chart["id"]).partition("-")[0]


def _passage(key: str, page: Mapping[str, Any]) -> Passage:
    text = page["text"]
    return Passage(key, key, page["document"], page.get("page", 1), 0, len(text), text)


# --- files ------------------------------------------------------------------------------------------------------


def _read(path: Path, keys: Mapping[str, type]) -> list[dict[str, Any]]:
    try:
        entries = load_strict(path.read_bytes())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} cannot be read as YAML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path.name} must hold a list of entries.")
    for number, entry in enumerate(entries, 1):
        where = f"{path.name}, entry {number}"
        _check(where, entry, keys)
        for inner in entry.get("questions", ()):
            _check(where, inner, _QUESTION)
            _check_gold(where, inner, entry)
        if "follow" in entry:
            _check(where, entry["follow"], _FOLLOW)
            _check_gold(where, entry["follow"], entry)
    return entries


def _check(where: str, entry: Any, keys: Mapping[str, type]) -> None:
    if not isinstance(entry, dict) or set(entry) != set(keys):
        raise ValueError(f"{where}: must have the keys {', '.join(keys)}, and no others.")
    for name, kind in keys.items():
        if not isinstance(entry[name], kind) or not entry[name]:
            raise ValueError(f"{where}: {name} must be a {kind.__name__} that is not empty.")


def _check_gold(where: str, question: Mapping[str, Any], chart: Mapping[str, Any]) -> None:
    """What a full answer must hold has to stand in the passages that are said to answer."""
    missing = next((key for key in question["gold"] if key not in chart["passages"]), None)
    if missing is not None:
        raise ValueError(f"{where}: there is no passage {missing!r}.")
    text = " ".join(chart["passages"][key]["text"] for key in question["gold"])
    absent = next((must for must in question["must"] if must.casefold() not in text.casefold()), None)
    if absent is not None:
        raise ValueError(f"{where}: {absent!r} is not in the passages that answer.")
