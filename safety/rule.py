"""What a safety rule is. Rules are data, reviewed by clinicians; `safety.rule_files` reads and proves them.

What a rule file may hold is read from the dataclass below, so that there is no second list to forget.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from contracts import Direction, Verdict
from safety.calm import Calm


class RuleError(ValueError):
    """A rule file cannot be used; the message names the file, the rule and what to change."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Sentences that must fire a rule and sentences that must not; every one is a test."""

    fires: tuple[str, ...]
    must_not_fire: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: patterns, or conditions over concepts, or both.

    In a pattern a space stands for any white space and " … " for up to ten words without a negation among them; case
    never matters. A condition names concepts of lexicon/concepts.yaml that must stand near one another, as in
    "fever + meningism"; those are always asserted."""

    id: str
    title: str
    severity: Verdict
    direction: tuple[Direction, ...]
    message: str  # what was seen and what to do next
    message_zh: str
    source: str  # guideline or standard, with its year
    reviewed: date
    owner: str
    examples: Examples
    keywords: tuple[str, ...] = ()  # patterns are tried only on sentences that hold one of these: speed
    patterns: tuple[str, ...] = ()
    when: tuple[str, ...] = ()  # conditions; one is enough
    unless: tuple[str, ...] = ()  # a sentence that matches one of these does not fire
    not_when: tuple[Calm, ...] = ()  # conditions: nor what is said to be so: over, lasting, slight
    is_asserted: bool = (
        False  # patterns fire only on what is present: not negated, past, hypothetical, a relative's, general
    )
    is_cited_allowed: bool = False  # an output may say it if its evidence uses the same words
    input_severity: Verdict | None = None  # where a clinician's own words weigh less than an uploaded document's

    @property
    def conditions(self) -> tuple[tuple[str, ...], ...]:
        """The concepts of each condition."""
        return tuple(tuple(name.strip() for name in condition.split("+")) for condition in self.when)

    def severity_in(self, direction: Direction) -> Verdict:
        return self.input_severity if direction is Direction.INPUT and self.input_severity else self.severity


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The loaded rules. version is the date of the latest review and a hash over the bytes of
    all rule files and all word lists."""

    rules: tuple[Rule, ...]
    version: str
