"""`bedside bench`: what it measures is there, in its unit and in a range that can be true; how fast is not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.synthetic_record import LINES_PER_PAGE, make_pdf
from retrieval.parsers import parse

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", "bench", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False, env=os.environ | environment
    )


def figures(*arguments: str) -> dict[str, float]:
    result = bench(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    values: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return values


def test_decode_gives_speed_memory_and_bandwidth() -> None:
    found = figures("decode", "--context", "40", "--tokens", "8")
    assert (found["context"], found["tokens"]) == (40, 8)
    assert found["tokens_per_s"] > 0
    assert 1 < found["weights_mb_a_token"] < 72  # of 18 M parameters in float32 a token reads a part
    assert found["weights_gb_per_s"] == pytest.approx(found["weights_mb_a_token"] / found["step_ms"], rel=0.05)
    assert 0.1 < found["bandwidth_gb_per_s"] < 5000
    assert found["bandwidth_share"] == pytest.approx(found["weights_gb_per_s"] / found["bandwidth_gb_per_s"], rel=0.2)
    assert 100 < found["peak_rss_mb"] < 2384


def test_prefill_counts_the_prompt_and_throughput_all_streams() -> None:
    prefill = figures("prefill", "--tokens", "300")
    assert prefill["tokens_per_s"] == pytest.approx(300 / prefill["first_token_ms"] * 1e3, rel=0.02)
    many = figures("throughput", "--streams", "3", "--context", "20", "--tokens", "5")
    assert many["tokens_per_s"] == pytest.approx(3 * 5 / many["seconds"], rel=0.1)


def test_index_reads_every_page_of_the_generated_record() -> None:
    found = figures("index", "--pages", "3")
    assert found["pages"] == 3
    assert found["passages"] >= 3
    assert found["ready_s"] > 0
    assert found["peak_rss_mb"] >= found["rss_before_mb"]


def test_the_generated_record_is_a_pdf_with_all_its_lines() -> None:
    pages = parse(make_pdf(2, seed=1), "record.pdf").pages
    assert len(pages) == 2
    for number, page in enumerate(pages, 1):
        assert f"PROGRESS NOTE 1-{number}" in page.text
        assert page.text.count("mmol/L") == LINES_PER_PAGE


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["decode", "--context", "999999"], {}, "999,999 tokens"),
        (["throughput", "--context", "999999"], {}, "999,999 tokens"),
        (["decode"], {"BEDSIDE_SERVER_URL": "http://127.0.0.1:9"}, "BEDSIDE_SERVER_URL"),
        (["prefill"], {"BEDSIDE_CHECKPOINT": "/nowhere/at/all"}, "/nowhere/at/all"),
        (["throughput", "--streams", "0"], {}, "--streams"),
    ],
)
def test_what_cannot_be_measured_is_named_with_status_two(
    arguments: list[str], environment: dict[str, str], words: str
) -> None:
    result = bench(*arguments, **environment)
    assert result.returncode == 2
    assert words in result.stderr
