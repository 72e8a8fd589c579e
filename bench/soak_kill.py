"""Kills the program at random moments during ingestion and during an answer, starts it again, and checks what is left.

    .venv/bin/python -m bench.soak_kill --times 20

Each round starts the program in a process of its own on the same data folder. It repairs itself, is held against what
its killed predecessors had acknowledged, and then ingests or answers without end until SIGKILL reaches it. The same
process lives through all rounds of a phase, so a loss would also be found later. Prints one JSON line last and writes
it to bench/results/kill-soak.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report import RESULTS, ROOT, with_origin

if TYPE_CHECKING:
    from app.services import Services
    from contracts import Document, Generator

PHASES = ("ingest", "answer")
MAX_DELAY_S = {"ingest": 6.0, "answer": 3.0}  # one document takes some 3 s here, one answer 1 s
PAGES_PER_DOCUMENT = 8
QUESTION = "Which dose of apixaban does she take?"
LETTER = """DISCHARGE LETTER

Mrs Ellis was admitted on 3 March 2024 with breathlessness and ankle swelling.
Apixaban 5 mg twice daily. Bisoprolol 2.5 mg once daily. Furosemide 40 mg once daily.
She is allergic to penicillin, which caused a rash.
"""
Event = dict[str, Any]


# --- the process that is killed -----------------------------------------------------------------------------------


def work(data_dir: Path, ledger: Path, phase: str, model: str) -> None:
    """Starts the program, checks it against the ledger, then works on the phase for ever ("check" ends here)."""
    from app.config import read_settings
    from app.services import build_services

    started = time.perf_counter()
    settings = replace(read_settings(), data_dir=data_dir, database_url="", demo=False, threads=1)
    services = build_services(settings, _make_generator(model))
    services.wait_until_ready()
    restart_s = time.perf_counter() - started
    events = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    problems = list(find_problems(services, events))
    _emit("checked", problems=problems, restart_s=round(restart_s, 2), model=services.generator.info.name)
    if phase == "check":
        services.close()
        return
    patient_id = _prepare_record(services)
    _emit("working")
    if phase == "ingest":
        _ingest_for_ever(services, patient_id)
    _answer_for_ever(services, patient_id)


def _make_generator(model: str) -> Generator | None:
    """None: the model of the settings, which is the embedded one unless BEDSIDE_CHECKPOINT names another."""
    if model == "real":
        return None
    from model.fake import FakeGenerator

    return FakeGenerator(["Apixaban 5 mg twice daily [1]. She is allergic to penicillin [1]."], delay_s=0.03)


def _prepare_record(services: Services) -> str:
    """The one patient, whose letter is ready to be asked about."""
    from contracts import Patient

    known = services.store.list_patients()
    patient_id = (known[0] if known else services.store.add_patient(Patient(name="Margaret Ellis", sex="female"))).id
    letter = services.library.add(patient_id, "letter.txt", LETTER.encode())
    services.library.ingest(letter.id)
    _emit("stored", document=letter.id)
    return patient_id


def _ingest_for_ever(services: Services, patient_id: str) -> None:
    from app.synthetic_record import make_pdf

    while True:
        data = make_pdf(PAGES_PER_DOCUMENT, seed=len(services.store.list_documents()))
        document = services.library.add(patient_id, "notes.pdf", data)
        _emit("stored", document=document.id)
        services.jobs.ingest(document.id)
        while services.jobs.ingest_progress(document.id) is not None:
            time.sleep(0.01)
        _emit("ready", document=document.id)


def _answer_for_ever(services: Services, patient_id: str) -> None:
    while True:
        conversation = services.store.add_conversation(patient_id)
        for _ in range(3):
            turn = services.jobs.ask(conversation.id, QUESTION)
            _emit("asked", turn=turn.id)
            services.jobs.wait(conversation.id)
            _emit("finished", turn=turn.id, digest=_digest(services, turn.id))


def _emit(event: str, **values: object) -> None:
    """One line through a pipe, written at once: what stands in it was acknowledged before the kill."""
    os.write(1, (json.dumps({"event": event, **values}) + "\n").encode())


def _digest(services: Services, turn_id: str) -> str:
    return hashlib.sha256(repr(services.store.get_turn(turn_id)).encode()).hexdigest()


# --- what must hold after a restart -------------------------------------------------------------------------------


def find_problems(services: Services, events: list[Event]) -> Iterator[str]:
    """One sentence for each promise broken: a finished turn lost or changed, a turn or document left half-done, vectors
    that differ from the passages, a question that no longer gets its answer."""
    from app.events import TurnStatus
    from contracts import DocumentStatus
    from retrieval.bilingual import BilingualEmbedder
    from retrieval.index import VectorIndex
    from retrieval.vectors import row_ids

    for event in events:
        if event["event"] == "finished" and _digest(services, event["turn"]) != event["digest"]:
            yield f"finished turn {event['turn']} was lost or changed"
        if event["event"] == "asked":
            turn = services.store.get_turn(event["turn"])
            if turn is None or turn.status is TurnStatus.RUNNING:
                yield f"turn {event['turn']} is {'lost' if turn is None else 'still running'}"
        if event["event"] == "stored" and services.store.get_document(event["document"]) is None:
            yield f"stored document {event['document']} was lost"
    for document in services.store.list_documents():
        if document.status is not DocumentStatus.READY:
            yield f"document {document.id} is {document.status} after the repair: {document.error}"
    index = VectorIndex(services.settings.data_dir / "vectors", BilingualEmbedder().identity)
    for patient in services.store.list_patients():
        if row_ids(services.store.list_passages(patient.id)) != index.ids(patient.id):
            yield "the vectors differ from the passages"
        index.check(patient.id)
        for document in services.store.list_documents(patient.id):
            if document.name == "letter.txt":
                yield from _ask_again(services, document)


def _ask_again(services: Services, letter: Document) -> Iterator[str]:
    """Asks about the letter alone, so that what the model has to read is the same in every round."""
    from app.events import TurnStatus

    conversation = services.store.add_conversation(letter.patient_id)
    turn_id = services.jobs.ask(conversation.id, QUESTION, (letter.id,)).id
    services.jobs.wait(conversation.id)
    turn = services.store.get_turn(turn_id)
    if turn is None or turn.status is not TurnStatus.DONE:
        yield f"the same question ended as {turn.status if turn else 'nothing'}: {turn.error if turn else ''}"
        return
    cited = [citation for claim in turn.claims if claim.supported for citation in claim.citations]
    if not cited:
        yield "the same question got no supported claim"
    for citation in cited:
        page = services.store.get_pages(citation.document_id)[citation.page - 1]
        if page.text[citation.start : citation.end] != citation.quote:
            yield f"a quote does not stand at page {citation.page}, {citation.start}"


# --- the process that kills ---------------------------------------------------------------------------------------


@dataclass
class Soak:
    """One data folder over all rounds, and everything its processes acknowledged."""

    folder: Path
    model: str
    events: list[Event] = field(default_factory=list)

    def kill_once(self, phase: str, delay_s: float) -> bool:
        """Runs the program, kills it delay_s after it began to work; returns whether work was under way."""
        events = self._run(phase, delay_s)
        if not any(event["event"] == "working" for event in events):
            raise RuntimeError("the program ended before it began to work; its error stands above")
        open_work = {
            event.get("document", event.get("turn")) for event in events if event["event"] in ("stored", "asked")
        }
        done = {event.get("document", event.get("turn")) for event in events if event["event"] in ("ready", "finished")}
        self.events += events
        letter = next(event["document"] for event in events if event["event"] == "stored")
        return bool(open_work - done - {letter})

    def check(self) -> None:
        """A last start that only checks."""
        self.events += self._run("check", None)

    @property
    def problems(self) -> list[str]:
        return [problem for event in self._all("checked") for problem in event["problems"]]

    def summary(self) -> dict[str, Any]:
        return {
            "problems": self.problems,
            "starts_checked": len(self._all("checked")),
            "documents_stored": len({event["document"] for event in self._all("stored")}),
            "turns_asked": len(self._all("asked")),
            "turns_finished": len(self._all("finished")),
            "model": self._all("checked")[0]["model"],
            "slowest_restart_s": max(event["restart_s"] for event in self._all("checked")),
        }

    def _all(self, name: str) -> list[Event]:
        return [event for event in self.events if event["event"] == name]

    def _run(self, phase: str, delay_s: float | None) -> list[Event]:
        ledger = self.folder / "ledger.jsonl"
        ledger.write_text("".join(json.dumps(event) + "\n" for event in self.events), encoding="utf-8")
        command = [sys.executable, "-m", "bench.soak_kill", "--work", phase, "--model", self.model]
        command += ["--data-dir", str(self.folder / "data"), "--ledger", str(ledger)]
        events = []
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith('{"event"'):
                    continue  # what a library may print
                events.append(json.loads(line))
                if events[-1]["event"] == "working" and delay_s is not None:
                    threading.Timer(delay_s, os.killpg, (process.pid, signal.SIGKILL)).start()
        if phase == "check" and process.returncode:
            raise RuntimeError("the program did not start; its error stands above")
        return events


def soak(times: int, seed: int, model: str) -> dict[str, Any]:
    """Kills `times` times in each phase; the report's `problems` is empty if every promise held."""
    moments = random.Random(seed)
    report: dict[str, Any] = {"what": "kill-soak", "seed": seed}
    for phase in PHASES:
        with tempfile.TemporaryDirectory() as folder:
            run = Soak(Path(folder), model)
            num_under_way = 0
            for number in range(1, times + 1):
                num_under_way += run.kill_once(phase, moments.uniform(0, MAX_DELAY_S[phase]))
                print(f"{phase} {number}/{times}: {run.problems or 'no problems'}", flush=True)
            run.check()
            report[phase] = {"kills": times, "kills_with_work_under_way": num_under_way, **run.summary()}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=20, help="kills in each phase")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--model", choices=("real", "fake"), default="real")
    parser.add_argument("--output", type=Path, default=RESULTS / "kill-soak.json")
    parser.add_argument("--work", choices=(*PHASES, "check"), help=argparse.SUPPRESS)
    parser.add_argument("--data-dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ledger", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.data_dir, arguments.ledger, arguments.work, arguments.model)
        return
    report = with_origin(soak(arguments.times, arguments.seed, arguments.model))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))
    if any(report[phase]["problems"] for phase in PHASES):
        sys.exit(1)


if __name__ == "__main__":
    main()
