"""The app as a clinician meets it: started by `make run` in a fresh data folder, used through Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from playwright.sync_api import TimeoutError as TooLate

from bench.report import ROOT, cpu_seconds, peak_rss_mb

MAX_WAIT_S = 180.0
FIRST_PATIENT = "Margaret Ellis"
_MARKS = {"Consult": "[data-testid=stChatInput]", "Documents": "input[type=file]"}  # what only that screen has
_DRAWN_MS = 30_000


@dataclass(frozen=True, slots=True)
class Server:
    """A running app; `started` is time.perf_counter() at its start."""

    url: str
    started: float
    group: int

    def peak_rss_mb(self) -> float:
        """The most memory all its processes held, added up."""
        return round(sum(map(peak_rss_mb, _list_group(self.group))), 1)

    def cpu_seconds(self) -> float:
        return sum(map(cpu_seconds, _list_group(self.group)))


@contextmanager
def serve_app(demo: bool = True) -> Iterator[Server]:
    """Runs the app, with its demo records or empty, until the block ends. Raises SystemExit if it does not start."""
    port = _find_free_port()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"BEDSIDE_DATA_DIR": folder, "BEDSIDE_PORT": str(port)}
        environment["BEDSIDE_DEMO"] = str(demo).lower()
        started = time.perf_counter()
        process = subprocess.Popen(
            ["make", "run"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for_http(url, process)
            yield Server(url, started, process.pid)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@contextmanager
def open_page(url: str) -> Iterator[Page]:
    """The app's page in Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(MAX_WAIT_S * 1000)
        page.goto(url)
        yield page
        browser.close()


def open_screen(page: Page, name: str) -> None:
    """Opens a screen by its link, once more if nothing came of it: where the machine is overloaded, a poll that the
    browser sent for the screen before can be run after the new screen and leave it empty (Streamlit 1.67)."""
    mark = page.locator(_MARKS[name]).first
    link = page.get_by_role("link", name=name, exact=True)
    link.click()
    try:
        mark.wait_for(state="attached", timeout=_DRAWN_MS)
    except TooLate:
        link.click()
        mark.wait_for(state="attached")


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for_http(url: str, server: subprocess.Popen[bytes]) -> None:
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


def _list_group(group: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if _group_of(pid) == group]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
