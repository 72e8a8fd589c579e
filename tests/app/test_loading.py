"""Loading a checkpoint, as the screens show it: watched, cancelled, failed and tried again, once for all sessions."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.config import EMBEDDED_CHECKPOINT, ROOT, Settings
from app.services import Services, build_services
from app.ui import loading, session
from contracts import LoadProgress
from model.modeling import BailingMoeV2ForCausalLM


class HeldBuild:
    """Builds the real program, but holds the load at the first word of its progress until it is released."""

    def __init__(self) -> None:
        self.reached, self.released, self.num_builds = threading.Event(), threading.Event(), 0

    def __call__(
        self, settings: Settings, *, on_progress: Callable[[LoadProgress], None], cancel: threading.Event
    ) -> Services:
        def hold(progress: LoadProgress) -> None:
            on_progress(progress)
            self.reached.set()
            assert self.released.wait(60)

        self.num_builds += 1
        return build_services(settings, on_progress=hold, cancel=cancel)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real checkpoint that the program is set to; what was loaded of it is closed again."""
    folder = tmp_path / "clinic-model"
    shutil.copytree(EMBEDDED_CHECKPOINT, folder)
    monkeypatch.setenv("BEDSIDE_CHECKPOINT", str(folder))
    monkeypatch.setenv("BEDSIDE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("BEDSIDE_THREADS", "1")
    session.get_loader.clear()
    yield folder
    if services := session.get_loader().services:
        services.close()
    session.get_loader.clear()


@pytest.fixture
def held(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> HeldBuild:
    build = HeldBuild()
    monkeypatch.setattr(session, "build_services", build)
    monkeypatch.setattr(loading, "PATIENCE_S", 0.0)
    return build


def open_app() -> AppTest:
    return AppTest.from_file(str(ROOT / "streamlit_app.py"), default_timeout=30).run()


def progress_of(app: AppTest) -> str:
    return str(app.get("progress")[0].proto.text).replace("\\", "")


def finish(app: AppTest) -> AppTest:
    """What the page shows once the load has ended; in a browser it draws itself again."""
    assert session.get_loader().wait(60)
    app.run()
    assert not app.exception, app.exception
    return app


@pytest.mark.parametrize("screen", ["consult", "documents", "safety_review", "model_status"])
def test_every_screen_shows_how_far_the_checkpoint_is_and_then_itself(held: HeldBuild, screen: str) -> None:
    app = open_app()
    assert held.reached.wait(60)
    app.switch_page(f"pages/{screen}.py").run()
    assert app.title[0].value.replace("\\", "") == "Loading clinic-model"
    assert "model.safetensors" in progress_of(app)
    assert "MB" in progress_of(app)
    assert len(app.button) == 1
    held.released.set()
    assert not finish(app).get("progress")
    assert "Loading" not in app.title[0].value if app.title else app.sidebar.button


def test_all_sessions_wait_for_the_same_load(held: HeldBuild) -> None:
    first, second = open_app(), open_app()
    assert held.reached.wait(60)
    session.get_loader().start()
    first.run()
    assert progress_of(first) == progress_of(second.run())
    held.released.set()
    assert finish(first).sidebar.button(key="patient_new")
    assert finish(second).sidebar.button(key="patient_new")
    assert held.num_builds == 1


def test_a_load_is_cancelled_leaves_nothing_and_is_begun_again(held: HeldBuild) -> None:
    before = models()
    app = open_app()
    assert held.reached.wait(60)
    app.button(key="load_cancel").click().run()
    assert app.button(key="load_cancel").disabled
    held.released.set()
    finish(app)
    assert "cancelled" in app.info[0].proto.title
    assert models() <= before
    app.button(key="load_again").click().run()
    assert finish(app).sidebar.button(key="patient_new")  # the data folder was free to be taken again


def models() -> set[int]:
    gc.collect()
    return {id(thing) for thing in gc.get_objects() if type(thing) is BailingMoeV2ForCausalLM}


def test_a_broken_checkpoint_is_named_and_loads_once_it_is_mended(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    app = open_app()
    assert "model.safetensors is truncated" in app.error[0].value.replace("\\", "")
    error = session.get_loader().status.error
    assert error is not None
    assert error.__traceback__ is None  # it would keep what was read in memory
    app.button(key="load_retry").click().run()
    assert "truncated" in finish(app).error[0].value
    shutil.copy(EMBEDDED_CHECKPOINT / weights.name, weights)
    app.button(key="load_retry").click().run()
    assert finish(app).sidebar.button(key="patient_new")


def test_a_malformed_setting_is_named_and_read_again(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDSIDE_PRECISION", "int3")
    app = open_app()
    assert "int3" in app.error[0].value
    monkeypatch.setenv("BEDSIDE_PRECISION", "auto")
    app.button(key="load_retry").click().run()
    assert finish(app).sidebar.button(key="patient_new")


def test_a_fault_of_the_programs_own_is_shown_as_one(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings, **watch: object) -> Services:
        raise RuntimeError("[enforce fail] can't allocate memory")

    monkeypatch.setattr(session, "build_services", fail)
    app = open_app()
    assert "RuntimeError" in app.error[0].value
    assert "allocate memory" in app.error[0].value


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_the_precision_set_is_the_one_that_answers(tmp_path: Path, precision: str) -> None:
    services = build_services(Settings(data_dir=tmp_path, demo=False, threads=1, precision=precision))
    try:
        assert services.generator.info.precision.startswith(precision)
    finally:
        services.close()
