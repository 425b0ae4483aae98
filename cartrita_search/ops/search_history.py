"""Deleting old rows of the records that every search and every invalidation adds to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import DEFAULT_DB_ALIAS, connections
from psycopg import sql

from ..conf import search_settings
from ..errors import InvalidArgument, search_errors
from ..models import CacheInvalidation, SearchPerformanceMetric

TABLES = (SearchPerformanceMetric._meta.db_table, CacheInvalidation._meta.db_table)

#: Rows deleted in one transaction: 15 ms, so nobody waits for it, nor it for anybody.
BATCH_SIZE = 10_000

# By place: a scan of places goes in their order, so that two prunes at the same time
# take the same row locks in the same order. Rows of these tables never move.
_DELETE = sql.SQL(
    """
    WITH oldest AS MATERIALIZED (
        SELECT ctid AS place, created_at FROM public.{table}
        WHERE created_at >= %s AND created_at < %s
        ORDER BY created_at
        LIMIT %s
    ), deleted AS (
        DELETE FROM public.{table} WHERE ctid = ANY (ARRAY(SELECT place FROM oldest))
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM deleted), count(*), max(created_at) FROM oldest
    """
)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` did to one table, or would do."""

    table: str
    #: Rows from before ``keep_from`` when it began, and how many of them are deleted.
    old: int
    deleted: int
    #: The oldest row that stays; None in an empty table.
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class PruneReport:
    """The outcome of a `prune`."""

    keep_days: int
    keep_from: datetime
    dry_run: bool
    #: Whether ``stop`` ended it before all was deleted.
    stopped: bool
    tables: list[Pruned]


def prune(
    keep_days: int | None = None,
    *,
    dry_run: bool = False,
    batch_size: int = BATCH_SIZE,
    stop: threading.Event | None = None,
    progress: Callable[[int], object] | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> PruneReport:
    """Delete the rows of `TABLES` that are older than ``keep_days`` times 24 hours.

    ``keep_days`` is 1 to 36,500; METRICS_KEEP_DAYS if None. Each batch is a transaction:
    what is deleted stays deleted whatever ends the run, and another run goes on from
    there. ``progress`` is called with the rows of each batch, ``stop`` looked at before
    each. Others may write, read and prune meanwhile.

    Raises `InvalidArgument`, and `NotMigrated` where a table is missing.
    """
    days = search_settings().metrics_keep_days if keep_days is None else keep_days
    if not 1 <= days <= 36_500:
        raise InvalidArgument(
            f"{days} days cannot be kept: 1 to 36,500 can.", "Nothing was deleted."
        )
    if batch_size < 1:
        raise InvalidArgument(f"A batch of {batch_size} rows is none.", "Nothing was deleted.")
    keep_from = datetime.now(UTC) - timedelta(days=days)
    stop = stop or threading.Event()
    tables = []
    for table in TABLES:
        old = count_old_rows(table, keep_from, using=using)
        deleted = 0
        if not dry_run:
            deleted = _delete(
                table,
                keep_from,
                batch_size=batch_size,
                stop=stop,
                progress=progress,
                using=using,
            )
        tables.append(Pruned(table, old, deleted, _oldest(table, keep_from, dry_run, using)))
    return PruneReport(days, keep_from, dry_run, stop.is_set(), tables)


def count_old_rows(table: str, before: datetime, *, using: str = DEFAULT_DB_ALIAS) -> int:
    """How many rows of one of `TABLES` are older; read from the index alone."""
    statement = sql.SQL("SELECT count(*) FROM public.{} WHERE created_at < %s")
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute(statement.format(sql.Identifier(table)), [before])
        return int(cursor.fetchone()[0])


def _delete(
    table: str,
    keep_from: datetime,
    *,
    batch_size: int,
    stop: threading.Event,
    progress: Callable[[int], object] | None,
    using: str,
) -> int:
    statement = _DELETE.format(table=sql.Identifier(table))
    # Beyond what is deleted already: each batch would read the places of all before it.
    begin = datetime.min.replace(tzinfo=UTC)
    total = 0
    with search_errors(), connections[using].cursor() as cursor:
        while not stop.is_set():
            cursor.execute(statement, [begin, keep_from, batch_size])
            deleted, found, latest = cursor.fetchone()
            total += deleted
            if progress is not None:
                progress(deleted)
            if found < batch_size:
                break
            begin = latest
    return total


def _oldest(table: str, keep_from: datetime, dry_run: bool, using: str) -> datetime | None:
    """The oldest row there is, or would be."""
    statement = sql.SQL("SELECT min(created_at) FROM public.{} WHERE created_at >= %s")
    begin = keep_from if dry_run else datetime.min.replace(tzinfo=UTC)
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute(statement.format(sql.Identifier(table)), [begin])
        oldest: datetime | None = cursor.fetchone()[0]
    return oldest
