"""One turn as nodes: the same for an answer that streams and for one from the store. Decides nothing about either.

What failed a check is not drawn: of a withheld claim only the reason is, until somebody permitted gave a reason to see
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import groupby

from app.events import Step, Turn, TurnStatus
from app.ui.element import Node, node
from app.ui.kept import SHOWN, describe, shown_once
from app.ui.source import source_words
from app.ui.text import count, say
from contracts import Citation, Claim, ClaimKind, Coverage, Finding, ReadMethod, Verdict

_STEPS = (Step.CHECKING, Step.SEARCHING, Step.READING, Step.WRITING)


class Reveal(Enum):
    """Whether the words of withheld claims can be looked at."""

    NO = "no"
    ON_REQUEST = "on request"  # a button asks for a reason first
    SHOWN = "shown"  # a reason was given and audited


def turn_node(turn: Turn, active: int | None = None, reveal: Reveal = Reveal.NO) -> Node:
    """The turn. A chip sends {"turn": id, "at": n}, n counting `citations_of(turn)`; active is the n whose
    page is open. The button to reveal what was withheld sends {"reveal": id}."""
    is_running = turn.status is TurnStatus.RUNNING
    answer = [*_claims(turn, active, Reveal.NO if is_running else reveal), *_ending(turn)]
    return node(
        "section",
        node("p", turn.question, style="question"),
        *[_input_notice(finding) for finding in turn.input_findings if finding.severity is Verdict.NOTICE],
        *_kept_notices(turn),
        *_model_notice(turn),
        *([_steps(turn)] if is_running else []),
        node("div", *answer, style="claims", role="log", aria_live="polite"),
        *([] if is_running else [_foot(turn)]),
        style="turn",
    )


def citations_of(turn: Turn) -> list[Citation]:
    """The turn's citations in the order of their chips."""
    return [citation for claim in turn.claims if _is_shown(claim) for citation in claim.citations]


def _is_shown(claim: Claim) -> bool:
    return claim.kind is not ClaimKind.WITHHELD


# --- notices and steps ------------------------------------------------------------------------------------------


def _notice(style: str, title: str, words: str, source: str = "") -> Node:
    lines: list[Node | str] = [node("strong", title, style="title"), words]
    if source:
        lines.append(node("span", source, style="source"))
    return node("div", *lines, style=f"notice {style}", role="alert" if style == "danger" else "note")


def _input_notice(finding: Finding) -> Node:
    if finding.is_emergency:
        return _notice("danger", say("turn.emergency"), finding.message, source_words(finding))
    if finding.is_doubted:
        return _notice("plain", say("turn.doubted"), finding.message, source_words(finding))
    return _notice("warning", say("turn.notice"), finding.message, source_words(finding))


def _kept_notices(turn: Turn) -> list[Node]:
    found = sorted(shown_once(turn.document_findings), key=lambda finding: finding.is_by_guard)  # rules are surer
    notices = [_notice("warning", say("turn.kept"), describe(finding)) for finding in found]
    if len(notices) <= SHOWN:
        return notices
    summary = node("summary", count("documents.kept.more", len(notices) - SHOWN))
    return [*notices[:SHOWN], node("details", summary, *notices[SHOWN:], style="withheld")]


def _model_notice(turn: Turn) -> list[Node]:
    """One notice, of the worst alarm: it names all layers that share it."""
    worst = max(turn.model_findings, key=lambda finding: finding.severity.rank, default=None)
    return [_notice("danger", say("turn.model"), worst.message)] if worst else []


def _steps(turn: Turn) -> Node:
    is_in_line = turn.step is Step.QUEUED and bool(turn.step_detail)
    now = _STEPS.index(Step.READING) if is_in_line else _STEPS.index(turn.step) if turn.step in _STEPS else 0
    items = [_step(turn, step, place - now) for place, step in enumerate(_STEPS)]
    return node("ol", *items, style="steps")


def _step(turn: Turn, step: Step, ahead: int) -> Node:
    """ahead: how many steps away from the one that runs; negative for those behind it."""
    if ahead:
        return node("li", say(f"step.{step.value}"), style="over" if ahead < 0 else "")
    children: list[Node | str] = [_step_label(turn)]
    if step is Step.READING and turn.step_total:
        label = say("step.progress", percent=100 * turn.step_done // turn.step_total)
        bar = node("progress", value=str(turn.step_done), max=str(turn.step_total), aria_label=label)
        children.append(bar)
    return node("li", *children, style="now", aria_current="step")


def _step_label(turn: Turn) -> str:
    if turn.step is Step.QUEUED and turn.step_detail:
        return say("step.waiting", place=turn.step_detail)
    if turn.step is Step.READING and turn.step_detail:
        return say("step.reading.detail", detail=turn.step_detail)
    if turn.step is Step.WRITING and turn.step_done:
        return count("step.claims", turn.step_done)
    return say(f"step.{turn.step.value}") if turn.step in _STEPS else say("step.checking")


# --- claims -----------------------------------------------------------------------------------------------------


def _claims(turn: Turn, active: int | None, reveal: Reveal) -> list[Node]:
    nodes: list[Node] = []
    first = 0
    for shown, group in groupby(turn.claims, _is_shown):
        claims = list(group)
        if not shown:
            nodes.append(_withheld(claims, turn.id, reveal))
            continue
        for claim in claims:
            nodes.append(_claim(claim, turn.id, first, active))
            first += len(claim.citations)
    return nodes


def _claim(claim: Claim, turn_id: str, first: int, active: int | None) -> Node:
    chips = [
        _chip(citation, {"turn": turn_id, "at": at}, is_active=at == active)
        for at, citation in enumerate(claim.citations, first)
    ]
    if claim.kind is ClaimKind.CONFLICT:
        return _conflict(claim, chips)
    if claim.kind is ClaimKind.QUOTE:
        label = node("span", say("turn.quote"), style="label")
        return node("blockquote", label, say("turn.quoted", text=claim.text), *chips, style="quote")
    return node("p", claim.text, *chips, style=f"claim {claim.kind.value}")


def _conflict(claim: Claim, chips: Sequence[Node]) -> Node:
    """Both sides in the record's words, each with its chip."""
    sides = [
        node("li", say("turn.quoted", text=citation.quote), chip)
        for citation, chip in zip(claim.citations, chips, strict=True)
    ]
    title = node("strong", say("turn.conflict"), style="title")
    return node("div", title, claim.text, node("ul", *sides), style="notice warning conflict", role="note")


def _chip(citation: Citation, press: Mapping[str, object], is_active: bool) -> Node:
    place = {"key": citation.key, "document": citation.document, "page": citation.page}
    is_ocr = citation.method is ReadMethod.OCR
    label = (
        say("turn.cite.ocr", percent=round(100 * citation.confidence), **place) if is_ocr else say("turn.cite", **place)
    )
    styles = ["chip", *(["ocr"] if is_ocr else []), *(["active"] if is_active else [])]
    return node(
        "button", str(citation.key), style=" ".join(styles), press=press, type="button", title=label, aria_label=label
    )


def _withheld(claims: Sequence[Claim], turn_id: str, reveal: Reveal) -> Node:
    reasons = list(dict.fromkeys(_reason(claim) for claim in claims))
    key = "turn.withheld.one" if len(claims) == 1 else "turn.withheld.many"
    title = say(key, n=len(claims), reason=reasons[0])
    if reveal is Reveal.SHOWN:
        words = [node("li", say("turn.revealed", text=claim.text)) for claim in claims]
        return node("div", node("p", title), node("ul", *words, style="revealed"), style="withheld")
    summary = node("summary", title)
    lines = node("ul", *[node("li", reason) for reason in reasons])
    button = None
    if reveal is Reveal.ON_REQUEST:
        button = node("button", say("turn.reveal"), style="copy", press={"reveal": turn_id}, type="button")
    return node("details", summary, lines, button, style="withheld")


def _reason(claim: Claim) -> str:
    worst = max(claim.findings, key=lambda finding: finding.severity.rank, default=None)
    return worst.message if worst else say("turn.withheld.unsupported")


# --- how it ended -----------------------------------------------------------------------------------------------


def _ending(turn: Turn) -> list[Node]:
    match turn.status:
        case TurnStatus.HELD:
            return [_notice("warning", say("turn.held"), turn.error)]
        case TurnStatus.FAILED:
            return [_notice("danger", say("turn.failed"), turn.error)]
        case TurnStatus.STOPPED:
            return [node("p", say("turn.stopped"), style="notice plain")]
        case TurnStatus.OUT_OF_TIME:
            return [node("p", say("turn.out_of_time"), style="notice plain")]
        case TurnStatus.INTERRUPTED:
            return [node("p", say("turn.interrupted"), style="notice plain")]
        case TurnStatus.DONE if not any(_is_shown(claim) for claim in turn.claims):
            return [node("p", say("turn.nothing"), style="claim abstention")]
    return []


def _foot(turn: Turn) -> Node:
    lines: list[Node | None] = [_coverage(turn.coverage, turn.document_ids is not None) if turn.coverage else None]
    facts = [turn.model_name] if turn.model_name else []
    if turn.usage.first_claim_s:
        facts.append(say("turn.time", seconds=f"{turn.usage.first_claim_s:.1f}"))
    words = copy_text(turn)
    copy = {"copy": words, "done": say("ask.copied")}
    button = node("button", say("ask.copy"), style="copy", press=copy, type="button") if words else None
    lines.append(node("p", " · ".join(facts), *([" · "] if facts and button else []), button, style="meta"))
    return node("div", *lines, style="foot")


def _name_wanted(wanted: Sequence[str]) -> str:
    """Kinds of sections, or the question's own words."""
    return ", ".join(name.replace("_", " ") for name in wanted)


def _coverage(coverage: Coverage, is_chosen: bool) -> Node:
    parts = [
        say(
            "turn.coverage",
            read=coverage.pages_read,
            pages=count("count.page", coverage.pages),
            documents=count("count.document", coverage.documents),
        )
    ]
    if coverage.unreadable:
        parts.append(count("turn.coverage.unreadable", coverage.unreadable))
    if coverage.ocr:
        parts.append(count("turn.coverage.ocr", coverage.ocr))
    if coverage.not_ready:
        parts.append(say("turn.coverage.not_ready", names=", ".join(coverage.not_ready)))
    if coverage.wanted_whole:
        parts.append(say("turn.coverage.wanted", what=_name_wanted(coverage.wanted_whole)))
    if coverage.wanted_cut:
        parts.append(say("turn.coverage.cut", what=_name_wanted(coverage.wanted_cut)))
    if coverage.since or coverage.until:
        parts.append(say("turn.coverage.period", since=coverage.since or "…", until=coverage.until or "…"))
    is_whole = coverage.is_everything and not is_chosen
    chosen_or_part = "turn.coverage.chosen" if coverage.is_everything else "turn.coverage.part"
    parts.append(say("turn.coverage.whole" if is_whole else chosen_or_part))
    return node("p", " · ".join(parts), style="coverage" if is_whole else "coverage partial")


def copy_text(turn: Turn) -> str:
    """The answer as plain text, one sentence a line, with its sources underneath."""
    shown = [claim for claim in turn.claims if _is_shown(claim)]
    lines = [claim.text + "".join(f" [{c.key}]" for c in claim.citations) for claim in shown]
    sources = {c.key: f"[{c.key}] {c.document}, page {c.page}" for c in citations_of(turn)}
    return "\n".join([*lines, "", *[sources[key] for key in sorted(sources)]]).strip()
