"""What the result cache gives and costs: hits, a silent Redis, the triggers of generations."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import psycopg
from django.conf import settings
from django.core.cache import caches
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings
from psycopg import sql

from cartrita_search import retrieval
from cartrita_search.ingest import upsert_documents
from tests.collections_data import (
    MODEL,
    SHARED_DATA,
    document_ids,
    document_vectors,
    documents,
    load_collection,
)
from tests.postgres import vector_text
from tests.redis_server import caches_at, redis_behind_proxy

from .database import raw_connection, truncate
from .ingest import Sense, _documents, _senses
from .report import Measurement, show

QUERIES = 300
WARM_UP = 30
SILENT_SEARCHES = 1000
#: Single upserts, by this many connections, in each of the rounds.
CONNECTIONS = 8
UPSERTS = 250
ROUNDS = 10
#: Without waiting for the disk a round differs from the next by a tenth.
UNWAITED_ROUNDS = 40
BULK = 10_000
TABLES = ("search_documents", "embeddings", "embedding_models")


def run(connection: BaseDatabaseWrapper) -> bool:
    """Time each with and without, in turn."""
    with redis_behind_proxy() as (server, proxy):
        with_cache = settings.CARTRITA_SEARCH | {"CACHE_SECONDS": 300}
        with override_settings(
            CACHES=caches_at(server.url, settings.CACHES), CARTRITA_SEARCH=with_cache
        ):
            uncached, hit, writes = _hits(connection)
        with override_settings(
            CACHES=caches_at(proxy.url, settings.CACHES), CARTRITA_SEARCH=with_cache
        ):
            added = _silent_redis(connection, proxy.silence)
    with raw_connection(connection) as pg:
        single, unwaited = (
            _compare(pg, partial(_single_upserts, connection, pg, commit), rounds)
            for commit, rounds in (("on", ROUNDS), ("off", UNWAITED_ROUNDS))
        )
        bulk = _compare(pg, lambda: _bulk(pg), ROUNDS)
        truncate(pg)
    return show(
        [
            Measurement("hybrid search, not cached: p50, ms", uncached),
            Measurement("hybrid search, a miss: p50, ms", writes),
            Measurement("hybrid search, a hit: p50, ms", hit),
            Measurement("hit / not cached", hit / uncached, at_most=0.25),
            Measurement("added with a silent Redis, mean, ms", added, at_most=2),
            Measurement("single upserts with triggers / without", single, at_least=0.9),
            Measurement("the same with synchronous_commit = off", unwaited),
            Measurement("bulk ingest with triggers / without", bulk, at_least=0.95),
        ]
    )


def _hits(connection: BaseDatabaseWrapper) -> tuple[float, float, float]:
    """p50 in ms of a search without the cache, of a hit, and of a miss."""
    truth = np.load(SHARED_DATA / "wordnet" / "ann_gt.npz")
    ids, vectors = document_ids("wordnet"), document_vectors("wordnet")
    rows = [int(row) for row in truth["query_rows"][: WARM_UP + QUERIES]]
    wanted = {ids[row] for row in rows}
    texts = {
        d.id: f"{d.title} {d.text}".replace('"', "")
        for d in documents("wordnet")
        if d.id in wanted
    }
    with raw_connection(connection) as pg:
        truncate(pg)
        load_collection(pg, "wordnet", truth["base_rows"])
    off = settings.CARTRITA_SEARCH | {"CACHE_SECONDS": 0}
    seconds: dict[str, list[float]] = {"off": [], "miss": [], "hit": []}

    def timed(kind: str, row: int) -> None:
        started = time.perf_counter()
        retrieval.search(texts[ids[row]], vector=vectors[row], model=MODEL)
        seconds[kind].append(time.perf_counter() - started)

    for number, row in enumerate(rows):
        caches["search"].clear()
        # Which of the two that search comes first finds the pages cold.
        for kind in ("off", "miss") if number % 2 else ("miss", "off"):
            if kind == "off":
                with override_settings(CARTRITA_SEARCH=off):
                    timed("off", row)
            else:
                timed("miss", row)
        timed("hit", row)
    p50 = {kind: statistics.median(times[WARM_UP:]) * 1000 for kind, times in seconds.items()}
    return p50["off"], p50["hit"], p50["miss"]


def _silent_redis(connection: BaseDatabaseWrapper, silence: Callable[[], None]) -> float:
    """ms that a search takes longer on average when Redis accepts and never answers."""
    vectors = document_vectors("wordnet")
    off = settings.CARTRITA_SEARCH | {"CACHE_SECONDS": 0}
    retrieval.search("tea", vector=vectors[0], model=MODEL)
    silence()
    total = {True: 0.0, False: 0.0}
    for number in range(SILENT_SEARCHES):
        for on in (True, False) if number % 2 else (False, True):
            started = time.perf_counter()
            if on:
                retrieval.search("tea", vector=vectors[number], model=MODEL)
            else:
                with override_settings(CARTRITA_SEARCH=off):
                    started = time.perf_counter()
                    retrieval.search("tea", vector=vectors[number], model=MODEL)
            total[on] += time.perf_counter() - started
    return (total[True] - total[False]) / SILENT_SEARCHES * 1000


def _compare(pg: psycopg.Connection, rate: Callable[[], float], rounds: int) -> float:
    """The rate with triggers over that without: the median of rounds, in turn."""
    ratios = []
    for number in range(rounds + 1):
        rates = {}
        for on in (True, False) if number % 2 else (False, True):
            for table in TABLES:
                pg.execute(
                    sql.SQL("ALTER TABLE {} {} TRIGGER follow_search_generation").format(
                        sql.Identifier(table), sql.SQL("ENABLE ALWAYS" if on else "DISABLE")
                    )
                )
            rates[on] = rate()
        ratios.append(rates[True] / rates[False])
    for table in TABLES:
        pg.execute(
            sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER follow_search_generation").format(
                sql.Identifier(table)
            )
        )
    return statistics.median(ratios[1:])


_connections: list[psycopg.Connection] = []


def _single_upserts(
    connection: BaseDatabaseWrapper, pg: psycopg.Connection, synchronous_commit: str
) -> float:
    """Upserts a second over connections that stay open, as an application's do.

    By PostgreSQL's default a commit waits for the disk; development's server does not.
    """
    if not _connections:
        _connections.extend(raw_connection(connection) for _ in range(CONNECTIONS))
    for client in _connections:
        client.execute("SELECT set_config('synchronous_commit', %s, false)", [synchronous_commit])
    truncate(pg)
    vectors = [vector_text(vector) for vector in document_vectors("wordnet")[:UPSERTS].tolist()]

    def write(number: int, client: psycopg.Connection) -> None:
        for position, vector in enumerate(vectors):
            content = f"Some words, {position} of {number}. " * 6
            client.execute(
                "SELECT upsert_embedding("
                "'bench', %s, %s, %s, p_title => 'Title', p_content => %s)",
                [f"{number}-{position}", vector, MODEL, content],
            )

    threads = [
        threading.Thread(target=write, args=(number, client))
        for number, client in enumerate(_connections)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return CONNECTIONS * UPSERTS / (time.perf_counter() - started)


_bulk_senses: list[Sense] = []


def _bulk(pg: psycopg.Connection) -> float:
    """Documents with vectors a second, without an index."""
    if not _bulk_senses:
        _bulk_senses.extend(_senses(BULK))
    truncate(pg)
    started = time.perf_counter()
    upsert_documents(_documents(_bulk_senses), model=MODEL, index="keep")
    return BULK / (time.perf_counter() - started)
