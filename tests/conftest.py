"""The servers of a test run, and raw connections to its database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections
from django.test.utils import setup_databases
from psycopg import sql
from pytest_django import DjangoDbBlocker

from cartrita.embedded.postgres import EmbeddedPostgres
from cartrita.embedded.redis import EmbeddedRedis
from tests.pgbouncer import pgbouncer
from tests.redis_server import start_redis, use_redis  # noqa: F401 - fixtures
from tests.site import ROWS, Site

# Where a shell runs this in the background SIGINT is ignored, and so it would be by every
# process that tests start to interrupt it. A handler of ours is not passed on: the default is.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: What tests write to; search_settings keeps its one row, with the defaults.
TABLES = (
    "search_documents",
    "embeddings",
    "embedding_models",
    "embedding_refusals",
    "keyword_corpora",
    "keyword_statistics",
    "retrieval_configs",
    "search_performance_metrics",
    "cache_invalidation_log",
    "redis_sessions",
    "source_checkpoints",
    "operator_actions",
    "search_judgements",
    "search_settings",
)


class Connect(Protocol):
    """Opens a psycopg connection to the test database, closed when the test ends."""

    def __call__(self, *, autocommit: bool = True, **options: Any) -> psycopg.Connection: ...


class Manage(Protocol):
    """Runs ``manage.py`` in a process of its own, on the servers of this run."""

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--pooler``: see `pooler`."""
    parser.addoption(
        "--pooler",
        action="store_true",
        help="Django, and what connect() opens, reach the database through PgBouncer"
        " in transaction mode",
    )


@pytest.fixture(scope="session", autouse=True)
def embedded_servers() -> Iterator[Path]:
    """A folder of this run's own for both servers; they start when first used.

    Runs at the same time share nothing, nor do the workers of one run (each has servers
    of its own), and none touches development's data.
    """
    with tempfile.TemporaryDirectory(prefix="cartrita-test-") as folder:
        settings.EMBEDDED_DIR = Path(folder)
        yield settings.EMBEDDED_DIR
        EmbeddedPostgres.from_settings().stop()
        EmbeddedRedis.from_settings().stop()


@pytest.fixture(scope="session", autouse=True)
def patience_with_redis() -> Iterator[None]:
    """On a busy machine a Redis that is well must not be taken for one that has failed."""
    from cartrita_search import guarded_redis

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guarded_redis, "TIMEOUT_SECONDS", 2.0)
        yield


@pytest.fixture(scope="session")
def django_db_setup(
    embedded_servers: Path, django_test_environment: None, django_db_blocker: DjangoDbBlocker
) -> Iterator[None]:
    """The migrated test database, for tests that only use raw connections too.

    pytest-django's own makes it only if some test has the django_db mark. It is
    not dropped: the server goes, and it with it.
    """
    with django_db_blocker.unblock():
        setup_databases(verbosity=0, interactive=False, serialized_aliases=set())
    yield
    connections.close_all()


@pytest.fixture(scope="session")
def database(django_db_setup: None) -> dict[str, Any]:
    """psycopg's connection parameters of the migrated test database."""
    params = connection.settings_dict
    return {
        "host": params["HOST"],
        "port": params["PORT"],
        "user": params["USER"],
        "dbname": params["NAME"],
    }


@pytest.fixture(scope="session", autouse=True)
def pooler(request: pytest.FixtureRequest, embedded_servers: Path) -> Iterator[dict[str, Any]]:
    """psycopg's parameters of the pooler between the tests and the database.

    Empty where there is none, that is without ``--pooler``.
    """
    if not request.config.getoption("pooler"):
        yield {}
        return
    direct = request.getfixturevalue("database")
    with pgbouncer(direct) as through:
        connections.settings["default"] |= {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": through["host"],
            "PORT": str(through["port"]),
            "USER": through["user"],
            "CONN_MAX_AGE": 0,
            "DISABLE_SERVER_SIDE_CURSORS": True,
        }
        connections["default"].close()
        del connections["default"]
        yield through | {"prepare_threshold": None}
        connections["default"].close()


@pytest.fixture
def other_databases(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Django may connect, to databases of the test's own: the shared one is left alone.

    The mark django_db would empty the shared one after each test.
    """
    with django_db_blocker.unblock():
        yield


@pytest.fixture
def connect(database: dict[str, Any], pooler: dict[str, Any]) -> Iterator[Connect]:
    """As many raw connections as a test asks for."""
    with ExitStack() as stack:

        def _connect(*, autocommit: bool = True, **options: Any) -> psycopg.Connection:
            opened = psycopg.connect(**database | pooler | options, autocommit=autocommit)
            stack.callback(opened.close)
            return opened

        yield _connect


@pytest.fixture
def pg(connect: Connect) -> psycopg.Connection:
    """One raw connection in autocommit mode: as an application without Django sees it."""
    return connect()


@pytest.fixture
def clean_tables(database: dict[str, Any]) -> Iterator[None]:
    """Our tables empty, without vector indexes and with default settings, before and after.

    For tests that commit. One that rolls back (plain ``django_db``) needs no
    cleaning, and its open transaction would be in the way: that fails after five
    seconds rather than hang.
    """
    with psycopg.connect(
        **database, autocommit=True, options="-c lock_timeout=5s -c client_min_messages=warning"
    ) as connection:
        _empty_tables(connection)
        yield
        _empty_tables(connection)


def _empty_tables(connection: psycopg.Connection) -> None:
    connection.execute(
        sql.SQL("TRUNCATE {} RESTART IDENTITY").format(
            sql.SQL(", ").join(sql.Identifier("public", table) for table in TABLES)
        )
    )
    connection.execute("INSERT INTO public.search_settings DEFAULT VALUES")
    vector_indexes = connection.execute(
        """
        SELECT i.relname FROM pg_index AS x
        JOIN pg_class AS i ON i.oid = x.indexrelid
        JOIN pg_am AS a ON a.oid = i.relam
        WHERE x.indrelid = 'public.embeddings'::regclass AND a.amname IN ('hnsw', 'ivfflat')
        """
    ).fetchall()
    for (name,) in vector_indexes:
        connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier("public", name)))


@pytest.fixture
def manage_environment(database: dict[str, Any]) -> dict[str, str]:
    """The variables that put ``manage.py`` on the test database and this run's Redis."""
    return {
        "PATH": os.environ["PATH"],
        "ENV_FILE": os.devnull,
        "DEBUG": "true",
        "DATABASE_URL": "postgres://{user}@:{port}/{dbname}?host={host}".format(**database),
        "CARTRITA_EMBEDDED_DIR": str(settings.EMBEDDED_DIR),
        "RECORD_SEARCHES": "false",
    }


@pytest.fixture
def manage(manage_environment: dict[str, str]) -> Manage:
    """``manage.py`` as an operator runs it."""

    def _manage(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=settings.BASE_DIR,
            env=manage_environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    return _manage


@pytest.fixture(scope="session")
def site_template(database: dict[str, Any], django_db_blocker: DjangoDbBlocker) -> str:
    """The name of a database with all migrations and `site.ROWS`, to copy."""
    name = "site_template"
    with django_db_blocker.unblock(), _default_database(name):
        call_command("migrate", verbosity=0)
        with connection.cursor() as cursor:
            cursor.execute(ROWS)
    return name


@pytest.fixture
def site(
    database: dict[str, Any], site_template: str, django_db_blocker: DjangoDbBlocker
) -> Iterator[Site]:
    """A database of the test's own, which Django's default connection means meanwhile."""
    made = Site(database)
    made.drop_all()
    with made.connect("postgres") as server:
        server.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(made.name), sql.Identifier(site_template)
            )
        )
    with django_db_blocker.unblock(), _default_database(made.name):
        yield made
    made.drop_all()


@contextmanager
def _default_database(name: str) -> Iterator[None]:
    connections.close_all()
    before = connection.settings_dict["NAME"]
    connection.settings_dict["NAME"] = name
    try:
        yield
    finally:
        connections.close_all()
        connection.settings_dict["NAME"] = before
