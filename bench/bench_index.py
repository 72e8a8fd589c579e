"""Seconds from the upload of a text PDF to READY in the whole program, and the most memory the process held.

.venv/bin/python -m bench.bench_index [--pages 100]
"""

from __future__ import annotations

import argparse

from app.config import read_settings
from app.measure import measure_index
from bench.report import MAX_RSS_MB, print_report

MAX_READY_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pages", type=int, default=100)
    figures = measure_index(read_settings(), parser.parse_args().pages)
    print_report("index", figures, {"ready_s": MAX_READY_S, "peak_rss_mb": MAX_RSS_MB})


if __name__ == "__main__":
    main()
