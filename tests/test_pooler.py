"""What must not go through PgBouncer and says so, and pools of connections.

What goes through it is tested by ``make pooler``: searches, pages and the admin, whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import close_old_connections, connection, connections
from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg_pool import ConnectionPool

from cartrita.embedded.postgres import client_program
from cartrita_search.db import REBUILD_LOCK, advisory_lock, direct_connection
from cartrita_search.errors import PoolerRefused
from cartrita_search.ingest import Document, upsert_documents
from cartrita_search.retrieval import keyword_search, search, similarity_search

from .conftest import Manage
from .pgbouncer import pgbouncer
from .postgres import scalar

ALIAS = "pooled"

pytestmark = [
    pytest.mark.django_db(transaction=True, databases="__all__"),
    pytest.mark.usefixtures("clean_tables"),
]


@pytest.fixture(scope="module", autouse=True)
def pooled(database: dict[str, Any]) -> Iterator[None]:
    """The database once more, through a pool of two connections."""
    given = connection.settings_dict
    config = given | {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": database["host"],
        "PORT": str(database["port"]),
        "USER": database["user"],
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {"pool": {"min_size": 1, "max_size": 2, "timeout": 30}},
        "TEST": given["TEST"] | {"MIRROR": "default"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connections.settings, ALIAS, config)
        yield
        connections[ALIAS].close()
        the_pool().close()
        del connections[ALIAS]


def the_pool() -> ConnectionPool:
    wrapper = connections[ALIAS]
    assert isinstance(wrapper, DatabaseWrapper)
    assert wrapper.pool is not None
    pool: ConnectionPool = wrapper.pool
    return pool


def test_a_lock_is_refused_through_pgbouncer_and_taken_beside_it(
    database: dict[str, Any], pg: psycopg.Connection, settings: Any
) -> None:
    with pgbouncer(database) as through:
        url = "postgres://{user}@{host}:{port}/{dbname}".format(**through)
        settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"DIRECT_DATABASE_URL": url}
        with pytest.raises(PoolerRefused, match="MIGRATE_DATABASE_URL"), direct_connection("a"):
            pass
        direct = "postgres://{user}@/{dbname}?host={host}&port={port}".format(**database)
        settings.CARTRITA_SEARCH = settings.CARTRITA_SEARCH | {"DIRECT_DATABASE_URL": direct}
        with direct_connection("b") as own, advisory_lock(own, REBUILD_LOCK):
            assert not scalar(pg, "SELECT pg_try_advisory_lock(%s)", [REBUILD_LOCK])


@pytest.mark.parametrize(
    "command", ["migrate", "rebuild_vector_indexes", "backup_database"], ids=str
)
def test_a_command_that_cannot_go_through_pgbouncer_says_so(
    database: dict[str, Any], manage: Manage, tmp_path: Path, command: str
) -> None:
    to_a_file = [str(tmp_path / "dump")] if command == "backup_database" else []
    with pgbouncer(database) as through:
        url = "postgres://{user}@{host}:{port}/{dbname}".format(**through)
        done = manage(command, *to_a_file, DATABASE_URL=url)
        assert done.returncode == 1
        assert "goes through a pooler" in done.stderr
        assert "MIGRATE_DATABASE_URL" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        direct = "postgres://{user}@/{dbname}?host={host}&port={port}".format(**database)
        done = manage(
            *(command, *to_a_file),
            DATABASE_URL=url,
            MIGRATE_DATABASE_URL=direct,
            POSTGRES_BIN=str(Path(client_program("pg_dump")).parent),
        )
        assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) or not to_a_file


def test_a_pool_serves_more_threads_than_it_has_connections(pg: psycopg.Connection) -> None:
    everybody = threading.Barrier(6)
    documents = [Document("notes", str(n), "Tea", "Steep tea.", [1, n]) for n in range(5)]
    upsert_documents(documents, model="mini", using=ALIAS)

    def requests(thread: int) -> int:
        everybody.wait(60)
        found = 0
        for _ in range(10):
            found += len(keyword_search("tea", using=ALIAS))
            found += len(similarity_search([1, 0], model="mini", using=ALIAS))
            found += len(search("tea", vector=[1, 0], model="mini", using=ALIAS))
            close_old_connections()  # back to the pool, as at the end of a request
        return found

    close_old_connections()
    the_pool().pop_stats()  # what other tests have counted
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(requests, range(6))) == [10 * 3 * 5] * 6
    assert the_pool().get_stats().get("connections_num", 0) <= 2


def test_a_connection_of_the_pool_that_broke_is_no_ones_trouble(pg: psycopg.Connection) -> None:
    upsert_documents([Document("notes", "1", "Tea", "Steep tea.")], using=ALIAS)
    for _ in range(3):
        pid = connections[ALIAS].connection.info.backend_pid
        close_old_connections()
        scalar(pg, "SELECT pg_terminate_backend(%s, 10000)", [pid])
        assert len(keyword_search("tea", using=ALIAS)) == 1


def test_a_connection_of_ones_own_is_none_of_the_pools(pg: psycopg.Connection) -> None:
    connections[ALIAS].ensure_connection()
    with direct_connection("own", using=ALIAS) as own:
        assert own.info.backend_pid != connections[ALIAS].connection.info.backend_pid
        # What takes a session of its own takes its time.
        assert scalar(own, "SHOW statement_timeout") == "0"
        assert own.info.parameter_status("application_name") == "own"


def test_a_limit_of_requests_statements_is_none_of_a_commands(manage: Manage) -> None:
    show = (
        "from django.db import connection as c; k = c.cursor();"
        "k.execute('SHOW statement_timeout'); print(k.fetchone()[0])"
    )
    done = manage("shell", "--verbosity=0", "-c", show, DATABASE_STATEMENT_TIMEOUT="30")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
