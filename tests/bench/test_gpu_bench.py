"""The card's bench without a card: that it runs from end to end, and that its forecast follows from bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gpu.__main__ import main
from bench.gpu.cases import FULL, TINY, list_model_cases, list_op_cases, predict
from bench.gpu.clock import Clock
from bench.gpu.operations import Operations
from bench.gpu.table import Report, Row, format_seconds
from bench.synthetic import PRESETS
from model.kernels.gpu import reference


def test_a_dry_run_does_all_and_gives_no_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "no number in it is a figure" in output
    last = json.loads(output.splitlines()[-1])
    assert last["is_dry_run"]
    assert last["failures"] == []
    assert last["rows"] > 30
    assert "failed" not in output
    assert "MTP drafts of 3" in output


def test_without_a_card_it_says_what_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert main([]) == 2
    assert "--predict" in capsys.readouterr().err


def test_the_forecast_lies_above_the_floor(capsys: pytest.CaptureFixture[str]) -> None:
    report = predict(PRESETS["antangelmed"], PRESETS["ling-mini-2.0"], 4.3e12, 790e12)
    rows = {row.name: row for row in report.rows}
    for row in report.rows:
        assert row.seconds is None  # nothing was measured
        assert row.predicted is None or row.predicted > report.floor(row)
    # The limits, by hand: 1,455 tokens/s at batch 1, 3,793 at 32, 7.3 s for 128K, 14 µs for a MoE layer.
    floors = {
        "decode, 1 × 1,024": 1 / 1455,
        "decode, 32 × 1,024": 32 / 3793,
        "decode, 32 × 1,024, MTP drafts of 1, 80% right": 32 * 1.8 / 4986,
        "prefill, 131,072 tokens": 7.3,
        "one MoE layer, 1 token": 14e-6,
    }
    for name, seconds in floors.items():
        assert report.floor(rows[name]) == pytest.approx(seconds, rel=0.01)
    assert main(["--predict"]) == 0
    assert "nothing here is measured" in capsys.readouterr().out


def test_every_case_has_something_that_runs_it() -> None:
    import torch

    config = PRESETS["nano"]
    operations = Operations(config, TINY, Clock(torch.device("cpu")), reference)
    assert set(operations.runners) == set(list_op_cases(config, FULL))
    assert {f"decode_{n}" for n in FULL.batches} | {"draft_1", "draft_32"} <= set(list_model_cases(config, FULL))


def test_a_report_is_saved_after_each_row_and_knows_what_is_wrong(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", False, {"card": "none"}, bandwidth=1e12, peak=1e14)
    report.add(Row("fast", 2e-3, num_bytes=1e9, error=1e-3, limit=1e-2))
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"][0]["share"] == 0.5
    for error in (0.1, float("nan")):
        report.add(Row(f"wrong {error}", 1.0, error=error, limit=1e-2))
    saved = json.loads((tmp_path / "gpu.json").read_text())
    assert len(saved["rows"]) == 3
    assert report.failures == ["wrong 0.1", "wrong nan"]
    assert [format_seconds(s) for s in (2.5, 0.0123, 4.5e-6)] == ["2.5 s", "12.3 ms", "4.5 µs"]
