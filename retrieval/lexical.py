"""Ranking by words: the medical analyser, and BM25 over one patient's passages.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009. Knows nothing of vectors or
files. The analyser gives two writings of one fact one form: 2010-11-30, 11/30/2010 and November 30, 2010; 500mg and
500 mg; µg and mcg; diagnoses and diagnosis. Chinese has no spaces and is
indexed by single characters and pairs.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from contracts import Passage
from retrieval.headings import indexed_texts

FloatArray = npt.NDArray[np.float32]

BM25_K1 = 1.2
BM25_B = 0.75

_MONTH_NAMES = (
    "jan january,feb february,mar march,apr april,may,jun june,jul july,aug august,sep sept september,"
    "oct october,nov november,dec december"
)
_MONTHS = {name: number for number, names in enumerate(_MONTH_NAMES.split(","), 1) for name in names.split()}
_MONTH = "(" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\.?"
_DATE = re.compile(
    rf"""(?<![\d.])(?:
      (?P<y1>(?:19|20)\d\d)[-/.](?P<m1>\d{{1,2}})[-/.](?P<d1>\d{{1,2}})(?!\d)      # 2010-11-30
    | (?P<a2>\d{{1,2}})[-/.](?P<b2>\d{{1,2}})[-/.](?P<y2>(?:19|20)\d\d)(?!\d)      # 11/30/2010, 30.11.2010
    | (?P<y3>(?:19|20)\d\d)(?P<m3>[01]\d)(?P<d3>[0-3]\d)(?:\d{{4}}|\d{{6}})?(?!\d) # 20101130, 20101130120000
    | (?P<y4>(?:19|20)\d\d)\s*年\s*(?P<m4>\d{{1,2}})\s*月\s*(?P<d4>\d{{1,2}})\s*日
    | (?P<d5>\d{{1,2}})(?:st|nd|rd|th)?\s+(?P<n5>{_MONTH})\s*,?\s+(?P<y5>(?:19|20)\d\d)
    )
    | (?<![a-z])(?P<n6>{_MONTH})\s+(?P<d6>\d{{1,2}})(?:st|nd|rd|th)?\s*,?\s+(?P<y6>(?:19|20)\d\d)
    """,
    re.VERBOSE,
)
_CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af"
_CJK_RUN = re.compile(f"[{_CJK}]+")
_TOKEN = re.compile(
    rf"""(?P<date>\d{{4}}-\d\d-\d\d(?!\d))
    | (?P<cjk>[{_CJK}]+)
    | (?P<number>\d+(?:[.,]\d+)*)(?P<unit>(?:mcg|mg|kg|g|ml|dl|l|mmhg|mmol|mol|iu|meq|cm|mm|h|hr|bpm)\b)?
    | (?P<word>[^\W\d_]+\d*(?:[^\W_]*)(?:-[^\W_]+)*)
    """,
    re.VERBOSE,
)
_STOP_WORD_LIST = (
    "a an and are as at be been being but by can could did do does for from had has have he her his i if in is it its "
    "me my of on or our s she so that the their them then there these they this those to was we were what when where "
    "which who whom whose will with would you your"
)
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
_CJK_FUNCTION = frozenset(
    "的了是我你他她它们这那在就也都和与及或而但吗呢吧啊呀么什怎哪个些很太会能可以到去来把被给让对从向为因所已还又再只得着请问谢您好"
)


def analyse(text: str) -> list[str]:
    """The index terms of a text, in order, repeats kept."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"mm\s*\[hg\]", "mmhg", text.replace("μg", "mcg").replace("'s ", " "))
    text = _DATE.sub(_iso_date, text)
    terms: list[str] = []
    for match in _TOKEN.finditer(text):
        terms.extend(_terms(match))
    return terms


def is_mostly_cjk(text: str) -> bool:
    """Whether most of the letters are Chinese, Japanese or Korean."""
    num_cjk = sum(len(run) for run in _CJK_RUN.findall(text))
    return num_cjk * 2 > sum(character.isalpha() for character in text)


def _iso_date(match: re.Match[str]) -> str:
    """The date as " yyyy-mm-dd "; month first unless that cannot be, as in the records this was measured on."""
    found = {name: value for name, value in match.groupdict().items() if value}
    if "a2" in found:
        first, second = int(found["a2"]), int(found["b2"])
        month, day = (second, first) if first > 12 else (first, second)
        year = found["y2"]
    else:
        form = next(name[1] for name in found if name[0] == "y")
        year, day = found["y" + form], int(found["d" + form])
        name = found.get("n" + form)
        month = _MONTHS[name.rstrip(".")] if name else int(found["m" + form])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match.group()
    return f" {year}-{month:02d}-{day:02d} "


def _terms(match: re.Match[str]) -> Iterable[str]:
    kind, value = match.lastgroup, match.group()
    if kind == "date":
        return value, value[:7], value[:4]
    if kind == "cjk":
        return _cjk_terms(value)
    if match.group("number"):
        number = _plain_number(match.group("number"))
        return (number, match.group("unit")) if match.group("unit") else (number,)
    parts = value.split("-")
    terms = [stem(part) for part in parts if part not in _STOP_WORDS]
    return [*terms, stem("".join(parts))] if len(parts) > 1 else terms


def _cjk_terms(run: str) -> list[str]:
    """Pairs of characters, and single ones, without those that only carry grammar; negations stay."""
    pairs = [run[i : i + 2] for i in range(len(run) - 1) if not set(run[i : i + 2]) <= _CJK_FUNCTION]
    return pairs + [character for character in run if character not in _CJK_FUNCTION]


def _plain_number(number: str) -> str:
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+", number):  # 1,200 is 1200; 5,5 is 5.5
        return number.replace(",", "")
    number = number.replace(",", ".")
    return number.rstrip("0").rstrip(".") if number.count(".") == 1 else number


def stem(word: str) -> str:
    """A light English stemmer: plurals, -ed, -ing, -ly and a final e; what is short or holds a digit stays."""
    if len(word) <= 3 or not word.isascii() or not word.isalpha():
        return word
    word = _singular(word)
    for suffix in ("ing", "ed", "ly"):
        root = word.removesuffix(suffix)
        if root is not word and len(root) >= 3 and re.search("[aeiouy]", root):
            if suffix != "ly" and root[-1] == root[-2] and root[-1] not in "lsz":
                root = root[:-1]
            word = root
            break
    return word.removesuffix("e") if len(word) > 4 else word


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("sis"):  # diagnosis, diagnoses
        return word[:-2]
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if word.endswith("ae"):
        return word[:-1]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


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
            weights = self.idf(len(entries)) * counts * (BM25_K1 + 1) / (counts + penalty[rows])
            self._postings[term] = rows, weights.astype(np.float32)

    def idf(self, document_frequency: int) -> float:
        """Rarity of a term that stands in so many of the texts; always above 0."""
        return float(np.log1p((self.num_texts - document_frequency + 0.5) / (document_frequency + 0.5)))

    def scores(self, query_terms: Iterable[str]) -> FloatArray:
        """float32 [num_texts]; 0 where no term of the query stands."""
        scores = np.zeros(self.num_texts, dtype=np.float32)
        for term in query_terms:
            if term in self._postings:
                rows, weights = self._postings[term]
                scores[rows] += weights
        return scores


class LexicalIndex:
    """BM25 over passages, each with its document's name and heading."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = tuple(passages)
        self._bm25 = Bm25([analyse(text) for text in indexed_texts(passages)])

    def scores(self, query: str) -> FloatArray:
        """float32 [len(passages)], in the order of the passages."""
        return self._bm25.scores(analyse(query))
