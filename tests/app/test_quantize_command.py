"""`bedside quantize`: what it prints, and its exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "model" / "embedded"


def quantize(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", "quantize", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def test_dry_run_predicts_what_is_then_written(tmp_path: Path) -> None:
    target = tmp_path / "int4"
    result = quantize(EMBEDDED, target, "--group-size", "32", "--dry-run", "--json")
    assert result.returncode == 0, result.stderr
    assert not target.exists()
    assert "Peak memory" in result.stdout
    expected = json.loads(result.stdout.splitlines()[-1])
    result = quantize(EMBEDDED, target, "--group-size", "32", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    for file, num_bytes in expected["shards"].items():
        header = int.from_bytes((target / file).read_bytes()[:8], "little") + 8
        assert (target / file).stat().st_size == num_bytes + header
    assert expected["precisions"]["bf16"] == pytest.approx((EMBEDDED / "model.safetensors").stat().st_size, rel=0.01)
    assert report["num_bytes"] == sum(path.stat().st_size for path in target.glob("*.safetensors"))
    assert report["errors"]["routed experts"][0] == 7 * 16 * 3  # six layers and the one for drafts
    assert "routed experts" in result.stdout


def test_hashes_are_those_that_sha256sum_checks(tmp_path: Path) -> None:
    assert quantize(EMBEDDED, tmp_path / "int4", "--group-size", "32").returncode == 0
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "int4", capture_output=True, check=False)
    assert check.returncode == 0, check.stdout
    assert b"config.json: OK" in check.stdout
    assert b"tokenizer.json: OK" in check.stdout


def test_columns_that_the_group_does_not_divide_are_told(tmp_path: Path) -> None:
    result = quantize(EMBEDDED, tmp_path / "int4", "--dry-run")
    assert "Left unquantized" in result.stdout
    assert "_proj.weight" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "TARGET"], "nowhere"),
        ([EMBEDDED, EMBEDDED / "int4"], "give another folder"),
        ([EMBEDDED, "TARGET", "--format", "awq"], "--format is 'awq'"),
        ([EMBEDDED, "TARGET", "--method", "awq"], "use one of rtn, gptq"),
        ([EMBEDDED, "TARGET", "--group-size", "7"], "multiple of 8"),
        ([EMBEDDED, "TARGET", "--lm-head"], "leave out lm-head"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(tmp_path: Path, arguments: list[str | Path], words: str) -> None:
    result = quantize(*(tmp_path / a if a == "TARGET" else a for a in arguments))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("bedside: ")
    assert words in line
    assert not list(tmp_path.rglob("config.json"))
