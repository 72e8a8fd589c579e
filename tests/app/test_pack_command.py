"""`bedside pack`: what it prints, its exit statuses, and a folder that the other commands then take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.metrics import ServerMetrics
from model.kernels.expert_cache import ExpertCounts
from model.request import EngineLoad
from model.router_health import RouterSnapshot

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "model" / "embedded"


def bedside(home: Path, *arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HOME": str(home), "BEDSIDE_DATA_DIR": str(home / "data")} | settings
    command = [sys.executable, "-m", "app.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False, env=environment)


def test_what_was_packed_passes_the_preflight(tmp_path: Path) -> None:
    target = tmp_path / "nano"
    result = bedside(tmp_path, "pack", EMBEDDED, target, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["num_bytes"] == sum(path.stat().st_size for path in target.glob("*.safetensors"))
    assert f"BEDSIDE_CHECKPOINT={target}" in result.stdout
    result = bedside(tmp_path, "doctor", BEDSIDE_CHECKPOINT=str(target))
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert "packed, 0.04 GB in 9 files" in lines["pass  weights"]
    assert "packed, mapped" in lines["pass  checkpoint"]
    assert report["source_sha256"][:16] in lines["pass  checkpoint"]


def test_the_preflight_looks_at_every_byte(tmp_path: Path) -> None:
    target = tmp_path / "nano"
    assert bedside(tmp_path, "pack", EMBEDDED, target).returncode == 0
    path = target / "packed-00001-of-00008.safetensors"
    before = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = bedside(tmp_path, "doctor", BEDSIDE_CHECKPOINT=str(target))
    assert result.returncode == 1
    assert "FAIL  checkpoint: packed-00001-of-00008.safetensors is damaged" in result.stdout


def test_metrics_count_what_was_read_where_anything_is_read() -> None:
    routers = RouterSnapshot((), 0, 0, False)
    assert "expert_bytes_read" not in ServerMetrics().render(EngineLoad(), routers)
    counts = ExpertCounts(hits=5, prefetched=3, misses=2, bytes_read=77, num_slots=9)
    text = ServerMetrics().render(EngineLoad(experts=counts), routers)
    assert 'bedside_experts_wanted_total{outcome="miss"} 2' in text
    assert "bedside_expert_bytes_read_total 77" in text
    assert counts.share_in_memory == 0.8


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (["pack", "nowhere", "TARGET"], {}, "nowhere"),
        (["pack", EMBEDDED, EMBEDDED / "packed"], {}, "give another folder"),
        (["pack", EMBEDDED, "HOME"], {}, "is not empty"),
        (["doctor"], {"BEDSIDE_WEIGHTS": "mapped"}, "weights is 'mapped'; use one of auto, map"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(
    tmp_path: Path, arguments: list[str | Path], settings: dict[str, str], words: str
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "something").touch()
    places = {"TARGET": tmp_path / "packed", "HOME": tmp_path / "home"}
    result = bedside(tmp_path, *(places.get(str(a), a) for a in arguments), **settings)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("bedside: ")
    assert words in line
    assert not list(tmp_path.rglob("packed.json"))
