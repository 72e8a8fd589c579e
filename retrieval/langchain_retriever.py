"""The retriever as LangChain sees it, for chains and agents of others."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from contracts import Retriever


class PassageRetriever(BaseRetriever):
    """A `contracts.Retriever` bound to one patient; metadata says where each passage stands."""

    retriever: Any  # a contracts.Retriever; pydantic cannot check a Protocol
    patient_id: str
    document_ids: tuple[str, ...] | None = None
    limit: int = 10

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        retriever: Retriever = self.retriever
        found = retriever.search(query, self.patient_id, self.document_ids, self.limit)
        return [
            Document(
                id=item.passage.id,
                page_content=item.passage.text,
                metadata={
                    "document": item.passage.document_name,
                    "page": item.passage.page,
                    "start": item.passage.start,
                    "end": item.passage.end,
                    "score": item.score,
                },
            )
            for item in found
        ]
