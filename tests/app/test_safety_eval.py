"""`bedside eval safety`: figures are found by themselves, counted with their interval, and a missed goal fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.errors import InputError
from app.evaluation.safety.figure import Bench, DataMissing, Error, Figure, Outcome, Rate, alarms, recall
from app.evaluation.safety.figures import negation
from app.evaluation.safety.run import as_json, as_markdown, describe, find_figures, measure
from safety.checker import RuleSafetyChecker


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(RuleSafetyChecker())


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    # From the closed form worked by hand, and 0 and all of n, where the normal interval would have no width.
    [(0, 100, 0.0, 0.0370), (100, 100, 0.9630, 1.0), (81, 263, 0.2553, 0.3662), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval(hits: int, total: int, low: float, high: float) -> None:
    assert Rate("", hits, total, 0.5, True).interval == pytest.approx((low, high), abs=5e-5)


def test_goals_count_from_their_side_and_nothing_measured_is_not_reached() -> None:
    errors = [Error("a", "b")] * 3
    assert recall("found", 100, errors, 0.97).is_reached
    assert not recall("found", 100, errors, 0.98).is_reached
    assert alarms("false", 100, errors, 0.03).is_reached
    assert not alarms("false", 100, errors, 0.02).is_reached
    assert not alarms("false", 0, [], 0.02).is_reached


def test_every_file_of_the_folder_is_a_figure_and_names_differ() -> None:
    folder = Path(find_figures.__code__.co_filename).parent / "figures"
    assert len(find_figures()) == len([path for path in folder.glob("*.py") if path.stem != "__init__"])
    with pytest.raises(InputError, match="negation"):
        find_figures(["nonsense"])


def test_an_error_on_a_public_item_names_its_place_and_quotes_nothing(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / negation.FILE
    file.parent.mkdir(parents=True)
    file.write_text("Number\tConcept\tSentence\tNegation\n1\tORCHID\tAn orchid is here.\tNegated\n", encoding="utf-8")
    outcomes = list(measure([negation.FIGURE], replace(bench, sets=tmp_path), lambda name: None))
    for report in (as_markdown(outcomes, "v"), json.dumps(as_json(outcomes, "v"))):
        assert "NegEx #0" in report
        assert "orchid" not in report.lower()


def test_a_figure_without_its_data_says_so(bench: Bench) -> None:
    def run(bench: Bench) -> list[Rate]:
        bench.rows("medquad/medquad_qa.jsonl.xz")
        return []

    figure = Figure("x", "X", "public", "none", run)
    (outcome,) = measure([figure], bench, lambda name: None)
    assert "medquad_qa" in outcome.missing
    assert not outcome.is_reached
    assert "not measured" in describe([outcome])
    with pytest.raises(DataMissing):
        bench.file("nothing")


def test_the_report_has_counts_goal_and_the_worst_errors_first() -> None:
    errors = [Error(f"text {n}", "why", weight=n) for n in range(30)]
    outcome = Outcome(Figure("x", "X", "invented", "none", lambda bench: []), (recall("found", 100, errors, 0.99),))
    (figure,) = as_json([outcome], "v1")["figures"]
    assert figure["rates"][0]["errors"][0] == {"text": "text 29", "why": "why"}
    assert len(figure["rates"][0]["errors"]) == 20
    page = as_markdown([outcome], "v1")
    assert "70 of 100" in page
    assert "| **70.00%** |" in page
    assert "NOT REACHED" in describe([outcome])


def test_the_command_prints_json_and_writes_the_page(shared: Path, tmp_path: Path) -> None:
    page = tmp_path / "figures.md"
    options = ["--figure", "negation", "--sets", str(shared / "data"), "--output", str(page), "--json"]
    result = CliRunner().invoke(app, ["eval", "safety", *options])
    report = json.loads(result.stdout.splitlines()[-1])
    assert [figure["name"] for figure in report["figures"]] == ["negation"]
    assert result.exit_code == (0 if report["reached"] else 1)
    assert "recall of negation" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options", [["--figure", "nonsense"], ["--sets", "no-such-folder"], ["--output", "figures.csv"]]
)
def test_a_bad_option_is_named(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["eval", "safety", *options])
    assert isinstance(result.exception, InputError)
    assert options[1].rpartition("/")[2] in str(result.exception)
