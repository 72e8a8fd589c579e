"""The safety layer as the rest of the product sees it: what comes in, what is read, what goes out.

Implements `contracts.SafetyChecker` with rules, the support check and whatever models are given. The verdict is the
worst finding's, so that neither a rule nor a model lowers what another said. The outermost edge of the layer: whatever
goes wrong inside comes back as the verdict `unavailable`, which withholds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any

from contracts import DOUBTED, CheckResult, ClaimCheck, Direction, Finding, Message, Passage, Patient, Role, Verdict
from safety.abstention import abstention_object, is_abstention
from safety.claims import strip_citations
from safety.cues import Phrases
from safety.knowledge_files import Knowledge, load_knowledge
from safety.lexicon import cues
from safety.matcher import Matcher
from safety.model_check import ModelCheck, ModelInput, ModelPanel
from safety.normalise import lower
from safety.prescribing import check_prescribing
from safety.rule import Rule
from safety.rule_files import load_rules
from safety.support import SUPPORT_SOURCE, Support, check_support

_LOG = logging.getLogger(__name__)
_ESCALATES = Phrases(cues()["escalation"])
VAGUE_EMERGENCY = "emergency.possible"
MAX_CLAIM = 4000  # characters; nothing a person would call one claim is longer


def _faults_withhold(result: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A check that could not run gives a result of this type with the verdict `unavailable`."""

    def decorate(check: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(check)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            try:
                found = check(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  # the layer's edge: a fault must withhold, never pass or crash
                _LOG.exception("The safety check %s failed.", check.__name__)
                message = f"The safety check could not run ({type(error).__name__}), so this text is withheld."
                finding = Finding("checker.fault", Verdict.UNAVAILABLE, 0, 0, message)
                found = result(Verdict.UNAVAILABLE, findings=(finding,), **_UNSUPPORTED.get(result, {}))
            return replace(found, seconds=perf_counter() - started) if result is CheckResult else found

        return guarded

    return decorate


_UNSUPPORTED: dict[type[Any], dict[str, Any]] = {ClaimCheck: {"supported": False}}


class RuleSafetyChecker:
    """Loads rules and knowledge once; every check is then safe to call from any thread.

    Raises RuleError if something in them is odd."""

    def __init__(
        self,
        rules_dir: Path | None = None,
        models: Sequence[ModelCheck] = (),
        knowledge_dir: Path | None = None,
    ) -> None:
        rule_set = load_rules(rules_dir)
        self._rules = rule_set.rules
        self._knowledge = load_knowledge(knowledge_dir)
        self._models = ModelPanel(models)
        self._loaded_version = ";".join(
            filter(None, (rule_set.version, f"knowledge@{self._knowledge.version}", self._models.version))
        )
        self.switch_off(())
        self._cited_allowed = {rule.id for rule in self._rules if rule.is_cited_allowed}

    def switch_off(self, rule_ids: Collection[str]) -> None:
        """Leaves these rules out of every later check, and only these; the version names them. Unknown ids are of rules
        that are gone."""
        off = sorted(rule.id for rule in self._rules if rule.id in set(rule_ids))
        self._matcher = Matcher(rule for rule in self._rules if rule.id not in off)
        self._version = ";".join([self._loaded_version, *(f"-{rule_id}" for rule_id in off)])

    @property
    def version(self) -> str:
        return self._version

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The loaded rules, for the review page."""
        return self._rules

    @property
    def knowledge(self) -> Knowledge:
        """What is known of drugs, for the review page."""
        return self._knowledge

    @_faults_withhold(CheckResult)
    def check_input(self, messages: Sequence[Message], patient: Patient | None = None) -> CheckResult:
        """Checks the last user message. Emergencies are notices and come first; what is wrong with a prescription is a
        notice too, as the clinician may well be asking about it."""
        text = next((message.text for message in reversed(messages) if message.role is Role.USER), "")
        prescribed = check_prescribing(text, patient, self._knowledge)
        found = [*self._matcher.find(text, Direction.INPUT), *(_as_notice(finding) for finding in prescribed)]
        given = ModelInput(text, Direction.INPUT, messages, patient=patient, findings=found)
        return _result(_with_doubts(found, self._models.find(given)))

    @_faults_withhold(CheckResult)
    def check_document(self, text: str) -> CheckResult:
        """Looks for text that speaks to the machine; a finding spans the sentence that is kept from the model."""
        found = self._matcher.find(text, Direction.DOCUMENT)
        return _result([*found, *self._models.find(ModelInput(text, Direction.DOCUMENT, findings=found))])

    @_faults_withhold(CheckResult)
    def check_output(self, text: str, patient: Patient | None = None) -> CheckResult:
        """The rules on an answer's words alone, without passages: absolutes, reassurance, how doses are written, and
        what is wrong with what it prescribes."""
        found = self._output_findings(text, patient)
        given = ModelInput(text, Direction.OUTPUT, patient=patient, findings=found)
        return _result([*found, *self._models.find(given)])

    @_faults_withhold(CheckResult)
    def check_advice(self, messages: Sequence[Message], answer: str, patient: Patient | None = None) -> CheckResult:
        """Whether an answer to an emergency sends for help; if not, the finding's message is what is to be added."""
        seen = self.check_input(messages, patient)
        if seen.verdict is Verdict.UNAVAILABLE:
            return seen
        alarm = next((f for f in seen.findings if f.is_emergency), None)
        if alarm is None or _ESCALATES.search(lower(answer)):
            return CheckResult(Verdict.ALLOW)
        return _result([Finding("advice.missing", Verdict.NOTICE, 0, len(answer), alarm.message, alarm.source)])

    def _output_findings(self, text: str, patient: Patient | None) -> list[Finding]:
        return [*self._matcher.find(text, Direction.OUTPUT), *check_prescribing(text, patient, self._knowledge)]

    @_faults_withhold(ClaimCheck)
    def check_claim(
        self, claim: str, cited: Sequence[int], passages: Sequence[Passage], patient: Patient | None = None
    ) -> ClaimCheck:
        """Holds one claim against the passages: the rules on its words, and whether it stands in them."""
        if len(claim) > MAX_CLAIM:
            return _unsupported(claim, "it is too long to be checked as one statement", [])
        findings = self._output_findings(claim, patient)
        if is_abstention(claim):
            return _abstention(claim, passages, findings)
        support = check_support(claim, cited, passages)
        if not support.supported:
            return _unsupported(claim, support.missing, findings)
        evidence = " ".join(passages[i].text[a:b] for i, (a, b) in support.evidence.items()).casefold()
        kept = [f for f in findings if f.rule not in self._cited_allowed or f.evidence.casefold() not in evidence]
        by_rules = (*kept, *support.findings)
        given = ModelInput(claim, Direction.OUTPUT, (), _evidence(support, passages), patient, by_rules)
        found = (*by_rules, *self._models.find(given))
        return ClaimCheck(_worst(found), supported=True, evidence=support.evidence, findings=found)


def _evidence(support: Support, passages: Sequence[Passage]) -> list[Passage]:
    return [passages[index] for index in support.evidence]


def _result(findings: Sequence[Finding]) -> CheckResult:
    """Emergencies first. One that is named stands for the vague one beside it, which is never more severe."""
    if any((f.is_emergency or f.is_doubted) and not _is_vague(f) for f in findings):
        findings = [f for f in findings if not _is_vague(f) or f.severity.withholds]
    ordered = sorted(findings, key=lambda finding: (not finding.is_emergency, finding.start))
    return CheckResult(_worst(ordered), tuple(ordered))


def _is_vague(finding: Finding) -> bool:
    return finding.rule.removesuffix(DOUBTED) == VAGUE_EMERGENCY


def _with_doubts(found: Sequence[Finding], added: Sequence[Finding]) -> list[Finding]:
    """What rules found and models added. An emergency that a model doubts stands as it says, if no less severe."""
    doubted = {(finding.rule.removesuffix(DOUBTED), finding.severity) for finding in added if finding.is_doubted}
    return [*(f for f in found if not f.is_emergency or (f.rule, f.severity) not in doubted), *added]


def _as_notice(finding: Finding) -> Finding:
    return replace(finding, severity=Verdict.NOTICE)


def _worst(findings: Sequence[Finding]) -> Verdict:
    return Verdict.worst(finding.severity for finding in findings)


def _unsupported(claim: str, reason: str, findings: Sequence[Finding]) -> ClaimCheck:
    message = f"Not supported by the record: {reason}."
    finding = Finding(
        "support.unsupported", Verdict.HOLD, 0, len(claim), message, SUPPORT_SOURCE, strip_citations(claim)
    )
    found = (finding, *findings)
    return ClaimCheck(_worst(found), supported=False, findings=found)


def _abstention(claim: str, passages: Sequence[Passage], findings: Sequence[Finding]) -> ClaimCheck:
    """ "The record does not say" passes; "it does not mention allergies" only if it does not."""
    named = abstention_object(claim)
    if named and check_support(named, (), passages).supported:
        check = _unsupported(claim, f"it does speak of “{named}”", findings)
        return replace(check, is_abstention=True)
    return ClaimCheck(_worst(findings), supported=False, is_abstention=True, findings=tuple(findings))
