"""The baseline: a statement by hand on our table, prepared, binary in and out."""

from __future__ import annotations

from typing import Any

import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg import sql

from .store import EF_SEARCH, Batch, Store, Vector

#: What the one HNSW index of the table is over: a statement must say the same to use it.
INDEX = """
    SELECT pg_get_expr(i.indexprs, i.indrelid), pg_get_expr(i.indpred, i.indrelid)
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_am AS a ON a.oid = c.relam
    WHERE i.indrelid = 'embeddings'::regclass AND a.amname = 'hnsw'
"""
STATEMENT = """
    SELECT id, source_table, source_id, chunk_index, metadata, {vector} <=> %b AS distance
    FROM embeddings
    WHERE {predicate}
    ORDER BY {vector} <=> %b
    LIMIT %s
"""


def statement(pg: psycopg.Connection) -> sql.Composed:
    """The `STATEMENT` that the index answers: query, query, how many; in binary."""
    index = pg.execute(INDEX).fetchone()
    if index is None:
        raise RuntimeError("there is no HNSW index to read")
    vector, predicate = map(sql.SQL, index)
    return sql.SQL(STATEMENT).format(vector=vector, predicate=predicate)


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
        self.statement = statement(self.pg)

    def query(self, vector: Vector) -> Any:
        return vector

    def vector(self, query: Any, k: int) -> list[str]:
        vector = HalfVector(query)
        rows = self.pg.execute(self.statement, [vector, vector, k], prepare=True, binary=True)
        return [row[2] for row in rows]

    def drop(self) -> None:
        self.pg.close()


STORE = Raw
