"""Seconds from `make run` (environment made) to the page, and the memory of every process it started.

    .venv/bin/python -m bench.bench_start

`http_s` is the first HTTP 200; `page_s`, measured in Chromium, is when the page shows its patients, which is when a
clinician can begin: the server answers before the program behind it is built.
"""

from __future__ import annotations

import time

from bench.report import MAX_RSS_MB, print_report
from bench.serving import FIRST_PATIENT, open_page, serve_app

MAX_START_S = 15.0


def main() -> None:
    with serve_app() as server:
        http_s = time.perf_counter() - server.started
        with open_page(server.url) as page:
            page.get_by_text(FIRST_PATIENT).first.wait_for()
            page_s = time.perf_counter() - server.started
        figures = {
            "http_s": round(http_s, 1),
            "page_s": round(page_s, 1),
            "cpu_s": round(server.cpu_seconds(), 1),
            "peak_rss_mb": server.peak_rss_mb(),
        }
    print_report("start", figures, {"http_s": MAX_START_S, "page_s": MAX_START_S, "peak_rss_mb": MAX_RSS_MB})


if __name__ == "__main__":
    main()
