"""The record of searches: what is written, when, and what a failing database does to it."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connection, connections, transaction
from django.test import override_settings
from psycopg import sql
from pytest_django import DjangoDbBlocker

from cartrita_search import metrics
from cartrita_search.metrics import SearchMetric, dropped, flush, query_hash, record
from tests.conftest import Connect, Manage
from tests.postgres import scalar, wait_until_blocked

pytestmark = pytest.mark.usefixtures("clean_tables", "recorder")

COUNT = "SELECT count(*) FROM search_performance_metrics"
LONG = 3600.0  # no test lasts as long: the clock calls for no write
METRIC = SearchMetric("hybrid", 3, 12.5)


@contextmanager
def configured(**changes: object) -> Iterator[None]:
    with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | changes):
        yield


@pytest.fixture
def recorder(
    monkeypatch: pytest.MonkeyPatch, django_db_blocker: DjangoDbBlocker
) -> Iterator[None]:
    """Recording turned on, with a buffer and a thread of the test's own."""
    mine = metrics._Recorder()
    monkeypatch.setattr(metrics, "_recorder", mine)
    with (
        django_db_blocker.unblock(),
        configured(RECORD_SEARCHES=True, METRICS_FLUSH_SECONDS=LONG),
    ):
        yield
        with mine._writing:
            mine._rows.clear()
        mine.close()


def rows(pg: psycopg.Connection, *columns: str) -> list[Any]:
    """The rows in the order they were written: one value each, or a tuple of several."""
    statement = sql.SQL("SELECT {} FROM search_performance_metrics ORDER BY id").format(
        sql.SQL(", ").join(map(sql.Identifier, columns or ("execution_time_ms",)))
    )
    found = pg.execute(statement).fetchall()
    return [row[0] if len(row) == 1 else row for row in found]


def wait_for_rows(pg: psycopg.Connection, count: int) -> None:
    """Return when the thread has written that many; it is not asked to."""
    deadline = time.monotonic() + 30
    while scalar(pg, COUNT) < count:
        assert time.monotonic() < deadline, "the rows were never written"


def number(execution_time_ms: float) -> SearchMetric:
    return SearchMetric("keyword", 1, execution_time_ms)


# --- What a row holds --------------------------------------------------------


def test_a_row_holds_what_the_search_was(pg: psycopg.Connection) -> None:
    before = datetime.now(UTC)
    record(
        SearchMetric(
            "hybrid", 0, 12.5, 7, "mini", "Tea", cache_hit=True, details={"rerank_ms": 3.25}
        )
    )
    record(SearchMetric("vector", 2, 0.5))
    after = datetime.now(UTC)
    assert flush() == 2
    searched = ("search_type", "result_count", "execution_time_ms", "user_id")
    assert rows(pg, *searched, "cache_hit", "metadata") == [
        ("hybrid", 0, 12.5, 7, True, {"model": "mini", "zero_hits": True, "rerank_ms": 3.25}),
        ("vector", 2, 0.5, None, False, {"model": None, "zero_hits": False}),
    ]
    # Of the search, not of the writing.
    assert all(before <= at <= after for at in rows(pg, "created_at"))


def test_the_text_is_not_kept_but_its_hash(pg: psycopg.Connection) -> None:
    for text in ("Green  tea", "green tea\n", "gree\uff4e tea", "black tea", None):
        record(SearchMetric("keyword", 1, 1.0, query_text=text))
    flush()
    texts, hashes = zip(*rows(pg, "query_text", "query_hash"), strict=True)
    assert set(texts) == {None}
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]
    assert hashes[4] is None
    assert re.fullmatch("[0-9a-f]{64}", hashes[0])
    # Whoever has the rows alone cannot try words out.
    assert hashes[0] != hashlib.sha256(b"green tea").hexdigest()
    with override_settings(SECRET_KEY="another"):
        assert query_hash("green tea") != hashes[0]


def test_the_text_is_kept_where_the_setting_says_so(pg: psycopg.Connection) -> None:
    with configured(STORE_QUERY_TEXT=True):
        record(SearchMetric("keyword", 1, 1.0, query_text="Green tea"))
        record(SearchMetric("keyword", 1, 1.0, query_text="a\x00b \ud800"))
    flush()
    assert rows(pg, "query_text", "query_hash") == [
        ("Green tea", query_hash("green tea")),
        ("a b ?", query_hash("a\x00b \ud800")),
    ]


def test_nothing_is_recorded_when_that_is_off(pg: psycopg.Connection) -> None:
    with configured(RECORD_SEARCHES=False):
        record(METRIC)
        assert flush() == 0
    assert scalar(pg, COUNT) == 0
    assert dropped() == 0


# --- When it is written ------------------------------------------------------


def test_enough_rows_are_written_without_being_asked_for(pg: psycopg.Connection) -> None:
    with configured(METRICS_BUFFER_ROWS=100):
        for i in range(10):
            record(number(i))
        wait_for_rows(pg, 10)
    assert rows(pg) == list(range(10))


def test_time_is_enough_too(pg: psycopg.Connection) -> None:
    with configured(METRICS_FLUSH_SECONDS=0.01):
        record(METRIC)
        wait_for_rows(pg, 1)


def test_the_callers_transaction_has_no_part_in_it(pg: psycopg.Connection) -> None:
    with transaction.atomic():
        record(METRIC)
        assert flush() == 1
        assert scalar(pg, COUNT) == 1
        transaction.set_rollback(True)
    assert scalar(pg, COUNT) == 1


def test_no_connection_is_held(pg: psycopg.Connection) -> None:
    """Or a database could not be dropped, nor a server stopped in peace."""
    others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    before = pg.execute(others).fetchall()
    record(METRIC)
    flush()
    # Its backend may take a moment to be gone.
    deadline = time.monotonic() + 30
    while not set(pg.execute(others).fetchall()) <= set(before):
        assert time.monotonic() < deadline, "a connection stayed open"


def test_a_clean_exit_loses_nothing(manage: Manage, pg: psycopg.Connection) -> None:
    """Ten thousand searches of eight threads, and the process ends at once."""
    script = """
import threading
from cartrita_search import metrics
from cartrita_search.metrics import SearchMetric, dropped, record
metrics.EXIT_SECONDS = 60.0  # a busy machine may take longer for them than one would wait

def work(first):
    for i in range(first, 10_000, 8):
        record(SearchMetric("keyword", 1, float(i)))

threads = [threading.Thread(target=work, args=[first]) for first in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(dropped())
"""
    done = manage("shell", "--verbosity=0", "-c", script, RECORD_SEARCHES="true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    assert sorted(rows(pg)) == list(range(10_000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_fork_writes_its_own_rows_alone(manage: Manage, pg: psycopg.Connection) -> None:
    script = """
import os, sys, warnings
from cartrita_search import metrics
from cartrita_search.metrics import SearchMetric, record

metrics.EXIT_SECONDS = 60.0
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
for i in range(3):
    record(SearchMetric("keyword", 1, float(i)))
if child := os.fork():
    os.waitpid(child, 0)
else:
    for i in range(10, 12):
        record(SearchMetric("keyword", 1, float(i)))
    sys.exit()
"""
    done = manage(
        *("shell", "--verbosity=0", "-c", script),
        RECORD_SEARCHES="true",
        METRICS_FLUSH_SECONDS=str(LONG),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(rows(pg)) == [0, 1, 2, 10, 11]


# --- When the database fails -------------------------------------------------


@contextmanager
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The metrics' database is at a port where nothing listens."""
    nowhere = connection.settings_dict | {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "PORT": "1",
    }
    monkeypatch.setitem(connections.settings, "nowhere", nowhere)
    with override_settings(DATABASE_ROUTERS=[f"{__name__}.ToNowhere"]):
        yield


class ToNowhere:
    def db_for_write(self, model: type, **hints: object) -> str:
        return "nowhere"


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "cartrita_search.metrics"]


def test_what_does_not_fit_while_the_database_is_away_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with unreachable(monkeypatch), configured(METRICS_BUFFER_ROWS=20):
        for i in range(15):
            record(number(i))
        assert flush() == 0
        assert dropped() == 0
        for i in range(15, 50):
            record(number(i))
        assert flush() == 0
    assert dropped() == 30
    (told,) = messages(caplog)  # once, and in one line
    assert "wait for the database" in told
    assert "Connection refused" in told
    assert "\n" not in told


def test_what_waited_is_written_when_the_database_is_back(
    pg: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unreachable(monkeypatch):
        record(number(1))
        assert flush() == 0
    record(number(2))
    assert flush() == 2
    assert rows(pg) == [1, 2]


def test_a_connection_lost_in_the_middle_loses_and_doubles_nothing(
    pg: psycopg.Connection, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    holder = connect(autocommit=False)
    holder.execute("LOCK TABLE search_performance_metrics IN ACCESS EXCLUSIVE MODE")
    waiting = (
        "SELECT pid FROM pg_locks WHERE NOT granted"
        " AND relation = 'search_performance_metrics'::regclass"
    )
    record(number(1))
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(flush)
        deadline = time.monotonic() + 30
        while not (pids := pg.execute(waiting).fetchall()):
            assert time.monotonic() < deadline, "the write never came to wait"
        wait_until_blocked(pg, pids[0][0])
        record(number(2))  # nobody who searches waits with it
        pg.execute("SELECT pg_terminate_backend(%s)", pids[0])
        assert written.result(timeout=30) == 0
    holder.rollback()
    assert scalar(pg, COUNT) == 0
    assert flush() == 2
    assert rows(pg) == [1, 2]
    assert len(messages(caplog)) == 1
    assert dropped() == 0


def test_rows_that_the_database_refuses_are_dropped_and_do_not_block_the_rest(
    pg: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    record(SearchMetric("hybrid", -1, 1.0))
    assert flush() == 0
    assert dropped() == 1
    record(number(2))
    assert flush() == 1
    assert rows(pg) == [2]
    (told,) = messages(caplog)
    assert "search_performance_metrics_result_count" in told


def test_a_missing_table_fails_no_search(
    pg: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    pg.execute("ALTER TABLE search_performance_metrics RENAME TO elsewhere")
    try:
        record(METRIC)
        assert flush() == 0
    finally:
        pg.execute("ALTER TABLE elsewhere RENAME TO search_performance_metrics")
    assert dropped() == 1
    assert len(messages(caplog)) == 1


def test_the_next_outage_is_told_again(
    pg: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "cartrita_search.metrics")
    for _ in range(2):
        record(SearchMetric("hybrid", -1, 1.0))
        flush()
        record(METRIC)
        assert flush() == 1
    assert len(messages(caplog)) == 2


def test_an_exit_does_not_wait_for_a_database_that_is_away(manage: Manage) -> None:
    script = """
from cartrita_search.metrics import SearchMetric, record
record(SearchMetric("keyword", 1, 1.0))
"""
    done = manage(
        *("shell", "--verbosity=0", "-c", script),
        RECORD_SEARCHES="true",
        DATABASE_URL="postgres://nobody@127.0.0.1:1/nothing",
    )
    assert done.returncode == 0
    assert "Searches not recorded before the exit: 1." in done.stderr
    assert "Traceback" not in done.stderr


def test_an_exit_does_not_wait_for_ever_for_a_database_that_is_silent(
    manage: Manage, connect: Connect
) -> None:
    """The lock is let go only after the process has ended."""
    holder = connect(autocommit=False)
    holder.execute("LOCK TABLE search_performance_metrics IN ACCESS EXCLUSIVE MODE")
    script = """
from cartrita_search import metrics
metrics.EXIT_SECONDS = 0.2
metrics.record(metrics.SearchMetric("keyword", 1, 1.0))
"""
    done = manage("shell", "--verbosity=0", "-c", script, RECORD_SEARCHES="true")
    holder.rollback()
    assert done.returncode == 0
    assert "Searches not recorded before the exit: 1." in done.stderr


def test_searches_of_many_threads_while_rows_are_written(pg: psycopg.Connection) -> None:
    """Each row once, whoever writes: the threads flush as well."""
    start = threading.Barrier(8)

    def work(first: int) -> int:
        start.wait()
        written = 0
        for i in range(first, 2000, 8):
            record(number(i))
            if i % 100 < 8:
                written += flush()
        return written

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    flush()
    assert sorted(rows(pg)) == list(range(2000))
    assert dropped() == 0
