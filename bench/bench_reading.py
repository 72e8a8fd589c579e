"""Seconds that reading takes: the text of a record of 300 pages, and a scanned page with two recognised at once.

    .venv/bin/python -m bench.bench_reading [--pages 300] [--scans 8]

Text is read twice by a process that stands ready, in batches to the last page, and the better time counts. Scans are
printed letters of 15 lines, a little askew.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing

from app.synthetic_record import make_pdf
from bench.mixed_record import make_record
from bench.report import print_report
from contracts import Page, ReadMethod
from retrieval.reading.formats import PDF
from retrieval.reading.process import PagesRead, Readers

LIMITS = {"text_s": 1.0, "ocr_s_a_page": 6.0}


def read_text(readers: Readers, pdf: bytes) -> tuple[float, list[Page]]:
    started = time.perf_counter()
    events = readers.read(pdf, PDF, max_pages=10_000)
    pages = [page for event in events if isinstance(event, PagesRead) for page in event.pages]
    return time.perf_counter() - started, pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--scans", type=int, default=8)
    arguments = parser.parse_args()
    text, scans = make_pdf(arguments.pages, seed=1), make_record(arguments.scans, arguments.scans).pdf
    with closing(Readers()) as readers:
        read_text(readers, make_pdf(1, seed=2))  # leaves a spare process behind, which needs a moment to start
        time.sleep(3)
        first_s, pages = read_text(readers, text)
        time.sleep(3)
        text_s = min(first_s, read_text(readers, text)[0])
        started = time.perf_counter()
        recognised = list(readers.recognise(scans, PDF, list(range(1, arguments.scans + 1))))
        ocr_s = time.perf_counter() - started
    figures = {
        "pages": len(pages),
        "characters": sum(len(page.text) for page in pages),
        "text_s": round(text_s, 2),
        "scans": len(recognised),
        "scans_read": sum(page.method is ReadMethod.OCR for page in recognised),
        "at_once": readers.limits.recognisers,
        "ocr_s_a_page": round(ocr_s / len(recognised), 2),
    }
    print_report("reading", figures, LIMITS)


if __name__ == "__main__":
    main()
