"""What tests of the SQL functions share: calls, versions of rows, refusals, waiting, plans."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from tests.conftest import TABLES


def vector_text(components: Sequence[float]) -> str:
    """pgvector's text form, written here anew so as not to test the code by itself."""
    return "[" + ",".join(repr(float(component)) for component in components) + "]"


def upsert(
    pg: psycopg.Connection,
    source_id: object,
    embedding: Sequence[float] | None,
    model: str | None = "mini",
    *,
    source_table: str = "notes",
    **named: object,
) -> UUID:
    """upsert_embedding() with the first four arguments by position, others by name."""
    statement = sql.SQL("SELECT upsert_embedding(%s, %s, %s, %s{})").format(
        sql.SQL("").join(sql.SQL(", {} => %s").format(sql.Identifier(name)) for name in named)
    )
    vector = None if embedding is None else vector_text(embedding)
    key: UUID = scalar(pg, statement, [source_table, source_id, vector, model, *named.values()])
    return key


def scalar(
    pg: psycopg.Connection, statement: str | sql.Composed, parameters: Sequence[object] = ()
) -> Any:
    """The one value of the one row that the statement gives."""
    rows = pg.execute(statement, parameters).fetchall()
    assert len(rows) == 1
    (value,) = rows[0]
    return value


def row_versions(pg: psycopg.Connection, table: str) -> dict[object, tuple[str, str]]:
    """(xmin, ctid) by primary key: equal before and after means not written in between."""
    rows = pg.execute(
        sql.SQL("SELECT id, xmin::text, ctid::text FROM {}").format(sql.Identifier(table))
    ).fetchall()
    return {key: (xmin, ctid) for key, xmin, ctid in rows}


@contextmanager
def writing_nothing(pg: psycopg.Connection) -> Iterator[None]:
    """Assert that the block writes no row and locks none.

    Either would need a transaction id, and one is assigned only then.
    """
    with pg.transaction():
        yield
        assert scalar(pg, "SELECT pg_current_xact_id_if_assigned()") is None


@contextmanager
def refused(pg: psycopg.Connection, sqlstate: str, message: str) -> Iterator[None]:
    """Assert an error of that SQLSTATE, matching message, with a hint, and nothing changed."""
    before = _contents(pg)
    with pytest.raises(psycopg.Error, match=message) as caught, pg.transaction():
        yield
    assert caught.value.sqlstate == sqlstate
    assert caught.value.diag.message_hint
    assert _contents(pg) == before


def wait_until_blocked(observer: psycopg.Connection, pid: int) -> None:
    """Return when that backend waits for a lock that another holds."""
    deadline = time.monotonic() + 30
    while not scalar(observer, "SELECT pg_blocking_pids(%s)", [pid]):
        assert time.monotonic() < deadline, "the backend never came to wait for a lock"


def wait_until_alone(pg: psycopg.Connection) -> None:
    """Return when no other session of this database is within a transaction.

    A connection that the test before has closed takes a moment to be gone.
    """
    others = """
        SELECT EXISTS (
            SELECT FROM pg_stat_activity AS a
            WHERE a.datname = current_database() AND a.backend_type = 'client backend'
                AND a.pid <> pg_backend_pid()
                AND (a.xact_start IS NOT NULL OR starts_with(a.state, 'idle in transaction'))
        )
    """
    deadline = time.monotonic() + 60
    while scalar(pg, others):
        assert time.monotonic() < deadline, "somebody is in a transaction still"


def vector_indexes(pg: psycopg.Connection) -> dict[str, int]:
    """Name and OID of every vector index."""
    rows = pg.execute(
        """
        SELECT i.relname, i.oid FROM pg_index AS x
        JOIN pg_class AS i ON i.oid = x.indexrelid
        JOIN pg_am AS a ON a.oid = i.relam
        WHERE x.indrelid = 'embeddings'::regclass AND a.amname IN ('hnsw', 'ivfflat')
            AND x.indisvalid
        """
    ).fetchall()
    return dict(rows)


def index_name(pg: psycopg.Connection, model: str = "model") -> str:
    return str(scalar(pg, "SELECT vector_index_name(%s)", [model]))


def prefer_vector_index(pg: psycopg.Connection) -> None:
    """For tables so small that a scan is cheaper: the question is whether the index can serve."""
    pg.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off")


def indexes_used(pg: psycopg.Connection, query: str, parameters: Sequence[object]) -> set[str]:
    """The indexes in the plans of all statements that this one runs, inside functions too."""
    plans: list[Any] = []

    def collect(diagnostic: psycopg.errors.Diagnostic) -> None:
        message = diagnostic.message_primary or ""
        if "plan:" in message:
            plans.append(json.loads(message.partition("plan:")[2]))

    pg.execute("LOAD 'auto_explain'")
    with pg.transaction():
        for name, value in (
            ("auto_explain.log_min_duration", "0"),
            ("auto_explain.log_nested_statements", "on"),
            ("auto_explain.log_format", "json"),
            ("client_min_messages", "log"),
        ):
            pg.execute("SELECT set_config(%s, %s, true)", [name, value])
        pg.add_notice_handler(collect)
        pg.execute(query, parameters)
        pg.remove_notice_handler(collect)
    assert plans
    return set(_values(plans, "Index Name"))


def _contents(pg: psycopg.Connection) -> list[list[tuple[Any, ...]]]:
    return [
        pg.execute(
            sql.SQL("SELECT xmin::text, ctid::text, t::text FROM {} AS t ORDER BY 2").format(
                sql.Identifier(table)
            )
        ).fetchall()
        for table in TABLES
    ]


def _values(tree: Any, key: str) -> Iterator[str]:
    """Every value under that key, however deep."""
    if isinstance(tree, dict):
        if key in tree:
            yield tree[key]
        for branch in tree.values():
            yield from _values(branch, key)
    elif isinstance(tree, list):
        for branch in tree:
            yield from _values(branch, key)
