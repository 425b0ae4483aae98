"""VACUUM of the search tables after bulk work: what it reclaims, and what it locks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import psycopg
from django.db import DEFAULT_DB_ALIAS
from psycopg import sql
from psycopg.rows import class_row

from ..db import REBUILD_LOCK, advisory_lock, direct_connection
from ..errors import InvalidArgument, RebuildFailed
from .actions import record_action
from .vector_indexes import require_owner
from .watch import Phase, Progress, watched

TABLES = (
    "search_documents",
    "embeddings",
    "embedding_models",
    "keyword_statistics",
    "keyword_corpora",
)

APPLICATION = "cartrita vacuum"

#: What a rewrite of a table and its plain indexes achieves, and a build of vector
#: indexes: on two cores, from tests/benchmarks. For a rough word beforehand only.
_BYTES_A_SECOND = 50_000_000
_VECTORS_A_SECOND = 2500


@dataclass(frozen=True, slots=True)
class TableState:
    """How a table stands, by the server's statistics."""

    #: Estimates of rows: live, and dead ones whose space can be reclaimed.
    live: int
    dead: int
    #: Sizes in bytes: rows (with what is stored out of line), and indexes.
    table_bytes: int
    index_bytes: int


@dataclass(slots=True)
class TableVacuum:
    """What became of one table."""

    table: str
    #: 'vacuumed', 'rewritten', 'locked' by somebody else, or 'planned' by a dry run.
    outcome: str
    before: TableState
    after: TableState | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class VacuumReport:
    """What a vacuum did, table by table."""

    full: bool
    tables: list[TableVacuum] = field(default_factory=list)
    interrupted: bool = False

    @property
    def locked(self) -> list[str]:
        """Tables that were left as they were, as their lock could not be had in time."""
        return [done.table for done in self.tables if done.outcome == "locked"]


_STATE = """
    SELECT coalesce(pg_stat_get_live_tuples(%(table)s::regclass), 0) AS live,
        coalesce(pg_stat_get_dead_tuples(%(table)s::regclass), 0) AS dead,
        pg_table_size(%(table)s::regclass) AS table_bytes,
        pg_indexes_size(%(table)s::regclass) AS index_bytes
"""

_VECTOR_INDEXES = """
    SELECT coalesce(sum(pg_relation_size(x.indexrelid)), 0)::bigint,
        coalesce(sum(c.reltuples), 0)::bigint
    FROM pg_index AS x
    JOIN pg_class AS c ON c.oid = x.indexrelid
    JOIN pg_am AS a ON a.oid = c.relam
    WHERE x.indrelid = 'public.embeddings'::regclass AND a.amname IN ('hnsw', 'ivfflat')
"""

_PROGRESS = """
    SELECT phase, heap_blks_scanned, heap_blks_total
    FROM pg_stat_progress_vacuum WHERE pid = %(pid)s
    UNION ALL
    SELECT phase, heap_blks_scanned, nullif(heap_blks_total, 0)
    FROM pg_stat_progress_cluster WHERE pid = %(pid)s
"""


def rewrite_seconds(*, using: str = DEFAULT_DB_ALIAS) -> int:
    """About how long ``full`` keeps readers and writers out, in seconds, all tables together.

    A rough word, from sizes and the rates of a machine with two cores. Raises
    `InvalidArgument` for a role that does not own the tables.
    """
    require_owner(using)
    with direct_connection(APPLICATION, using=using) as connection:
        states = [_state(connection, table) for table in TABLES]
        vector_bytes, vectors = connection.execute(_VECTOR_INDEXES).fetchone() or (0, 0)
    size = sum(state.table_bytes + state.index_bytes for state in states) - vector_bytes
    return int(size / _BYTES_A_SECOND + max(0, vectors) / _VECTORS_A_SECOND) + 1


def vacuum(
    *,
    full: bool = False,
    dry_run: bool = False,
    lock_timeout: float = 5.0,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> VacuumReport:
    """``VACUUM (ANALYZE)`` each of `TABLES`: searches and writers go on.

    ``full`` rewrites each table and all its indexes, and gives the space back to the
    operating system; nobody can read or write the table meanwhile, and for a while there
    are two of it on the disk. A table whose lock cannot be had within ``lock_timeout``
    seconds is left as it is.

    Raises `LockHeld` where indexes are being rebuilt, and `InvalidArgument` for a role
    that does not own the tables.
    """
    if not 0 < lock_timeout <= 3600:
        raise InvalidArgument(
            f"A lock timeout is above 0 and at most 3600 seconds, not {lock_timeout:g}.",
            "Nothing was changed.",
        )
    require_owner(using)
    report = VacuumReport(full)
    stop = stop or threading.Event()
    show = progress or (lambda _: None)
    with (
        direct_connection(APPLICATION, using=using) as connection,
        direct_connection(APPLICATION, using=using) as watcher,
    ):
        if dry_run:
            report.tables = [
                TableVacuum(table, "planned", _state(connection, table)) for table in TABLES
            ]
            return report
        for name, value in (
            # 0 would be no limit.
            ("lock_timeout", str(max(1, int(lock_timeout * 1000)))),
            ("statement_timeout", "0"),
        ):
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        with advisory_lock(connection, REBUILD_LOCK, wait=lock_timeout):
            for table in TABLES:
                done = TableVacuum(
                    table, "rewritten" if full else "vacuumed", _state(connection, table)
                )
                started = time.monotonic()
                try:
                    watched(
                        connection,
                        _statement(connection, table, full),
                        stop=stop,
                        look=partial(_show, show, watcher, connection, table),
                    )
                except psycopg.errors.LockNotAvailable:
                    done.outcome = "locked"
                except psycopg.errors.QueryCanceled:
                    if not stop.is_set():
                        raise
                    report.interrupted = True
                    break
                except psycopg.Error as error:
                    message = error.diag.message_primary or str(error)
                    raise RebuildFailed(
                        f"VACUUM of {table} failed: {message.strip().rstrip('.')}.",
                        "The table is as it was; those before it are done.",
                    ) from error
                done.seconds = time.monotonic() - started
                done.after = _state(connection, table)
                report.tables.append(done)
    record_action(
        "vacuum",
        ", ".join(done.table for done in report.tables if done.outcome != "locked"),
        done=not (report.locked or report.interrupted),
        details={"full": full, "tables": [asdict(done) for done in report.tables]},
        using=using,
    )
    return report


def _statement(connection: psycopg.Connection, table: str, full: bool) -> Callable[[], object]:
    options = sql.SQL("FULL, ANALYZE" if full else "ANALYZE")
    statement = sql.SQL("VACUUM ({}) {}").format(options, sql.Identifier("public", table))
    return lambda: connection.execute(statement)


def _state(connection: psycopg.Connection, table: str) -> TableState:
    with connection.cursor(row_factory=class_row(TableState)) as cursor:
        state = cursor.execute(_STATE, {"table": f"public.{table}"}).fetchone()
    assert state is not None  # noqa: S101 - a SELECT without FROM
    return state


def _show(
    progress: Progress, watcher: psycopg.Connection, worker: psycopg.Connection, table: str
) -> None:
    row = watcher.execute(_PROGRESS, {"pid": worker.info.backend_pid}).fetchone()
    if row is not None:
        phase, done, total = row
        progress(Phase(f"{table}: {phase}", done, total, "blocks"))
