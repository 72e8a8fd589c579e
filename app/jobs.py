"""Work that outlives the page: answering a turn, ingesting a document, preparing a record. Knows nothing of Streamlit.

A Streamlit script dies at its next call when a tab closes or a widget is clicked. So the page submits, polls and draws;
a worker thread works and persists. Stop sets an event that the model reads at every prefill chunk and decode step.
Records are prepared while nobody waits; a question ends that at once, and it is taken up again behind the answer.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue

from app import prompt
from app.conversation import Conversation, is_of_whole_record, max_prompt_tokens
from app.errors import BedsideError, InputError
from app.events import ClaimReleased, Finished, InputChecked, ModelChecked, SourcesFound, Turn, TurnStatus
from app.prepared_records import PreparedRecords, Prompts
from app.scope import Budget
from app.store import Store
from contracts import ContextLengthError, DocumentStatus, GenerationError, SamplingParams
from retrieval.documents import DocumentLibrary

_LOG = logging.getLogger(__name__)
# Deltas of progress are drawn, not kept: only these change what a restart must find.
_PERSISTED = (InputChecked, SourcesFound, ModelChecked, ClaimReleased, Finished)
REGENERATE_TEMPERATURE = 0.7  # greedy decoding would give the same words again


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """step is "waiting", or as in ProgressCallback; done and total count files before it, pages, passages or
    pictures. seconds_left: of the step, by its own pace so far; None while that cannot be told."""

    step: str
    done: int = 0
    total: int = 0
    seconds_left: float | None = None


class _Pace:
    """How long a step still takes, by how it went since it began."""

    def __init__(self) -> None:
        self._step, self._first, self._started = "", 0, 0.0

    def progress(self, step: str, done: int, total: int) -> IngestProgress:
        now = time.monotonic()
        if step != self._step:
            self._step, self._first, self._started = step, done, now
        num_done = done - self._first
        left = (now - self._started) / num_done * (total - done) if num_done > 0 else None
        return IngestProgress(step, done, total, left)


class _TurnJob:
    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.cancel = threading.Event()
        self.done = threading.Event()


class Jobs:
    """Submits, polls and stops the work of all conversations and documents. All methods are thread-safe."""

    def __init__(
        self,
        store: Store,
        conversation: Conversation,
        library: DocumentLibrary,
        params: SamplingParams,
        prepared: PreparedRecords | None = None,
        num_readers: int = 1,
    ) -> None:
        """num_readers: documents that are read side by side."""
        self._store = store
        self._conversation = conversation
        self._library = library
        self._params = params
        self._lock = threading.Lock()
        self._turns: dict[str, _TurnJob] = {}  # by conversation
        self._ingests: dict[str, IngestProgress] = {}  # by document, in the order in which they came
        self._cancels: dict[str, threading.Event] = {}
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._is_closing = False
        self._workers = [
            threading.Thread(target=self._work_through_queue, name=f"ingest-{number}", daemon=True)
            for number in range(num_readers)
        ]
        for worker in self._workers:
            worker.start()
        self._prepared = prepared
        self._to_prepare: dict[str, None] = {}  # patients, the latest last
        self._is_preparing = False
        self._busy = threading.Event()  # while an answer or a document is under way
        self._idle = threading.Condition(self._lock)
        self._preparer = threading.Thread(target=self._prepare_when_idle, name="prepare", daemon=True)
        if prepared:
            self._preparer.start()

    # --- turns --------------------------------------------------------------------------------------------------

    def ask(self, conversation_id: str, question: str, document_ids: tuple[str, ...] | None = None) -> Turn:
        """Stores the question and starts its answer. Raises InputError, storing nothing, if it cannot be asked."""
        self._check_question(question)
        return self._start(conversation_id, question, document_ids, self._params)

    def regenerate(self, turn_id: str) -> Turn:
        """Answers the turn's question anew; the turn and those after it are replaced."""
        turn = self._last_turn(turn_id)
        params = replace(self._params, temperature=max(self._params.temperature, REGENERATE_TEMPERATURE))
        return self._start(turn.conversation_id, turn.question, turn.document_ids, params, replaces=turn.id)

    def widen(self, turn_id: str) -> Turn:
        """Puts the turn's question to the whole record instead of the documents chosen for it."""
        turn = self._last_turn(turn_id)
        return self._start(turn.conversation_id, turn.question, None, self._params, replaces=turn.id)

    def edit(self, turn_id: str, question: str) -> Turn:
        """Replaces the question of a turn, and drops what came after it."""
        self._check_question(question)
        turn = self._last_turn(turn_id)
        return self._start(turn.conversation_id, question, turn.document_ids, self._params, replaces=turn.id)

    def budget(self, patient_id: str, document_ids: Sequence[str] | None = None) -> Budget:
        """How much of the model's room the documents take that a question would be put to; None means all."""
        return self._conversation.budget(patient_id, document_ids, self._params)

    def live(self, conversation_id: str) -> Turn | None:
        """The turn being answered now, as far as it has come."""
        job = self._turns.get(conversation_id)
        return job.turn if job else None

    def stop(self, conversation_id: str) -> None:
        """Stops the running answer, also while the model is still reading; what was checked until then stays."""
        if job := self._turns.get(conversation_id):
            job.cancel.set()

    def wait(self, conversation_id: str, timeout_s: float | None = None) -> None:
        """Blocks until no answer runs in the conversation; for the shell and for tests."""
        if job := self._turns.get(conversation_id):
            job.done.wait(timeout_s)

    def _check_question(self, question: str) -> None:
        prompt.require_text(question)
        generator = self._conversation.generator
        limit = max_prompt_tokens(generator, self._params)
        num_tokens = generator.count_prompt_tokens(prompt.render(question, []))
        if num_tokens > limit:
            raise InputError(
                f"The question takes {num_tokens:,} tokens and the model has room for {limit:,}: shorten it, "
                "or upload the text as a document."
            )

    def _last_turn(self, turn_id: str) -> Turn:
        turn = self._store.get_turn(turn_id)
        if turn is None:
            raise InputError("That question was deleted; ask it again.")
        return turn

    def _start(
        self,
        conversation_id: str,
        question: str,
        document_ids: tuple[str, ...] | None,
        params: SamplingParams,
        replaces: str | None = None,
    ) -> Turn:
        with self._lock:
            if conversation_id in self._turns:
                raise InputError("An answer is being written in this conversation: stop it or wait for it.")
            if replaces:
                self._store.delete_turns_from(replaces)
            turn = self._store.add_turn(conversation_id, question, document_ids)
            job = self._turns[conversation_id] = _TurnJob(turn)
            self._note_work()
        # A recorded seed makes a sampled answer repeatable.
        seeded = replace(params, seed=random.randrange(2**31)) if params.seed is None else params
        threading.Thread(target=self._answer, args=(job, seeded), name=f"answer-{turn.id}", daemon=True).start()
        return turn

    def _answer(self, job: _TurnJob, params: SamplingParams) -> None:
        try:
            job.turn = replace(job.turn, model_name=self._conversation.generator.info.name)
            for event in self._conversation.answer(job.turn, params, job.cancel):
                job.turn = job.turn.apply(event)
                if isinstance(event, _PERSISTED):
                    self._store.save_turn(job.turn)
        except Exception as error:  # noqa: BLE001 - the outermost edge of the worker: logged, shown and stored
            self._fail(job, error)
        finally:
            if job.turn.coverage and is_of_whole_record(job.turn, job.turn.coverage):
                self._prepare_record_of(job.turn)
            with self._lock:
                self._turns.pop(job.turn.conversation_id, None)
                self._note_work()
            job.done.set()

    def _fail(self, job: _TurnJob, error: Exception) -> None:
        known = isinstance(error, BedsideError | ContextLengthError | GenerationError | LookupError)
        _LOG.error("turn %s failed: %s", job.turn.id, type(error).__name__, exc_info=not known)
        sentence = (
            str(error) if known else "The answer failed inside the program; ask again, and see the log if it recurs."
        )
        job.turn = job.turn.apply(Finished(TurnStatus.FAILED, error=sentence))
        try:
            self._store.save_turn(job.turn)
        except BedsideError:
            _LOG.error("turn %s: its failure could not be stored; it will show as interrupted", job.turn.id)

    # --- documents ----------------------------------------------------------------------------------------------

    def ingest(self, document_id: str) -> None:
        """Queues a stored document for reading and indexing; a few at a time, so that memory stays bounded."""
        with self._lock:
            if document_id in self._ingests:
                return
            self._ingests[document_id] = IngestProgress("waiting")
            self._cancels[document_id] = threading.Event()
            self._note_work()
        self._queue.put(lambda: self._ingest(document_id))

    def ingest_progress(self, document_id: str) -> IngestProgress | None:
        """How far a document has come; None once it is ready, failed, cancelled or waits for a person."""
        with self._lock:
            progress = self._ingests.get(document_id)
            if progress is None or progress.step != "waiting":
                return progress
            return IngestProgress("waiting", list(self._ingests).index(document_id), len(self._ingests))

    def cancel_ingest(self, document_id: str) -> None:
        """Cancels the reading of a document, begun or not; it is removed wholly."""
        if cancel := self._cancels.get(document_id):
            cancel.set()

    def run_in_background(self, task: Callable[[], None]) -> None:
        """Queues a task behind the documents already waiting: the repair and the demo records at start."""
        self._queue.put(task)

    def close(self) -> None:
        """Stops the answers and the reading, and leaves what is unfinished for the next start, which goes on there."""
        self._is_closing = True
        self._library.interrupt()
        for job in list(self._turns.values()):
            job.cancel.set()
            job.done.wait()
        for _ in self._workers:
            self._queue.put(lambda: None)
        for worker in self._workers:
            worker.join()
        if self._prepared:
            with self._idle:
                self._busy.set()
                self._idle.notify_all()
            self._preparer.join()

    def _ingest(self, document_id: str) -> None:
        pace = _Pace()

        def report(step: str, done: int, total: int) -> None:
            self._ingests[document_id] = pace.progress(step, done, total)

        try:
            document = self._library.ingest(document_id, report, self._cancels[document_id])
            if document:
                self.prepare(document.patient_id)
        except Exception as error:  # noqa: BLE001 - the outermost edge of the worker: logged, shown and stored
            self._fail_ingest(document_id, error)
        finally:
            with self._lock:
                self._ingests.pop(document_id, None)
                self._cancels.pop(document_id, None)
                self._note_work()

    def _fail_ingest(self, document_id: str, error: Exception) -> None:
        _LOG.exception("document %s could not be read", document_id)
        known = isinstance(error, BedsideError)
        sentence = str(error) if known else "Reading failed inside the program; delete the document, and see the log."
        try:
            self._store.set_document_status(document_id, DocumentStatus.FAILED, sentence)
        except BedsideError:
            _LOG.error("document %s: its failure could not be stored; it is read again at the next start", document_id)

    def _work_through_queue(self) -> None:
        while not self._is_closing:
            task = self._queue.get()
            try:
                task()
            except Exception:  # noqa: BLE001 - the outermost edge of the worker: one document must not stop the next
                _LOG.exception("a background task failed")

    # --- records ------------------------------------------------------------------------------------------------

    def prepare(self, patient_id: str) -> None:
        """Brings the patient's prepared record up to date when nobody waits: after a document, an answer, or a change
        of the patient's data. Does nothing where records are not prepared."""
        if self._prepared is None:
            return
        with self._idle:
            self._to_prepare.pop(patient_id, None)
            self._to_prepare[patient_id] = None
            self._idle.notify_all()

    def _prepare_record_of(self, turn: Turn) -> None:
        try:
            conversation = self._store.get_conversation(turn.conversation_id)
        except Exception:  # noqa: BLE001 - the edge of the answer's worker, which must come to its end
            _LOG.exception("a record could not be prepared")
            return
        if conversation:
            self.prepare(conversation.patient_id)

    def _note_work(self) -> None:
        """Called under the lock whenever an answer or a document begins or ends."""
        if self._turns or self._ingests:
            self._busy.set()
        elif not self._is_closing:
            self._busy.clear()
            self._idle.notify_all()

    def _prepare_when_idle(self) -> None:
        assert self._prepared
        while True:
            with self._idle:
                self._idle.wait_for(lambda: self._is_closing or (self._to_prepare and not self._busy.is_set()))
                if self._is_closing:
                    return
                patient_id, _ = self._to_prepare.popitem()  # the latest: whose next question is likeliest
                self._is_preparing = True
            try:
                is_done = self._prepared.refresh(patient_id, partial(self._record_prompts, patient_id), self._busy)
            except Exception:  # noqa: BLE001 - the outermost edge of the worker: a record that is not prepared is read
                _LOG.exception("a record could not be prepared")
                is_done = True
            if not is_done:
                self.prepare(patient_id)
            self._is_preparing = False

    def _record_prompts(self, patient_id: str) -> Prompts | None:
        return self._conversation.record_prompts(patient_id, self._params)
