"""The table of the safety rules as loaded, searched and filtered."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app.ui.text import count, say
from contracts import Direction, Verdict
from safety.rule import Rule


def draw_rules(rules: Sequence[Rule]) -> None:
    st.subheader(say("safety.rules"), anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = st.text_input(say("safety.search"), icon=":material/search:", key="rules_search")
        severity = st.selectbox(
            say("safety.severity"), ["", *[v.value for v in Verdict]], format_func=_or_any, width=160
        )
        direction = st.selectbox(
            say("safety.direction"), ["", *[d.value for d in Direction]], format_func=_or_any, width=160
        )
    shown = [rule for rule in rules if _fits(rule, words, severity, direction)]
    if not shown:
        st.info(say("safety.no_match"))
        return
    st.caption(count("safety.shown", len(shown)))
    rows = [
        {
            say("column.rule"): rule.title,
            say("column.severity"): rule.severity.value,
            say("column.direction"): ", ".join(direction.value for direction in rule.direction),
            say("column.message"): rule.message,
            say("column.source"): rule.source,
        }
        for rule in shown
    ]
    st.dataframe(rows, hide_index=True, alt=say("safety.rules"))


def _or_any(value: str) -> str:
    return value or say("safety.any")


def _fits(rule: Rule, words: str, severity: str, direction: str) -> bool:
    text = f"{rule.id} {rule.title} {rule.message} {rule.source}".casefold()
    return (
        all(word in text for word in words.casefold().split())
        and severity in ("", rule.severity.value)
        and (not direction or direction in rule.direction)
    )
