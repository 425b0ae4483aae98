"""What is stuck is found and ended, and what must live lives: real sessions throughout.

Whoever is to be ended has the role ``stuck_app``: the tests' own is a superuser, and those
are left alone.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from psycopg import sql
from pytest_django import DjangoDbBlocker

from cartrita.embedded.postgres import client_program
from cartrita_search.db import (
    IMPORT_LOCK,
    MIGRATION_LOCK,
    REBUILD_LOCK,
    advisory_lock,
    direct_connection,
)
from cartrita_search.errors import InvalidArgument
from cartrita_search.models import OperatorAction
from cartrita_search.ops import stuck_queries
from cartrita_search.ops.stuck_queries import Finding, Limits, Survey

from .conftest import Connect, Manage
from .postgres import scalar, wait_until_alone, wait_until_blocked

pytestmark = pytest.mark.usefixtures("django_connection", "stuck_app")

#: Everything idle in transaction, and every root of a queue, is stuck at once.
AT_ONCE = Limits(idle_seconds=0, blocking_seconds=0)
#: Only roots of queues.
QUEUES = Limits(idle_seconds=3600, blocking_seconds=0)


@pytest.fixture
def django_connection(
    clean_tables: None, pg: psycopg.Connection, django_db_blocker: DjangoDbBlocker
) -> Iterator[None]:
    """Django's own connection, in autocommit mode; `clean_tables` is cleaning enough."""
    wait_until_alone(pg)
    with django_db_blocker.unblock():
        yield


@pytest.fixture(scope="module")
def stuck_app(database: dict[str, Any]) -> Iterator[str]:
    """An ordinary role that may use the tables, and some of its own."""
    role = sql.Identifier("stuck_app")
    with psycopg.connect(**database, autocommit=True) as superuser:
        superuser.execute(sql.SQL("CREATE ROLE {} LOGIN REPLICATION CREATEROLE").format(role))
        superuser.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA public TO {}").format(role))
        superuser.execute(
            sql.SQL("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {}").format(role)
        )
        superuser.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(role))
        yield "stuck_app"
        superuser.execute(sql.SQL("DROP OWNED BY {}").format(role))
        superuser.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.fixture
def app(connect: Connect) -> Callable[..., psycopg.Connection]:
    """Opens a session of the ordinary role, not in autocommit mode."""

    def _app(name: str = "app", **options: Any) -> psycopg.Connection:
        opened = connect(autocommit=False, user="stuck_app", application_name=name, **options)
        _pids[opened] = opened.info.backend_pid
        return opened

    return _app


App = Callable[..., psycopg.Connection]

#: A connection that was ended does not tell its pid any more.
_pids: WeakKeyDictionary[psycopg.Connection, int] = WeakKeyDictionary()


def pid_of(session: psycopg.Connection | int) -> int:
    if isinstance(session, int):
        return session
    return _pids.get(session) or session.info.backend_pid


@pytest.fixture
def background() -> Iterator[Callable[[psycopg.Connection, str], threading.Thread]]:
    """Runs a statement that waits, in a thread; how it ends is nobody's concern."""
    threads = []

    def _background(connection: psycopg.Connection, statement: str) -> threading.Thread:
        def run() -> None:
            try:
                connection.execute(statement.encode())
                connection.commit()
            except psycopg.Error:
                pass

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)
        return thread

    yield _background
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


Background = Callable[[psycopg.Connection, str], threading.Thread]


def look(limits: Limits = AT_ONCE) -> Survey:
    with direct_connection(stuck_queries.APPLICATION_NAME) as connection:
        return stuck_queries.survey(connection, limits)


def clean_up(limits: Limits = AT_ONCE, grace: float = 30.0) -> Survey:
    with direct_connection(stuck_queries.APPLICATION_NAME) as connection:
        return stuck_queries.end(connection, stuck_queries.survey(connection, limits), grace=grace)


def finding(survey: Survey, of: psycopg.Connection | int) -> Finding:
    (found,) = [each for each in survey.findings if each.session.pid == pid_of(of)]
    return found


def is_there(pg: psycopg.Connection, of: psycopg.Connection | int) -> bool:
    return bool(scalar(pg, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid_of(of)]))


def begin(session: psycopg.Connection, table: str = "embeddings") -> psycopg.Connection:
    """Leave the session idle in a transaction that holds a writer's lock on the table."""
    session.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(sql.Identifier(table)))
    return session


def queue_for(
    background: Background,
    pg: psycopg.Connection,
    session: psycopg.Connection,
    statement: str = "LOCK TABLE embeddings IN SHARE MODE",
) -> psycopg.Connection:
    """Let the session wait, and return when it does."""
    background(session, statement)
    wait_until_blocked(pg, pid_of(session))
    # It is known a moment later.
    eventually(
        pg,
        "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %s AND waitstart IS NOT NULL)",
        [pid_of(session)],
    )
    return session


def eventually(pg: psycopg.Connection, statement: str, parameters: Any = ()) -> Any:
    """The first value that is neither NULL, false nor 0."""
    deadline = time.monotonic() + 60
    while not (value := scalar(pg, statement, parameters)):
        assert time.monotonic() < deadline, "it never came to that"
    return value


# --- Idle in transaction -----------------------------------------------------


def test_idle_in_transaction_past_the_limit_is_found_and_before_it_is_not(app: App) -> None:
    session = begin(app())
    young = look(Limits(idle_seconds=3600))
    assert young.stuck == []
    assert young.idle_below == 1

    old = finding(look(), session)
    assert (old.stuck, old.action) == (True, "terminate")
    assert re.match(r"idle in transaction for \d+s \(limit 0s\)", old.reason)
    assert "RowExclusiveLock on embeddings" in old.session.holds
    assert old.session.application == "app"


def test_idle_in_a_failed_transaction_is_found_too(app: App) -> None:
    session = app()
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.execute("SELECT 1/0")
    found = finding(look(), session)
    assert (found.session.state, found.action) == (
        "idle in transaction (aborted)",
        "terminate",
    )


def test_the_time_counts_from_the_last_statement_not_from_the_beginning(
    app: App, pg: psycopg.Connection
) -> None:
    session = begin(app())
    began = scalar(pg, "SELECT clock_timestamp()")
    session.execute("SELECT 1")
    found = finding(look(), session)
    assert found.session.state_change is not None
    assert found.session.xact_start is not None
    assert found.session.xact_start < began < found.session.state_change


def test_it_is_terminated_with_a_row_and_a_log_line(
    app: App, pg: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    session = begin(app())
    session.execute("SELECT 'the last words'")
    with caplog.at_level(logging.WARNING, "cartrita_search.ops.stuck_queries"):
        done = clean_up()
    assert finding(done, session).outcome == "terminated"
    assert done.stuck == []
    assert not is_there(pg, session)

    row = OperatorAction.objects.get()
    pid = pid_of(session)
    assert (row.action, row.subject, row.outcome) == ("terminate", f"pid {pid}", "done")
    assert row.operator
    assert row.reason.startswith("idle in transaction for ")
    assert row.details["query"] == "SELECT 'the last words'"
    assert row.details["user"] == "stuck_app"
    assert row.details["application"] == "app"
    assert row.details["xact_start"]
    assert f"pid {pid}" in caplog.text


def test_a_password_in_a_query_is_not_shown(app: App) -> None:
    session = app()
    session.execute("SELECT 'ALTER ROLE x PASSWORD ''geheim'''")
    assert "geheim" not in stuck_queries.tree(look().findings)


def test_nothing_that_a_session_says_reaches_the_terminal_as_a_command(app: App) -> None:
    session = app("red")
    session.execute("SELECT '\x1b[31m\nred'")
    found = finding(look(), session)
    assert found.session.query == "SELECT ' [31m red'"


def test_an_idle_session_without_a_transaction_is_nothing(app: App) -> None:
    app().rollback()
    found = look()
    assert found.findings == []
    assert found.idle_below == 0


# --- Queues ------------------------------------------------------------------


def test_an_active_blocker_is_cancelled(
    app: App, background: Background, pg: psycopg.Connection
) -> None:
    blocker, waiter = begin(app("blocker")), app("waiter")
    background(blocker, "SELECT pg_sleep(600)")
    queue_for(background, pg, waiter)
    eventually(
        pg,
        "SELECT state = 'active' FROM pg_stat_activity WHERE pid = %s",
        [pid_of(blocker)],
    )

    assert look(replace(QUEUES, blocking_seconds=3600)).stuck == []
    found = look(QUEUES)
    assert (finding(found, blocker).stuck, finding(found, blocker).action) == (True, "cancel")
    assert (finding(found, waiter).stuck, finding(found, waiter).action) == (False, "none")
    assert finding(found, waiter).session.waits_for == "ShareLock on embeddings"

    done = clean_up(QUEUES)
    assert finding(done, blocker).outcome == "cancelled"
    assert is_there(pg, blocker)  # its transaction is gone, the session is not
    assert OperatorAction.objects.get().action == "cancel"


@pytest.mark.slow
def test_a_blocker_that_does_not_heed_a_cancel_is_terminated(
    app: App, background: Background, pg: psycopg.Connection
) -> None:
    blocker, waiter = begin(app("blocker")), app("waiter")
    background(
        blocker,
        "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(600);"
        " EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$",
    )
    queue_for(background, pg, waiter)
    eventually(
        pg,
        "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s",
        [pid_of(blocker)],
    )
    # It is cancelled in vain for as long, and then has as long to end.
    done = clean_up(QUEUES, grace=5)
    assert finding(done, blocker).outcome == "terminated"
    assert not is_there(pg, blocker)
    assert OperatorAction.objects.get().action == "terminate"


def test_a_chain_of_three_is_freed_by_ending_its_root_alone(
    app: App, background: Background, pg: psycopg.Connection
) -> None:
    root, middle, last = begin(app("root")), app("middle"), app("last")
    begin(middle, "search_documents")
    queue_for(background, pg, middle)
    queue_for(background, pg, last, "LOCK TABLE search_documents IN SHARE MODE")

    found = look(QUEUES)
    assert [f.session.application for f in found.stuck] == ["root"]
    assert finding(found, root).reason.startswith("2 sessions wait for it, the longest for ")
    text = stuck_queries.tree(found.findings)
    assert [line.split("(stuck_app, ")[0] for line in text.splitlines() if "pid" in line] == [
        f"pid {pid_of(root)} ",
        f"    pid {pid_of(middle)} ",
        f"        pid {pid_of(last)} ",
    ]
    assert "would terminate: 2 sessions wait for it" in text
    assert "left alone: it waits itself" in text

    done = clean_up(QUEUES)
    assert finding(done, root).outcome == "terminated"
    assert [f.outcome for f in done.findings].count(None) == 2
    eventually(pg, "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    assert is_there(pg, middle)
    assert is_there(pg, last)


def test_a_queue_behind_a_waiting_access_exclusive_is_freed_at_its_root(
    app: App, background: Background, pg: psycopg.Connection
) -> None:
    reader, altering, late = app("reader"), app("altering"), app("late")
    reader.execute("SELECT FROM embeddings")
    queue_for(background, pg, altering, "LOCK TABLE embeddings IN ACCESS EXCLUSIVE MODE")
    queue_for(background, pg, late, "SELECT FROM embeddings")

    found = look(QUEUES)
    assert finding(found, late).session.blocked_by == (pid_of(altering),)
    assert [f.session.application for f in found.stuck] == ["reader"]
    done = clean_up(QUEUES)
    assert finding(done, reader).outcome == "terminated"
    eventually(pg, "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    assert is_there(pg, altering)
    assert is_there(pg, late)


def test_where_the_root_must_live_the_waiting_access_exclusive_is_cancelled(
    app: App, background: Background, pg: psycopg.Connection
) -> None:
    backup, altering, late = app("cartrita backup"), app("altering"), app("late")
    backup.execute("SELECT FROM embeddings")
    queue_for(background, pg, altering, "LOCK TABLE embeddings IN ACCESS EXCLUSIVE MODE")
    # Waiting for it alone keeps nobody from anything.
    assert [f.action for f in look(QUEUES).findings] == ["none", "none"]
    queue_for(background, pg, late, "SELECT FROM embeddings")

    done = clean_up(QUEUES)
    assert finding(done, backup).outcome is None
    assert finding(done, altering).outcome == "cancelled"
    assert is_there(pg, backup)
    eventually(pg, "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")


def test_a_row_lock_is_a_queue_too(
    app: App, background: Background, pg: psycopg.Connection
) -> None:
    pg.execute("INSERT INTO search_documents (source_table, source_id) VALUES ('t', '1')")
    first, second = app("first"), app("second")
    first.execute("UPDATE search_documents SET title = 'first'")
    queue_for(background, pg, second, "UPDATE search_documents SET title = 'second'")
    found = clean_up(QUEUES)
    assert [f.session.application for f in found.to_end] == ["first"]
    assert "transaction" in str(finding(found, second).session.waits_for)


def test_a_snapshot_that_an_index_build_waits_for_is_a_queue_too(
    app: App, connect: Connect, background: Background, pg: psycopg.Connection
) -> None:
    reader, builder = app("reader"), connect(application_name="builder")
    reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    queue_for(
        background, pg, builder, "CREATE INDEX CONCURRENTLY stuck_test ON embeddings (created_at)"
    )
    found = clean_up(QUEUES)
    waiter = finding(found, builder).session
    assert waiter.waits_for == "ShareLock on virtualxid"
    assert waiter.wait_seconds > 0
    assert finding(found, reader).outcome == "terminated"
    eventually(
        pg,
        "SELECT bool_and(indisvalid) FROM pg_index WHERE indexrelid = to_regclass('stuck_test')",
    )
    pg.execute("DROP INDEX stuck_test")


def test_only_queues_on_the_tables_asked_for_count(
    app: App, background: Background, pg: psycopg.Connection
) -> None:
    own, waiter = app("own"), app("waiter")
    own.execute("CREATE TABLE elsewhere ()")
    own.commit()
    try:
        begin(own, "elsewhere")
        queue_for(background, pg, waiter, "LOCK TABLE elsewhere IN SHARE MODE")
        assert look(QUEUES).findings == []
        for limits in (replace(QUEUES, tables=("elsewhere",)), replace(QUEUES, tables=None)):
            assert [f.session.application for f in look(limits).stuck] == ["own"]
    finally:
        clean_up(replace(QUEUES, tables=None))
        pg.execute("DROP TABLE elsewhere")
    for name in ("no_such_table", "not a name"):
        with pytest.raises(InvalidArgument, match=name):
            look(replace(QUEUES, tables=(name,)))


# --- What must live ----------------------------------------------------------


def assert_lives(pg: psycopg.Connection, session: psycopg.Connection, reason: str) -> None:
    """It is past every limit, it is left alone for that reason, and it lives."""
    found = finding(clean_up(), session)
    assert (found.action, found.outcome) == ("none", None)
    assert reason in found.reason
    assert reason in stuck_queries.tree([found])
    assert is_there(pg, session)
    session.execute("SELECT 1")
    assert not OperatorAction.objects.exists()


def test_a_superuser_lives(connect: Connect, pg: psycopg.Connection) -> None:
    assert_lives(pg, begin(connect(autocommit=False)), "a superuser's")


@pytest.mark.parametrize("name", sorted(stuck_queries.PROTECTED_APPLICATIONS))
def test_operators_work_lives(app: App, pg: psycopg.Connection, name: str) -> None:
    assert_lives(pg, begin(app(name)), f"{name} is at work")


def test_whom_the_operator_protects_lives(app: App, pg: psycopg.Connection) -> None:
    session = begin(app("payroll"))
    done = clean_up(replace(AT_ONCE, protect=("payroll",)))
    assert "--protect payroll" in finding(done, session).reason
    assert is_there(pg, session)


@pytest.mark.parametrize(
    ("key", "name"),
    [(MIGRATION_LOCK, "migration"), (REBUILD_LOCK, "rebuild"), (IMPORT_LOCK, "import")],
)
def test_the_holder_of_a_lock_of_long_work_lives(
    app: App, pg: psycopg.Connection, key: int, name: str
) -> None:
    session = begin(app())
    with advisory_lock(session, key):
        assert_lives(pg, session, f"holds the {name} lock")


def test_our_own_connections_live(app: App, pg: psycopg.Connection) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE embeddings IN ROW EXCLUSIVE MODE")
        with direct_connection("anything") as own, own.transaction():
            own.execute("LOCK TABLE embeddings IN ROW EXCLUSIVE MODE")
            found = stuck_queries.survey(own, AT_ONCE)
            assert own.info.backend_pid not in [f.session.pid for f in found.findings]
            mine = finding(found, connection.connection.info.backend_pid)
            assert "this command's own" in mine.reason
            assert mine.action == "none"


def test_another_database_is_not_ours_to_look_at(
    app: App, background: Background, pg: psycopg.Connection
) -> None:
    elsewhere, waiter = app("elsewhere", dbname="postgres"), app("waiter")
    elsewhere.execute("SELECT 1")
    assert look().findings == []

    # Roles belong to all databases, and so do the locks on their rows.
    elsewhere.execute("CREATE ROLE stuck_other")
    elsewhere.commit()
    try:
        elsewhere.execute("COMMENT ON ROLE stuck_other IS 'a'")
        queue_for(background, pg, waiter, "COMMENT ON ROLE stuck_other IS 'b'")
        done = clean_up(replace(QUEUES, tables=None))
        found = finding(done, elsewhere)
        assert "of the database postgres" in found.reason
        assert (found.stuck, found.outcome) == (True, None)
        assert is_there(pg, elsewhere)
    finally:
        elsewhere.rollback()
        eventually(pg, "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        pg.execute("DROP ROLE stuck_other")


def test_a_session_of_the_replication_protocol_lives(
    database: dict[str, Any], pg: psycopg.Connection
) -> None:
    parameters = database | {"user": "stuck_app", "replication": "database"}
    with psycopg.connect(**parameters, autocommit=True) as session:
        session.execute("BEGIN")
        session.execute("LOCK TABLE embeddings IN ROW EXCLUSIVE MODE")
        assert_lives(pg, session, "walsender")


def test_a_running_replica_lives(
    database: dict[str, Any], pg: psycopg.Connection, tmp_path: Path
) -> None:
    command = [
        client_program("pg_receivewal"),
        *("--directory", str(tmp_path), "--username", "stuck_app", "--no-password"),
        *("--host", str(database["host"]), "--port", str(database["port"])),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as receiver:
        try:
            pid = eventually(
                pg,
                "SELECT max(pid) FROM pg_stat_replication"
                " WHERE state = 'streaming' AND application_name = 'pg_receivewal'",
            )
            done = clean_up(replace(AT_ONCE, tables=None))
            assert done.to_end == []
            assert is_there(pg, pid)
            assert receiver.poll() is None
        finally:
            receiver.terminate()


@pytest.mark.slow
def test_a_running_pg_dump_lives_and_ends_well(
    app: App, background: Background, database: dict[str, Any], pg: psycopg.Connection
) -> None:
    owner, waiter = app("owner"), app("waiter")
    # More than the pipe and the socket hold: it stops in the middle.
    owner.execute(
        "CREATE TABLE dumped AS SELECT repeat('x', 1000) AS text FROM generate_series(1, 5000)"
    )
    owner.commit()
    command = [
        client_program("pg_dump"),
        *("--username", "stuck_app", "--no-password", "--table", "dumped"),
        *("--host", str(database["host"]), "--port", str(database["port"])),
        str(database["dbname"]),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as dump:
        pid = eventually(
            pg,
            "SELECT max(pid) FROM pg_stat_activity"
            " WHERE application_name = 'pg_dump' AND wait_event = 'ClientWrite'",
        )
        queue_for(background, pg, waiter, "DROP TABLE dumped")
        done = clean_up(replace(AT_ONCE, tables=("dumped",)))
        assert "pg_dump is at work" in finding(done, pid).reason
        # It blocks others, so nobody is told that all is well.
        assert [f.session.pid for f in done.stuck] == [pid]
        written, _ = dump.communicate()
    assert dump.returncode == 0
    assert written.count(b"x" * 1000) == 5000


@pytest.mark.slow
def test_an_autovacuum_worker_lives(
    app: App, background: Background, connect: Connect, pg: psycopg.Connection
) -> None:
    owner, waiter = app("owner"), connect(autocommit=False, application_name="waiter")
    owner.execute(
        "CREATE TABLE vacuumed WITH (autovacuum_vacuum_threshold = 1,"
        " autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 100,"
        " autovacuum_vacuum_cost_limit = 1)"
        " AS SELECT repeat('x', 2000) AS text FROM generate_series(1, 2000)"
    )
    owner.commit()
    owner.execute("DELETE FROM vacuumed")
    owner.commit()
    owner.close()  # then the server counts what is dead, and not some seconds later
    pg.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
    pg.execute("SELECT pg_reload_conf()")
    try:
        worker = eventually(
            pg,
            "SELECT max(a.pid) FROM pg_stat_activity AS a JOIN pg_locks AS l USING (pid)"
            " WHERE a.backend_type = 'autovacuum worker' AND l.relation = 'vacuumed'::regclass",
        )
        # Or the worker would step aside after a second.
        waiter.execute("SET deadlock_timeout = '1h'")
        queue_for(background, pg, waiter, "LOCK TABLE vacuumed IN SHARE UPDATE EXCLUSIVE MODE")
        done = clean_up(replace(QUEUES, tables=("vacuumed",)))
        assert "autovacuum worker" in finding(done, worker).reason
        assert (finding(done, worker).stuck, finding(done, worker).outcome) == (True, None)
        assert is_there(pg, worker)
    finally:
        waiter.cancel()
        pg.execute("ALTER SYSTEM RESET autovacuum_naptime")
        pg.execute("SELECT pg_reload_conf()")
        pg.execute("DROP TABLE vacuumed")


# --- Prepared transactions ---------------------------------------------------


def test_a_prepared_transaction_is_reported_by_its_gid(
    app: App, background: Background, pg: psycopg.Connection
) -> None:
    preparing, waiter = begin(app("preparing")), app("waiter")
    preparing.execute("PREPARE TRANSACTION 'it''s mine'")
    preparing.close()
    try:
        queue_for(background, pg, waiter)
        done = clean_up(QUEUES)
        (found,) = done.stuck
        assert (found.session.pid, found.session.gid) == (0, "it's mine")
        assert found.action == "none"
        assert "ROLLBACK PREPARED 'it''s mine'" in found.reason
        assert finding(done, waiter).session.blocked_by == ("it's mine",)
        first, *_ = stuck_queries.tree(done.findings).splitlines()
        assert first.startswith("prepared transaction it's mine (stuck_app")
        # It is old as well, though nobody waits.
        assert [f.session.gid for f in look(replace(AT_ONCE, blocking_seconds=9)).stuck] == [
            "it's mine"
        ]
    finally:
        pg.execute("ROLLBACK PREPARED 'it''s mine'")


def test_a_row_that_a_prepared_transaction_holds_leads_to_its_gid(
    app: App, background: Background, pg: psycopg.Connection
) -> None:
    pg.execute("INSERT INTO search_documents (source_table, source_id) VALUES ('t', '1')")
    preparing, other, waiter = app(), app(), app("waiter")
    preparing.execute("UPDATE search_documents SET title = 'prepared'")
    preparing.execute("PREPARE TRANSACTION 'rows'")
    other.execute("LOCK TABLE search_documents IN ROW EXCLUSIVE MODE")
    other.execute("PREPARE TRANSACTION 'innocent'")
    try:
        queue_for(background, pg, waiter, "UPDATE search_documents SET title = 'waiter'")
        found = look(QUEUES)
        assert finding(found, waiter).session.blocked_by == ("rows",)
        assert [f.session.gid for f in found.stuck] == ["rows"]
    finally:
        pg.execute("ROLLBACK PREPARED 'rows'")
        pg.execute("ROLLBACK PREPARED 'innocent'")


# --- Between look and kill ---------------------------------------------------


def test_a_pid_that_is_another_sessions_by_now_is_not_signalled(
    app: App, pg: psycopg.Connection
) -> None:
    session = begin(app())
    seen = finding(look(), session).session
    earlier = replace(seen, backend_start=seen.backend_start.replace(year=2000))
    assert seen.xact_start is not None
    other = replace(seen, xact_start=seen.xact_start.replace(year=2000))
    with direct_connection("test") as connection:
        for stale in (earlier, other):
            for action in ("cancel", "terminate"):
                outcome = stuck_queries.end_session(connection, stale, action, 1)
                assert outcome == "gone"
    assert is_there(pg, session)
    session.execute("SELECT 1")


def test_a_session_that_wakes_up_between_look_and_kill_is_left_alone(
    app: App, pg: psycopg.Connection
) -> None:
    woken, committed = begin(app()), begin(app())
    with direct_connection(stuck_queries.APPLICATION_NAME) as connection:
        found = stuck_queries.survey(connection, AT_ONCE)
        assert len(found.to_end) == 2
        woken.execute("SELECT 1")
        committed.commit()
        done = stuck_queries.end(connection, found, grace=1)
    assert [f.outcome for f in done.findings] == ["gone", "gone"]
    assert done.stuck == []
    assert is_there(pg, woken)
    assert is_there(pg, committed)
    assert not OperatorAction.objects.exists()


def test_a_server_process_that_does_not_end_is_said_to_have_survived(
    app: App, pg: psycopg.Connection
) -> None:
    session = begin(app())
    os.kill(pid_of(session), signal.SIGSTOP)
    try:
        done = clean_up(grace=0.2)
        assert finding(done, session).outcome == "survived"
        assert done.stuck
        assert OperatorAction.objects.get().outcome == "failed"
    finally:
        os.kill(pid_of(session), signal.SIGCONT)


def test_what_was_ended_is_logged_though_the_row_cannot_be_written(
    app: App, pg: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    session = begin(app())
    with pg.transaction():
        pg.execute("LOCK TABLE operator_actions IN ACCESS EXCLUSIVE MODE")
        assert finding(clean_up(), session).outcome == "terminated"
    assert "operator_actions has no row of it" in caplog.text


# --- Privileges --------------------------------------------------------------


def url_of(database: dict[str, Any], user: str) -> str:
    return "postgres://{user}@:{port}/{dbname}?host={host}".format(**database | {"user": user})


def test_a_role_that_cannot_see_is_told_the_grant_and_never_that_nothing_is_stuck(
    app: App, manage: Manage, database: dict[str, Any], pg: psycopg.Connection
) -> None:
    session = begin(app())
    pg.execute("CREATE ROLE stuck_cleaner LOGIN")
    try:
        url = url_of(database, "stuck_cleaner")
        blind = manage("cleanup_stuck_queries", DATABASE_URL=url)
        assert blind.returncode == 5
        assert 'GRANT "pg_read_all_stats" TO "stuck_cleaner";' in blind.stderr
        assert "stuck" not in blind.stdout
        assert "Traceback" not in blind.stderr

        pg.execute("GRANT pg_read_all_stats TO stuck_cleaner")
        arguments = ("cleanup_stuck_queries", "--idle-minutes=0")
        seeing = manage(*arguments, DATABASE_URL=url)
        assert seeing.returncode == 3
        assert "needs pg_signal_backend" in seeing.stderr
        harmless = manage(*arguments, "--execute", "--noinput", DATABASE_URL=url)
        assert harmless.returncode == 5
        assert 'GRANT "pg_signal_backend" TO "stuck_cleaner";' in harmless.stderr
        assert is_there(pg, session)

        pg.execute("GRANT pg_signal_backend TO stuck_cleaner")
        pg.execute("GRANT INSERT, SELECT ON operator_actions TO stuck_cleaner")
        able = manage(*arguments, "--execute", "--noinput", DATABASE_URL=url)
        assert able.returncode == 0, able.stderr
        assert not is_there(pg, session)
        assert OperatorAction.objects.get().role == "stuck_cleaner"
    finally:
        pg.execute("DROP OWNED BY stuck_cleaner")
        pg.execute("DROP ROLE stuck_cleaner")


def test_sessions_that_do_not_tell_what_they_do_are_not_said_to_be_well(
    app: App, pg: psycopg.Connection
) -> None:
    pg.execute("ALTER ROLE stuck_app SET track_activities = off")
    try:
        session = begin(app())
    finally:
        pg.execute("ALTER ROLE stuck_app RESET track_activities")
    printed, status = run("--idle-minutes=0")
    assert status == 5
    assert "1 cannot be seen." in printed
    assert "track_activities is off" in printed
    assert json.loads(run("--idle-minutes=0", "--json")[0].splitlines()[0])["hidden"] == 1
    assert is_there(pg, session)
    pid = pid_of(session)
    session.close()
    eventually(pg, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", [pid])


# --- The command -------------------------------------------------------------


def run(*arguments: str) -> tuple[str, int]:
    """What it prints, and its exit status."""
    out = StringIO()
    try:
        call_command("cleanup_stuck_queries", *arguments, stdout=out, stderr=out)
    except CommandError as error:
        return f"{out.getvalue()}{error}", error.returncode
    return out.getvalue(), 0


def test_a_dry_run_changes_nothing_and_exits_by_what_it_found(
    app: App, pg: psycopg.Connection
) -> None:
    assert run() == (
        f"{pg.info.dbname}: 0 stuck, 0 ended; 0 more idle in transaction, below the limit.\n",
        0,
    )
    session = begin(app())
    assert run()[1] == 0
    printed, status = run("--idle-minutes", "0")
    assert status == 3
    assert f"pid {pid_of(session)} (stuck_app, app): idle in transaction" in printed
    assert "would terminate: idle in transaction for " in printed
    assert "Nothing was changed" in printed
    assert is_there(pg, session)
    assert not OperatorAction.objects.exists()


def test_it_asks_before_it_acts(
    app: App, pg: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(app())

    def nobody(prompt: str) -> str:
        raise EOFError

    for answer in (nobody, lambda prompt: "no"):
        monkeypatch.setattr("builtins.input", answer)
        printed, status = run("--idle-minutes=0", "--execute")
        assert status == 3
        assert "Nothing was changed" in printed
        assert is_there(pg, session)
    monkeypatch.setattr("builtins.input", lambda prompt: "yes")
    printed, status = run("--idle-minutes=0", "--execute")
    assert status == 0, printed
    assert "1 ended" in printed
    assert not is_there(pg, session)


def test_what_survives_is_exit_status_4(
    app: App, connect: Connect, background: Background, pg: psycopg.Connection
) -> None:
    superuser, waiter = begin(connect(autocommit=False)), app("waiter")
    queue_for(background, pg, waiter)
    printed, status = run("--blocking-seconds=0", "--execute", "--noinput")
    assert status == 4
    assert "a superuser's; 1 session waits for it" in printed
    superuser.rollback()


def test_json_is_a_document_that_scripts_can_read(app: App) -> None:
    session = begin(app())
    printed, status = run("--idle-minutes=0", "--json", "--execute", "--noinput")
    assert status == 0
    document = json.loads(printed)
    assert (document["stuck"], document["dry_run"]) == (0, False)
    (found,) = document["sessions"]
    assert found["pid"] == pid_of(session)
    assert found["outcome"] == "terminated"
    assert found["holds"] == ["RowExclusiveLock on embeddings"]


def test_watch_goes_on_until_it_is_interrupted(
    app: App, pg: psycopg.Connection, manage_environment: dict[str, str]
) -> None:
    command = [
        *(sys.executable, "manage.py", "cleanup_stuck_queries", "--idle-minutes=0"),
        *("--json", "--execute", "--noinput", "--watch=0.05"),
    ]
    with subprocess.Popen(
        command,
        cwd=settings.BASE_DIR,
        env=manage_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["sessions"] == []
        # In one message: idle between two it would be ended in the middle.
        session = app()
        session.autocommit = True
        session.execute("BEGIN; LOCK TABLE embeddings IN ROW EXCLUSIVE MODE")
        ended = next(
            sessions for line in watching.stdout if (sessions := json.loads(line)["sessions"])
        )
        assert [each["pid"] for each in ended] == [pid_of(session)]
        watching.send_signal(signal.SIGINT)
        watching.communicate()
    assert watching.returncode == 0


def test_wrong_arguments_are_refused(manage: Manage) -> None:
    done = manage("cleanup_stuck_queries", "--idle-minutes=-1")
    assert done.returncode == 2
    assert "-1 is not a number from 0 to 1,000,000,000" in done.stderr
    assert "Traceback" not in done.stderr
    assert "1e10 is not a number" in run("--watch=1e10")[0]
    assert "nan is not a number" in run("--watch=nan")[0]
    assert "soon is not a number" in run("--blocking-seconds=soon")[0]
    assert "invalid choice: 'x'" in run("--database=x")[0]
    assert "--noinput" in run("--watch=1", "--execute")[0]
    printed, status = run("--table", "no_such_table")
    assert status == 1
    assert 'no table "no_such_table"' in printed


@pytest.mark.parametrize(
    "where",
    [
        "k8s/overlays/local/postgres.yaml",
        "k8s/cloudnativepg/cluster.yaml",
        "docs/kubernetes.md",
        "docs/v1-to-v2.md",
    ],
)
def test_the_application_s_role_can_leave_no_transaction_open_for_long(where: str) -> None:
    text = (settings.BASE_DIR / where).read_text()
    for limit in ("idle_in_transaction_session_timeout = '5min'", "transaction_timeout = '30min'"):
        assert re.search(rf"ALTER ROLE \S+ SET {re.escape(limit)}", text)


def test_durations_are_read_at_a_glance() -> None:
    assert [stuck_queries.duration(s) for s in (0.4, 59, 61, 3599, 3600, 90_000)] == [
        "0s", "59s", "1m 1s", "59m 59s", "1h 0m", "25h 0m",
    ]  # fmt: skip
