"""pghybrid: statements over a table of one's own. It has no writing API."""

from __future__ import annotations

from typing import Any, ClassVar

import psycopg
from pghybrid import Config, Weights
from pghybrid.adapters import for_psycopg

from .store import EF_SEARCH, POOL, WEIGHTS, Batch, Store

#: As `pghybrid init` writes it.
TABLE = """
    CREATE TABLE peer_pghybrid (
        id text PRIMARY KEY,
        content text NOT NULL,
        embedding vector(384) NOT NULL,
        fts tsvector GENERATED ALWAYS AS (to_tsvector('english', content)) STORED
    )
"""
INDEXES = (
    "CREATE INDEX ON peer_pghybrid USING gin (fts)",
    "CREATE INDEX ON peer_pghybrid USING hnsw (embedding vector_cosine_ops) "
    "WITH (m = 16, ef_construction = 64)",
)

HYBRIDS = {"RRF 0.7/0.3": "rrf", "weighted 0.7/0.3": "weighted"}


class Pghybrid(Store):
    hybrids: ClassVar = dict.fromkeys(HYBRIDS, True)
    writes = False

    def create(self) -> None:
        self.connect()
        self.pg.execute("DROP TABLE IF EXISTS peer_pghybrid")
        self.pg.execute(TABLE)

    def connect(self) -> None:
        self.pg = psycopg.connect(**self.server._asdict(), autocommit=True)
        self.pg.execute("SELECT set_config('hnsw.ef_search', %s, false)", [str(EF_SEARCH)])
        self.search = for_psycopg(
            self.pg,
            Config(
                table="peer_pghybrid",
                text_column="content",
                vector_column="embedding",
                tsvector_column="fts",
                weights=Weights(*WEIGHTS),
                candidate_limit=POOL,
            ),
        )

    def prepare(self, batch: Batch) -> Any:
        return list(zip(batch.ids, batch.contents(), batch.vectors.tolist(), strict=True))

    def load(self, records: Any) -> None:
        with (
            self.pg.cursor() as cursor,
            cursor.copy("COPY peer_pghybrid (id, content, embedding) FROM STDIN") as copy,
        ):
            for key, text, vector in records:
                copy.write_row((key, text, str(vector)))

    def build_index(self) -> None:
        for statement in INDEXES:
            self.pg.execute(statement)

    def vector(self, query: Any, k: int) -> list[str]:
        found = self.search.search(embedding=query, limit=k)
        return [hit.id for hit in found]

    def hybrid(self, name: str, text: str, query: Any, k: int) -> list[str]:
        found = self.search.search(text, query, limit=k, fusion=HYBRIDS[name])
        return [hit.id for hit in found]

    def drop(self) -> None:
        self.pg.execute("DROP TABLE peer_pghybrid")
        self.pg.close()


STORE = Pghybrid
