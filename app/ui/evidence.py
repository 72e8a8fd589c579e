"""The evidence pane: the page that a citation rests on, as an image with the cited words marked."""

from __future__ import annotations

import streamlit as st

from app.citing import place_of
from app.events import Turn
from app.services import Services
from app.ui import session
from app.ui.dialog import dialog
from app.ui.element import draw, node
from app.ui.failures import FAILURES
from app.ui.text import escape, say
from app.ui.turn import citations_of
from contracts import Citation, ReadMethod


def open_evidence(turn_id: str, at: int, narrow: bool) -> None:
    """Opens the citation `at` of a turn: in the pane, or in a dialog where a narrow window has no room for the pane."""
    st.session_state[session.EVIDENCE] = (turn_id, at)
    st.session_state[session.EVIDENCE_CHANGED] = True
    if narrow:
        st.session_state[session.EVIDENCE_DIALOG] = True


def get_active(turn_id: str) -> int | None:
    """Which citation of the turn is open."""
    turn, at = st.session_state.get(session.EVIDENCE, ("", 0))
    return at if turn == turn_id else None


def draw_pane(services: Services, turns: list[Turn]) -> None:
    """The pane beside the chat."""
    with st.container(key="evidence", border=True, gap="small"):
        _draw_open(services, turns, place="pane")


@dialog(say("evidence.title"), width="large")
def show_dialog(services: Services, turns: list[Turn]) -> None:
    """The same over the chat, for a phone."""
    _draw_open(services, turns, place="dialog")


def _draw_open(services: Services, turns: list[Turn], place: str) -> None:
    turn_id, at = st.session_state.get(session.EVIDENCE, ("", 0))
    citations = next((citations_of(turn) for turn in turns if turn.id == turn_id), [])
    if at >= len(citations):
        st.markdown(f"**{say('evidence.title')}**")
        st.caption(say("evidence.empty"))
        return
    with st.container(horizontal=True, horizontal_alignment="distribute", gap="xsmall"):
        _draw_step("previous", turn_id, at - 1, len(citations), place)
        if place == "pane" and st.button(
            say("evidence.enlarge"), icon=":material/zoom_in:", type="tertiary", key="evidence_enlarge"
        ):
            show_dialog(services, turns)
        _draw_step("next", turn_id, at + 1, len(citations), place)
    _draw_citation(services, citations[at])


def _draw_step(name: str, turn_id: str, at: int, num_citations: int, place: str) -> None:
    st.button(
        say(f"evidence.{name}"),
        key=f"evidence_{name}_{place}",
        icon=":material/chevron_left:" if name == "previous" else ":material/chevron_right:",
        icon_position="left" if name == "previous" else "right",
        type="tertiary",
        disabled=not 0 <= at < num_citations,
        on_click=open_evidence,
        args=(turn_id, at, False),
    )


def _draw_citation(services: Services, citation: Citation) -> None:
    document = services.store.get_document(citation.document_id)
    if document is None:
        st.markdown(f"**{escape(citation.document)}**")
        st.info(say("evidence.gone"))
        draw([node("blockquote", say("turn.quoted", text=citation.quote), style="quote")], key="evidence_quote")
        return
    method = say("evidence.text")
    if citation.method is ReadMethod.OCR:
        method = say("evidence.ocr", percent=round(100 * citation.confidence))
    place = say("evidence.place", key=citation.key, page=citation.page, pages=document.num_pages)
    with st.container(gap=None):
        st.markdown(f"**{escape(citation.document)}**")
        st.caption(f"{place} · {method}")
    try:
        span = place_of(citation, services.store.get_pages(document.id))
        image = services.library.render_page(document.id, citation.page, [span] if span else [])
    except FAILURES as error:
        st.warning(say("evidence.no_image", reason=escape(str(error))))
        draw([node("blockquote", say("turn.quoted", text=citation.quote), style="quote")], key="evidence_quote")
        return
    if span is None:
        st.warning(say("evidence.moved"))
        draw([node("blockquote", say("turn.quoted", text=citation.quote), style="quote")], key="evidence_quote")
    alt = say("evidence.alt", page=citation.page, document=citation.document)
    st.image(image, width="stretch", alt=alt)
