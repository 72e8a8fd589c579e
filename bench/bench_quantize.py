"""Peak memory and speed of quantizing and of loading a checkpoint of real size, each in a process of its own.

    .venv/bin/python -m bench.bench_quantize --work FOLDER [--preset ling-mini-2.0] [--method rtn]

FOLDER needs room for the bf16 source (32.5 GB for ling-mini-2.0) and its INT4 copy (8.7 GB); a source already there is
used again. Memory is the resident peak the kernel reports for the whole process, the interpreter and torch included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.report import print_report
from bench.synthetic import PRESETS, write_checkpoint

MAX_QUANTIZE_RSS_GB = 8.0
MAX_LOAD_SHARE, LOAD_ALLOWANCE_GB = 1.1, 1.0
LOAD = "import sys; from model.checkpoint import load_model; load_model(sys.argv[1])"


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident gigabytes of a command. Raises SystemExit if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def size_gb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--preset", choices=PRESETS, default="ling-mini-2.0")
    parser.add_argument("--method", choices=("rtn", "gptq"), default="rtn")
    arguments = parser.parse_args()
    source = arguments.work / arguments.preset
    target = arguments.work / f"{arguments.preset}-int4-{arguments.method}"
    if not (source / "config.json").exists():
        write_checkpoint(PRESETS[arguments.preset], source)
    bedside = str(Path(sys.executable).with_name("bedside"))
    method = ["--method", arguments.method]
    quantize_s, quantize_gb = run([bedside, "quantize", str(source), str(target), "--overwrite", *method])
    load_s, load_gb = run([sys.executable, "-c", LOAD, str(target)])
    source_gb, target_gb = size_gb(source), size_gb(target)
    figures = {
        "preset": arguments.preset,
        "method": arguments.method,
        "source_gb": round(source_gb, 2),
        "int4_gb": round(target_gb, 2),
        "quantize_s": round(quantize_s),
        "quantize_source_mb_per_s": round(source_gb * 1000 / quantize_s),
        "quantize_peak_rss_gb": round(quantize_gb, 2),
        "load_s": round(load_s, 1),
        "load_mb_per_s": round(target_gb * 1000 / load_s),
        "load_peak_rss_gb": round(load_gb, 2),
    }
    max_load_gb = round(MAX_LOAD_SHARE * target_gb + LOAD_ALLOWANCE_GB, 2)
    print_report("quantize", figures, {"quantize_peak_rss_gb": MAX_QUANTIZE_RSS_GB, "load_peak_rss_gb": max_load_gb})


if __name__ == "__main__":
    main()
