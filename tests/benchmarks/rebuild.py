"""rebuild_vector_indexes on 117,000 WordNet senses: build time, searches meanwhile, recall."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import psycopg
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

from cartrita_search import retrieval
from cartrita_search.ops import vector_indexes
from tests.collections_data import (
    MODEL,
    SHARED_DATA,
    document_ids,
    document_vectors,
    load_collection,
)

from .database import raw_connection, truncate
from .report import Measurement, show

#: Held-out senses, which are in no sample that the index was tuned by: they are not stored.
QUERIES = 500
WARM_UP = 50


def run(connection: BaseDatabaseWrapper) -> bool:
    """A plain CREATE INDEX and the command, one after the other; then one under searches."""
    truth = np.load(SHARED_DATA / "wordnet" / "ann_gt.npz")
    ids = document_ids("wordnet")
    vectors = document_vectors("wordnet")
    base, rows = truth["base_rows"], truth["query_rows"][: WARM_UP + QUERIES]
    marked = np.zeros(len(base), bool)
    marked[np.random.default_rng(1).choice(len(base), len(base) // 100, replace=False)] = True

    with raw_connection(connection) as pg:
        truncate(pg)
        load_collection(pg, "wordnet", base)
        pg.execute(
            "UPDATE search_documents SET metadata = '{\"marked\": true}' "
            "WHERE source_id = ANY (%s)",
            [[ids[row] for row in base[marked]]],
        )
        pg.execute("VACUUM (ANALYZE) search_documents, embeddings")
        plain = _plain(pg)
        concurrent = _seconds(vector_indexes.rebuild)

        def search(row: int) -> list[str]:
            return _found(vectors[row])

        for row in rows[:WARM_UP]:
            search(row)
        before = [_seconds(partial(search, row)) for row in rows[WARM_UP:]]
        during = _while(vector_indexes.rebuild, search, rows)
        found = [search(row) for row in rows]
        filtered = [_found(vectors[row], {"marked": True}) for row in rows]

    base_ids = np.array([ids[row] for row in base])
    nearest = [base_ids[found[:10]] for found in truth["gt_idx_in_base"][: len(rows)]]
    marked_ids, marked_vectors = base_ids[marked], vectors[base[marked]].astype(np.float32)
    of_marked = [
        marked_ids[np.argsort(-(marked_vectors @ vectors[row].astype(np.float32)))[:10]]
        for row in rows
    ]
    p95_before, p95_during = (float(np.quantile(times, 0.95)) * 1000 for times in (before, during))
    return show(
        [
            Measurement("plain CREATE INDEX, s", plain),
            Measurement("rebuild_vector_indexes, s", concurrent),
            Measurement("rebuild / plain", concurrent / plain, at_most=1.3),
            Measurement("searches during the rebuild", len(during)),
            Measurement("search p95 before, ms", p95_before),
            Measurement("search p95 during, ms", p95_during),
            Measurement("search p95 during / before", p95_during / p95_before, at_most=5),
            Measurement("recall@10, held-out queries", _recall(found, nearest), at_least=0.95),
            Measurement("recall@10, 1 % filter", _recall(filtered, of_marked), at_least=0.95),
        ]
    )


def _plain(pg: psycopg.Connection) -> float:
    """Seconds of a plain CREATE INDEX with the plan's parameters."""
    row = pg.execute(
        "SELECT vector_index_sql(p, 'benchmark_plain') FROM vector_index_plan(%s) AS p", [MODEL]
    ).fetchone()
    statement = sql.SQL(row[0] if row else "")
    seconds = _seconds(lambda: pg.execute(statement))
    pg.execute("DROP INDEX benchmark_plain")
    return seconds


def _found(vector: Any, metadata: dict[str, Any] | None = None) -> list[str]:
    hits = retrieval.similarity_search(vector, model=MODEL, metadata=metadata)
    return [hit.source_id for hit in hits]


def _while(work: Callable[[], object], search: Callable[[int], object], rows: Any) -> list[float]:
    """Seconds of each search, one after the other in a thread, until the work is done."""
    done = threading.Event()
    seconds: list[float] = []

    def searcher() -> None:
        try:
            search(rows[0])
            while not done.is_set():
                row = rows[len(seconds) % len(rows)]
                seconds.append(_seconds(partial(search, row)))
        finally:
            connections.close_all()

    thread = threading.Thread(target=searcher)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _recall(found: Sequence[Sequence[str]], nearest: Sequence[Iterable[str]]) -> float:
    return float(
        np.mean([len({*f[:10]} & {*n}) / 10 for f, n in zip(found, nearest, strict=True)])
    )
