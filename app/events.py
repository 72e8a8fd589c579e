"""What a turn of the conversation is, and the events that build one.

`app.conversation.answer()` yields events; `Turn.apply()` folds them. The page draws a Turn and the store keeps a Turn,
so that a replayed answer and a streamed one cannot look different. Knows nothing of Streamlit, SQL or the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from contracts import Claim, Coverage, Finding, Verdict


class TurnStatus(StrEnum):
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"  # by the clinician; what was checked until then stays
    OUT_OF_TIME = "out of time"  # the answer took as long as it may; what was checked until then stays
    HELD = "held"  # the input check withheld the question; nothing was generated
    FAILED = "failed"  # `error` says why
    INTERRUPTED = "interrupted"  # the program ended in mid-answer; found at the next start


class Step(StrEnum):
    """The steps of a turn, in the order in which they happen."""

    QUEUED = "queued"  # with a detail: the place in line before the model
    CHECKING = "checking"
    SEARCHING = "searching"
    READING = "reading"  # prefill; done/total count tokens, detail names the passages
    WRITING = "writing"  # done counts claims released; each was checked first
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float = 0.0
    tokens_per_s: float = 0.0
    first_claim_s: float = 0.0  # Enter to the first words on the page


@dataclass(frozen=True, slots=True)
class StepStarted:
    step: Step
    detail: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class InputChecked:
    verdict: Verdict
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class SourcesFound:
    coverage: Coverage
    document_findings: tuple[Finding, ...] = ()  # instructions found in the passages and kept from the model


@dataclass(frozen=True, slots=True)
class ModelChecked:
    """The model itself is in doubt while it answers: alarms of its routers, see app.router_watch."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class ClaimReleased:
    """A claim after its check: shown, replaced by a quote, or recorded as withheld."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Finished:
    status: TurnStatus
    usage: Usage = field(default_factory=Usage)
    record: Mapping[str, Any] = field(default_factory=dict)  # exactly what was sent, and by what it was answered
    error: str = ""


ChatEvent = StepStarted | InputChecked | SourcesFound | ModelChecked | ClaimReleased | Finished


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer, complete or in the making."""

    id: str
    conversation_id: str
    question: str
    created_at: str  # ISO 8601, UTC
    status: TurnStatus = TurnStatus.RUNNING
    document_ids: tuple[str, ...] | None = None  # the documents the question was put to; None means all
    claims: tuple[Claim, ...] = ()
    input_verdict: Verdict = Verdict.ALLOW
    input_findings: tuple[Finding, ...] = ()
    document_findings: tuple[Finding, ...] = ()
    model_findings: tuple[Finding, ...] = ()
    coverage: Coverage | None = None
    usage: Usage = field(default_factory=Usage)
    model_name: str = ""
    error: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    # Only while it runs; not stored.
    step: Step = Step.QUEUED
    step_detail: str = ""
    step_done: int = 0
    step_total: int = 0

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings of the turn: of the question, of the passages, of the model, of every claim."""
        of_claims = tuple(finding for claim in self.claims for finding in claim.findings)
        return self.input_findings + self.document_findings + self.model_findings + of_claims

    @property
    def verdict(self) -> Verdict:
        """What was decided over the whole turn: the worst of the question's verdict, of the claims shown and of the
        model's alarms. A claim withheld and replaced is a notice, as nothing unchecked reached the page; so is a
        model that was not let to write."""
        verdicts = [claim.verdict for claim in self.claims] + [finding.severity for finding in self.model_findings]
        return Verdict.worst([self.input_verdict, *(min(v, Verdict.NOTICE, key=lambda v: v.rank) for v in verdicts)])

    def apply(self, event: ChatEvent) -> Turn:
        """The turn after the event."""
        match event:
            case StepStarted(step, detail, done, total):
                return replace(self, step=step, step_detail=detail, step_done=done, step_total=total)
            case InputChecked(verdict, findings):
                return replace(self, input_verdict=verdict, input_findings=findings)
            case SourcesFound(coverage, findings):
                return replace(self, coverage=coverage, document_findings=findings)
            case ModelChecked(findings):
                return replace(self, model_findings=self.model_findings + findings)
            case ClaimReleased(claim):
                return replace(self, claims=(*self.claims, claim), step_done=self.step_done + 1)
            case Finished(status, usage, record, error):
                return replace(self, status=status, usage=usage, record=record, error=error, step=Step.DONE)
