"""A v1 database's rows brought over: what comes, what does not, and runs that were killed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cartrita_search.ops.import_v1 import STEPS, import_v1
from tests.conftest import Connect, Manage
from tests.postgres import scalar
from tests.v1 import RUNNER_FILES, make_v1

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("clean_tables")]

V1_SQL = Path(__file__).parent / "v1_sql"
MODEL = "text-embedding-3-small"
V1_TABLES = (
    "users",
    "knowledge_entries",
    "knowledge_documents",
    "knowledge_chunks",
    "search_index",
    "mcp_tasks",
    "knowledge_queries",
)
#: What the adoption renames, as `migrate` does on a real v1 database.
ADOPTED = (
    "embeddings",
    "retrieval_configs",
    "search_performance_metrics",
    "redis_sessions",
    "cache_invalidation_log",
)


@pytest.fixture(scope="module")
def runner_database(database: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A database as v1's SQL runner left it, not migrated."""
    name = "v1_of_the_runner"
    with psycopg.connect(**database, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    there = database | {"dbname": name}
    with psycopg.connect(**there, autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        make_v1(connection, runner_files=4)
    yield there
    with psycopg.connect(**database, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def v1(pg: psycopg.Connection, runner_database: dict[str, Any]) -> Iterator[psycopg.Connection]:
    """v1's tables beside v2's, and those of its SQL runner by the names that adoption gives."""
    pg.execute("SET client_min_messages = warning")
    try:
        make_v1(pg)
        adopt_runner_tables(pg, runner_database)
        yield pg
    finally:
        for name in (*V1_TABLES, *(f"{name}_v1" for name in ADOPTED)):
            pg.execute(sql.SQL("DROP TABLE IF EXISTS {} CASCADE").format(sql.Identifier(name)))


def adopt_runner_tables(pg: psycopg.Connection, runner_database: dict[str, Any]) -> None:
    made = "\n".join((V1_SQL / name).read_text() for name in RUNNER_FILES)
    with psycopg.connect(**runner_database, autocommit=True) as source:
        for name in ADOPTED:
            (statement,) = re.findall(rf"^CREATE TABLE ({name} \(.*?^\);)", made, re.M | re.S)
            adopted = f"{name}_v1"
            pg.execute(f"CREATE TABLE {statement.replace(name, adopted, 1)}".encode())
            with (
                source.cursor().copy(
                    sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(name))
                ) as rows,
                pg.cursor().copy(
                    sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(adopted))
                ) as copied,
            ):
                for block in rows:
                    copied.write(block)
        # Their ids are those of the rows that the runner's functions copied.
        pg.execute("DELETE FROM search_index")
        with (
            source.cursor().copy("COPY search_index TO STDOUT") as rows,
            pg.cursor().copy("COPY search_index FROM STDIN") as copied,
        ):
            for block in rows:
                copied.write(block)


def test_it(v1: psycopg.Connection, manage: Manage) -> None:
    done = manage("import_v1", "--users")
    print(done.stdout, done.stderr)
    done = manage("import_v1", "--users")
    print(done.stdout, done.stderr)
    done = manage("import_v1", "--users", "--dry-run")
    print(done.stdout, done.stderr)
    for r in v1.execute(
        "select source_table, source_id, user_id, title, content, tags, metadata, created_at from search_documents order by 1,2"
    ):
        print(r)
    for r in v1.execute("select * from retrieval_configs"):
        print(r)
    for r in v1.execute("select * from auth_user"):
        print(r)
    for r in v1.execute("select * from operator_actions"):
        print(r)
    assert 0
