"""Seconds from `make run` (environment made) to the page, and the memory of every process it started.

    .venv/bin/python -m bench.bench_start

`http_s` is the first HTTP 200; `page_s`, measured in Chromium, is when the page shows its patients, which is when a
clinician can begin: the server answers before the program behind it is built.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

from bench.report import MAX_RSS_MB, ROOT, cpu_seconds, peak_rss_mb, print_report

MAX_START_S = 15.0

MAX_WAIT_S = 180.0
FIRST_PATIENT = "Margaret Ellis"


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for_http(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + MAX_WAIT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the app did not start; run `make run` to see why") from None
            time.sleep(0.05)


def wait_for_patients(url: str) -> None:
    """Opens the page in Chromium and waits for the first patient's name."""
    installed = Path("/usr/bin/chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=installed if installed.exists() else None, args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.goto(url)
        page.get_by_text(FIRST_PATIENT).first.wait_for(timeout=MAX_WAIT_S * 1000)
        browser.close()


def list_group(group: int) -> list[int]:
    """The processes of a process group."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if _group_of(pid) == group]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def main() -> None:
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"BEDSIDE_DATA_DIR": folder, "BEDSIDE_PORT": str(port), "BEDSIDE_DEMO": "true"}
        started = time.perf_counter()
        server = subprocess.Popen(
            ["make", "run"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for_http(url, server)
            http_s = time.perf_counter() - started
            wait_for_patients(url)
            page_s = time.perf_counter() - started
            pids = list_group(server.pid)
            peak_mb, cpu_s = sum(map(peak_rss_mb, pids)), sum(map(cpu_seconds, pids))
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)
    figures = {
        "http_s": round(http_s, 1),
        "page_s": round(page_s, 1),
        "cpu_s": round(cpu_s, 1),
        "peak_rss_mb": round(peak_mb, 1),
    }
    print_report("start", figures, {"http_s": MAX_START_S, "page_s": MAX_START_S, "peak_rss_mb": MAX_RSS_MB})


if __name__ == "__main__":
    main()
