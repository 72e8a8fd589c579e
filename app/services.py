"""The composition root: the only place that constructs the store, the model, retrieval and safety."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from filelock import FileLock, Timeout

from app.certificate import erase
from app.config import Settings, go_offline
from app.conversation import Conversation
from app.demo import load_demo_patients
from app.errors import SettingsError, StorageError
from app.jobs import Jobs
from app.prepared_records import FOLDER, PreparedRecords, remove_prepared
from app.remote_generator import RemoteGenerator
from app.safety_layer import JudgeSeat, build_safety
from app.scope import Filing
from app.store import Store
from contracts import Generator, LoadCancelled, LoadProgress, Passage, Patient
from model.generator import LocalGenerator
from model.kernels.expert_cache import ExpertCounts
from model.request import HasEngineLoad
from model.router_health import RouterState
from retrieval.bilingual import BilingualEmbedder
from retrieval.documents import DocumentLibrary, rebuild_vectors
from retrieval.embedding import TransformerEmbedder, find_model
from retrieval.index import FloatArray, VectorIndex
from retrieval.reading.process import Limits, Readers
from retrieval.search import HybridRetriever
from retrieval.vectors import Embedder, row_ids
from safety.checker import RuleSafetyChecker

_LOG = logging.getLogger(__name__)
REPAIRING = "Checking the index against the records"
_DAY_S = 24 * 3600
SEEDING = "Reading the demo records"


@dataclass
class Services:
    """Everything a screen or a command needs; built once for a process."""

    settings: Settings
    store: Store
    library: DocumentLibrary
    generator: Generator
    safety: RuleSafetyChecker
    retriever: HybridRetriever
    embedder: Embedder
    conversation: Conversation
    jobs: Jobs
    filing: Filing
    _index: VectorIndex
    _lock: FileLock
    _daily: threading.Timer | None = None
    _resumed: list[str] = field(default_factory=list)  # documents that the last end of the program cut off
    _preparing: str = ""  # what goes on in the background after the start; "" once it is over

    @property
    def expert_counts(self) -> ExpertCounts | None:
        """How often experts were in memory, where they are read from the disk as they are chosen."""
        return self.generator.engine_load.experts if isinstance(self.generator, HasEngineLoad) else None

    def status(self) -> dict[str, Any]:
        """{"ready": bool, "message": str}: whether the start's background work (repair, demo records) is over."""
        is_resuming = any(self.jobs.ingest_progress(document_id) for document_id in self._resumed)
        message = self._preparing or (REPAIRING if is_resuming else "")
        return {"ready": not message, "message": message}

    def wait_until_ready(self) -> None:
        """Blocks until the start's background work is over; for benches and tests."""
        while not self.status()["ready"]:
            time.sleep(0.01)

    @property
    def threads(self) -> str:
        """How many threads the model's steps are computed with at present, and why; "" where nothing is chosen."""
        return self.generator.threads if isinstance(self.generator, LocalGenerator) else ""

    def start_preparing(self) -> None:
        """Queues the start's background work: repair what the last process left, bring in missing demo records."""
        self._preparing = REPAIRING
        self.jobs.run_in_background(self._prepare)

    def _prepare(self) -> None:
        try:
            self.library.repair(resume=self._resume)
            self._keep_retention()
            if self.settings.is_demo:
                self._preparing = SEEDING
                seed_demo(self)
        finally:
            self._preparing = ""

    def vectors(self, patient_id: str, passages: Sequence[Passage]) -> FloatArray:
        """The vectors [N, D] kept of passages' parts. Raises IndexFailure if they cannot be read."""
        return self._index.vectors_of(patient_id, sorted(row_ids(passages)))

    def _resume(self, document_id: str) -> None:
        self._resumed.append(document_id)
        self.jobs.ingest(document_id)

    def _keep_retention(self) -> None:
        """Looks for documents past their time now and once a day."""
        self.erase_expired()
        if self.settings.retention_days:
            self._daily = threading.Timer(_DAY_S, self.jobs.run_in_background, [self._keep_retention])
            self._daily.daemon = True
            self._daily.start()

    def erase_expired(self) -> None:
        """Removes the documents whose retention period is over, with a certificate in the audit."""
        days = self.settings.retention_days
        oldest = datetime.now(UTC) - timedelta(days=days)
        documents = self.store.list_documents() if days else []
        if expired := [d.id for d in documents if datetime.fromisoformat(d.added_at) < oldest]:
            erase(self, expired, actor="retention period", reason=f"Kept for {days} days.")
            _LOG.info("documents were removed, their retention period is over: %s", ", ".join(expired))

    def switch_rule(self, rule: str, actor: str, off_because: str | None) -> None:
        """Switches a safety rule off for this reason, or on again; it holds from the next check on. Raises InputError
        without a reason."""
        if off_because is None:
            self.store.switch_on_rule(rule, actor)
        else:
            self.store.switch_off_rule(rule, actor, off_because)
        self.safety.switch_off([switch.rule for switch in self.store.list_rule_switches()])

    def delete_patient(self, patient_id: str) -> None:
        """Removes a patient with every document, vector, conversation and finding; answers under way are stopped."""
        for conversation in self.store.list_conversations(patient_id):
            self.jobs.stop(conversation.id)
        self.library.delete_patient(patient_id)
        self.store.delete_patient(patient_id)

    def close(self) -> None:
        """Gives the data folder back."""
        if self._daily:
            self._daily.cancel()
        self.jobs.close()
        self.library.close()
        self._index.close()
        self.store.close()
        self._lock.release()


def build_services(
    settings: Settings,
    generator: Generator | None = None,
    *,
    on_progress: Callable[[LoadProgress], None] | None = None,
    cancel: threading.Event | None = None,
) -> Services:
    """Opens the data folder, loads the model and the rules, and starts the repair in the background.

    Raises StorageError if another process owns the data folder; CheckpointError or RuleError if the model or the rules
    cannot be loaded, GenerationError if a server in the model's place cannot be reached; LoadCancelled once `cancel` is
    set. Then nothing stays open. A generator may be given instead of the settings'.
    """
    go_offline()
    with ExitStack() as opened:
        lock = _own(settings)
        opened.callback(lock.release)
        judge = JudgeSeat()
        safety = build_safety(judge, settings.threads)  # first: without its rules nothing may start
        store = Store.open(settings.data_dir, settings.database_url or None)
        opened.callback(store.close)
        num_interrupted = store.recover()
        if num_interrupted:
            _LOG.warning("%d answers were interrupted by the last end of the program", num_interrupted)
        generator = generator or _load_generator(settings, on_progress, cancel)
        judge.take(generator)
        safety.switch_off([switch.rule for switch in store.list_rule_switches()])
        services = _compose(settings, store, generator, safety, lock)
        opened.pop_all()
    services.start_preparing()
    return services


def rebuild_index(settings: Settings) -> int:
    """Makes every patient's vectors anew from the stored text, without a model; returns of how many patients.

    Raises StorageError if another process owns the data folder, IndexFailure if the index cannot be written.
    """
    with ExitStack() as opened:
        lock = _own(settings)
        opened.callback(lock.release)
        store = Store.open(settings.data_dir, settings.database_url or None)
        opened.callback(store.close)
        embedder = _load_embedder(settings)
        index = VectorIndex(settings.data_dir / "vectors", embedder.identity, settings.chroma_url)
        opened.callback(index.close)
        patients = [record.id for record in store.list_patients()]
        for patient_id in patients:
            rebuild_vectors(store, index, embedder, patient_id)
        return len(patients)


def _own(settings: Settings) -> FileLock:
    """One process owns a data folder: Chroma's index is not made for two."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(f"The data folder {settings.data_dir} cannot be made: {error.strerror}.") from error
    lock = FileLock(settings.data_dir / "owner.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StorageError(
            f"Another Bedside process is using {settings.data_dir}: stop it, or set BEDSIDE_DATA_DIR to another folder."
        ) from error
    return lock


def connect_server(settings: Settings) -> RemoteGenerator:
    """The model on the server that the settings name. Raises as RemoteGenerator does."""
    return RemoteGenerator(
        settings.server_url,
        settings.server_model,
        settings.server_key,
        settings.server_context,
        settings.tokenizer_folder,
    )


def _load_generator(
    settings: Settings, on_progress: Callable[[LoadProgress], None] | None, cancel: threading.Event | None
) -> Generator:
    if settings.server_url:
        return connect_server(settings)
    options = settings.load_options
    generator = LocalGenerator.load(settings.checkpoint, **options, on_progress=on_progress, cancel=cancel)
    if cancel is not None and cancel.is_set():
        raise LoadCancelled("Loading was cancelled.")
    return generator


def _compose(
    settings: Settings, store: Store, generator: Generator, safety: RuleSafetyChecker, lock: FileLock
) -> Services:
    embedder = _load_embedder(settings)
    index = VectorIndex(settings.data_dir / "vectors", embedder.identity, settings.chroma_url)
    retriever = HybridRetriever(store, index, embedder)
    max_bytes = settings.max_upload_mb * 1024 * 1024
    prepared = _open_prepared(settings, store, generator)
    filing = Filing(store)

    def forget() -> None:
        retriever.forget()
        filing.forget()

    library = DocumentLibrary(
        store,
        index,
        embedder,
        safety,
        max_bytes,
        before_delete=prepared.erase if prepared else None,
        on_delete=forget,
        readers=Readers(Limits(memory_mb=settings.reader_mb)),
        get_patient=partial(_get_patient, store),
    )
    conversation = Conversation(store, retriever, generator, safety, settings.constrain_citations, prepared)
    jobs = Jobs(store, conversation, library, settings.sampling, prepared, settings.readers)
    return Services(
        settings, store, library, generator, safety, retriever, embedder, conversation, jobs, filing, index, lock
    )


def _get_patient(store: Store, patient_id: str) -> Patient | None:
    record = store.get_patient(patient_id)
    return record.patient if record else None


def _open_prepared(settings: Settings, store: Store, generator: Generator) -> PreparedRecords | None:
    """None where no records are prepared, by the settings or because the model runs elsewhere; older ones then go."""
    folder = settings.data_dir / FOLDER
    keeper = generator.prompt_keeper if isinstance(generator, LocalGenerator) else None
    if not isinstance(generator, LocalGenerator) or keeper is None or not settings.prepared_mb:
        remove_prepared(folder)
        return None

    def is_sound() -> bool:
        return not generator.router_health().in_state(RouterState.COLLAPSED)

    max_bytes = settings.prepared_mb * 2**20
    prepared = PreparedRecords(folder, store.cipher, keeper, generator.encode_prompt, max_bytes, is_sound)
    prepared.sweep({record.id for record in store.list_patients()})
    return prepared


def _load_embedder(settings: Settings) -> Embedder:
    threads = _count_threads(settings)
    try:
        return (
            TransformerEmbedder(find_model(settings.embedder), threads)
            if settings.embedder
            else BilingualEmbedder(threads)
        )
    except FileNotFoundError as error:
        raise SettingsError(f"{error} See the setting embedder.") from error


def _count_threads(settings: Settings) -> int:
    return settings.threads or os.cpu_count() or 1


def seed_demo(services: Services) -> None:
    """Brings in the synthetic patients by the same way as any upload; a patient already there stays as it is."""
    present = {record.patient.name for record in services.store.list_patients() if record.demo}
    for demo in load_demo_patients():
        if demo.patient.name in present:
            continue
        record = services.store.add_patient(demo.patient, demo=True)
        # All are stored before the first is read: a process killed meanwhile finds them queued at its next start.
        documents = [services.library.add(record.id, file.name, file.read_bytes()) for file in demo.files]
        for document in documents:
            services.library.ingest(document.id)
        services.jobs.prepare(record.id)
