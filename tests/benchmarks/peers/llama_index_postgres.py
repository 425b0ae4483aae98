"""llama-index-vector-stores-postgres: its own hybrid mode, and the fusion its manual shows.

The store's mode appends what only the words found to what the vectors found, in no
common order; its manual therefore has a QueryFusionRetriever over both legs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeRelationship, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.vector_stores.postgres import PGVectorStore
from sqlalchemy import text as sql_text

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

OWN_MODE = "the store's mode"
FUSION = "relative score 0.7/0.3"


class LlamaIndexPostgres(Store):
    hybrids: ClassVar = {OWN_MODE: True, FUSION: True}

    def create(self) -> None:
        self._connect(None)
        # The first use makes the table.
        self.store.query(VectorStoreQuery(query_embedding=[1.0] * DIMENSIONS))

    def _connect(self, hnsw: dict[str, Any] | None) -> None:
        self.store = PGVectorStore(
            connection_string=self.server.url("postgresql+psycopg2"),
            async_connection_string=self.server.url("postgresql+asyncpg"),
            table_name="peer_llama",
            embed_dim=DIMENSIONS,
            hybrid_search=True,
            text_search_config="english",
            initialization_fail_on_error=True,
            use_jsonb=True,
            hnsw_kwargs=hnsw,
        )
        # Both stand in for services: every vector is given, and no query is rewritten.
        index = VectorStoreIndex.from_vector_store(
            self.store, embed_model=MockEmbedding(embed_dim=DIMENSIONS)
        )
        self.fusion = QueryFusionRetriever(
            [
                index.as_retriever(vector_store_query_mode=mode, similarity_top_k=POOL)
                for mode in ("default", "sparse")
            ],
            llm=MockLLM(),
            mode="relative_score",
            retriever_weights=list(WEIGHTS),
            similarity_top_k=POOL,
            num_queries=1,
            use_async=False,
        )

    def prepare(self, batch: Batch) -> Any:
        rows = zip(batch.ids, batch.contents(), batch.vectors.tolist(), strict=True)
        return [
            TextNode(
                id_=key,
                text=text,
                embedding=vector,
                relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=key)},
            )
            for key, text, vector in rows
        ]

    def load(self, records: Any) -> None:
        self.store.add(records)

    def build_index(self) -> None:
        self._connect(
            {
                "hnsw_m": HNSW_M,
                "hnsw_ef_construction": HNSW_EF_CONSTRUCTION,
                "hnsw_ef_search": EF_SEARCH,
                "hnsw_dist_method": "vector_cosine_ops",
            }
        )
        # The first use builds it.
        self.vector([1.0] * DIMENSIONS, 1)

    def vector(self, query: Any, k: int) -> list[str]:
        found = self.store.query(VectorStoreQuery(query_embedding=query, similarity_top_k=k))
        return list(found.ids or [])

    def hybrid(self, name: str, text: str, query: Any, k: int) -> list[str]:
        if name == FUSION:
            bundle = QueryBundle(query_str=text, embedding=query)
            return [hit.node.node_id for hit in self.fusion.retrieve(bundle)[:k]]
        found = self.store.query(
            VectorStoreQuery(
                query_embedding=query,
                query_str=text,
                similarity_top_k=k,
                sparse_top_k=k,
                mode=VectorStoreQueryMode.HYBRID,
            )
        )
        return list(found.ids or [])[:k]

    def drop(self) -> None:
        # Its own clear() would keep the index for the next load.
        with self.store.client.begin() as connection:
            connection.execute(sql_text("DROP TABLE data_peer_llama"))
        self.store.client.dispose()


STORE = LlamaIndexPostgres
