"""The real program over a temporary folder, with a scripted generator: what the model says is the test's to choose."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import uvicorn

from app.config import EMBEDDED_CHECKPOINT, Settings
from app.server import make_app
from app.services import Services, build_services
from app.store import Store
from contracts import Generator, Patient
from model.generator import LocalGenerator

LETTER = """DISCHARGE LETTER

Mrs Ellis was admitted on 3 March 2024 with breathlessness and ankle swelling.
Echocardiogram showed an ejection fraction of 35 %.

Medication on discharge:
Apixaban 5 mg twice daily.
Bisoprolol 2.5 mg once daily.
Furosemide 40 mg once daily.

She is allergic to penicillin, which caused a rash.
She denies chest pain.
Follow-up in the heart failure clinic in six weeks.
"""


@pytest.fixture
def make_services(tmp_path: Path) -> Iterator[Callable[[Generator], Services]]:
    built: list[Services] = []

    def make(generator: Generator) -> Services:
        services = build_services(Settings(data_dir=tmp_path / f"data{len(built)}", demo=False, threads=1), generator)
        built.append(services)
        return services

    yield make
    for services in built:
        services.close()


@pytest.fixture
def add_letter() -> Callable[[Services], str]:
    """Adds a patient with one readable letter and an empty conversation; returns the conversation's id."""

    def add(services: Services, text: str = LETTER) -> str:
        patient = services.store.add_patient(Patient(name="Margaret Ellis", age_years=74, sex="female"))
        document = services.library.add(patient.id, "letter.txt", text.encode())
        assert services.library.ingest(document.id).status == "ready"
        return services.store.add_conversation(patient.id).id

    return add


# --- the model behind a socket ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelServer:
    """The embedded model as `bedside serve` serves it, in this process: what answers can be looked at from inside."""

    url: str
    generator: LocalGenerator


@pytest.fixture(scope="session")
def model_server() -> Iterator[ModelServer]:
    generator = LocalGenerator.load(EMBEDDED_CHECKPOINT, threads=1)
    app = make_app(generator, Settings().sampling, allowed_hosts=("127.0.0.1",))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield ModelServer(f"http://127.0.0.1:{listener.getsockname()[1]}", generator)
        server.should_exit = True
        thread.join(30)


# --- the store on both databases ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address, without a database name, of a real PostgreSQL server of our own behind a socket in a temporary
    folder; skips where none is installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    found = shutil.which("postgres") or (str(programs[-1]) if programs else "")
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is missing; apt-get install postgresql")
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    # The server refuses to run as root.
    user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="bedside-pg-"))
    if user:
        shutil.chown(folder, "postgres", "postgres")
    initdb = [str(Path(found).with_name("initdb")), "-D", str(folder / "data"), "-U", "bedside", "-A", "trust"]
    settings = [f"unix_socket_directories={folder}", "listen_addresses=", "fsync=off"]
    options = [part for setting in settings for part in ("-c", setting)]
    subprocess.run([*initdb, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"], check=True, capture_output=True, **user)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([found, "-D", str(folder / "data"), *options], stdout=log, stderr=log, **user)
    try:
        _wait_until_it_answers(server, folder)
        yield str(folder)
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nothing here is worth a checkpoint
        server.wait(30)
        shutil.rmtree(folder)


def _wait_until_it_answers(server: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host=str(folder), user="bedside", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail((folder / "log").read_text())
            time.sleep(0.05)


@pytest.fixture
def postgresql_url(postgresql: str) -> str:
    """A fresh, empty database."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(host=postgresql, user="bedside", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql://bedside@/{name}?host={postgresql}"


@pytest.fixture(params=["sqlite", "postgresql"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens the test's one database, as often as called: a second call is the program's next start."""
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    opened: list[Store] = []

    def open_it() -> Store:
        opened.append(Store.open(tmp_path / "data", url))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    return open_store()
