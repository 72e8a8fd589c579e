"""Seconds from the upload of a text PDF to READY in the whole program, and the most memory the process held.

.venv/bin/python -m bench.bench_index [--pages 100]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from app.config import read_settings
from app.services import build_services
from bench.records import make_pdf
from bench.report import MAX_RSS_MB, peak_rss_mb, print_report
from contracts import DocumentStatus, Patient

MAX_READY_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pages", type=int, default=100)
    num_pages = parser.parse_args().pages
    data = make_pdf(num_pages, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        services = build_services(replace(read_settings(), data_dir=Path(folder), database_url="", demo=False))
        patient = services.store.add_patient(Patient(name="Margaret Ellis"))
        rss_before_mb = peak_rss_mb()
        started, cpu_before = time.perf_counter(), time.process_time()
        document = services.library.ingest(services.library.add(patient.id, "record.pdf", data).id)
        ready_s, ready_cpu_s = time.perf_counter() - started, time.process_time() - cpu_before
        if document is None or document.status is not DocumentStatus.READY:
            raise SystemExit(f"the document was not read: {document}")
        num_passages = len(services.store.list_passages(patient.id))
        started = time.perf_counter()
        services.retriever.search("Which dose of apixaban was given in ward 7?", patient.id)
        search_s = time.perf_counter() - started
        services.close()
    figures = {
        "pages": num_pages,
        "passages": num_passages,
        "ready_s": round(ready_s, 1),
        "ready_cpu_s": round(ready_cpu_s, 1),
        "first_search_s": round(search_s, 2),
        "rss_before_mb": rss_before_mb,
        "peak_rss_mb": peak_rss_mb(),
    }
    print_report("index", figures, {"ready_s": MAX_READY_S, "peak_rss_mb": MAX_RSS_MB})


if __name__ == "__main__":
    main()
