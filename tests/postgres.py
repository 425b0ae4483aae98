"""What tests of the SQL functions share: calls, versions of rows, refusals, waiting."""

from __future__ import annotations

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


def _contents(pg: psycopg.Connection) -> list[list[tuple[Any, ...]]]:
    return [
        pg.execute(
            sql.SQL("SELECT xmin::text, ctid::text, t::text FROM {} AS t ORDER BY 2").format(
                sql.Identifier(table)
            )
        ).fetchall()
        for table in TABLES
    ]
