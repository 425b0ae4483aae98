"""What recording a search costs it, and how fast a day's old rows are deleted."""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings

from cartrita_search import metrics, retrieval
from cartrita_search.ops.search_history import prune
from tests.collections_data import (
    MODEL,
    SHARED_DATA,
    document_ids,
    document_vectors,
    documents,
    load_collection,
)

from .database import raw_connection, truncate
from .report import Measurement, show

#: Senses of WordNet that are searched: the fewer, the more recording weighs.
DOCUMENTS = 20_000
QUERIES = 900
WARM_UP = 50
#: Rows of search_performance_metrics, of DAYS days.
ROWS = 2_000_000
DAYS = 2


def run(connection: BaseDatabaseWrapper) -> bool:
    """Search each query with recording on and off, then prune."""
    with raw_connection(connection) as pg:
        truncate(pg)
        seconds = _searched(pg)
        metrics.flush()
        recorded = pg.execute("SELECT count(*) FROM search_performance_metrics").fetchone()
        pruned = _pruned(pg)
    # Of the same query, one right after the other: steadier than two medians' difference.
    cost = np.median(np.subtract(seconds[True][WARM_UP:], seconds[False][WARM_UP:]))
    p50 = {on: float(np.median(times[WARM_UP:])) for on, times in seconds.items()}
    return show(
        [
            Measurement("search, not recorded: p50, ms", p50[False] * 1000),
            Measurement("search, recorded: p50, ms", p50[True] * 1000),
            Measurement("recorded / not recorded, p50", p50[True] / p50[False]),
            Measurement(
                "cost of recording, of p50, %", float(cost) / p50[False] * 100, at_most=5.0
            ),
            Measurement(
                "rows of the recorded searches",
                (recorded or (0,))[0] / QUERIES,
                at_least=1.0,
                at_most=1.0,
            ),
            *pruned,
        ]
    )


def _searched(pg: psycopg.Connection) -> dict[bool, list[float]]:
    """Seconds of every search, by whether it was recorded."""
    truth = np.load(SHARED_DATA / "wordnet" / "ann_gt.npz")
    ids = document_ids("wordnet")
    vectors = document_vectors("wordnet")
    load_collection(pg, "wordnet", truth["base_rows"][:DOCUMENTS])
    rows = truth["query_rows"][:QUERIES]
    wanted = {ids[row] for row in rows}
    texts = {
        d.id: f"{d.title} {d.text}".replace('"', "")
        for d in documents("wordnet")
        if d.id in wanted
    }
    configured = {
        on: override_settings(
            CARTRITA_SEARCH=settings.CARTRITA_SEARCH
            | {"RECORD_SEARCHES": on, "METRICS_FLUSH_SECONDS": 5.0}
        )
        for on in (True, False)
    }
    order = random.Random(1)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        for on in order.sample([True, False], 2):
            with configured[on]:
                started = time.perf_counter()
                retrieval.search(texts[ids[row]], vector=vectors[row], model=MODEL)
                seconds[on].append(time.perf_counter() - started)
    return seconds


def _pruned(pg: psycopg.Connection) -> list[Measurement]:
    """Delete half of many rows, while somebody else adds some."""
    pg.execute("TRUNCATE search_performance_metrics")
    begin = datetime.now(UTC) - timedelta(days=DAYS)
    pg.execute(
        """
        INSERT INTO search_performance_metrics (
            user_id, search_type, query_hash, result_count, execution_time_ms, created_at, metadata
        )
        SELECT n %% 1000, 'hybrid', encode(sha256(n::text::bytea), 'hex'), 10, 5.5,
            %s + n * %s, '{"model": "mini", "zero_hits": false, "vector_ms": 3.2}'
        FROM generate_series(0, %s) AS n
        """,
        [begin, timedelta(days=DAYS) / ROWS, ROWS - 1],
    )
    pg.execute("VACUUM (ANALYZE) search_performance_metrics")
    done = threading.Event()
    waited: list[float] = []

    def write(pg: psycopg.Connection) -> None:
        while not done.is_set():
            started = time.perf_counter()
            pg.execute(
                "INSERT INTO search_performance_metrics "
                "(search_type, result_count, execution_time_ms) VALUES ('hybrid', 1, 1)"
            )
            waited.append(time.perf_counter() - started)

    parameters: dict[str, Any] = {
        name: getattr(pg.info, name) for name in ("host", "port", "user", "dbname")
    }
    with psycopg.connect(**parameters, autocommit=True) as other:
        writer = threading.Thread(target=write, args=[other])
        writer.start()
        started = time.perf_counter()
        report = prune(DAYS - 1)
        taken = time.perf_counter() - started
        done.set()
        writer.join()
    return [
        Measurement("pruned: rows a second", report.tables[0].deleted / taken),
        Measurement("pruned: rows", report.tables[0].deleted),
        Measurement("an insert beside it: p99, ms", float(np.quantile(waited, 0.99)) * 1000),
    ]
