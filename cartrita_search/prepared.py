"""`similarity_search` as a statement that is planned once.

The SQL function writes its statement anew for each call, with the model's name and
index in it, and so plans it each time: a third of a search. Where the connection
prepares statements (``prepare_threshold``), the same statement is asked for once, by
``similarity_statement()``, and run again and again. It knows itself when it no longer
holds, so nothing here has to be told of a rebuilt index or another default model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from .db import binary_cursor, vector_argument

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

#: What a statement answers at most, as ``similarity_statement.v1.sql`` has it.
MOST_ROWS = 10
#: Seconds until a model that had no such statement is looked at again.
ASK_AGAIN_SECONDS = 60.0


class _Statement(NamedTuple):
    text: str | None
    dimensions: int
    asked_at: float


#: By database alias and model; None is the default model.
_statements: dict[tuple[str, str | None], _Statement] = {}


def nearest(
    connection: BaseDatabaseWrapper, vector: Sequence[float], model: str | None, limit: int
) -> list[Sequence[Any]] | None:
    """The ``limit`` nearest of all the model's vectors, nearest first.

    Rows are (document id, source_table, source_id, chunk_index, title, content, metadata,
    cosine similarity). None where the function has to be called: statements are not
    prepared, the model's has not been, or does not hold for this search.
    Raises the DatabaseError of an unknown model.
    """
    connection.ensure_connection()
    if connection.connection.prepare_threshold is None or not 1 <= limit <= MOST_ROWS:
        return None
    key = (connection.alias, model)
    statement = _statements.get(key)
    if statement is None or (
        statement.text is None and time.monotonic() > statement.asked_at + ASK_AGAIN_SECONDS
    ):
        statement = _statements[key] = _ask(connection, model)
    if statement.text is None or len(vector) != statement.dimensions:
        return None
    with binary_cursor(connection, psycopg.RawCursor) as cursor:
        arguments: list[Any] = [vector_argument(vector), limit]
        cursor.execute(statement.text, arguments)
        rows: list[Sequence[Any]] = cursor.fetchall()
    if len(rows) < limit or math.isnan(rows[0][-1]):
        # It may be that it no longer holds.
        _statements.pop(key, None)
        return None
    return rows


def _ask(connection: BaseDatabaseWrapper, model: str | None) -> _Statement:
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement, dimensions FROM similarity_statement(%s)", [model])
        text, dimensions = cursor.fetchone()
    return _Statement(text, dimensions or 0, time.monotonic())
