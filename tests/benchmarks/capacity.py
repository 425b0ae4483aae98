"""What a chunk takes of disk and memory, what a search takes of a core, and 1M to 10B chunks."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import psycopg
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from cartrita_search.ingest import Document, upsert_documents
from cartrita_search.retrieval import search, similarity_search
from cartrita_search.terminal import table
from tests.collections_data import documents

from .database import raw_connection, truncate

ROWS = 10_000
QUERIES = 300
STORAGES = {384: ("vector", "halfvec", "bit"), 1536: ("vector", "halfvec", "bit")}
SCALES = (1_000_000, 100_000_000, 10_000_000_000)
GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """Bytes a row."""

    dimensions: int
    storage: str
    #: search_documents with its indexes, without those of embeddings.
    document: float
    #: embeddings with all its indexes but the vector index.
    vector: float
    #: The HNSW index, which searches want in memory.
    index: float
    #: Processor seconds of a search, of the server and of this client together.
    similarity: float
    hybrid: float


def run(connection: BaseDatabaseWrapper, rows: int | None = None) -> bool:
    """Measure by dimension and storage, and print the model."""
    rows = rows or ROWS
    measured: list[Sizes] = []
    with raw_connection(connection) as pg:
        for dimensions, storages in STORAGES.items():
            truncate(pg)
            pg.execute("DELETE FROM embedding_models")
            vectors = _store(dimensions, rows)
            for storage in storages:
                pg.execute("UPDATE embedding_models SET preferred_storage = %s", [storage])
                pg.execute("SELECT rebuild_vector_indexes()")
                pg.execute("VACUUM (ANALYZE) search_documents, embeddings")
                measured.append(_measured(pg, dimensions, storage, rows, vectors))
    print(
        table(
            ["dim", "storage", "document, B", "vector, B", "index, B", "similarity, QPS/core",
             "hybrid, QPS/core"],
            [
                [s.dimensions, s.storage, round(s.document), round(s.vector), round(s.index),
                 round(1 / s.similarity), round(1 / s.hybrid)]
                for s in measured
            ],
            right=range(2, 7),
        )
    )  # fmt: skip
    print()
    print(
        table(
            ["chunks", "dim", "storage", "disk, GB", "of it the index (memory), GB"],
            [
                [f"{chunks:,}", s.dimensions, s.storage,
                 f"{chunks * (s.document + s.vector + s.index) / GIGABYTE:,.0f}",
                 f"{chunks * s.index / GIGABYTE:,.0f}"]
                for chunks in SCALES
                for s in measured
            ],
            right=(0, 3, 4),
        )
    )  # fmt: skip
    return True


def _store(dimensions: int, rows: int) -> np.ndarray:
    """Real texts; vectors near one of a hundred centres, as embeddings lie."""
    draw = np.random.default_rng(dimensions)
    centres = draw.standard_normal((100, dimensions))
    vectors = centres[draw.integers(100, size=rows)] + draw.standard_normal((rows, dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors.astype(np.float32)
    upsert_documents(
        (
            Document("capacity", str(n), document.title, document.text, vector)
            for n, (document, vector) in enumerate(
                zip(documents("wordnet"), vectors, strict=False)
            )
        ),
        model=f"capacity{dimensions}",
        index="keep",
        expected=rows,
    )
    return vectors


def _measured(
    pg: psycopg.Connection, dimensions: int, storage: str, rows: int, vectors: np.ndarray
) -> Sizes:
    row = pg.execute(
        """
        SELECT pg_total_relation_size('search_documents'),
            pg_total_relation_size('embeddings'),
            (SELECT sum(pg_relation_size(x.indexrelid))::bigint FROM pg_index AS x
             JOIN pg_class AS i ON i.oid = x.indexrelid JOIN pg_am AS a ON a.oid = i.relam
             WHERE x.indrelid = 'embeddings'::regclass AND a.amname IN ('hnsw', 'ivfflat'))
        """
    ).fetchone()
    documents_size, embeddings_size, index = row or (0, 0, 0)
    return Sizes(
        dimensions,
        storage,
        documents_size / rows,
        (embeddings_size - index) / rows,
        index / rows,
        _processor_seconds(vectors, hybrid=False),
        _processor_seconds(vectors, hybrid=True),
    )


def _processor_seconds(vectors: np.ndarray, *, hybrid: bool) -> float:
    """Of one search: what the server's process and this one spent, waiting left out."""
    import psutil

    texts = [
        f"{d.title} {d.text}".replace('"', "")
        for d, _ in zip(documents("wordnet"), range(QUERIES), strict=False)
    ]
    connection = connections["default"]
    connection.ensure_connection()
    server = psutil.Process(connection.connection.info.backend_pid)

    def spent() -> float:
        times = server.cpu_times()
        return times.user + times.system + time.process_time()

    def ask(n: int) -> None:
        if hybrid:
            search(texts[n], vector=vectors[n])
        else:
            similarity_search(vectors[n])

    for n in range(50):
        ask(n)
    began = spent()
    for n in range(QUERIES):
        ask(n)
    return (spent() - began) / QUERIES
