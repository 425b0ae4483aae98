"""A v1 database, with and without what the earlier SQL runner made, taken over and given back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.catalog import Catalog, read_catalog
from tests.conftest import Manage
from tests.postgres import scalar
from tests.test_migrations import STEPS, Database, temporary_database
from tests.v1 import RUNNER_FILES, make_v1

#: What each of the runner's files adds to what has to make room.
SET_ASIDE = (
    {"table schema_migrations", "index schema_migrations_pkey"},
    {
        "table embeddings",
        "index embeddings_pkey",
        "index idx_embeddings_source",
        "routine similarity_search",
        "routine upsert_embedding",
    },
    {"index embeddings_vector", "routine rebuild_vector_indexes", "view vector_search_stats"},
    {
        *(
            f"{kind} {table}{suffix}"
            for table in (
                "cache_invalidation_log",
                "retrieval_configs",
                "search_performance_metrics",
            )
            for kind, suffix in (("table", ""), ("index", "_pkey"), ("sequence", "_id_seq"))
        ),
        "table redis_sessions",
        "index redis_sessions_pkey",
        "index redis_sessions_session_key_key",
        "routine hybrid_search",
    },
)


@pytest.fixture
def v1(database: dict[str, Any], manage: Manage, pg: psycopg.Connection) -> Iterator[Database]:
    """An empty database of the test's own."""
    with temporary_database(pg, "test_adoption", "template0"):
        yield Database(database | {"dbname": "test_adoption"}, manage)


def contents(pg: psycopg.Connection, suffix: str = "") -> dict[str, list[str]]:
    """Every row of every table, as text; of a table that was set aside under its former name."""
    tables = pg.execute(
        """
        SELECT c.relname FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
        """
    ).fetchall()
    return {
        table.removesuffix(suffix): [
            row
            for (row,) in pg.execute(
                sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1").format(sql.Identifier(table))
            ).fetchall()
        ]
        for (table,) in tables
    }


def without_bookkeeping(catalog: Catalog) -> dict[tuple[str, str], str]:
    """Less Django's own table, which stays when everything else has gone back."""
    return {
        (kind, name): definition
        for (kind, name), definition in catalog.items()
        if "django_migrations" not in name
    }


@pytest.mark.slow
@pytest.mark.parametrize("files", range(len(RUNNER_FILES) + 1))
def test_v1_goes_forward_loses_nothing_goes_back_as_it_was_and_forward_again(
    v1: Database, files: int
) -> None:
    with v1.connect() as pg:
        make_v1(pg, runner_files=files)
        before, rows = read_catalog(pg), contents(pg)

        said = v1.migrate_search()

        expected = set[str]().union(*SET_ASIDE[:files])
        for renamed in expected:
            kind, name = renamed.split()
            assert f"{kind} {name} is now {name}_v1" in said
        if not files:
            assert "is now" not in said
        # Nothing lost: every row is where it was, or in the table of the new name.
        aside = {name.split()[1] for name in expected if name.startswith("table")}
        after = contents(pg)
        for table, was in rows.items():
            assert after[f"{table}_v1" if table in aside else table] == was
        recorded = pg.execute("SELECT version FROM schema_migrations ORDER BY applied_at")
        assert [version for (version,) in recorded] == [*RUNNER_FILES[:files], *STEPS]
        # And v2 is whole: the same as in a database that was empty.
        assert scalar(pg, "SELECT count(*) FROM hybrid_search('looms', NULL)") == 0
        made = read_catalog(pg)

        said = v1.migrate_search("zero")
        assert ("is embeddings again" in said) == (files > 1)
        assert without_bookkeeping(read_catalog(pg)) == before
        back = contents(pg)
        assert back.pop("django_migrations") == []
        assert back == rows

        v1.migrate_search()
        assert read_catalog(pg) == made
        assert contents(pg).keys() == after.keys()
