"""Safety review: the rules as loaded, a sentence to try them on, and what they found lately."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app.services import Services
from app.store.records import FindingRecord
from app.ui.rule_table import draw_rules
from app.ui.screens import enter
from app.ui.text import escape, say
from contracts import CheckResult, Direction, Message, Role, Verdict

_MAX_FINDINGS = 100
_TRY_AS = ("question", "document")


def main() -> None:
    services = enter()
    st.title(say("safety.title"), anchor=False)
    st.write(say("safety.lead"))
    st.caption(say("safety.version", version=escape(services.safety.version)))
    _draw_try(services)
    draw_rules(services.safety.rules)
    _draw_findings(services.store.list_findings(limit=_MAX_FINDINGS))


def _draw_try(services: Services) -> None:
    st.subheader(say("safety.try"), anchor=False)
    with st.form("try_form"):
        text = st.text_area(say("safety.try.label"), height="content", key="try_text")
        as_what = st.segmented_control(
            say("safety.try.as"),
            _TRY_AS,
            default=_TRY_AS[0],
            required=True,
            format_func=lambda what: say(f"safety.try.{what}"),
            key="try_as",
        )
        is_sent = st.form_submit_button(say("safety.try.run"), type="primary")
    if not is_sent or not text.strip():
        return
    if as_what == "question":
        _draw_result(services.safety.check_input([Message(Role.USER, text)]))
    else:
        _draw_result(services.safety.check_document(text))


def _draw_result(result: CheckResult) -> None:
    if not result.findings:
        is_clear = result.verdict is Verdict.ALLOW
        words = say("safety.try.clear" if is_clear else "safety.try.unavailable")
        (st.success if is_clear else st.warning)(words, title=say("safety.try.verdict", verdict=result.verdict.value))
        return
    for finding in result.findings:
        title = say("safety.try.match", rule=escape(finding.rule), evidence=escape(finding.evidence))
        source = "\n\n" + say("turn.source", source=escape(finding.source)) if finding.source else ""
        st.warning(escape(finding.message) + source, title=title)
    st.caption(say("safety.try.verdict", verdict=result.verdict.value))


def _draw_findings(records: Sequence[FindingRecord]) -> None:
    st.subheader(say("safety.recent"), anchor=False)
    if not records:
        st.info(say("safety.recent.none"))
        return
    rows = [
        {
            say("column.when"): record.found_at[:16].replace("T", " "),
            say("column.severity"): record.finding.severity.value,
            say("column.where"): _place(record),
            say("column.message"): record.finding.message,
            say("column.evidence"): record.finding.evidence,
        }
        for record in records
    ]
    st.dataframe(rows, hide_index=True, alt=say("safety.recent"))


def _place(record: FindingRecord) -> str:
    if record.page:
        return say("where.page", document=record.document_name, page=record.page)
    return say("where.answer" if record.direction is Direction.OUTPUT else "where.question")


main()
