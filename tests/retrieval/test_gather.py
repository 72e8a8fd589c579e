"""What a question wants whole is never cut by rank, and what is of another time is left out."""

from __future__ import annotations

from datetime import date

import pytest

from retrieval.search import HybridRetriever
from tests.retrieval.conftest import Bench

VISITS = "\n\n".join(
    f"# VISIT {year}-03-0{day}\nPotassium {value} mmol/L. Seen for heart failure, stable; weight {60 + day} kg."
    for day, (year, value) in enumerate([(2018, "4.1"), (2019, "5.9"), (2021, "4.4"), (2023, "3.9")], 1)
)
OLD = "# ALLERGIES\nPenicillin: anaphylaxis as a child.\n\n# FAMILY HISTORY\nMother had gout.\n"
NEW = "# PLAN\nReview in six weeks.\n\n# ALLERGIES\nLatex: rash of both hands.\n"
SURGERY = "# PROCEDURES\nHip replacement, an operation without complication, on 4 May 2020.\n"


@pytest.fixture
def ward(bench: Bench) -> HybridRetriever:
    for name, text in (("old.txt", OLD), ("new.txt", NEW), ("visits.txt", VISITS), ("surgery.txt", SURGERY)):
        bench.ready("anna", name, text)
    return HybridRetriever(bench.store, bench.index, bench.retriever._embedder, today=lambda: date(2024, 1, 1))


def test_every_allergy_section_comes_first_whatever_its_rank(ward: HybridRetriever) -> None:
    found = ward.gather("Any allergies to latex?", [], "anna", limit=1)
    whole = " ".join(passage.text for passage in found.passages[: found.num_required])
    assert "Penicillin" in whole
    assert "Latex" in whole
    assert found.wanted == ("allergies",)


def test_a_kind_without_a_section_is_not_said_to_be_read(ward: HybridRetriever) -> None:
    found = ward.gather("What allergies and which medications?", [], "anna", limit=1)
    assert found.wanted == ("allergies",)


def test_trend_has_every_mention_in_the_order_of_reading(ward: HybridRetriever) -> None:
    found = ward.gather("Trend of potassium", [], "anna", limit=1)
    whole = "".join(passage.text for passage in found.passages[: found.num_required])
    places = [whole.index(f"Potassium {value}") for value in ("4.1", "5.9", "4.4", "3.9")]
    assert places == sorted(places)
    assert found.wanted == ("potassium",)


def test_plain_question_requires_nothing(ward: HybridRetriever) -> None:
    found = ward.gather("What was the weight?", [], "anna", limit=2)
    assert (found.num_required, found.wanted) == (0, ())
    assert found.passages


def test_other_years_are_left_out_and_what_has_no_date_stays(ward: HybridRetriever) -> None:
    found = ward.gather("Trend of potassium in 2019", [], "anna", limit=20)
    told = " ".join(passage.text for passage in found.passages)
    assert "5.9" in told
    assert "4.4" not in told
    assert "Latex" in told
    assert (found.start, found.end) == ("2019-01-01", "2019-12-31")


def test_since_the_operation_begins_when_the_record_says_it_was(ward: HybridRetriever) -> None:
    found = ward.gather("List every potassium since the operation", [], "anna", limit=20)
    told = " ".join(passage.text for passage in found.passages)
    assert found.start == "2020-05-04"
    assert "4.4" in told
    assert "5.9" not in told


def test_follow_up_finds_what_it_means(ward: HybridRetriever) -> None:
    found = ward.gather("And when was it?", ["Has she had a hip replacement?"], "anna", limit=1)
    assert "4 May 2020" in found.passages[0].text
