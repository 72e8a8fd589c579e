"""Words and meaning are mixed on one scale, and what has no vectors yet is neither hidden nor preferred."""

from __future__ import annotations

import numpy as np

from contracts import Passage
from retrieval.lexical import LexicalIndex
from retrieval.ranking import NOT_FOUND, PassageVectors, order, rank, vector_rows

PASSAGES = [
    Passage(f"d:{n:05d}", "d", "note.txt", 1, 0, len(text), text)
    for n, text in enumerate(["Warfarin 3 mg.", "Chest pain.", "Eczema of both hands."])
]
AXES = np.eye(4, dtype=np.float32)


def test_best_part_finds_its_passage() -> None:
    vectors = vector_rows(
        PASSAGES,
        ["d:00002#0", "d:00000#1", "d:00001#0", "d:00000#0", "gone:00000#0"],
        AXES[[2, 1, 3, 0, 0]],
        lambda _: "",
    )[""]
    best, whole = vectors.similarities(AXES[1])
    np.testing.assert_allclose(best, [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(whole, [0.7071, 0, 0], atol=1e-3)


def test_meaning_ranks_what_no_word_finds() -> None:
    words = LexicalIndex(PASSAGES)
    vectors = PassageVectors(3, np.array([0, 1, 2]), AXES[:3])
    assert order(rank(words, "itchy skin", vectors, AXES[2]), 3)[0] == 2
    assert order(rank(words, "itchy skin", None, None), 3) == []


def test_what_is_far_from_the_question_comes_last_and_is_not_lost() -> None:
    words = LexicalIndex(PASSAGES)
    vectors = PassageVectors(3, np.array([0, 1, 2]), np.stack([-AXES[0], AXES[0], AXES[1]]))
    assert order(rank(words, "itchy skin", vectors, AXES[0]), 3) == [1, 2, 0]
    assert order(np.array([NOT_FOUND, -0.5, NOT_FOUND], dtype=np.float32), 2) == [1]


def test_passages_without_vectors_lie_in_the_middle() -> None:
    words = LexicalIndex(PASSAGES)
    vectors = PassageVectors(3, np.array([0, 2]), AXES[[0, 2]])
    best, _ = vectors.similarities(AXES[2])
    assert best[0] < best[1] < best[2]
    assert order(rank(words, "chest pain", vectors, AXES[3]), 3)[0] == 1
    none = PassageVectors(3, np.array([], dtype=np.int64), np.zeros((0, 0), dtype=np.float32))
    assert order(rank(words, "chest pain", none, AXES[3]), 3)[0] == 1
