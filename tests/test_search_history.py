"""Old rows of the records of searches and invalidations, and how they are cleared away."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from django.db import connection

from cartrita_search.errors import InvalidArgument
from cartrita_search.ops.search_history import TABLES, prune
from tests.conftest import Connect, Manage
from tests.postgres import scalar

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("clean_tables")]

METRICS = "search_performance_metrics"
KEPT = "SELECT array_agg(result_count ORDER BY created_at) FROM search_performance_metrics"


def search_days_ago(pg: psycopg.Connection, *days: int) -> None:
    """A search that many days ago, an hour after the limit of as many, in the order given."""
    pg.cursor().executemany(
        "INSERT INTO search_performance_metrics (search_type, result_count, execution_time_ms, "
        "created_at) VALUES ('hybrid', %s, 1, clock_timestamp() - %s)",
        [(day, timedelta(days=day) - timedelta(hours=1)) for day in days],
    )


def invalidate_days_ago(pg: psycopg.Connection, *days: int) -> None:
    pg.cursor().executemany(
        "INSERT INTO cache_invalidation_log (cache_key, invalidation_reason, created_at) "
        "VALUES ('key', 'test', clock_timestamp() - %s)",
        [(timedelta(days=day) - timedelta(hours=1),) for day in days],
    )


def test_what_is_older_than_the_days_to_keep_goes_from_both_tables(
    pg: psycopg.Connection,
) -> None:
    # Not in the order of time, as rows brought over from elsewhere may be.
    search_days_ago(pg, 31, 1, 200, 30, 31)
    invalidate_days_ago(pg, 31, 30)
    report = prune(30)
    assert [(each.table, each.old, each.deleted) for each in report.tables] == [
        (METRICS, 3, 3),
        ("cache_invalidation_log", 1, 1),
    ]
    assert scalar(pg, KEPT) == [30, 1]
    assert scalar(pg, "SELECT count(*) FROM cache_invalidation_log") == 1
    oldest = scalar(pg, "SELECT min(created_at) FROM search_performance_metrics")
    assert report.tables[0].oldest == oldest
    assert not report.stopped
    assert [each.deleted for each in prune(30).tables] == [0, 0]


def test_the_setting_says_how_many_days_when_nobody_does(pg: psycopg.Connection) -> None:
    search_days_ago(pg, 91, 90)
    assert prune().keep_days == 90
    assert scalar(pg, KEPT) == [90]


def test_a_dry_run_only_counts(pg: psycopg.Connection) -> None:
    search_days_ago(pg, 91, 90)
    before = scalar(pg, KEPT)
    report = prune(dry_run=True)
    assert (report.tables[0].old, report.tables[0].deleted) == (1, 0)
    assert report.tables[0].oldest == scalar(
        pg, "SELECT max(created_at) FROM search_performance_metrics"
    )
    assert scalar(pg, KEPT) == before


@pytest.mark.parametrize("days", [0, -1, 36_501])
def test_no_days_at_all_are_refused(pg: psycopg.Connection, days: int) -> None:
    search_days_ago(pg, 91)
    with pytest.raises(InvalidArgument, match="Nothing was deleted"):
        prune(days)
    assert scalar(pg, KEPT) == [91]


def test_what_is_deleted_stays_deleted_and_the_next_run_goes_on(pg: psycopg.Connection) -> None:
    search_days_ago(pg, *range(200, 100, -1))
    stop = threading.Event()
    sizes: list[int] = []

    def after_two_batches(rows: int) -> None:
        sizes.append(rows)
        if len(sizes) == 2:
            stop.set()

    stopped = prune(90, batch_size=10, stop=stop, progress=after_two_batches)
    assert stopped.stopped
    assert sizes == [10, 10]
    assert scalar(pg, KEPT) == list(range(180, 100, -1))  # the oldest went first
    assert prune(90, batch_size=10).tables[0].deleted == 80


def test_rows_of_one_moment_do_not_hold_it_up(pg: psycopg.Connection) -> None:
    """As many as fill several batches: each begins at the time that the last one ended."""
    pg.execute(
        "INSERT INTO search_performance_metrics (search_type, result_count, execution_time_ms, "
        "created_at) SELECT 'hybrid', 1, 1, %s FROM generate_series(1, 25)",
        [datetime(2020, 1, 1, tzinfo=UTC)],
    )
    assert prune(90, batch_size=10).tables[0].deleted == 25


def test_two_prunes_at_the_same_time_share_the_work(
    pg: psycopg.Connection, connect: Connect
) -> None:
    """Both want the same rows: the second waits for the first, and neither dies of it."""
    search_days_ago(pg, *range(300, 100, -1))
    holder = connect(autocommit=False)
    holder.execute("SELECT FROM search_performance_metrics ORDER BY created_at LIMIT 1 FOR UPDATE")

    def run() -> int:
        try:
            return prune(90, batch_size=20).tables[0].deleted
        finally:
            connection.close()

    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run) for _ in range(2)]
        deadline = time.monotonic() + 30
        while len(pg.execute(waiting).fetchall()) < 2:
            assert time.monotonic() < deadline, "the two never came to wait"
        holder.rollback()
        assert sum(each.result(timeout=60) for each in runs) == 200
    assert scalar(pg, "SELECT count(*) FROM search_performance_metrics") == 0


@pytest.mark.parametrize("table", TABLES)
def test_the_oldest_rows_are_found_by_the_index(pg: psycopg.Connection, table: str) -> None:
    if table == METRICS:
        search_days_ago(pg, *range(1, 2000))
    else:
        invalidate_days_ago(pg, *range(1, 2000))
    pg.execute("VACUUM ANALYZE search_performance_metrics, cache_invalidation_log")
    seen = f"{table}_created_at"
    used = "SELECT coalesce(idx_scan, 0) FROM pg_stat_user_indexes WHERE indexrelname = %s"
    flush = "SELECT pg_stat_force_next_flush()"
    before = scalar(pg, used, [seen])
    prune(1900, batch_size=10)
    connection.cursor().execute(flush)
    assert scalar(pg, used, [seen]) >= before + 10  # each batch, besides counting


# --- The command ---------------------------------------------------------------


def test_the_command_tells_what_it_deleted(manage: Manage, pg: psycopg.Connection) -> None:
    search_days_ago(pg, 100, 91, 5)
    dry = manage("prune_search_history", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "A dry run: nothing was deleted." in dry.stdout
    assert scalar(pg, KEPT) == [100, 91, 5]

    done = manage("prune_search_history", "--keep-days", "95", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["keep_days"] == 95
    assert report["tables"][0]["deleted"] == 1
    assert "Deleting: 1 of 1 (100 %)" in done.stderr  # progress is not in the way of JSON

    done = manage("prune_search_history", METRICS_KEEP_DAYS="30")
    assert done.returncode == 0, done.stderr
    assert "30 days are kept" in done.stdout
    assert scalar(pg, KEPT) == [5]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--keep-days", "0"], "0 days cannot be kept"), (["--batch-size", "0"], "0 rows is none")],
)
def test_the_command_refuses_in_one_line(manage: Manage, arguments: list[str], told: str) -> None:
    done = manage("prune_search_history", *arguments)
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
