"""What a record may say besides tests and drugs: some hundred topics in each language, each with its own questions.

The wordings lie in topics_en.yaml and topics_zh.yaml. `{a|b}` there is one of the two, `{n}` and the like are made up.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

import yaml

from model.train import wording as w

KIND = "topic"  # of a key: ("topic 12", "")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MONTHS = ("January", "February", "March", "April", "May", "June", "August", "October", "November", "December")
_SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗"


@dataclass(frozen=True, slots=True)
class Topic:
    """Wordings of a line that states it, and of questions that only such a line answers."""

    say: tuple[str, ...]
    ask: tuple[str, ...]


@cache
def load_topics(language: str) -> tuple[Topic, ...]:
    """The topics of "en" or "zh"."""
    entries = yaml.safe_load(Path(__file__).with_name(f"topics_{language}.yaml").read_text(encoding="utf-8"))
    return tuple(Topic(tuple(entry["say"]), tuple(entry["ask"])) for entry in entries)


def key_of(number: int) -> tuple[str, str]:
    return f"{KIND} {number}", ""


def fill(template: str, rng: random.Random, slots: Mapping[str, Callable[[], str]]) -> str:
    """The template with every brace replaced, innermost first."""

    def choose(match: re.Match[str]) -> str:
        name = match[1]
        return slots[name]() if name in slots else rng.choice(name.split("|"))

    while (text := _BRACES.sub(choose, template)) != template:
        template = text
    return text


def english_slots(
    rng: random.Random, words: Mapping[str, str], write: Callable[[], str]
) -> dict[str, Callable[[], str]]:
    """words: of the patient; write: a date as this record writes it."""
    return {name: (lambda word=word: word) for name, word in words.items()} | {
        "n": lambda: str(rng.randint(2, 9)),
        "kg": lambda: f"{rng.uniform(44, 118):.1f}",
        "date": write,
        "year": lambda: str(rng.randint(1995, 2026)),
        "month": lambda: rng.choice(_MONTHS),
        "clock": lambda: f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}",
        "relative": lambda: rng.choice(w.RELATIVES),
        "phone": lambda: f"0{rng.randint(1000, 9999)} {rng.randint(100000, 999999)}",
        "doctor": lambda: f"Dr {rng.choice(w.FIRST_NAMES)} {rng.choice(w.LAST_NAMES)}",
        "doctor2": lambda: f"{rng.choice(w.FIRST_NAMES)} {rng.choice(w.LAST_NAMES)}",
        "hospital": lambda: rng.choice(w.HOSPITALS),
    }


def chinese_slots(rng: random.Random) -> dict[str, Callable[[], str]]:
    return {
        "n": lambda: str(rng.randint(2, 9)),
        "kg": lambda: str(rng.randint(44, 98)),
        "date": lambda: write_chinese(rng),
        "year": lambda: f"{rng.randint(1995, 2026)}",
        "phone": lambda: f"1{rng.randint(30, 99)}{rng.randint(10_000_000, 99_999_999)}",
        "doctor": lambda: f"{rng.choice(_SURNAMES)}{rng.choice(('医生', '主任', '医师'))}",
    }


def write_chinese(rng: random.Random) -> str:
    """A date in one of the forms that records have."""
    day = date.fromordinal(rng.randint(date(2019, 1, 1).toordinal(), date(2026, 12, 1).toordinal()))
    return rng.choice((f"{day.year}年{day.month}月{day.day}日", day.isoformat(), f"{day.month}月{day.day}日"))
