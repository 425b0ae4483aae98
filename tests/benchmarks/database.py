"""The benchmarks' database, by plain psycopg."""

from __future__ import annotations

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from pgvector.psycopg import register_vector

from cartrita.embedded.postgres import EmbeddedPostgres


def raw_connection(connection: BaseDatabaseWrapper) -> psycopg.Connection:
    """An autocommit connection to Django's database, with pgvector's types."""
    connection.ensure_connection()
    params = connection.settings_dict
    pg = psycopg.connect(
        host=params["HOST"],
        port=params["PORT"],
        user=params["USER"],
        dbname=params["NAME"],
        autocommit=True,
    )
    register_vector(pg)
    return pg


def truncate(pg: psycopg.Connection) -> None:
    """Empty the search tables, vector indexes included: loading goes before building."""
    pg.execute("TRUNCATE search_documents, keyword_statistics, keyword_corpora CASCADE")
    # Without rows every model's plan is the exact scan: this drops their indexes.
    pg.execute("SELECT rebuild_vector_indexes()")


def roomy(connection: BaseDatabaseWrapper) -> None:
    """Restart the server with caches that hold several large tables at once.

    With development's 256 MB each search would find out what the one before evicted.
    """
    with raw_connection(connection) as pg:
        pg.execute("ALTER SYSTEM SET shared_buffers = '4GB'")
    connection.close()
    EmbeddedPostgres.from_settings().stop()
