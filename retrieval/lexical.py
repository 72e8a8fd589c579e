"""Ranking by words: BM25 over passages, over their documents, and over the sentences that mark a term.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009. Every score is divided by what a
text of average length that holds each of the question's terms once would get, so that questions of any length can be
compared and mixed with similarities. Knows nothing of vectors or files.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contracts import Passage
from retrieval.abbreviations import Abbreviations
from retrieval.analyser import analyse
from retrieval.headings import contexts
from retrieval.sentences import split_sentences

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

BM25_K1 = 1.2
BM25_B = 0.75
_MARKED = re.compile(r"\*\*[^*\n]{2,60}\*\*|__[^_\n]{2,60}__")  # Markdown's bold: how text books mark what they define


class Bm25:
    """BM25 scores of a fixed list of texts, given as terms."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self.num_texts = len(texts)
        lengths = np.array([len(terms) for terms in texts], dtype=np.float32)
        penalty = BM25_K1 * (1 - BM25_B + BM25_B * lengths / max(float(lengths.mean()) if len(texts) else 1.0, 1.0))
        postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for row, terms in enumerate(texts):
            for term, count in Counter(terms).items():
                postings[term].append((row, count))
        self._postings: dict[str, tuple[npt.NDArray[np.int32], FloatArray]] = {}
        for term, entries in postings.items():
            rows = np.array([row for row, _ in entries], dtype=np.int32)
            counts = np.array([count for _, count in entries], dtype=np.float32)
            weights = counts * (BM25_K1 + 1) / (counts + penalty[rows])
            self._postings[term] = rows, weights.astype(np.float32)

    def idf(self, document_frequency: int) -> float:
        """Rarity of a term that stands in so many of the texts; always above 0."""
        return float(np.log1p((self.num_texts - document_frequency + 0.5) / (document_frequency + 0.5)))

    def rarity(self, term: str) -> float:
        """idf of a term by the texts that hold it."""
        return self.idf(len(self._postings[term][0]) if term in self._postings else 0)

    def scores(self, weights: Mapping[str, float]) -> FloatArray:
        """float32 [num_texts]: the sum of the terms' weights, each by how often it stands in the text; 0 for none."""
        scores = np.zeros(self.num_texts, dtype=np.float32)
        for term, weight in weights.items():
            if term in self._postings:
                rows, counts = self._postings[term]
                scores[rows] += weight * counts
        return scores


@dataclass(frozen=True, slots=True)
class WordScores:
    """float32 [passages] each, about 0..2; `definitions` is 0 where no sentence of the passage marks a term."""

    passages: FloatArray
    documents: FloatArray  # of the passage's whole document
    definitions: FloatArray  # of the best sentence that marks a term


class LexicalIndex:
    """Passages by their words, each with its document's name and heading."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = tuple(passages)
        self._abbreviations = Abbreviations(passage.text for passage in passages)
        bodies = [analyse(passage.text) for passage in passages]
        self._passages = Bm25([analyse(head) + body for head, body in zip(contexts(passages), bodies, strict=True)])
        documents = {passage.document_id: row for row, passage in reversed(list(enumerate(passages)))}
        numbers = {document: number for number, document in enumerate(reversed(documents))}
        self._document_of: IntArray = np.array([numbers[p.document_id] for p in passages], dtype=np.int64)
        whole: list[list[str]] = [[] for _ in numbers]
        for number, body in zip(self._document_of, bodies, strict=True):
            whole[number] += body
        self._documents = Bm25(whole)
        marked = [(row, sentence) for row, passage in enumerate(passages) for sentence in _marked(passage.text)]
        self._marked_rows: IntArray = np.array([row for row, _ in marked], dtype=np.int64)
        self._marked = Bm25([list(dict.fromkeys(analyse(sentence))) for _, sentence in marked])

    def scores(self, query: str) -> WordScores:
        """Of all passages, in their order."""
        terms = Counter(self.terms(query))
        definitions = np.zeros(len(self.passages), dtype=np.float32)
        np.maximum.at(definitions, self._marked_rows, _share(self._marked, terms, self._passages))
        return WordScores(
            _share(self._passages, terms, self._passages),
            _share(self._documents, terms, self._documents)[self._document_of],
            definitions,
        )

    def terms(self, query: str) -> list[str]:
        """The terms that are searched: the question's own, and what the record itself abbreviates them to."""
        return analyse(f"{query} {self._abbreviations.expand(query)}")


def _share(bm25: Bm25, terms: Mapping[str, int], rarity: Bm25) -> FloatArray:
    weights = {term: count * rarity.rarity(term) for term, count in terms.items()}
    return bm25.scores(weights) / max(sum(weights.values()), 1e-6)


def _marked(text: str) -> Iterable[str]:
    if _MARKED.search(text):
        for start, end in split_sentences(text):
            if _MARKED.search(text, start, end):
                yield text[start:end]
