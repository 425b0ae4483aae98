"""The longest ACCESS EXCLUSIVE lock that ``migrate`` holds on a table with rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

from tests.in_process import run as run_command
from tests.v1 import make_v1

from .database import raw_connection
from .report import Measurement, show

APP = "cartrita_search"
#: What 2.0.0a1 migrated to.
RELEASED = "0004_add_redis_hybrid_search"
#: Rows in v1's table of vectors, and documents with a vector each in v2's tables.
V1_ROWS = 20_000
V2_ROWS = 100_000
MOST_SECONDS = 2.0
_SAMPLE_SECONDS = 0.002

_HELD = """
    SELECT l.relation FROM pg_locks AS l
    WHERE l.mode = 'AccessExclusiveLock' AND l.granted AND l.locktype = 'relation'
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_TABLES = """
    SELECT c.oid, c.relname::text FROM pg_class AS c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
"""


def run(connection: BaseDatabaseWrapper) -> bool:
    """Migrate a v1 database and a v2 database of the first release; True if both keep to it."""
    measurements = []
    for what, prepare in (
        (f"v1 with {V1_ROWS:,} vectors", _fill_v1),
        (f"2.0.0a1 with {V2_ROWS:,} vectors", _fill_v2),
    ):
        with _database(connection) as parameters:
            prepare(parameters)
            started = time.perf_counter()
            with _sampled(parameters) as longest:
                run_command(parameters, "migrate", APP)
            seconds = time.perf_counter() - started
        table = max(longest, key=lambda name: longest[name], default="-")
        measurements += [
            Measurement(f"{what}: {table} locked, s", longest.get(table, 0.0),
                        at_most=MOST_SECONDS),
            Measurement(f"{what}: the whole migration, s", seconds),
        ]  # fmt: skip
    return show(measurements)


def _fill_v1(parameters: dict[str, Any]) -> None:
    with psycopg.connect(**parameters, autocommit=True) as pg:
        make_v1(pg, runner_files=4)
        pg.execute("DROP INDEX embeddings_vector")  # an hour of writing beside it proves nothing
        pg.execute(
            "INSERT INTO embeddings (source_table, source_id, embedding) "
            "SELECT 'messages', gen_random_uuid(), e.embedding "
            "FROM generate_series(1, %s), (SELECT embedding FROM embeddings LIMIT 1) AS e",
            [V1_ROWS],
        )


def _fill_v2(parameters: dict[str, Any]) -> None:
    run_command(parameters, "migrate", APP, RELEASED)
    with psycopg.connect(**parameters, autocommit=True) as pg:
        pg.execute(
            "INSERT INTO search_documents (source_table, source_id, title, content) "
            "SELECT 'notes', n::text, 'Note ' || n, (SELECT string_agg(md5((n * w)::text), ' ') "
            "FROM generate_series(1, 40) AS w) FROM generate_series(1, %s) AS n",
            [V2_ROWS],
        )
        pg.execute("INSERT INTO embedding_models (name, dimensions) VALUES ('model', 64)")
        pg.execute(
            "INSERT INTO embeddings (document_id, embedding_model, embedding) SELECT d.id, "
            "'model', (SELECT array_agg(sin(w * d.source_id::integer))::vector "
            "FROM generate_series(1, 64) AS w) FROM search_documents AS d"
        )
        pg.execute("SELECT refresh_keyword_statistics()")
        pg.execute("VACUUM (ANALYZE)")


@contextmanager
def _database(connection: BaseDatabaseWrapper) -> Iterator[dict[str, Any]]:
    name = sql.Identifier("bench_locks")
    with raw_connection(connection) as pg:
        pg.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
        parameters = {
            "host": pg.info.host,
            "port": pg.info.port,
            "user": pg.info.user,
            "dbname": "bench_locks",
        }
        yield parameters
        pg.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@contextmanager
def _sampled(parameters: dict[str, Any]) -> Iterator[dict[str, float]]:
    """Watch, and yield by table the longest seconds that the lock was held in one piece."""
    longest: dict[str, float] = {}
    stop = threading.Event()
    with psycopg.connect(**parameters, autocommit=True) as pg:
        # By OID, for the migration may rename them.
        tables = {
            oid: name
            for oid, name in pg.execute(_TABLES).fetchall()
            if pg.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(sql.Identifier(name))).rowcount
        }

        def watch() -> None:
            since: dict[int, float] = {}
            while not stop.wait(_SAMPLE_SECONDS):
                now = time.perf_counter()
                held = {oid for (oid,) in pg.execute(_HELD) if oid in tables}
                since = {oid: since.get(oid, now) for oid in held}
                for oid, began in since.items():
                    name = tables[oid]
                    longest[name] = max(longest.get(name, 0.0), time.perf_counter() - began)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield longest
        finally:
            stop.set()
            thread.join()
