"""Seconds from the upload of a text PDF until words find it and until it is READY in the whole program, a question's
time, and the most memory the process held. 145 generated pages are 128K of the embedder's tokens.

.venv/bin/python -m bench.bench_index [--pages 145]
"""

from __future__ import annotations

import argparse

from app.config import read_settings
from app.measure import measure_index
from bench.report import MAX_RSS_MB, print_report

LIMITS = {"words_searchable_s": 3.0, "ready_s": 20.0, "query_p95_ms": 40.0, "peak_rss_mb": MAX_RSS_MB}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pages", type=int, default=145)
    figures = measure_index(read_settings(), parser.parse_args().pages)
    print_report("index", figures, LIMITS)


if __name__ == "__main__":
    main()
