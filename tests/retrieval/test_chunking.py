"""Passages are exact, complete, small enough, and cut where a reader would pause."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import Page, Passage, ReadMethod
from retrieval.chunking import MIN_PART_BYTES, make_passages, part_spans
from retrieval.embedding import MAX_TOKENS, MiniLMEmbedder
from retrieval.sentences import split_sentences
from retrieval.vectors import indexed_passages

pieces = st.sampled_from(
    ["Pain. ", "BP 150/90 mmHg", "\n", "\n\n", "Dr. Wu, 2.5 mg; ", "# PLAN\n", "头痛。", "a | b", "  ", "🙂", "x" * 90]
)
texts = st.lists(pieces, max_size=60).map("".join) | st.text(max_size=200)


def count_words(text: str) -> int:
    return len(re.findall(r"[\u4e00-\u9fff]|\S+?(?=[\u4e00-\u9fff]|\s|$)", text)) + len(text) // 40


@settings(max_examples=300, deadline=None)
@given(pages=st.lists(texts, max_size=4), max_tokens=st.integers(1, 60))
def test_passages_are_exact_apart_and_complete(pages: list[str], max_tokens: int) -> None:
    document = [Page(number, text) for number, text in enumerate(pages, start=1)]
    passages = make_passages("d", "note.pdf", document, count_words, max_tokens)
    assert [passage.id for passage in passages] == [f"d:{n:05d}" for n in range(len(passages))]
    for page in document:
        own = [passage for passage in passages if passage.page == page.number]
        ends = [0, *(passage.end for passage in own)]
        for passage, previous_end in zip(own, ends, strict=False):
            assert passage.text == page.text[passage.start : passage.end]
            assert passage.text.strip() == passage.text != ""
            assert passage.start >= previous_end
            assert not page.text[previous_end : passage.start].strip()
        assert not page.text[ends[-1] :].strip()


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_sentences_hold_all_but_white_space(text: str) -> None:
    end = 0
    for start, stop in split_sentences(text):
        assert not text[end:start].strip()
        assert text[start:stop].strip() == text[start:stop] != ""
        end = stop
    assert not text[end:].strip()


def passages_of(text: str, embedder: MiniLMEmbedder, **options: int) -> list[Passage]:
    return make_passages("d", "Discharge summary 2024.pdf", [Page(1, text)], embedder.count_tokens, **options)


def test_what_is_embedded_of_a_passage_is_never_cut_off(embedder: MiniLMEmbedder) -> None:
    english = "# HISTORY\n" + "Hydrochlorothiazide-triamterene 37.5/25 mg was stopped because of hyponatraemia. " * 60
    chinese = "患者，男，65岁，因反复胸痛两年加重三天入院，既往有高血压病史十年，服用硝苯地平控释片。" * 30
    for text in (english, chinese, "3.5|" * 900, "x" * 4000):
        for indexed in indexed_passages(passages_of(text, embedder)):
            assert embedder.count_tokens(indexed.text) + 2 <= MAX_TOKENS


def test_passages_are_cut_between_sentences_and_before_headings(embedder: MiniLMEmbedder) -> None:
    section = "The patient reports no chest pain today. She walks two miles a day without dyspnoea. "
    text = "\n\n".join(f"# SECTION {n}\n{section * 4}" for n in range(6))
    found = passages_of(text, embedder, max_tokens=100)
    assert len(found) > 5
    assert all(passage.text.startswith("# SECTION") for passage in found)
    assert all(passage.text.endswith(".") for passage in found)


def test_words_on_an_unreadable_page_are_the_files_own_text() -> None:
    (passage,) = make_passages("d", "scan.pdf", [Page(1, "Faxed 08:15", ReadMethod.EMPTY, 0.0)], len)
    assert passage.method is ReadMethod.TEXT


def test_sentences_of_a_note() -> None:
    text = (
        "1. Kidney stone. Dr. Wu gave 2.5 mg p.o. b.i.d. for pain. Is it better? Yes!\n"
        "- aspirin 81 mg\n肌酐98。患者好转！次日出院。"
    )
    assert [text[start:end] for start, end in split_sentences(text)] == [
        "1. Kidney stone.",
        "Dr. Wu gave 2.5 mg p.o. b.i.d. for pain.",
        "Is it better?",
        "Yes!",
        "- aspirin 81 mg",
        "肌酐98。",
        "患者好转！",
        "次日出院。",
    ]


@given(texts)
def test_parts_of_a_passage_hold_every_word_of_it_once(text: str) -> None:
    spans = part_spans(text)
    assert all(start < end for start, end in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    assert "".join("".join(text[slice(*span)].split()) for span in spans) == "".join(text.split())


def test_short_sentences_share_a_part_and_long_ones_have_their_own() -> None:
    short = "No fever. No cough. No rash. "
    long = "She was seen for the third time because of pain in her left knee after a fall from her horse in June. "
    parts = [(short * 4 + long * 2)[slice(*span)] for span in part_spans(short * 4 + long * 2)]
    assert len(parts) == 3
    assert parts[-1].strip() == long.strip()
    assert all(len(part.encode()) >= MIN_PART_BYTES for part in parts[:-1])
    assert part_spans("Well.") == [(0, 5)]
    assert part_spans(" ") == []
