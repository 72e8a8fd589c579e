"""What people say of the safety layer: feedback on findings, and rules switched off. Every switch is audited."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import delete, insert, select

from app.errors import InputError
from app.store.audit import Audit
from app.store.database import new_id, now
from app.store.records import FeedbackRecord, Judgement, RuleRate, RuleSwitch
from app.store.tables import document_findings, feedback, findings, rule_switches
from contracts import Direction

NEEDS_REASON = "Write the reason in a few words: whoever reviews this must be able to follow it."
_MIN_REASON = 5  # characters


class Review(Audit):
    """The part of the store behind the Safety review screen."""

    # --- feedback -----------------------------------------------------------------------------------------------

    def add_feedback(
        self,
        rule: str,
        direction: Direction,
        judgement: Judgement,
        text: str,
        note: str = "",
        patient_id: str | None = None,
    ) -> None:
        """Stores what somebody said of a finding; a rule of "" stands for one that was missed. With a patient the row
        goes when the patient does. Raises InputError if there is no text to learn from."""
        if not text.strip():
            raise InputError("There is no text to keep with this feedback; quote the sentence it is about.")
        values = {"rule": rule, "direction": direction.value, "judgement": judgement.value, "text": text, "note": note}
        with self.writing() as connection:
            connection.execute(insert(feedback).values(id=new_id(), at=now(), patient_id=patient_id, **values))

    def list_feedback(self) -> list[FeedbackRecord]:
        """The newest first."""
        with self.reading() as connection:
            rows = connection.execute(select(feedback).order_by(feedback.c.number.desc()))
            return [
                FeedbackRecord(row.at, row.rule, Direction(row.direction), Judgement(row.judgement), row.text, row.note)
                for row in rows
            ]

    def rule_rates(self) -> list[RuleRate]:
        """How often each rule or model fired, and what was said of it; the most frequent first."""
        with self.reading() as connection:
            fired: Counter[str] = Counter(
                row.rule for table in (findings, document_findings) for row in connection.execute(select(table.c.rule))
            )
            said = Counter((row.rule, row.judgement) for row in connection.execute(select(feedback)))
        rules = {rule for rule, _ in said} | set(fired)
        rates = [RuleRate(rule, fired[rule], *(said[rule, j.value] for j in Judgement)) for rule in rules if rule]
        return sorted(rates, key=lambda rate: (-rate.fired, rate.rule))

    # --- rules switched off -------------------------------------------------------------------------------------

    def switch_off_rule(self, rule: str, actor: str, reason: str) -> None:
        """Raises InputError without a reason."""
        _require_reason(reason)
        with self.writing() as connection:
            connection.execute(delete(rule_switches).where(rule_switches.c.rule == rule))
            connection.execute(insert(rule_switches).values(rule=rule, at=now(), actor=actor, reason=reason))
            self._append(connection, actor, "rule off", rule, reason)

    def switch_on_rule(self, rule: str, actor: str) -> None:
        with self.writing() as connection:
            connection.execute(delete(rule_switches).where(rule_switches.c.rule == rule))
            self._append(connection, actor, "rule on", rule, "")

    def list_rule_switches(self) -> list[RuleSwitch]:
        with self.reading() as connection:
            rows = connection.execute(select(rule_switches).order_by(rule_switches.c.rule))
            return [RuleSwitch(row.rule, row.at, row.actor, row.reason) for row in rows]

    # --- what was withheld, revealed ----------------------------------------------------------------------------

    def reveal(self, turn_id: str, actor: str, reason: str) -> None:
        """Notes that somebody looked at what was withheld in a turn, and why. Raises InputError without a reason."""
        _require_reason(reason)
        self.add_audit(actor, "reveal", turn_id, reason)


def _require_reason(reason: str) -> None:
    if len(reason.strip()) < _MIN_REASON:
        raise InputError(NEEDS_REASON)
