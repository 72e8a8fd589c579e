"""Rule sets, models, rates, switches and the audit on the Safety review screen."""

from __future__ import annotations

from datetime import UTC, datetime

import streamlit as st

from app.review import export_feedback, rule_set_states
from app.services import Services
from app.ui import session
from app.ui.failures import FAILURES, draw_failure
from app.ui.text import escape, say


def draw_sets(services: Services) -> None:
    """Which sets are loaded, inert or stale, and which models stand beside them."""
    st.subheader(say("safety.sets"), anchor=False)
    off = [switch.rule for switch in services.store.list_rule_switches()]
    rows = [
        {
            say("column.set"): state.name,
            say("column.rules"): str(state.num_rules - state.num_off),
            say("column.state"): say(f"safety.sets.state.{state.state}", date=state.reviewed.isoformat()),
        }
        for state in rule_set_states(services.safety.rules, off, datetime.now(UTC).date())
    ]
    st.dataframe(rows, hide_index=True, alt=say("safety.sets"))
    info = services.generator.info
    st.caption(say("safety.sets.no_judge") if info.is_embedded else say("safety.sets.judge", name=escape(info.name)))


def draw_rates(services: Services) -> None:
    """How often each rule fired and what was said of it; feedback can be taken away as a test set."""
    st.subheader(say("safety.rates"), anchor=False)
    rates = services.store.rule_rates()
    if not rates:
        st.info(say("safety.rates.none"))
        return
    rows = [
        {
            say("column.rule"): rate.rule,
            say("column.fired"): rate.fired,
            say("column.right"): rate.right,
            say("column.false"): rate.false_alarms,
            say("column.false_share"): _share(rate.false_alarms, rate.right + rate.false_alarms),
            say("column.missed"): rate.missed,
        }
        for rate in rates
    ]
    st.dataframe(rows, hide_index=True, alt=say("safety.rates"))
    if records := services.store.list_feedback():
        st.download_button(
            say("safety.rates.export"), export_feedback(records), "safety-feedback.jsonl", "application/jsonl"
        )
        st.caption(say("safety.rates.export.hint"))


def draw_switch(services: Services) -> None:
    """Switches a rule off or on, by those who may, with a reason."""
    actor = session.get_actor(services)
    off = {switch.rule: switch for switch in services.store.list_rule_switches()}
    with st.expander(say("safety.switch"), icon=":material/toggle_off:"):
        if not actor.has_any(services.settings.review_roles):
            st.info(say("safety.switch.denied"))
            return
        rule = st.selectbox(say("safety.switch.rule"), [rule.id for rule in services.safety.rules], key="switch_rule")
        if switch := off.get(rule):
            at = switch.at[:16].replace("T", " ")
            st.write(say("safety.switch.list", at=at, actor=escape(switch.actor), reason=escape(switch.reason)))
            if st.button(say("safety.switch.on"), key="switch_on"):
                services.switch_rule(rule, actor.name, None)
                st.rerun()
            return
        reason = st.text_input(say("safety.switch.reason"), key="switch_reason")
        if st.button(say("safety.switch.off"), key="switch_off"):
            try:
                services.switch_rule(rule, actor.name, reason)
            except FAILURES as error:
                draw_failure(error)
                return
            st.rerun()


def draw_audit(services: Services) -> None:
    st.subheader(say("safety.audit"), anchor=False)
    entries = services.store.list_audit()
    if not entries:
        st.info(say("safety.audit.none"))
        return
    is_whole = services.store.is_audit_whole()
    (st.caption if is_whole else st.error)(say("safety.audit.whole" if is_whole else "safety.audit.broken"))
    rows = [
        {
            say("column.when"): entry.at[:16].replace("T", " "),
            say("column.actor"): entry.actor,
            say("column.action"): entry.action,
            say("column.subject"): entry.subject,
            say("column.reason"): entry.detail,
        }
        for entry in entries
    ]
    st.dataframe(rows, hide_index=True, alt=say("safety.audit"))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"
