"""Documents: add files to a record, follow how they are read, say whose they are, look at them, delete them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import streamlit as st
from streamlit.typing import UploadedFile

from app.certificate import erase
from app.jobs import IngestProgress
from app.services import Services
from app.store.records import PatientRecord
from app.ui import session
from app.ui.banner import display_name
from app.ui.dialog import dialog
from app.ui.erased import draw_notice, in_short
from app.ui.failures import FAILURES, draw_failure
from app.ui.kept import SHOWN, describe, shown_once
from app.ui.load_words import describe_left
from app.ui.poll import poll
from app.ui.preparing import draw_preparing
from app.ui.screens import enter
from app.ui.sidebar import draw_patients
from app.ui.text import count, escape, format_size, say
from contracts import Document, DocumentStatus, Finding, Page, ReadMethod

_POLL_S = 0.5
_ROUND, _NOTICES = "upload_round", "upload_notices"
_COLOURS: Mapping[DocumentStatus, Literal["green", "red", "orange", "blue"]] = {
    DocumentStatus.READY: "green",
    DocumentStatus.FAILED: "red",
    DocumentStatus.UNCONFIRMED: "orange",
    DocumentStatus.RECOGNISING: "blue",
}


def main() -> None:
    services = enter()
    record = draw_patients(services)
    draw_preparing(services)
    if record is None:
        st.title(say("patient.none"), anchor=False)
        st.write(say("patient.none.hint"))
        return
    st.title(say("documents.title", name=escape(display_name(record.patient))), anchor=False)
    _draw_upload(services, record)
    documents = services.store.list_documents(record.id)
    if not documents:
        st.subheader(say("documents.none"), anchor=False)
        st.write(say("documents.none.hint"))
    for document in documents:
        if document.status is not DocumentStatus.REPLACED or _is_alone(document, documents):
            earlier = [other for other in documents if _is_earlier(other, document)]
            _draw_document(services, record, document, earlier)


def _is_earlier(other: Document, document: Document) -> bool:
    return other.name == document.name and other.id != document.id and other.status is DocumentStatus.REPLACED


def _is_alone(document: Document, documents: list[Document]) -> bool:
    """Whether what replaced it is gone: it must not become invisible then."""
    return all(other.status is DocumentStatus.REPLACED for other in documents if other.name == document.name)


# --- adding -----------------------------------------------------------------------------------------------------


def _draw_upload(services: Services, record: PatientRecord) -> None:
    upload_round = st.session_state.setdefault(_ROUND, 0)
    files = st.file_uploader(
        say("documents.upload"),
        accept_multiple_files=True,
        key=f"upload_{record.id}_{upload_round}",
    )
    st.caption(say("documents.upload.help", limit=services.settings.max_upload_mb))
    if files:
        # Stored at once, and a new widget next: Streamlit keeps an upload in memory as long as its widget lives.
        st.session_state[_NOTICES] = record.id, [notice for file in files for notice in _add(services, record, file)]
        st.session_state[_ROUND] = upload_round + 1
        st.rerun()
    # They stay until the next upload or deletion: reading draws the screen anew, and a refusal must not go with that.
    patient_id, notices = st.session_state.get(_NOTICES, ("", []))
    for notice in notices if patient_id == record.id else []:
        draw_notice(notice)


def _add(services: Services, record: PatientRecord, file: UploadedFile) -> list[tuple[str, str]]:
    """Stores one file, or those inside it, and queues their reading; (kind, sentence) of each that this fails for."""
    try:
        added = services.library.add_all(record.id, file.name, file.getvalue())
    except FAILURES as error:
        return [("error", say("documents.not_added", name=file.name, reason=str(error)))]
    notices: list[tuple[str, str]] = []
    for item in added:
        if not isinstance(item, Document):
            name, reason = item
            notices.append(("error", say("documents.not_added", name=name, reason=str(reason))))
        elif item.status is DocumentStatus.READY:
            notices.append(("info", say("documents.already", name=item.name)))
        else:
            services.jobs.ingest(item.id)
    return notices


# --- the list ---------------------------------------------------------------------------------------------------


def _draw_document(services: Services, record: PatientRecord, document: Document, earlier: Sequence[Document]) -> None:
    with st.container(border=True, gap="xsmall", key=f"document_{document.id}"):
        if document.status.is_unfinished:
            poll(lambda: _draw_progress(services, document.id), _POLL_S)
            return
        _draw_head(document)
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption(_describe(document), width="stretch")
            _draw_buttons(services, document)
        if document.status is DocumentStatus.UNCONFIRMED:
            _draw_question(services, record, document)
        elif document.error:
            st.error(escape(document.error))
        for warning in document.warnings:
            st.warning(escape(warning))
        _draw_findings(services, document)
        _draw_earlier(services, document, earlier)


def _draw_question(services: Services, record: PatientRecord, document: Document) -> None:
    """Whether a file that names another patient belongs here all the same; nothing of it is searched until then."""
    st.warning(escape(say("documents.unconfirmed", difference=document.error)))
    label = say("documents.confirm", name=escape(display_name(record.patient)))
    if st.button(label, key=f"confirm_{document.id}", icon=":material/how_to_reg:"):
        services.library.confirm(document.id)
        services.jobs.ingest(document.id)
        st.rerun()


def _draw_earlier(services: Services, document: Document, earlier: Sequence[Document]) -> None:
    if not earlier:
        return
    latest = earlier[-1]
    if document.status is DocumentStatus.READY:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption(say("documents.replaced", date=escape(_when(latest))), width="stretch")
            if st.button(say("documents.restore"), key=f"undo_{latest.id}", icon=":material/undo:", type="tertiary"):
                _restore(services, latest)
    with st.expander(count("documents.earlier", len(earlier))):
        for version in reversed(earlier):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.caption(_describe(version), width="stretch")
                if st.button(say("documents.restore.this"), key=f"restore_{version.id}", type="tertiary"):
                    _restore(services, version)
                if st.button(say("documents.preview"), key=f"preview_{version.id}", type="tertiary"):
                    _preview(services, version)
                if st.button(say("documents.delete"), key=f"delete_{version.id}", type="tertiary"):
                    _delete(services, version)


def _restore(services: Services, document: Document) -> None:
    services.library.restore(document.id)
    services.jobs.ingest(document.id)
    st.rerun()


def _draw_head(document: Document) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{escape(document.name)}**", width="stretch")
        _draw_badge(document)


def _draw_badge(document: Document) -> None:
    """The status; a document of which nothing could be read is not called ready."""
    if document.status is DocumentStatus.READY and document.num_pages_empty == document.num_pages:
        st.badge(say("documents.status.unreadable"), color="orange")
        return
    st.badge(say(f"documents.status.{document.status.value}"), color=_COLOURS.get(document.status, "gray"))


def _draw_buttons(services: Services, document: Document) -> None:
    if document.status is DocumentStatus.FAILED and st.button(
        say("documents.retry"), icon=":material/refresh:", key=f"retry_{document.id}"
    ):
        services.jobs.ingest(document.id)
        st.rerun()
    if document.num_pages and st.button(
        say("documents.preview"), icon=":material/visibility:", key=f"preview_{document.id}"
    ):
        _preview(services, document)
    if st.button(say("documents.delete"), icon=":material/delete:", type="tertiary", key=f"delete_{document.id}"):
        _delete(services, document)


def _describe(document: Document) -> str:
    others = (document.num_pages_ocr, document.num_pages_empty, document.num_pages_pending)
    num_text = document.num_pages - sum(others)
    facts = []
    if document.num_pages:
        facts.append(count("count.page", document.num_pages))
        counts = dict(zip(("text", "ocr", "empty", "pending"), (num_text, *others), strict=True))
        facts += [count(f"documents.pages.{name}", n) for name, n in counts.items() if n]
    facts += [format_size(document.size_bytes), _when(document)]
    return " · ".join(escape(fact) for fact in facts)


def _when(document: Document) -> str:
    return document.added_at[:16].replace("T", " ")


def _draw_progress(services: Services, document_id: str) -> bool:
    """Draws how far the document has come; whether it has come to an end."""
    progress = services.jobs.ingest_progress(document_id)
    document = services.store.get_document(document_id)
    if document is None or (progress is None and not document.status.is_unfinished):
        return True
    _draw_head(document)
    st.caption(_describe(document))
    progress = progress or IngestProgress("waiting")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(_share(progress), text=escape(_in_words(progress)))
        if st.button(say("documents.cancel"), key=f"cancel_{document_id}", type="tertiary"):
            services.jobs.cancel_ingest(document_id)
    return False


def _share(progress: IngestProgress) -> float:
    if progress.step == "waiting" or not progress.total:
        return 0.0
    return min(progress.done / progress.total, 1.0)


def _in_words(progress: IngestProgress) -> str:
    if progress.step == "waiting":
        behind = progress.done
        return count("documents.progress.waiting.behind", behind) if behind else say("documents.progress.waiting")
    words = say(f"documents.progress.{progress.step}", done=progress.done, total=progress.total)
    if progress.seconds_left is None or progress.done >= progress.total:
        return words
    return f"{words} · {describe_left(progress.seconds_left)}"


def _draw_findings(services: Services, document: Document) -> None:
    by_page = services.store.get_document_findings(document.id)
    found = [(page, finding) for page, findings in by_page.items() for finding in shown_once(findings)]
    found.sort(key=lambda entry: entry[1].is_by_guard)  # rules are surer
    for page, finding in found[:SHOWN]:
        _draw_finding(document, page, finding)
    if more := found[SHOWN:]:
        with st.expander(count("documents.kept.more", len(more))):
            for page, finding in more:
                _draw_finding(document, page, finding)


def _draw_finding(document: Document, page: int, finding: Finding) -> None:
    title = "documents.kept" if finding.severity.withholds and finding.evidence else "documents.page_of"
    st.warning(escape(describe(finding)), title=escape(say(title, page=page, pages=document.num_pages)))


# --- dialogs ----------------------------------------------------------------------------------------------------


@dialog(say("documents.preview"), width="large")
def _preview(services: Services, document: Document) -> None:
    pages = services.store.get_pages(document.id)
    st.markdown(f"**{escape(document.name)}**")
    number = st.pagination(len(pages), key=f"preview_page_{document.id}") if len(pages) > 1 else 1
    page = pages[number - 1]
    st.caption(f"{say('documents.page_of', page=number, pages=len(pages))} · {_describe_page(page)}")
    try:
        image = services.library.render_page(document.id, number, [])
    except FAILURES as error:
        st.warning(say("evidence.no_image", reason=escape(str(error))))
    else:
        st.image(image, width="stretch", alt=say("documents.page.alt", page=number, document=document.name))
    if page.text.strip():
        with st.expander(say("documents.page.text")):
            st.text(page.text)


def _describe_page(page: Page) -> str:
    if page.method is ReadMethod.OCR:
        return say("documents.read.ocr", percent=round(100 * page.confidence))
    return say(f"documents.read.{page.method.value}")


@dialog(say("documents.delete.title"))
def _delete(services: Services, document: Document) -> None:
    st.write(say("documents.delete.confirm", name=escape(document.name)))
    with st.container(horizontal=True):
        if st.button(say("action.delete"), type="primary", key="document_delete_confirm"):
            try:
                certificate = erase(services, [document.id], actor=session.get_actor(services).name)
                st.session_state[_NOTICES] = document.patient_id, [in_short(certificate)]
            except FAILURES as error:
                draw_failure(error)
                return
            st.rerun()
        if st.button(say("action.cancel"), key="document_delete_cancel"):
            st.rerun()


main()
