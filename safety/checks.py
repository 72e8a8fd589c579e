"""One line in, one line out: what `bedside check` does with each JSON line, whatever is in it.

{"id", "text", "passages"?, "messages"?} -> {"id", "verdict", "findings", "seconds"}. Knows nothing of files or streams.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from time import perf_counter
from typing import Any

from contracts import CheckResult, Direction, Finding, Message, Passage, Patient, Role, Verdict
from safety.checker import RuleSafetyChecker
from safety.claims import ClaimSplitter, citations_of


class LineError(ValueError):
    """A line is not what the command reads; the message says what to change."""


def check_line(
    line: str | Mapping[str, Any],
    direction: Direction | str,
    patient: Patient | None = None,
    checker: RuleSafetyChecker | None = None,
) -> dict[str, Any]:
    """Checks one line (JSON text or its mapping). A malformed one gets the verdict `unavailable` and says why.

    An output is cut into claims; with "passages" each claim must stand in them, without only the rules apply. With
    "messages" an answer to an emergency must also send for help.
    """
    started = perf_counter()
    key: Any = None
    try:
        item = _read(line)
        key = item.get("id")
        result = _check(item, Direction(direction), patient, checker or _default_checker())
    except LineError as error:
        finding = Finding("input.malformed", Verdict.UNAVAILABLE, 0, 0, str(error))
        result = CheckResult(Verdict.UNAVAILABLE, (finding,))
    return {
        "id": key,
        "verdict": result.verdict.value,
        "findings": [_as_dict(finding) for finding in result.findings],
        "seconds": round(perf_counter() - started, 6),
    }


@cache
def _default_checker() -> RuleSafetyChecker:
    return RuleSafetyChecker()


def _read(line: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(line, str):
        try:
            line = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LineError("The line is not valid JSON; write one object to a line.") from error
    if not isinstance(line, Mapping):
        raise LineError('The line is no JSON object; write {"id": …, "text": …}.')
    if not isinstance(line.get("text"), str):
        raise LineError('"text" is missing or is no text.')
    return line


def _check(
    item: Mapping[str, Any], direction: Direction, patient: Patient | None, checker: RuleSafetyChecker
) -> CheckResult:
    text = item["text"]
    if direction is Direction.INPUT:
        return checker.check_input([*_messages(item.get("messages")), Message(Role.USER, text)], patient)
    if direction is Direction.DOCUMENT:
        return checker.check_document(text)
    results = [
        _check_claims(text, _passages(item["passages"]), patient, checker)
        if "passages" in item
        else checker.check_output(text, patient)
    ]
    if "messages" in item:
        results.append(checker.check_advice(_messages(item["messages"]), text, patient))
    findings = tuple(finding for result in results for finding in result.findings)
    return CheckResult(Verdict.worst(result.verdict for result in results), findings)


def _check_claims(
    text: str, passages: Sequence[Passage], patient: Patient | None, checker: RuleSafetyChecker
) -> CheckResult:
    """A text without a single citation is held against all passages; one that cites must cite rightly."""
    has_marks, everything = bool(citations_of(text)), range(len(passages))
    splitter = ClaimSplitter()
    findings, verdicts, place = [], [], 0
    for claim in splitter.feed(text) + splitter.flush():
        place = text.index(claim, place)
        check = checker.check_claim(claim, citations_of(claim) if has_marks else everything, passages, patient)
        verdicts.append(check.verdict)
        findings += [_shifted(finding, place) for finding in check.findings]
        place += len(claim)
    return CheckResult(Verdict.worst(verdicts), tuple(findings))


def _messages(value: Any) -> list[Message]:
    """[{"role", "content" or "text"}]."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise LineError('"messages" must be a list of {"role", "content"}.')
    messages = []
    for entry in value:
        role, content = entry.get("role"), entry.get("content", entry.get("text"))
        if role not in [known.value for known in Role] or not isinstance(content, str):
            raise LineError('A message needs "role" (system, user or assistant) and "content".')
        messages.append(Message(Role(role), content))
    return messages


def _passages(value: Any) -> list[Passage]:
    """A list of texts, or of {"text"} with anything beside it."""
    if not isinstance(value, list):
        raise LineError('"passages" must be a list of texts.')
    given = [entry.get("text") if isinstance(entry, Mapping) else entry for entry in value]
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(given):
        raise LineError('A passage must be a text or {"text": …}.')
    return [Passage(str(n), str(n), f"passage {n}", 1, 0, len(text), text) for n, text in enumerate(texts, 1)]


def _shifted(finding: Finding, by: int) -> Finding:
    return Finding(
        finding.rule,
        finding.severity,
        finding.start + by,
        finding.end + by,
        finding.message,
        finding.source,
        finding.evidence,
    )


def _as_dict(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity.value,
        "start": finding.start,
        "end": finding.end,
        "message": finding.message,
        "source": finding.source,
    }
