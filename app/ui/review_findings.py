"""Recent findings on the Safety review screen: each explains itself and takes a judgement."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app.review import what_changed
from app.services import Services
from app.store.records import FindingRecord, Judgement
from app.ui.text import escape, say
from contracts import Direction

_SHOWN = 20
_MODEL_PREFIXES = ("model", "router")  # how the ids of what is no rule begin
_ICONS = {"notice": ":material/info:", "hold": ":material/pause_circle:", "block": ":material/block:"}


def draw_findings(services: Services, records: Sequence[FindingRecord]) -> None:
    st.subheader(say("safety.recent"), anchor=False)
    if not records:
        st.info(say("safety.recent.none"))
        return
    for number, record in enumerate(records[:_SHOWN]):
        _draw_finding(services, record, number)
    if len(records) > _SHOWN:
        st.caption(say("safety.recent.more", n=_SHOWN, of=len(records)))


def _draw_finding(services: Services, record: FindingRecord, number: int) -> None:
    finding = record.finding
    when = record.found_at[:16].replace("T", " ")
    title = say("safety.recent.title", when=when, rule=escape(finding.rule), place=escape(_place(record)))
    with st.expander(title, icon=_ICONS.get(finding.severity.value, ":material/error:")):
        st.write(escape(finding.message))
        span = say("safety.span", start=finding.start, end=finding.end)
        facts = {
            say("safety.by.model" if finding.rule.startswith(_MODEL_PREFIXES) else "safety.by.rule"): finding.rule,
            say("column.severity"): finding.severity.value,
            say("column.where"): f"{_place(record)}, {span}",
            say("safety.evidence"): finding.evidence or "–",
            say("column.source"): finding.source or "–",
            say("safety.changed"): say(f"safety.changed.{what_changed(record)}"),
        }
        st.markdown("\n".join(f"- {label}: {escape(words)}" for label, words in facts.items()))
        with st.container(horizontal=True, gap="small"):
            for judgement, key in ((Judgement.RIGHT, "safety.right"), (Judgement.FALSE_ALARM, "safety.false")):
                if st.button(say(key), key=f"judge_{number}_{judgement.value}"):
                    _judge(services, record, judgement)


def _judge(services: Services, record: FindingRecord, judgement: Judgement) -> None:
    text = record.finding.evidence or record.finding.message
    services.store.add_feedback(
        record.finding.rule, record.direction, judgement, text, patient_id=record.patient_id or None
    )
    st.toast(say("safety.thanks"))


def _place(record: FindingRecord) -> str:
    if record.page:
        return say("where.page", document=record.document_name, page=record.page)
    return say("where.answer" if record.direction is Direction.OUTPUT else "where.question")
