"""pgvector-haystack: its two retrievers, joined by reciprocal rank fusion."""

from __future__ import annotations

from typing import Any, ClassVar

from haystack import Document
from haystack.components.joiners import DocumentJoiner
from haystack.document_stores.types import DuplicatePolicy
from haystack.utils import Secret
from haystack_integrations.components.retrievers.pgvector import (
    PgvectorEmbeddingRetriever,
    PgvectorKeywordRetriever,
)
from haystack_integrations.document_stores.pgvector import PgvectorDocumentStore

from .store import (
    DIMENSIONS,
    EF_SEARCH,
    HNSW_EF_CONSTRUCTION,
    HNSW_M,
    POOL,
    WEIGHTS,
    Batch,
    Store,
)

HYBRID = "RRF 0.7/0.3"


class PgvectorHaystack(Store):
    hybrids: ClassVar = {HYBRID: False}

    def create(self) -> None:
        self._connect(recreate_table=True)

    def _connect(self, **options: Any) -> None:
        self.store = PgvectorDocumentStore(
            connection_string=Secret.from_token(self.server.url("postgresql")),
            table_name="peer_haystack",
            embedding_dimension=DIMENSIONS,
            **options,
        )
        self.by_vector = PgvectorEmbeddingRetriever(document_store=self.store)
        self.by_words = PgvectorKeywordRetriever(document_store=self.store)
        self.join = DocumentJoiner(
            join_mode="reciprocal_rank_fusion", weights=list(WEIGHTS), sort_by_score=True
        )

    def prepare(self, batch: Batch) -> Any:
        rows = zip(batch.ids, batch.contents(), batch.vectors.tolist(), strict=True)
        return [Document(id=key, content=text, embedding=vector) for key, text, vector in rows]

    def load(self, records: Any) -> None:
        self.store.write_documents(records, policy=DuplicatePolicy.OVERWRITE)

    def build_index(self) -> None:
        self.store.close()
        self._connect(
            search_strategy="hnsw",
            hnsw_index_creation_kwargs={"m": HNSW_M, "ef_construction": HNSW_EF_CONSTRUCTION},
            hnsw_ef_search=EF_SEARCH,
        )
        # The first use builds it.
        self.store.count_documents()

    def vector(self, query: Any, k: int) -> list[str]:
        found = self.by_vector.run(query_embedding=query, top_k=k)
        return [document.id for document in found["documents"]]

    def hybrid(self, name: str, text: str, query: Any, k: int) -> list[str]:
        legs = [
            self.by_vector.run(query_embedding=query, top_k=POOL)["documents"],
            self.by_words.run(query=text, top_k=POOL)["documents"],
        ]
        return [document.id for document in self.join.run(legs, top_k=k)["documents"]]

    def drop(self) -> None:
        self.store.delete_table()
        self.store.close()


STORE = PgvectorHaystack
