"""Safety review: what was found, what people say of it, rules and models as loaded, a sentence to try them on."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from app.services import Services
from app.store.records import Judgement
from app.ui.review_findings import draw_findings
from app.ui.review_rules import draw_audit, draw_rates, draw_sets, draw_switch
from app.ui.rule_table import draw_rules
from app.ui.screens import enter
from app.ui.source import source_words
from app.ui.text import escape, say
from contracts import DOUBTED, CheckResult, Direction, Message, Role, Verdict

_MAX_FINDINGS = 100
_TRY_AS = {"question": Direction.INPUT, "document": Direction.DOCUMENT}
_TRIED = "tried"  # (text, direction) of the last sentence tried


def main() -> None:
    services = enter()
    st.title(say("safety.title"), anchor=False)
    st.write(say("safety.lead"))
    st.caption(say("safety.version", version=escape(services.safety.version)))
    _draw_try(services)
    draw_sets(services)
    draw_rules(services.safety.rules)
    draw_switch(services)
    draw_rates(services)
    draw_audit(services)
    draw_findings(services, services.store.list_findings(limit=_MAX_FINDINGS))


def _draw_try(services: Services) -> None:
    st.subheader(say("safety.try"), anchor=False)
    with st.form("try_form"):
        text = st.text_area(say("safety.try.label"), height="content", key="try_text")
        as_what = st.segmented_control(
            say("safety.try.as"),
            _TRY_AS,
            default="question",
            required=True,
            format_func=lambda what: say(f"safety.try.{what}"),
            key="try_as",
        )
        if st.form_submit_button(say("safety.try.run"), type="primary"):
            st.session_state[_TRIED] = (text, _TRY_AS[as_what]) if text.strip() else None
    if tried := st.session_state.get(_TRIED):
        text, direction = tried
        is_input = direction is Direction.INPUT
        checker = services.safety
        result = checker.check_input([Message(Role.USER, text)]) if is_input else checker.check_document(text)
        _draw_result(result, {rule.id: rule.title for rule in checker.rules})
        _draw_missed(services, text, direction)


def _draw_result(result: CheckResult, titles: Mapping[str, str]) -> None:
    """titles: rule id -> title; a model's finding has only its id."""
    if not result.findings:
        is_clear = result.verdict is Verdict.ALLOW
        words = say("safety.try.clear" if is_clear else "safety.try.unavailable")
        (st.success if is_clear else st.warning)(words, title=say("safety.try.verdict", verdict=result.verdict.value))
        return
    for finding in result.findings:
        named = titles.get(finding.rule.removesuffix(DOUBTED))
        name = f"{named} ({finding.rule})" if named else finding.rule
        title = say("safety.try.match", rule=escape(name), evidence=escape(finding.evidence))
        words = "\n\n".join(filter(None, [escape(finding.message), escape(source_words(finding))]))
        (st.error if finding.is_emergency else st.info if finding.is_doubted else st.warning)(words, title=title)
    st.caption(say("safety.try.verdict", verdict=result.verdict.value))


def _draw_missed(services: Services, text: str, direction: Direction) -> None:
    if st.button(say("safety.missed"), key="missed", icon=":material/flag:"):
        services.store.add_feedback("", direction, Judgement.MISSED, text)
        st.toast(say("safety.thanks"))


main()
