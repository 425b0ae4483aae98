"""The baseline: a statement by hand on our table, prepared, binary in and out."""

from __future__ import annotations

from typing import Any

import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from .store import EF_SEARCH, Batch, Store, Vector

STATEMENT = """
    SELECT id, source_table, source_id, chunk_index, metadata,
           embedding::halfvec(384) <=> %b AS distance
    FROM embeddings
    WHERE embedding_model = 'all-MiniLM-L6-v2'
    ORDER BY embedding::halfvec(384) <=> %b
    LIMIT %s
"""


class Raw(Store):
    """Reads what `Cartrita` has written, by the same index."""

    writes = False

    def create(self) -> None:
        self.pg = psycopg.connect(**self.server._asdict(), autocommit=True)
        register_vector(self.pg)
        self.pg.execute("SELECT set_config('hnsw.ef_search', %s, false)", [str(EF_SEARCH)])

    def prepare(self, batch: Batch) -> Any:
        return None

    def load(self, records: Any) -> None:
        pass

    def build_index(self) -> None:
        if self.pg.execute("SELECT FROM embeddings LIMIT 1").fetchone() is None:
            raise RuntimeError("there is nothing to read")

    def query(self, vector: Vector) -> Any:
        return vector

    def vector(self, query: Any, k: int) -> list[str]:
        vector = HalfVector(query)
        rows = self.pg.execute(STATEMENT, [vector, vector, k], prepare=True, binary=True)
        return [row[2] for row in rows]

    def drop(self) -> None:
        self.pg.close()


STORE = Raw
