"""How a model joins the checks: it may add findings or abstain, within a deadline, and whoever is not there withholds.

A model never lowers what a rule said. One that raises an error, is late, is still busy with what it was late with, or
failed again and again a moment ago gives a finding `unavailable`. Knows nothing of any one model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol

from contracts import Direction, Finding, Message, Passage, Patient, Verdict

_LOG = logging.getLogger(__name__)
MAX_FAILURES = 3  # in a row, until the breaker opens
PAUSE_S = 30.0  # for which an open breaker asks nothing; then one call is a trial
MAX_BUSY = 4  # calls of one check that may be under way, late ones included


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What a model is asked about. findings: what the rules saw. passages: those a claim stands in."""

    text: str
    direction: Direction
    messages: Sequence[Message] = ()
    passages: Sequence[Passage] = ()
    patient: Patient | None = None
    findings: Sequence[Finding] = ()


class ModelCheck(Protocol):
    """A model beside the rules. No findings is an abstention, not a pardon."""

    @property
    def name(self) -> str:
        """Beginning of the ids of its findings, e.g. "model.harm"."""
        ...

    @property
    def version(self) -> str:
        """Changes with its weights and thresholds; recorded with each answer."""
        ...

    @property
    def directions(self) -> frozenset[Direction]: ...

    def deadline_s(self, given: ModelInput) -> float:
        """Seconds that it may take; a text of 128K tokens may take longer than a question."""
        ...

    def check(self, given: ModelInput) -> Sequence[Finding]:
        """Findings with spans in given.text. May raise anything; called from a thread of its own."""
        ...


class ModelPanel:
    """Asks every model check side by side. Safe to call from any thread."""

    def __init__(self, checks: Sequence[ModelCheck], clock: Callable[[], float] = monotonic) -> None:
        names = [check.name for check in checks]
        if len(set(names)) < len(names):
            raise ValueError("Two model checks have the same name.")
        self._guarded = [_Guarded(check, clock) for check in checks]

    @property
    def version(self) -> str:
        """ "name@version" of each, in order; "" for none."""
        return ";".join(f"{guarded.check.name}@{guarded.check.version}" for guarded in self._guarded)

    def find(self, given: ModelInput) -> list[Finding]:
        """What the models add to given.findings. Block needs a rule that withholds beside it, else it is hold."""
        calls = [guarded.start(given) for guarded in self._guarded if given.direction in guarded.check.directions]
        found = [finding for call in calls for finding in call.result()]
        if any(finding.severity.withholds for finding in given.findings):
            return found
        return [replace(f, severity=Verdict.HOLD) if f.severity is Verdict.BLOCK else f for f in found]


class _Guarded:
    """One check with its circuit breaker (Nygard, Release It!, 2007)."""

    def __init__(self, check: ModelCheck, clock: Callable[[], float]) -> None:
        self.check = check
        self._clock = clock
        self._lock = threading.Lock()
        self._num_failures = 0
        self._num_busy = 0
        self._closed_until = 0.0

    def start(self, given: ModelInput) -> _Call:
        call = _Call(self, given)
        with self._lock:
            if self._clock() < self._closed_until:
                call.refuse("failed several times and is left alone for a moment")
            elif self._num_busy >= MAX_BUSY:
                call.refuse("is busy with earlier texts")
            else:
                self._num_busy += 1
                threading.Thread(target=self._run, args=(call,), name=self.check.name, daemon=True).start()
        return call

    def _run(self, call: _Call) -> None:
        found: Sequence[Finding] = ()
        fault = ""
        try:
            found = _checked(self.check.check(call.given))
        except BaseException as error:  # noqa: BLE001  # whatever stops a model withholds
            _LOG.exception("The model check %s failed.", self.check.name)
            fault = f"could not run ({type(error).__name__})"
        with self._lock:
            self._num_busy -= 1  # before the answer, as whoever waits for it may ask again at once
        if fault:
            call.fail(fault)
        else:
            call.succeed(found)

    def note(self, is_failure: bool) -> None:
        with self._lock:
            self._num_failures = self._num_failures + 1 if is_failure else 0
            if self._num_failures >= MAX_FAILURES:
                self._closed_until = self._clock() + PAUSE_S
                _LOG.error("The model check %s is left alone for %g s.", self.check.name, PAUSE_S)


class _Call:
    """One question to one check; the first of answer, error and deadline counts."""

    def __init__(self, guarded: _Guarded, given: ModelInput) -> None:
        self.given = given
        self._guarded = guarded
        self._deadline = monotonic() + guarded.check.deadline_s(given)
        self._done = threading.Event()
        self._found: Sequence[Finding] = ()
        self._fault = ""
        self._is_refused = False

    def succeed(self, found: Sequence[Finding]) -> None:
        self._found = found
        self._done.set()

    def fail(self, fault: str) -> None:
        self._fault = fault
        self._done.set()

    def refuse(self, fault: str) -> None:
        """The model was not asked: no failure of its own, so that an open breaker closes however often it is called."""
        self._is_refused = True
        self.fail(fault)

    def result(self) -> Sequence[Finding]:
        is_done = self._done.wait(max(0.0, self._deadline - monotonic()))
        fault = self._fault if is_done else "did not answer in time"
        if not self._is_refused:
            self._guarded.note(bool(fault))
        if not fault:
            return self._found
        name, end = self._guarded.check.name, len(self.given.text)
        message = f"The check {name} {fault}, so this text is withheld; try again, or look at the Model page."
        return (Finding(f"{name}.unavailable", Verdict.UNAVAILABLE, 0, end, message),)


def _checked(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """What a check returned, if it is what was agreed; anything else is a fault."""
    findings = tuple(found)
    if not all(isinstance(finding, Finding) for finding in findings):
        raise TypeError("A model check must return findings.")
    return findings
