"""The real program in a process of its own, and a real Chromium to use it with."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from app.server import make_app
from contracts import SamplingParams
from model.checkpoint import save_checkpoint
from model.config import ModelConfig
from model.fake import FakeGenerator
from model.generator import LocalGenerator
from model.modeling import BailingMoeV2ForCausalLM

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "model" / "embedded"
START_TIMEOUT_S = 120
_PAGES = pytest.StashKey[list[Page]]()  # the windows that a test has opened
expect.set_options(timeout=60_000)  # a machine that also trains a model answers late
CHROMIUM_ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def app_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running app with its demo records, in a fresh data folder."""
    with _serve(tmp_path_factory.mktemp("bedside")) as url:
        yield url


@pytest.fixture
def slow_app_url(tmp_path: Path) -> Iterator[str]:
    """The same with a larger model of random weights, which takes many seconds to read a record: time to press Stop."""
    checkpoint = tmp_path / "slow"
    shutil.copytree(
        EMBEDDED, checkpoint, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "router_*.json")
    )
    width = 768
    config = replace(
        ModelConfig.from_hf(EMBEDDED),
        hidden_size=width,
        intermediate_size=4 * width,
        moe_intermediate_size=width,
        num_hidden_layers=8,
        max_position_embeddings=8192,
    )
    save_checkpoint(BailingMoeV2ForCausalLM(config), checkpoint)
    with _serve(tmp_path, BEDSIDE_CHECKPOINT=str(checkpoint), BEDSIDE_DEMO="true") as url:
        yield url


@pytest.fixture(scope="session")
def wrong_dose_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The program in front of a server whose model always gives a tenfold dose."""
    scripted = FakeGenerator(["Apixaban 50 mg twice daily. [1]"])
    app = make_app(cast(LocalGenerator, scripted), SamplingParams(), allowed_hosts=("127.0.0.1",))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with _serve(tmp_path_factory.mktemp("wrong_dose"), BEDSIDE_SERVER_URL=address, BEDSIDE_DEMO="true") as url:
            yield url
        server.should_exit = True
        thread.join(30)


@contextmanager
def _serve(folder: Path, **environment: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("bedside")), "run", "--port", str(port)]
    environment = os.environ | {"BEDSIDE_DATA_DIR": str(folder / "data"), "BEDSIDE_THREADS": "1"} | environment
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_served(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_served(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the app ended at its start:\n{log.read_text()}")
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"the app did not answer within {START_TIMEOUT_S} s:\n{log.read_text()}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no Chromium found: install it (Debian: apt-get install chromium), then run the tests again")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_ARGS))
        yield browser
        browser.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds to a failure what the open windows showed."""
    report = yield
    if report.when == "call" and report.failed:
        for page in item.stash.get(_PAGES, ()):
            with suppress(PlaywrightError):
                report.sections.append((f"window at {page.url}", page.locator("body").inner_text(timeout=5_000)))
    return report


@pytest.fixture
def open_page(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """Opens a window: `open_page(width, height, scheme)`. A request to anywhere but the app fails the test."""
    pages = request.node.stash[_PAGES] = []
    contexts: list[BrowserContext] = []
    foreign: list[str] = []

    def open_one(width: int = 1440, height: int = 900, scheme: str = "light") -> Page:
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.on("request", lambda request: None if "127.0.0.1" in request.url else foreign.append(request.url))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        pages.append(page)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not [url for url in foreign if not url.startswith(("data:", "blob:"))]
