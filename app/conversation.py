"""The main path: one question in, checked and cited events out. Runs in a worker, never in the page's thread.

Knows nothing of Streamlit and of threads; what it needs of the layers arrives in the constructor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any

from app import prompt
from app.events import (
    ChatEvent,
    ClaimReleased,
    Finished,
    InputChecked,
    ModelChecked,
    SourcesFound,
    Step,
    StepStarted,
    Turn,
    TurnStatus,
    Usage,
)
from app.grounding import Grounding
from app.prepared_records import PreparedRecords, Prompts
from app.router_watch import LASTS, RouterAlarm, RouterWatch
from app.scope import Budget
from app.store import Store
from contracts import (
    Claim,
    ClaimKind,
    Coverage,
    Document,
    DocumentStatus,
    Finding,
    Gathered,
    GenerationEnd,
    GenerationError,
    Generator,
    Message,
    Passage,
    Patient,
    PrefillProgress,
    Queued,
    Retriever,
    Role,
    SafetyChecker,
    SamplingParams,
    TextChunk,
    Verdict,
)
from model.packed.verify import WeightsChangedError
from model.sampler import SamplerError
from retrieval.completeness import written_on
from retrieval.context import find_contexts, with_sections
from retrieval.letterhead import running_lines
from retrieval.names import without_name
from retrieval.packing import count_all, edges_first, pack

NO_DOCUMENTS = "There is no document to search, so there is no answer to give. Upload a document first."
NOTHING_CHOSEN = (
    "No document of this record is of the type and time chosen, so nothing was searched and this is no answer. "
    "Search the whole record, or choose other documents."
)
STILL_READING = "The documents are still being read, so there is nothing to search yet. Ask again when they are ready."
NOTHING_READABLE = (
    "No page of the selected documents could be read, so there is no answer to give. See Documents for why."
)
MAX_CANDIDATES = 60  # passages ranked for a question, before their neighbours are added and all is packed
MAX_RANKED_TOKENS = 16_000  # of passages chosen by rank: what is wanted whole may fill the context, the rest need not
FEW_PASSAGES = 8  # that a model reads evenly: they stay best first
EMBEDDED_EVIDENCE_TOKENS = 600  # it was trained on some four passages; among more it loses its place
_VERSION = 1  # of the answer record below
# Faults of the model itself that end an answer, and the rule that a finding of each is kept under.
_FAULTS: Mapping[type[GenerationError], str] = {
    SamplerError: "model-output-not-finite",
    WeightsChangedError: "model-weights-changed",
}
_STATUSES = {"cancelled": TurnStatus.STOPPED, "deadline": TurnStatus.OUT_OF_TIME}
_HIDDEN = (DocumentStatus.DELETING, DocumentStatus.REPLACED)  # no part of the record any more
_ANSWERED = (TurnStatus.DONE, TurnStatus.OUT_OF_TIME)  # what a later question may lean on


class Conversation:
    """Answers the turns of all conversations; between turns it remembers only which alarms of the model are on."""

    def __init__(
        self,
        store: Store,
        retriever: Retriever,
        generator: Generator,
        safety: SafetyChecker,
        constrains_citations: bool = False,
        prepared: PreparedRecords | None = None,
    ) -> None:
        """prepared: where the whole records of patients are kept ready for the model, if they are."""
        self.store = store
        self.retriever = retriever
        self.generator = generator
        self.safety = safety
        self._constrains_citations = constrains_citations
        self._prepared = prepared
        self._watch = RouterWatch(generator)
        self._counted: tuple[Sequence[Document], int] = ((), 0)  # the last selection and its tokens

    def answer(self, turn: Turn, params: SamplingParams, cancel: threading.Event) -> Iterator[ChatEvent]:
        """Yields the events of one stored turn; the last is always Finished, unless a layer raises."""
        started = perf_counter()
        patient_id, patient = self._patient_of(turn)
        history = self._history_before(turn)

        yield StepStarted(Step.CHECKING)
        check = self.safety.check_input(_as_messages(history, turn.question), patient)
        yield InputChecked(check.verdict, check.findings)
        if check.verdict.withholds:
            reason = next((f.message for f in check.findings if f.severity.withholds), "The question was withheld.")
            yield Finished(TurnStatus.HELD, error=reason)
            return

        yield StepStarted(Step.SEARCHING)
        documents = self._documents(patient_id, turn.document_ids)
        gathered = self._gather(turn.question, patient_id, patient, history, documents, params)
        passages, removed = self._without_instructions(gathered.passages)
        messages, passages = prompt.build(
            turn.question,
            passages,
            history,
            patient,
            self._max_prompt_tokens(params),
            self.generator.count_prompt_tokens,
        )
        coverage = _coverage(documents, passages, self._count_passages(patient_id, documents), gathered)
        yield SourcesFound(coverage, removed)
        if not passages:
            yield ClaimReleased(Claim(_why_nothing(turn, documents), ClaimKind.ABSTENTION))
            yield Finished(TurnStatus.DONE, record=self._record(messages, passages, params))
            return
        if cancel.is_set():
            yield Finished(TurnStatus.STOPPED)
            return

        what = _count(len(passages), "passage")
        if self._prepared and is_of_whole_record(turn, coverage) and self._prepared.load(patient_id, messages):
            what += ", prepared"
        yield StepStarted(Step.READING, what)
        try:
            is_everything = is_of_whole_record(turn, coverage) and coverage.is_everything
            facts = {doc: self.store.get_page_facts(doc) for doc in {p.document_id for p in passages}}
            grounding = Grounding(
                turn.question,
                with_sections(passages, facts),
                self.safety,
                patient,
                written=[written_on(passage, facts) for passage in passages],
                is_everything=is_everything,
                running=running_lines(turn.question, passages, facts),
            )
            yield from self._write(grounding, what, messages, passages, params, cancel, started)
        except tuple(_FAULTS) as error:  # the turn fails, and what was wrong with the model stays with it
            yield ModelChecked((Finding(_FAULTS[type(error)], Verdict.HOLD, 0, 0, str(error)),))
            raise

    def record_prompts(self, patient_id: str, params: SamplingParams) -> Prompts | None:
        """Two prompts about the whole record that differ in the question alone, so that whatever both begin with, every
        question about it does; None where there is no record, or it is too long to be put before the model whole."""
        record = self.store.get_patient(patient_id)
        if not record:
            return None
        ready = _ready(self._documents(patient_id, None))
        everything = self._whole_record(patient_id, ready, self._evidence_tokens("", [], record.patient, params))
        if not everything:
            return None
        passages, _ = self._without_instructions(everything)
        one, other = (prompt.render(question, passages, [], record.patient) for question in ("A", "Z"))
        return one, other

    def budget(self, patient_id: str, document_ids: Sequence[str] | None, params: SamplingParams) -> Budget:
        """How much of the model's room the documents take that a question would be put to; None means all."""
        record = self.store.get_patient(patient_id)
        documents = [d for d in self._documents(patient_id, document_ids) if d.status.is_searched]
        counted, tokens = self._counted  # read once: several screens ask at a time
        if documents != counted:  # a page recognised since shows in its document's numbers
            passages = self.store.list_passages(patient_id, [d.id for d in documents])
            tokens = count_all(passages, self.generator.count_tokens)
            self._counted = documents, tokens
        return Budget(tokens, self._evidence_tokens("", [], record.patient if record else None, params))

    def _write(
        self,
        grounding: Grounding,
        what: str,
        messages: Sequence[Message],
        passages: Sequence[Passage],
        params: SamplingParams,
        cancel: threading.Event,
        started: float,
    ) -> Iterator[ChatEvent]:
        """Streams the model's text through the grounding; text is never yielded, only checked claims."""
        if self._constrains_citations:
            params = replace(params, constraint=prompt.citation_form(len(passages)))
        is_writing, first_claim_s = False, 0.0
        alarm = self._watch.look()
        yield from _report(alarm, RouterAlarm())
        if alarm.holds:
            yield from self._quote_instead(grounding, messages, passages, params, started)
            return
        for event in self.generator.stream(messages, params, cancel):
            claims: list[Claim] = []
            match event:
                case Queued(place):
                    yield StepStarted(Step.QUEUED, str(place))
                case PrefillProgress(done, total):
                    yield StepStarted(Step.READING, what, done, total)
                case TextChunk(text):
                    if not is_writing:
                        is_writing = True
                        # The prompt has just gone through every router: mostly enough to know before a word is out.
                        before, alarm = alarm, self._watch.look()
                        yield from _report(alarm, before)
                        if alarm.holds:
                            yield from self._quote_instead(grounding, messages, passages, params, started)
                            return
                        yield StepStarted(Step.WRITING)
                    claims = grounding.feed(text)
                case GenerationEnd():
                    end = event
                    claims = grounding.finish(end.finish_reason)
            if claims and not first_claim_s:
                first_claim_s = perf_counter() - started
            for claim in claims:
                yield ClaimReleased(claim)
        yield from _report(self._watch.look(), alarm)
        usage = Usage(end.prompt_tokens, end.completion_tokens, end.ttft_s, end.tokens_per_s, first_claim_s)
        status = _STATUSES.get(end.finish_reason, TurnStatus.DONE)
        yield Finished(status, usage, self._record(messages, passages, params))

    def _quote_instead(
        self,
        grounding: Grounding,
        messages: Sequence[Message],
        passages: Sequence[Passage],
        params: SamplingParams,
        started: float,
    ) -> Iterator[ChatEvent]:
        """The record's own sentences, of a model that must not write."""
        claims = grounding.finish("stop")
        first_claim_s = perf_counter() - started
        for claim in claims:
            yield ClaimReleased(claim)
        yield Finished(TurnStatus.DONE, Usage(first_claim_s=first_claim_s), self._record(messages, passages, params))

    # --- what the answer may rest on ----------------------------------------------------------------------------

    def _gather(
        self,
        question: str,
        patient_id: str,
        patient: Patient | None,
        history: Sequence[tuple[str, str]],
        documents: Sequence[Document],
        params: SamplingParams,
    ) -> Gathered:
        """Every passage in reading order if the selection fits the context; else what the question wants whole, then
        the best for it. num_required of what is returned counts those that the question wants whole and that fit."""
        ready = _ready(documents)
        if not ready:
            return Gathered()
        budget = self._evidence_tokens(question, history, patient, params)
        everything = self._whole_record(patient_id, ready, budget)
        if everything is not None:
            return Gathered(tuple(everything))
        searched = without_name(question, patient.name or "") if patient else question
        found = self.retriever.gather(searched, [q for q, _ in history], patient_id, ready, MAX_CANDIDATES)
        found = replace(found, passages=self._in_context(found.passages, patient_id))
        return _fit(found, budget, self.generator.count_tokens)

    def _whole_record(self, patient_id: str, document_ids: Sequence[str], budget: int) -> list[Passage] | None:
        """Every passage of the documents in reading order; None if they take more than `budget` tokens."""
        everything = self.store.list_passages(patient_id, document_ids)
        return everything if len(pack(everything, budget, self.generator.count_tokens)) == len(everything) else None

    def _evidence_tokens(
        self, question: str, history: Sequence[tuple[str, str]], patient: Patient | None, params: SamplingParams
    ) -> int:
        """Room for passages."""
        empty = self.generator.count_prompt_tokens(prompt.render(question, [], history, patient))
        budget = self._max_prompt_tokens(params) - empty
        return min(budget, EMBEDDED_EVIDENCE_TOKENS) if self.generator.info.is_embedded else budget

    def _without_instructions(self, passages: Sequence[Passage]) -> tuple[list[Passage], tuple[Finding, ...]]:
        """Passages with quarantined sentences blanked, at equal length so that every offset still holds."""
        findings = {doc: self.store.get_document_findings(doc) for doc in {p.document_id for p in passages}}
        clean, removed = [], []
        for passage in passages:
            text = passage.text
            for finding in findings[passage.document_id].get(passage.page, []):
                start, end = max(finding.start, passage.start), min(finding.end, passage.end)
                if finding.severity.withholds and start < end:
                    removed.append(finding)
                    text = text[: start - passage.start] + " " * (end - start) + text[end - passage.start :]
            if text.strip():
                clean.append(replace(passage, text=text))
        return clean, tuple(removed)

    def _in_context(self, passages: Sequence[Passage], patient_id: str) -> tuple[Passage, ...]:
        """Passages with what stands over each in its document, as far as the model may read that."""
        documents = sorted({passage.document_id for passage in passages})
        readable, _ = self._without_instructions(self.store.list_passages(patient_id, documents))
        facts = {document: self.store.get_page_facts(document) for document in documents}
        over = find_contexts(readable, facts, {passage.id for passage in passages})
        return tuple(replace(passage, context=over.get(passage.id, "")) for passage in passages)

    def _documents(self, patient_id: str, selected: Sequence[str] | None) -> list[Document]:
        documents = [d for d in self.store.list_documents(patient_id) if d.status not in _HIDDEN]
        return documents if selected is None else [d for d in documents if d.id in selected]

    def _count_passages(self, patient_id: str, documents: Sequence[Document]) -> int:
        return len(self.store.list_passages(patient_id, [d.id for d in documents]))

    def _max_prompt_tokens(self, params: SamplingParams) -> int:
        return max_prompt_tokens(self.generator, params)

    def _patient_of(self, turn: Turn) -> tuple[str, Patient]:
        conversation = self.store.get_conversation(turn.conversation_id)
        record = self.store.get_patient(conversation.patient_id) if conversation else None
        if record is None:
            raise LookupError("The conversation or its patient was deleted.")
        return record.id, record.patient

    def _history_before(self, turn: Turn) -> list[tuple[str, str]]:
        """(question, answer) of the finished turns before this one, oldest first."""
        pairs = []
        for past in self.store.get_turns(turn.conversation_id):
            if past.id == turn.id:
                break
            if past.status in _ANSWERED and (answer := answer_text(past)):
                pairs.append((past.question, answer))
        return pairs

    def _record(
        self, messages: Sequence[Message], passages: Sequence[Passage], params: SamplingParams
    ) -> dict[str, Any]:
        """Everything needed to give the same answer again."""
        return {
            "version": _VERSION,
            "messages": [{"role": message.role.value, "text": message.text} for message in messages],
            "passages": [passage.id for passage in passages],
            "sampling": asdict(params),
            "model": {**asdict(self.generator.info), "details": dict(self.generator.info.details)},
            "rules": self.safety.version,
        }


def is_of_whole_record(turn: Turn, coverage: Coverage) -> bool:
    """Whether the turn put all that is ready of the patient's record before the model: what a prepared record is of."""
    return turn.document_ids is None and coverage.whole_record


def answer_text(turn: Turn) -> str:
    """The answer as shown: its claims with their [n], without what was withheld and what the record contradicts."""
    shown = [claim for claim in turn.claims if claim.kind not in (ClaimKind.WITHHELD, ClaimKind.CONFLICT)]
    return " ".join(claim.text + "".join(f" [{c.key}]" for c in claim.citations) for claim in shown)


def max_prompt_tokens(generator: Generator, params: SamplingParams) -> int:
    """Room for the prompt: the context less the answer, which never takes more than a quarter of it."""
    context = generator.info.context_length
    return context - min(params.max_tokens, context // 4)


def _report(alarm: RouterAlarm, before: RouterAlarm) -> Iterator[ChatEvent]:
    """The event of an alarm, but of one that only lasts since `before`, in the same turn."""
    findings = [finding for finding in alarm.findings if finding.rule != LASTS or not before.findings]
    if findings:
        yield ModelChecked(tuple(findings))


def _ready(documents: Sequence[Document]) -> list[str]:
    return [document.id for document in documents if document.status.is_searched]


def _why_nothing(turn: Turn, documents: Sequence[Document]) -> str:
    if turn.document_ids is not None and not documents:
        return NOTHING_CHOSEN
    if any(document.status.is_unfinished for document in documents):
        return STILL_READING
    return NOTHING_READABLE if documents else NO_DOCUMENTS


def _fit(found: Gathered, budget: int, count_tokens: Callable[[str], int]) -> Gathered:
    """What fits the budget, laid out for reading: what is wanted whole first, then by rank with the best at the ends.
    `wanted` stays only if all of it fitted."""
    required = pack(found.passages[: found.num_required], budget, count_tokens)
    left = min(budget - count_all(required, count_tokens), MAX_RANKED_TOKENS)
    ranked = pack(found.passages[found.num_required :], left, count_tokens, len(required) + 1)
    is_whole = len(required) == found.num_required
    laid_out = edges_first(ranked) if len(ranked) > FEW_PASSAGES else ranked
    return replace(
        found,
        passages=(*required, *laid_out),
        num_required=len(required),
        wanted=found.wanted if is_whole else (),
        missed=() if is_whole else found.wanted,
    )


def _as_messages(history: Sequence[tuple[str, str]], question: str) -> list[Message]:
    pairs = [m for q, a in history for m in (Message(Role.USER, q), Message(Role.ASSISTANT, a))]
    return [*pairs, Message(Role.USER, question)]


def _coverage(
    documents: Sequence[Document], passages: Sequence[Passage], num_passages: int, gathered: Gathered
) -> Coverage:
    ready = [d for d in documents if d.status.is_searched]
    return Coverage(
        pages=sum(d.num_pages for d in ready),
        pages_read=len({(p.document_id, p.page) for p in passages}),
        unreadable=sum(d.num_pages_empty for d in ready),
        ocr=sum(d.num_pages_ocr for d in ready),
        whole_record=0 < num_passages == len(passages),
        documents=len(ready),
        not_ready=tuple(d.name for d in documents if not d.status.is_searched),
        wanted_whole=gathered.wanted,
        wanted_cut=gathered.missed,
        since=gathered.start,
        until=gathered.end,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
