"""What differs between two answers to one question, in the things that decide about a patient.

Built from the safety layer's own reading of numbers, drugs and negation, so that the report and the product mean the
same by each. Knows nothing of models.
"""

from __future__ import annotations

from contracts import Direction, Verdict
from safety.abstention import is_abstention
from safety.checker import RuleSafetyChecker
from safety.checks import check_line
from safety.claims import strip_citations
from safety.facts import Facts, facts_of
from safety.sentences import sentence_spans

NUMBER, DRUG, NEGATION, ABSTENTION, VERDICT = KINDS = ("number", "drug", "negation", "abstention", "verdict")


def is_changed(reference: str, candidate: str) -> bool:
    """Whether two answers differ in more than white space."""
    return reference.split() != candidate.split()


def changed_kinds(reference: str, candidate: str) -> tuple[str, ...]:
    """Which of number (with its unit, a frequency or date), drug, negation and abstention differ, in that order.

    "No fever" against "fever" is a negation, and so is a denial that only one of the two holds; an answer that says the
    record does not hold it, against one that answers, is an abstention.
    """
    if not is_changed(reference, candidate):
        return ()
    abstains = is_abstention(reference), is_abstention(candidate)
    a, b = _read(reference), _read(candidate)
    found = {
        NUMBER: _numbers(a) != _numbers(b),
        DRUG: _drugs(a) != _drugs(b),
        NEGATION: not any(abstains) and _is_negation_changed(a, b),
        ABSTENTION: abstains[0] != abstains[1],
    }
    return tuple(kind for kind, is_found in found.items() if is_found)


def verdict_of(answer: str, passage: str, checker: RuleSafetyChecker) -> Verdict:
    """The safety layer's verdict on an answer, each of its sentences held against the passage."""
    return Verdict(check_line({"text": answer, "passages": [passage]}, Direction.OUTPUT, checker=checker)["verdict"])


def _read(answer: str) -> Facts:
    text = strip_citations(answer)
    return facts_of(text, sentence_spans(text))


def _numbers(facts: Facts) -> set[object]:
    quantities = {(q.quantity.value, q.quantity.unit, q.quantity.comparator) for q in facts.quantities}
    return {*quantities, *(date.readings for date in facts.dates)}


def _drugs(facts: Facts) -> set[str]:
    return {word.key for word in facts.words if word.key.startswith("drug:")}


def _is_negation_changed(a: Facts, b: Facts) -> bool:
    if bool(a.num_denials) != bool(b.num_denials):
        return True
    shared = {word.key for word in a.words} & {word.key for word in b.words}
    return _negated(a) & shared != _negated(b) & shared


def _negated(facts: Facts) -> set[str]:
    return {word.key for word in facts.words if "negated" in word.flags}
