"""Documents: add files to a patient's record, follow how they are read, look at them, delete them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import streamlit as st
from streamlit.typing import UploadedFile

from app.services import Services
from app.store.records import PatientRecord
from app.ui.banner import display_name
from app.ui.dialog import dialog
from app.ui.failures import FAILURES, draw_failure
from app.ui.poll import poll
from app.ui.preparing import draw_preparing
from app.ui.screens import enter
from app.ui.sidebar import draw_patients
from app.ui.text import count, escape, say
from contracts import Document, DocumentStatus, Page, ReadMethod

_POLL_S = 0.5
_ROUND, _NOTICES = "upload_round", "upload_notices"
_BUSY = (DocumentStatus.QUEUED, DocumentStatus.READING, DocumentStatus.INDEXING)
_COLOURS: Mapping[DocumentStatus, Literal["green", "red"]] = {
    DocumentStatus.READY: "green",
    DocumentStatus.FAILED: "red",
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
        _draw_document(services, document)


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
        st.session_state[_NOTICES] = [notice for file in files if (notice := _add(services, record, file))]
        st.session_state[_ROUND] = upload_round + 1
        st.rerun()
    for is_error, words in st.session_state.pop(_NOTICES, []):
        (st.error if is_error else st.info)(escape(words))


def _add(services: Services, record: PatientRecord, file: UploadedFile) -> tuple[bool, str] | None:
    """Stores one file and queues its reading; gives (is an error, the sentence to show) if it does not come to that."""
    try:
        document = services.library.add(record.id, file.name, file.getvalue())
    except FAILURES as error:
        return True, say("documents.not_added", name=file.name, reason=str(error))
    if document.status is DocumentStatus.READY:
        return False, say("documents.already", name=file.name)
    services.jobs.ingest(document.id)
    return None


# --- the list ---------------------------------------------------------------------------------------------------


def _draw_document(services: Services, document: Document) -> None:
    with st.container(border=True, gap="xsmall", key=f"document_{document.id}"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"**{escape(document.name)}**", width="stretch")
            _draw_badge(document)
        if document.status in _BUSY:
            st.caption(_describe(document))
            poll(lambda: _draw_progress(services, document.id), _POLL_S)
            return
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption(_describe(document), width="stretch")
            _draw_buttons(services, document)
        if document.error:
            st.error(escape(document.error))
        _draw_findings(services, document)


def _draw_badge(document: Document) -> None:
    """The status; a document of which nothing could be read is not called ready."""
    if document.status is DocumentStatus.READY and document.num_pages_empty == document.num_pages:
        st.badge(say("documents.status.unreadable"), color="orange")
        return
    st.badge(say(f"documents.status.{document.status.value}"), color=_COLOURS.get(document.status, "gray"))


def _draw_buttons(services: Services, document: Document) -> None:
    is_ready = document.status is DocumentStatus.READY
    if is_ready and st.button(say("documents.preview"), icon=":material/visibility:", key=f"preview_{document.id}"):
        _preview(services, document)
    if st.button(say("documents.delete"), icon=":material/delete:", type="tertiary", key=f"delete_{document.id}"):
        _delete(services, document)


def _describe(document: Document) -> str:
    num_text = document.num_pages - document.num_pages_ocr - document.num_pages_empty
    facts = []
    if document.num_pages:
        facts.append(count("count.page", document.num_pages))
        counts = {"text": num_text, "ocr": document.num_pages_ocr, "empty": document.num_pages_empty}
        facts += [count(f"documents.pages.{name}", n) for name, n in counts.items() if n]
    facts += [_format_size(document.size_bytes), document.added_at[:16].replace("T", " ")]
    return " · ".join(escape(fact) for fact in facts)


def _format_size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{max(size_bytes / 1e3, 0.1):.1f} kB"


def _draw_progress(services: Services, document_id: str) -> bool:
    """Draws how far the document has come; whether it has come to an end."""
    progress = services.jobs.ingest_progress(document_id)
    document = services.store.get_document(document_id)
    if progress is None and (document is None or document.status not in _BUSY):
        return True
    step, done, total = (progress.step, progress.done, progress.total) if progress else ("waiting", 0, 0)
    words = say(f"documents.progress.{step}", done=done, total=total)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(done / total if total else 0.0, text=words)
        if st.button(say("documents.cancel"), key=f"cancel_{document_id}", type="tertiary"):
            services.jobs.cancel_ingest(document_id)
    return False


def _draw_findings(services: Services, document: Document) -> None:
    for page, findings in services.store.get_document_findings(document.id).items():
        for finding in findings:
            words = say("documents.injection", quote=f"«{finding.evidence}»")
            st.warning(escape(words), title=escape(say("documents.page_of", page=page, pages=document.num_pages)))


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
                services.library.delete(document.id)
            except FAILURES as error:
                draw_failure(error)
                return
            st.rerun()
        if st.button(say("action.cancel"), key="document_delete_cancel"):
            st.rerun()


main()
