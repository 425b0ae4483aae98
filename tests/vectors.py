"""Random vectors in the database, and what is looked at of them by tests of their indexes."""

from __future__ import annotations

import random
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from tests.postgres import vector_text

DIMENSIONS = 32


def random_vector(seed: object, dimensions: int = DIMENSIONS) -> str:
    """A vector in no preferred direction, always the same for a seed."""
    source = random.Random(str(seed))
    return vector_text([source.gauss() for _ in range(dimensions)])


def register(pg: psycopg.Connection, model: str, dimensions: int = DIMENSIONS) -> None:
    pg.execute("SELECT register_embedding_model(%s, %s)", [model, dimensions])


def load(
    pg: psycopg.Connection,
    rows: int,
    model: str = "model",
    dimensions: int = DIMENSIONS,
    user_id: int | None = None,
) -> None:
    """Random vectors, the same for a model's name, in one statement."""
    register(pg, model, dimensions)
    keys = [f"{user_id}/{number}" for number in range(rows)]
    pg.execute(
        """
        WITH new AS (
            INSERT INTO search_documents (source_table, source_id, user_id, title)
            SELECT left(%(model)s, 100), key, %(user_id)s, 'title ' || key
            FROM unnest(%(keys)s::text[]) AS key
            RETURNING id, source_id
        )
        INSERT INTO embeddings (document_id, embedding_model, embedding)
        SELECT new.id, %(model)s, v.embedding::vector
        FROM unnest(%(keys)s::text[], %(vectors)s::text[]) AS v (key, embedding)
        INNER JOIN new ON new.source_id = v.key
        """,
        {
            "model": model,
            "user_id": user_id,
            "keys": keys,
            "vectors": [random_vector(f"{model}/{key}", dimensions) for key in keys],
        },
    )
    pg.execute("ANALYZE embeddings")


def settings(pg: psycopg.Connection, **values: int | None) -> None:
    """Change search_settings, until clean_tables puts the defaults back."""
    pg.execute(
        sql.SQL("UPDATE search_settings SET {}").format(
            sql.SQL(", ").join(
                sql.SQL("{} = {}").format(sql.Identifier(name), value)
                for name, value in values.items()
            )
        )
    )


def state(pg: psycopg.Connection, model: str = "model") -> dict[str, Any]:
    """The model's row of embedding_models."""
    with pg.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute("SELECT * FROM embedding_models WHERE name = %s", [model]).fetchone()
    assert row is not None
    return row


def similar(pg: psycopg.Connection, query: str, count: int = 10, **options: object) -> list[Any]:
    """Ids of similarity_search(), nearest first."""
    statement = sql.SQL("SELECT id FROM similarity_search(%s, match_count => %s{})").format(
        sql.SQL("").join(sql.SQL(", {} => %s").format(sql.Identifier(name)) for name in options)
    )
    return [key for (key,) in pg.execute(statement, [query, count, *options.values()])]


def nearest(pg: psycopg.Connection, query: str, count: int = 10) -> list[Any]:
    """The true answer: without the index's cast the index cannot be used."""
    rows = pg.execute(
        "SELECT id FROM embeddings WHERE embedding_model = 'model' "
        "ORDER BY embedding <=> %s::vector, id LIMIT %s",
        [query, count],
    )
    return [key for (key,) in rows]
