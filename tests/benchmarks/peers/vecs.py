"""vecs: vectors and metadata, no search by words. Its call returns ids, no text."""

from __future__ import annotations

from typing import Any

from vecs import IndexArgsHNSW, IndexMeasure, IndexMethod, create_client

from .store import DIMENSIONS, EF_SEARCH, HNSW_EF_CONSTRUCTION, HNSW_M, Batch, Store

NAME = "peer_vecs"


class Vecs(Store):
    def create(self) -> None:
        self.client = create_client(self.server.url("postgresql"))
        self.client.delete_collection(NAME)
        self.collection = self.client.get_or_create_collection(NAME, dimension=DIMENSIONS)

    def prepare(self, batch: Batch) -> Any:
        rows = zip(batch.ids, batch.vectors.tolist(), batch.contents(), strict=True)
        return [(key, vector, {"text": text}) for key, vector, text in rows]

    def load(self, records: Any) -> None:
        self.collection.upsert(records)

    def build_index(self) -> None:
        self.collection.create_index(
            method=IndexMethod.hnsw,
            measure=IndexMeasure.cosine_distance,
            index_arguments=IndexArgsHNSW(m=HNSW_M, ef_construction=HNSW_EF_CONSTRUCTION),
        )

    def vector(self, query: Any, k: int) -> list[str]:
        return list(self.collection.query(query, limit=k, ef_search=EF_SEARCH))

    def drop(self) -> None:
        self.client.delete_collection(NAME)
        self.client.disconnect()


STORE = Vecs
