"""From the start of a process to the first token of a packed folder: imports, tokenizer, map, first pass.

    .venv/bin/python -m bench.bench_first_token --folder FOLDER [--weights map] [--times 5]

Each time in a process of its own, with the files in the system's cache after the first; the best counts, since another
program at the same time can only make it longer. processor_s is the processor time of that process, which depends
little on others. Memory is what is resident after the answer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from bench.report import print_report
from model.packed.manifest import read_manifest

MAX_FIRST_TOKEN_S = 4.0
MAX_RSS_SHARE = 1.1
ONE_START = """
import json, sys, time
started = time.time()
from contracts import Message, Role, SamplingParams
from model.generator import LocalGenerator
imported = time.time()
generator = LocalGenerator.load(sys.argv[1], weights=sys.argv[2])
loaded = time.time()
*_, end = generator.stream([Message(Role.USER, "What is the dose of apixaban?")], SamplingParams(max_tokens=1))
first = loaded + end.ttft_s
processor = time.process_time()
status = open("/proc/self/status").read().split("VmRSS:")[1].split()[0]
print(json.dumps({"imports_s": imported - started, "load_s": loaded - imported, "first_pass_s": first - loaded,
                  "processor_s": processor, "at": first, "rss_gb": int(status) * 1024 / 1e9}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--weights", choices=("map", "copy", "disk"), default="map")
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    runs = [start_once(arguments.folder, arguments.weights) for _ in range(arguments.times)]
    best = min(runs, key=lambda run: run["first_token_s"])
    packed_gb = read_manifest(arguments.folder).num_bytes / 1e9
    figures = {
        "folder": arguments.folder.name,
        "weights": arguments.weights,
        "packed_gb": round(packed_gb, 2),
        **{name: round(value, 2) for name, value in best.items()},
        "all_first_token_s": [round(run["first_token_s"], 2) for run in runs],
        "rss_share": round(best["rss_gb"] / packed_gb, 3),
    }
    print_report("first token", figures, {"first_token_s": MAX_FIRST_TOKEN_S, "rss_share": MAX_RSS_SHARE})


def start_once(folder: Path, weights: str) -> dict[str, float]:
    started = time.time()
    command = [sys.executable, "-c", ONE_START, str(folder), weights]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    run: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {"first_token_s": run.pop("at") - started, **run}


if __name__ == "__main__":
    main()
