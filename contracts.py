"""The types that every layer shares, and the seams between the layers.

Knows nothing of torch, Streamlit, Chroma or SQL: standard library only, so that `model/`, `retrieval/` and
`safety/` can be read, tested and replaced alone. Values are frozen dataclasses; seams are Protocols.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date
from enum import StrEnum
from typing import Any, Protocol

# --- conversation -----------------------------------------------------------------------------------------------


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    text: str


# --- patient ----------------------------------------------------------------------------------------------------


class PatientError(ValueError):
    """A patient's data hold an unknown field, a wrong type or a value outside its range; the message names it."""


# Inclusive limits of what can be typed for a person; outside them the unit is more likely wrong than the patient.
PATIENT_RANGES: Mapping[str, tuple[float, float, str]] = {
    "age_years": (0, 130, "years"),
    "weight_kg": (0.2, 650, "kg"),
    "height_cm": (20, 260, "cm"),
    "egfr_ml_min": (0, 200, "mL/min/1.73 m²"),
    "qtc_ms": (200, 800, "ms"),
}
SEXES = ("female", "male", "other", "unknown")


@dataclass(frozen=True, slots=True)
class Patient:
    """What is known of a patient; every field is optional. None means not known, never "no"."""

    name: str | None = None
    birth_date: str | None = None  # ISO 8601
    record_number: str | None = None
    age_years: float | None = None
    sex: str | None = None
    weight_kg: float | None = None
    height_cm: float | None = None
    pregnant: bool | None = None
    lactating: bool | None = None
    egfr_ml_min: float | None = None
    hepatic_impairment: bool | None = None
    qtc_ms: float | None = None
    allergies: tuple[str, ...] = ()
    medications: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (low, high, unit) in PATIENT_RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise PatientError(f"{name} must be a number in {unit}, not {value!r}.")
            if not low <= value <= high:
                raise PatientError(f"{name} is {value:g}; it must lie between {low:g} and {high:g} {unit}.")
        for name in ("name", "birth_date", "record_number"):
            if not isinstance(getattr(self, name), str | None):
                raise PatientError(f"{name} must be a text, not {getattr(self, name)!r}.")
        if self.birth_date is not None and not _is_date(self.birth_date):
            raise PatientError(f"birth_date is {self.birth_date!r}; write it as year-month-day, such as 1958-04-30.")
        if self.sex is not None and self.sex not in SEXES:
            raise PatientError(f"sex is {self.sex!r}; use one of {', '.join(SEXES)}.")
        if self.sex == "male" and self.pregnant:
            raise PatientError("pregnant is true for a male patient; correct one of the two.")
        for name in ("pregnant", "lactating", "hepatic_impairment"):
            if not isinstance(getattr(self, name), bool | None):
                raise PatientError(f"{name} must be true, false or absent, not {getattr(self, name)!r}.")
        for name in ("allergies", "medications", "problems"):
            items = getattr(self, name)
            if not isinstance(items, tuple) or not all(isinstance(item, str) for item in items):
                raise PatientError(f"{name} must be a list of texts.")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Patient:
        """Builds a patient from JSON data. Raises PatientError for an unknown field, a wrong type or range."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise PatientError(f"Unknown patient field {unknown[0]!r}; the fields are {', '.join(sorted(known))}.")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


# --- documents --------------------------------------------------------------------------------------------------


class ReadMethod(StrEnum):
    """How a document page became text."""

    TEXT = "text"  # the file's own text
    OCR = "ocr"  # recognised from an image
    EMPTY = "empty"  # nothing could be read: the page counts as unreadable
    PENDING = "pending"  # an image that is still to be recognised; becomes OCR or EMPTY


@dataclass(frozen=True, slots=True)
class LineBox:
    """Where a recognised line stands: text[start:end] of its page, in a box given as shares (0..1) of the upright page
    as it is drawn, x to the right, y downwards. confidence 0..1 is the recogniser's own. drop: by how much of the
    page's height a line of a skewed scan ends lower than it begins, negative where it rises; the box holds all of it.
    """

    start: int
    end: int
    left: float
    top: float
    right: float
    bottom: float
    confidence: float = 1.0
    drop: float = 0.0


class FactKind(StrEnum):
    """What a stretch of a page tells about the document, beside its content."""

    PATIENT_NAME = "patient_name"
    BIRTH_DATE = "birth_date"  # value: ISO 8601 date
    RECORD_NUMBER = "record_number"
    NOTE_DATE = "note_date"  # when the note was written or the visit was; value: ISO 8601 date
    AUTHOR = "author"
    NOTE_TYPE = "note_type"  # value: the title as printed
    REPEATED = "repeated"  # a running header or footer: marked, never removed
    COPIED = "copied"  # a paragraph carried forward word for word; value: "page N", where it stood first


@dataclass(frozen=True, slots=True)
class Fact:
    """Something read on a page, with the words it was read from: text[start:end] of that page."""

    kind: FactKind
    value: str
    page: int
    start: int
    end: int


class SectionKind(StrEnum):
    """What a section of a record is about, by its heading."""

    MEDICATIONS = "medications"
    ALLERGIES = "allergies"
    PROBLEMS = "problems"
    LABS = "labs"
    VITALS = "vitals"
    IMAGING = "imaging"
    PROCEDURES = "procedures"
    IMMUNIZATIONS = "immunizations"
    ENCOUNTERS = "encounters"
    HISTORY = "history"
    FAMILY_HISTORY = "family_history"
    SOCIAL_HISTORY = "social_history"
    SUBJECTIVE = "subjective"
    OBJECTIVE = "objective"
    ASSESSMENT = "assessment"
    PLAN = "plan"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class SectionSpan:
    """A section's part on one page: text[start:end] with its heading, which stands at text[title_start:title_end].

    A section that goes on over a page break has a span on each page; on the later ones title_start == title_end ==
    start and `title` repeats the heading. date: the ISO 8601 date that heading or note gives for it, "" for none.
    """

    kind: SectionKind
    title: str
    page: int
    start: int
    end: int
    title_start: int
    title_end: int
    date: str = ""


@dataclass(frozen=True, slots=True)
class PageFacts:
    """What was noticed on one page: sections in reading order, covering the page without gaps from the first on."""

    page: int
    sections: tuple[SectionSpan, ...] = ()
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a document. number counts from 1; confidence is 0..1 (1.0 for the file's own text). lines: where a
    recognised page's lines stand; a page with text of its own is asked when it is drawn. rotation: by how many degrees,
    clockwise, a recognised page had to be turned to stand upright: 0, 90, 180 or 270."""

    number: int
    text: str
    method: ReadMethod = ReadMethod.TEXT
    confidence: float = 1.0
    lines: tuple[LineBox, ...] = ()
    rotation: int = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of one page: `text == page.text[start:end]`, always. Passages of a document never overlap.

    context: what stands over it where it is read apart from its page: section, date, column headings. Never cited.
    section: the title of the section that it stands in, where it does not hold it itself: what a claim may lean on.
    """

    id: str
    document_id: str
    document_name: str
    page: int
    start: int
    end: int
    text: str
    method: ReadMethod = ReadMethod.TEXT
    confidence: float = 1.0
    context: str = ""
    section: str = ""


class DocumentStatus(StrEnum):
    QUEUED = "queued"  # bytes stored, not read yet
    READING = "reading"
    INDEXING = "indexing"  # pages and passages stored and searched by words, vectors being made
    RECOGNISING = "recognising"  # searched already, while pages that are images are still being recognised
    UNCONFIRMED = "unconfirmed"  # it names another patient; not searched until a person says that it belongs here
    READY = "ready"
    REPLACED = "replaced"  # an older version of a name: kept, restorable, not searched
    FAILED = "failed"  # `error` says why, in a sentence for the clinician
    DELETING = "deleting"  # vectors and rows are on their way out; finished at the next start if interrupted

    @property
    def is_searched(self) -> bool:
        """Whether questions are answered from what has been read of the document so far."""
        return self in (DocumentStatus.INDEXING, DocumentStatus.RECOGNISING, DocumentStatus.READY)

    @property
    def is_unfinished(self) -> bool:
        """Whether reading goes on, or must go on after a kill."""
        return self in (
            DocumentStatus.QUEUED,
            DocumentStatus.READING,
            DocumentStatus.INDEXING,
            DocumentStatus.RECOGNISING,
        )


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    patient_id: str
    name: str
    media_type: str
    size_bytes: int
    sha256: str
    status: DocumentStatus
    error: str = ""
    num_pages: int = 0
    num_pages_ocr: int = 0
    num_pages_empty: int = 0
    num_pages_pending: int = 0  # images still to be recognised
    parser: str = ""  # parser and version, e.g. "pypdfium2 5.15.2"
    added_at: str = ""  # ISO 8601, UTC
    is_confirmed: bool = False  # a person said that it belongs to this patient, whatever name stands in it
    warnings: tuple[str, ...] = ()  # sentences on what was left out or read with doubt


# --- safety -----------------------------------------------------------------------------------------------------


class Verdict(StrEnum):
    """What a check decided: allow < notice < hold < block. A check that could not run is `unavailable` and holds."""

    ALLOW = "allow"
    NOTICE = "notice"
    HOLD = "hold"
    UNAVAILABLE = "unavailable"
    BLOCK = "block"

    @property
    def rank(self) -> int:
        return {"allow": 0, "notice": 1, "hold": 2, "unavailable": 2, "block": 3}[self.value]

    @property
    def withholds(self) -> bool:
        """Whether what was checked must not be passed on."""
        return self.rank >= 2

    @staticmethod
    def worst(verdicts: Iterable[Verdict]) -> Verdict:
        """The most severe; `allow` for none. Of hold and unavailable the latter, as it names a fault."""
        order = list(Verdict)
        return max(verdicts, key=order.index, default=Verdict.ALLOW)


class Direction(StrEnum):
    INPUT = "input"
    DOCUMENT = "document"
    OUTPUT = "output"


DOUBTED = ".doubted"  # the end of a finding's rule


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule or model hit. start/end are character offsets into the text that was checked."""

    rule: str
    severity: Verdict
    start: int
    end: int
    message: str  # for the clinician: what was seen and what to do
    source: str = ""  # the guideline, paper or standard behind the rule
    evidence: str = ""  # the matched words

    @property
    def is_emergency(self) -> bool:
        """Somebody may be in danger now: named by a rule, or by the model beside the rules."""
        return self.rule.startswith(("emergency.", "model.emergency")) and not self.is_doubted

    @property
    def is_by_guard(self) -> bool:
        """Found by the model beside the rules, not by a rule."""
        return self.rule.startswith("model.")

    @property
    def is_doubted(self) -> bool:
        """An emergency that a rule named, or one sentence alone told, and a model reads as past, denied, another's or
        asked in general. It is shown, without alarm."""
        return self.rule.endswith(DOUBTED)


@dataclass(frozen=True, slots=True)
class CheckResult:
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a claim stands: `quote == page text[start:end]`, verbatim. key is the n of the `[n]` shown."""

    key: int
    document_id: str
    document: str
    page: int
    start: int
    end: int
    quote: str
    method: ReadMethod = ReadMethod.TEXT
    confidence: float = 1.0


class ClaimKind(StrEnum):
    ANSWER = "answer"  # the model's words, supported by its citations
    QUOTE = "quote"  # the record's own words, standing in for a withheld claim
    ABSTENTION = "abstention"  # "the record does not say": no citation is due
    CONFLICT = "conflict"  # the record contradicts itself: `text` says in what, the citations hold both sides
    WITHHELD = "withheld"  # the model's words failed a check; `text` is kept for the audit and never drawn


@dataclass(frozen=True, slots=True)
class Claim:
    """One checked sentence or list item of an answer."""

    text: str
    kind: ClaimKind
    citations: tuple[Citation, ...] = ()
    verdict: Verdict = Verdict.ALLOW
    findings: tuple[Finding, ...] = ()

    @property
    def supported(self) -> bool:
        return self.kind in (ClaimKind.ANSWER, ClaimKind.QUOTE) and bool(self.citations)


@dataclass(frozen=True, slots=True)
class Coverage:
    """What an answer rests on, in pages of the selected documents."""

    pages: int = 0  # all pages of the selected documents
    pages_read: int = 0  # pages of which some passage was put before the model
    unreadable: int = 0
    ocr: int = 0
    whole_record: bool = False
    documents: int = 0
    not_ready: tuple[str, ...] = ()  # names of selected documents that were not searched: failed or still being read
    wanted_whole: tuple[str, ...] = ()  # what the question wanted all of and was read whole, e.g. "allergies"
    wanted_cut: tuple[str, ...] = ()  # what it wanted all of and was too much to be read whole
    since: str = ""  # ISO 8601 dates of the stretch of time asked about; what is surely of another time was left out
    until: str = ""

    @property
    def is_everything(self) -> bool:
        """Whether nothing of the selected documents was left unread. An unreadable page may hold what was asked for."""
        return self.whole_record and not self.unreadable and not self.not_ready


# --- seams ------------------------------------------------------------------------------------------------------


class ConstraintKind(StrEnum):
    """What the text of a Constraint is."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"  # any one JSON object; no text
    REGEX = "regex"
    GRAMMAR = "grammar"  # context-free, in llguidance's variation of Lark's notation


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that a whole answer must have. JSON is written on one line."""

    kind: ConstraintKind
    text: str = ""


class ConstraintError(ValueError):
    """A constraint that cannot be kept: malformed, not supported or too complex; the message says which and where."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. temperature 0 is greedy; top_k 0 and top_p 1 switch those filters off.

    constraint: what the answer must look like. logprobs: of how many of the likeliest tokens, 0 to 20, the
    log-probabilities are told beside each chosen token's own; None tells none. max_seconds: how long an answer may take
    from the call on, waiting included; 0 is as long as it takes.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    seed: int | None = None
    constraint: Constraint | None = None
    logprobs: int | None = None
    max_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Queued:
    """Emitted while other requests are before this one; place counts from 1."""

    place: int


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """Emitted after each prefill chunk, so that a long record shows progress."""

    num_done: int
    num_total: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer and the natural logarithm of the probability that the model itself gave it there: before
    constraint, penalty, temperature and filters.

    text: its characters, with U+FFFD for a part of one; the name of a token that has none, such as an end token.
    alternatives: the likeliest tokens of that place, best first, as many as were asked for; mostly the token is one.
    """

    text: str
    data: bytes
    logprob: float
    alternatives: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TextChunk:
    """New text of the answer, whole characters only. tokens: where log-probabilities were asked for, the tokens that
    brought it; the text is empty where they brought none."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationEnd:
    """The last event of every generation."""

    finish_reason: str  # "stop", "length", "cancelled", or "deadline" where max_seconds were over
    prompt_tokens: int
    completion_tokens: int
    ttft_s: float
    tokens_per_s: float


GenerationEvent = Queued | PrefillProgress | TextChunk | GenerationEnd


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What answers, for the banner, the Model screen and the answer record."""

    name: str
    precision: str
    kernels: str
    context_length: int
    num_parameters: int
    weights_sha256: str
    is_embedded: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a checkpoint has been read; `step` is "verifying" (hashes) or "reading"."""

    step: str
    file: str
    bytes_done: int
    bytes_total: int
    seconds_left: float | None = None


class LoadCancelled(RuntimeError):  # noqa: N818 - an order that was obeyed, not a fault
    """Loading was cancelled by the user; nothing of it remains."""


class Generator(Protocol):
    """Messages in, streamed text out: the in-process engine, or a server that speaks for one."""

    @property
    def info(self) -> ModelInfo: ...

    def count_tokens(self, text: str) -> int:
        """Tokens of plain text, without any turn markers."""
        ...

    def count_prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the whole prompt as the chat template renders it."""
        ...

    def stream(
        self, messages: Sequence[Message], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Iterator[GenerationEvent]:
        """Yields events, the last a GenerationEnd. `cancel` is read at every prefill chunk and decode step.

        Raises ContextLengthError, before any work, if the prompt and one token do not fit, and ConstraintError if the
        answer's form cannot be kept.
        """
        ...


class GenerationError(RuntimeError):
    """The model cannot answer now, or not this; the message says so to the user and what to do."""


class ContextLengthError(ValueError):
    """A prompt does not fit the model's context; the message gives both token counts."""


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class Gathered:
    """What to read for a question, best first. The first `num_required` passages are all that the record has of what
    the question wants whole, in the order of reading: none of them may be cut by rank.

    wanted: what that is, kinds of sections or the question's own words; empty where nothing is wanted whole. missed:
    what was wanted whole and was too much to be read whole. start, end: ISO 8601 dates of the stretch of time asked
    about, "" where that side is open.
    """

    passages: tuple[Passage, ...] = ()
    num_required: int = 0
    wanted: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    start: str = ""
    end: str = ""


class Retriever(Protocol):
    def search(
        self, query: str, patient_id: str, document_ids: Sequence[str] | None = None, limit: int = 20
    ) -> list[ScoredPassage]:
        """Passages of this patient only, best first. document_ids None means every ready document."""
        ...

    def gather(
        self,
        question: str,
        earlier: Sequence[str],
        patient_id: str,
        document_ids: Sequence[str] | None = None,
        limit: int = 20,
    ) -> Gathered:
        """What to read for a question in a conversation: what it wants whole, then the best `limit` with their
        neighbours. earlier: the questions before it, oldest first, which it may refer back to."""
        ...


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """Outcome of holding one claim against the passages. evidence maps passage index -> (start, end) in its text."""

    verdict: Verdict
    supported: bool
    is_abstention: bool = False
    evidence: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


class SafetyChecker(Protocol):
    """Stands before, between and after. Never raises: what cannot be checked comes back `unavailable`."""

    @property
    def version(self) -> str:
        """Version and hash of the loaded rule set, recorded with each answer."""
        ...

    def check_input(self, messages: Sequence[Message], patient: Patient | None = None) -> CheckResult:
        """Checks the last user message in the light of those before it. Offsets are into that message."""
        ...

    def check_document(self, text: str) -> CheckResult:
        """Looks for injected instructions and forged turns in uploaded text; findings carry the sentence's span."""
        ...

    def check_claim(
        self, claim: str, cited: Sequence[int], passages: Sequence[Passage], patient: Patient | None = None
    ) -> ClaimCheck:
        """Holds one claim against the passages. `cited` are the indices the model named (from 0, may be empty)."""
        ...


@dataclass(frozen=True, slots=True)
class PageBatch:
    """Some pages of a document as they were read. num_pages is that of the whole document."""

    num_pages: int
    parser: str
    pages: Sequence[Page]
    passages: Sequence[Passage] = ()
    findings: Mapping[int, Sequence[Finding]] = field(default_factory=dict)
    warnings: Sequence[str] = ()


class DocumentStore(Protocol):
    """Where documents, their pages and passages rest. Each call is one transaction, durable on return."""

    def add_document(self, patient_id: str, name: str, media_type: str, data: bytes) -> Document:
        """Stores the bytes as QUEUED. The same bytes twice for a patient give the document already there."""
        ...

    def get_document(self, document_id: str) -> Document | None: ...

    def list_documents(self, patient_id: str | None = None) -> list[Document]: ...

    def get_file(self, document_id: str) -> bytes: ...

    def get_pages(self, document_id: str) -> list[Page]: ...

    def clear_pages(self, document_id: str) -> None:
        """Removes the pages of a document with their passages, findings and facts."""
        ...

    def save_pages(self, document_id: str, batch: PageBatch) -> None:
        """Puts pages in with their passages and findings, each in the place of what was read of it before, and the
        document's counts with them; one transaction. Does not touch the status."""
        ...

    def save_page_facts(self, document_id: str, facts: Mapping[int, PageFacts]) -> None:
        """Keeps what was noticed on pages that are there, by number."""
        ...

    def get_page_facts(self, document_id: str) -> dict[int, PageFacts]:
        """Page number -> what was noticed on that page."""
        ...

    def confirm_document(self, document_id: str) -> None:
        """Keeps that a person said that the document belongs to its patient."""
        ...

    def set_document_status(self, document_id: str, status: DocumentStatus, error: str = "") -> None: ...

    def list_passages(self, patient_id: str, document_ids: Sequence[str] | None = None) -> list[Passage]:
        """Passages of the documents that are searched, in reading order: document by time added, page, start."""
        ...

    def list_document_passages(self, document_id: str) -> list[Passage]:
        """Passages of one document whatever its status, in reading order."""
        ...

    def get_document_findings(self, document_id: str) -> dict[int, list[Finding]]:
        """Page number -> findings of the document check on that page."""
        ...

    def save_page_findings(self, document_id: str, page: int, found: Sequence[Finding]) -> None:
        """Puts findings in the place of those that the page has. Does nothing for a page that is gone."""
        ...

    def delete_document(self, document_id: str) -> None:
        """Removes the rows and the bytes."""
        ...


ProgressCallback = Callable[[str, int, int], None]
"""(step, done, total): step is "reading", "checking", "indexing" or "recognising"; done and total count pages, passages
or images."""
