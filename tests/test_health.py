"""Probes: that they answer whatever the database does, and tell the truth of it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.test import AsyncClient, Client, override_settings
from psycopg import sql

from cartrita.embedded.postgres import EmbeddedPostgres
from cartrita_search import health
from cartrita_search.health import readiness
from tests.conftest import Connect, Manage
from tests.postgres import scalar

pytestmark = pytest.mark.django_db(transaction=True)

LAST = "SELECT name FROM django_migrations WHERE app = 'cartrita_search' ORDER BY id DESC LIMIT 1"
NEVER = 0.05  # seconds waited for what cannot come


@pytest.fixture(autouse=True)
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing told yet, as much patience as a busy machine needs, and no connection left."""
    monkeypatch.setattr(health, "_told", health.Readiness({}))
    monkeypatch.setattr(health, "PATIENCE", 60.0)
    monkeypatch.setattr(health.watch, "_seconds", 60.0)
    yield
    health.watch.close()


@contextmanager
def not_migrated(pg: psycopg.Connection) -> Iterator[str]:
    """The database as it is when the code is newer by one migration."""
    name = scalar(pg, LAST)
    row = pg.execute(
        "DELETE FROM django_migrations WHERE app = 'cartrita_search' AND name = %s RETURNING *",
        [name],
    ).fetchone()
    try:
        yield name
    finally:
        pg.execute("INSERT INTO django_migrations VALUES (%s, %s, %s, %s)", row)


# --- What they tell -------------------------------------------------------------


def test_a_process_that_can_search_is_ready(client: Client) -> None:
    response = client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "checks": {"database": "ok", "migrations": "ok", "pgvector": "ok", "redis": "ok"},
    }
    assert "no-store" in response.headers["Cache-Control"]


def test_a_migration_that_waits_makes_it_not_ready(
    client: Client, pg: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    with not_migrated(pg) as name:
        for _ in range(3):
            response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["status"] == "not ready"
    assert response.json()["checks"]["migrations"] == "not all are applied"
    assert client.get("/readyz").status_code == 200
    # Once when it changes, not with every probe; and only the log names the migration.
    told = [r.getMessage() for r in caplog.records]
    assert told == [
        f"Not ready (migrations: not all are applied; not applied: cartrita_search.{name})",
        "Ready again.",
    ]
    assert name not in response.text


def test_a_database_that_was_never_migrated_lacks_everything(
    pg: psycopg.Connection, database: dict[str, Any]
) -> None:
    name = sql.Identifier("test_health")
    pg.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
    try:
        with psycopg.connect(**database | {"dbname": "test_health"}) as empty:
            found = health._database(empty)
    finally:
        pg.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
    assert not found.ready
    assert found.checks == {
        "database": "ok",
        "migrations": "not all are applied",
        "pgvector": "not in this database",
    }


def test_without_redis_it_is_ready_all_the_same_and_says_so(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = settings.CACHES["default"] | {
        "LOCATION": "redis://:hidden@127.0.0.1:1/0",
        "OPTIONS": {"SOCKET_CONNECT_TIMEOUT": 0.5},
    }
    with override_settings(CACHES={"default": nowhere}):
        response = client.get("/readyz")
    assert response.status_code == 200
    assert response.json()["checks"]["redis"] == "unreachable; searches answer without it"
    assert "Ready, but degraded" in caplog.text
    assert "hidden" not in caplog.text


def test_where_there_is_no_redis_none_is_looked_for(client: Client) -> None:
    memory = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    with override_settings(CACHES={"default": memory}):
        assert "redis" not in client.get("/readyz").json()["checks"]


# --- When the database is away ---------------------------------------------------


def test_a_database_that_is_not_there(manage: Manage) -> None:
    """Alive, not ready; told in the log without the password, which the page has not either."""
    script = """
from django.test import Client
for page in ("/healthz", "/readyz"):
    response = Client().get(page)
    print(response.status_code, response.text)
"""
    done = manage(
        *("shell", "--verbosity=0", "-c", script),
        DATABASE_URL="postgres://me:hunter2-hidden@127.0.0.1:1/nothing",
    )
    assert done.returncode == 0, done.stderr
    alive, ready = done.stdout.splitlines()
    assert alive == '200 {"status": "ok"}'
    assert ready.startswith("503 ")
    assert '"database": "unreachable"' in ready
    assert "127.0.0.1" not in ready
    assert "Connection refused" in done.stderr
    assert "hunter2-hidden" not in done.stdout + done.stderr


def test_a_frozen_server_is_not_waited_for(client: Client) -> None:
    """The server takes the connection and says nothing: as one whose disk hangs."""
    pid = EmbeddedPostgres.from_settings().pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(3):  # the same question, still open: no thread is added
            found = readiness(wait=NEVER)
            assert not found.ready
            assert found.checks["database"] == f"no answer within {NEVER} s"
        assert client.get("/healthz").status_code == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    readiness(wait=30)  # the answer that was waited for
    assert readiness(wait=30).ready


def test_a_statement_that_waits_for_a_lock_is_ended_by_the_server(
    pg: psycopg.Connection, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = connect(autocommit=False)
    holder.execute("LOCK TABLE django_migrations IN ACCESS EXCLUSIVE MODE")
    monkeypatch.setattr(health.watch, "_seconds", NEVER)
    found = readiness(wait=30)
    holder.rollback()
    assert found.checks["database"] == "unreachable"
    assert "QueryCanceled" in found.details[0]
    monkeypatch.setattr(health.watch, "_seconds", 60.0)
    assert readiness(wait=30).ready


def test_a_connection_lost_between_two_probes_costs_one_answer(pg: psycopg.Connection) -> None:
    assert readiness(wait=30).ready
    (pid,) = health.watch._connection.execute("SELECT pg_backend_pid()").fetchone()  # type: ignore[union-attr, misc]
    pg.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    assert not readiness(wait=30).ready
    assert readiness(wait=30).ready


def test_a_server_that_takes_no_more_connections_leaves_those_it_has(
    connect: Connect, database: dict[str, Any]
) -> None:
    """Else all processes would be taken out at once because there are too many of them."""
    assert readiness(wait=30).ready
    name = sql.Identifier(database["dbname"])
    pg = connect(dbname="postgres")
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    pg.execute(allow.format(name, sql.SQL("false")))
    try:
        assert readiness(wait=30).ready
    finally:
        pg.execute(allow.format(name, sql.SQL("true")))


# --- How they are reached ----------------------------------------------------------


@pytest.mark.parametrize("page", ["/healthz", "/readyz"])
def test_probes_come_by_address_over_http_and_without_a_session(client: Client, page: str) -> None:
    with override_settings(ALLOWED_HOSTS=["search.example.org"], SECURE_SSL_REDIRECT=True):
        assert client.get("/", headers={"host": "search.example.org"}).status_code == 301
        response = client.get(page, headers={"host": "10.1.2.3:8000"})
        assert response.status_code == 200
        assert client.head(page, headers={"host": "10.1.2.3:8000"}).status_code == 200
        assert client.post(page, headers={"host": "10.1.2.3:8000"}).status_code == 405
    assert not response.cookies


def test_an_asynchronous_server_answers_too() -> None:
    async def ask() -> list[int]:
        client = AsyncClient()
        return [(await client.get(page)).status_code for page in ("/healthz", "/readyz", "/")]

    assert asyncio.run(ask()) == [200, 200, 302]


def test_the_disk_is_read_for_migrations_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert readiness(wait=30).ready

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the migrations were read again")

    monkeypatch.setattr(health, "MigrationLoader", refuse)
    assert readiness(wait=30).ready


def test_a_healthy_process_logs_nothing(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client.get("/healthz")
    client.get("/readyz")
    client.get("/readyz")
    assert [r for r in caplog.records if r.name == health.__name__] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_process_asks_over_a_connection_of_its_own(manage: Manage) -> None:
    script = """
import os, sys, warnings
from cartrita_search.health import readiness, watch

warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
assert readiness(30).ready
parent = watch._connection.info.backend_pid
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    assert readiness(30).ready
    print("both")
else:
    assert readiness(30).ready
    sys.exit(watch._connection.info.backend_pid == parent)
"""
    done = manage("shell", "--verbosity=0", "-c", script)
    assert (done.returncode, done.stdout) == (0, "both\n"), done.stderr
