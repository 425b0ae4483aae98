"""langchain-postgres: PGVectorStore, with its tsvector column and weighted_sum_ranking."""

from __future__ import annotations

from typing import Any, ClassVar

from langchain_core.embeddings import Embeddings
from langchain_postgres import Column, PGEngine, PGVectorStore
from langchain_postgres.v2.hybrid_search_config import HybridSearchConfig, weighted_sum_ranking
from langchain_postgres.v2.indexes import HNSWIndex, HNSWQueryOptions

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

TABLE = "peer_langchain"
HYBRID = "weighted sum 0.7/0.3"


class NoEmbeddings(Embeddings):  # type: ignore[misc]  # not installed in development
    """The store insists on one; every vector is given, so nothing is ever embedded."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise NotImplementedError

    def embed_query(self, text: str) -> list[float]:
        raise NotImplementedError


def _hybrid_config(text: str = "") -> HybridSearchConfig:
    return HybridSearchConfig(
        tsv_column="content_tsv",
        fts_query=text,
        fusion_function=weighted_sum_ranking,
        fusion_function_parameters={
            "primary_results_weight": WEIGHTS[0],
            "secondary_results_weight": WEIGHTS[1],
        },
        primary_top_k=POOL,
        secondary_top_k=POOL,
    )


class LangchainPostgres(Store):
    hybrids: ClassVar = {HYBRID: False}

    def create(self) -> None:
        self.engine = PGEngine.from_connection_string(self.server.url("postgresql+asyncpg"))
        self.engine.init_vectorstore_table(
            TABLE,
            DIMENSIONS,
            id_column=Column("langchain_id", "TEXT", nullable=False),
            overwrite_existing=True,
            hybrid_search_config=_hybrid_config(),
        )
        # The one without words in its configuration makes no search by words.
        self.writer = self._store(_hybrid_config())
        self.searcher = self._store(None)

    def _store(self, hybrid: HybridSearchConfig | None) -> Any:
        return PGVectorStore.create_sync(
            self.engine,
            NoEmbeddings(),
            TABLE,
            index_query_options=HNSWQueryOptions(ef_search=EF_SEARCH),
            hybrid_search_config=hybrid,
        )

    def prepare(self, batch: Batch) -> Any:
        return batch.contents(), batch.vectors.tolist(), list(batch.ids)

    def load(self, records: Any) -> None:
        texts, vectors, ids = records
        self.writer.add_embeddings(texts, vectors, ids=ids)

    def build_index(self) -> None:
        self.writer.apply_hybrid_search_index()
        self.writer.apply_vector_index(HNSWIndex(m=HNSW_M, ef_construction=HNSW_EF_CONSTRUCTION))

    def vector(self, query: Any, k: int) -> list[str]:
        return [d.id for d in self.searcher.similarity_search_by_vector(query, k=k)]

    def hybrid(self, name: str, text: str, query: Any, k: int) -> list[str]:
        # A configuration keeps the first text it has seen: each query needs its own.
        found = self.searcher.similarity_search_by_vector(
            query, k=k, hybrid_search_config=_hybrid_config(text)
        )
        return [document.id for document in found]

    def drop(self) -> None:
        self.engine.drop_table(TABLE)


STORE = LangchainPostgres
