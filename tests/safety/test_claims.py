"""Cutting a stream into claims: nothing is lost, and how the stream was chunked does not matter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safety.claims import ClaimSplitter, citations_of, strip_citations

PARTS = """Apixaban#5 mg#2.5#twice daily#.#. #!#?#[1]#[1][2]"""
PARTS += """#[1, 3]# #b.i.d.#Dr.#e.g. #- #1. #| a. b |#。#患者#“no.”#)#(#[#]#9#a#A"""
TEXT = st.lists(st.sampled_from([*PARTS.split("#"), "\n"]), max_size=40).map("".join)


def split(text: str, *cuts: int) -> list[str]:
    splitter, claims, last = ClaimSplitter(), [], 0
    for cut in [*sorted(cuts), len(text)]:
        claims += splitter.feed(text[last:cut])
        last = cut
    return claims + splitter.flush()


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("One fact [1]. Another [2].", ["One fact [1].", "Another [2]."]),
        ("One fact. [1][2] Another.", ["One fact. [1][2]", "Another."]),
        ("Bisoprolol 2.5 mg. Stopped.", ["Bisoprolol 2.5 mg.", "Stopped."]),
        ("Seen by Dr. Nair, e.g. today. Well.", ["Seen by Dr. Nair, e.g. today.", "Well."]),
        ("Apixaban 5 mg b.i.d. for AF. Good.", ["Apixaban 5 mg b.i.d. for AF.", "Good."]),
        ("She takes:\n- apixaban 5 mg\n- bisoprolol", ["She takes:", "- apixaban 5 mg", "- bisoprolol"]),
        ("1. Apixaban\n2. Bisoprolol", ["1. Apixaban", "2. Bisoprolol"]),
        ("| K. | 4.2 |\n| Na. | 140 |", ["| K. | 4.2 |", "| Na. | 140 |"]),
        ("血压正常。[1]无胸痛。", ["血压正常。[1]", "无胸痛。"]),
        ("No stop", ["No stop"]),
        ("", []),
        (" \n \n", []),
    ],
)
def test_cuts(text: str, claims: list[str]) -> None:
    assert split(text) == claims


@given(TEXT, st.lists(st.integers(0, 200), max_size=8))
def test_chunks_do_not_matter(text: str, cuts: list[int]) -> None:
    assert split(text, *(min(cut, len(text)) for cut in cuts)) == split(text, *range(len(text)))


@given(st.one_of(TEXT, st.text(max_size=200)))
def test_nothing_is_lost(text: str) -> None:
    assert "".join("".join(split(text)).split()) == "".join(text.split())


def test_a_claim_waits_until_its_citation_is_complete() -> None:
    splitter = ClaimSplitter()
    assert splitter.feed("Potassium was 4.2 mmol/L. [") == []
    assert splitter.feed("1]") == []
    assert splitter.feed(" N") == ["Potassium was 4.2 mmol/L. [1]"]


@pytest.mark.parametrize(
    ("claim", "cited"),
    [
        ("a [1]", (0,)),
        ("a [2][1]", (1, 0)),
        ("a [1, 3]", (0, 2)),
        ("a [2-4]", (1, 2, 3)),
        ("a [0]", ()),
        ("a【2】", (1,)),
    ],
)
def test_citations(claim: str, cited: tuple[int, ...]) -> None:
    assert citations_of(claim) == cited


def test_stripping_leaves_the_words() -> None:
    assert strip_citations("Apixaban 5 mg [1] twice daily [2][3].") == "Apixaban 5 mg twice daily."
