"""A v1 database, with and without what the earlier SQL runner made, taken over and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from django.core.management import CommandError
from psycopg import sql

from tests.catalog import Catalog, read_catalog
from tests.conftest import Manage
from tests.in_process import run
from tests.postgres import scalar
from tests.test_migrations import STEPS, temporary_database
from tests.v1 import RUNNER_FILES, make_v1

pytestmark = pytest.mark.usefixtures("other_databases")

APP = "cartrita_search"

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
def v1(database: dict[str, Any], pg: psycopg.Connection) -> Iterator[dict[str, Any]]:
    """An empty database of the test's own."""
    with temporary_database(pg, "test_adoption", "template0"):
        yield database | {"dbname": "test_adoption"}


@contextmanager
def connected(v1: dict[str, Any]) -> Iterator[psycopg.Connection]:
    with psycopg.connect(**v1, autocommit=True) as connection:
        yield connection


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


@pytest.mark.parametrize("files", range(len(RUNNER_FILES) + 1))
def test_v1_goes_forward_loses_nothing_goes_back_as_it_was_and_forward_again(
    v1: dict[str, Any], files: int
) -> None:
    with connected(v1) as pg:
        make_v1(pg, runner_files=files)
        before, rows = read_catalog(pg), contents(pg)

        said = run(v1, "migrate", APP)

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

        said = run(v1, "migrate", APP, "zero")
        assert ("is embeddings again" in said) == (files > 1)
        assert without_bookkeeping(read_catalog(pg)) == before
        back = contents(pg)
        assert back.pop("django_migrations") == []
        assert back == rows

        run(v1, "migrate", APP)
        assert read_catalog(pg) == made
        assert contents(pg).keys() == after.keys()


def test_the_look_before_does_not_advise_to_change_v1_s_rows(v1: dict[str, Any]) -> None:
    with connected(v1) as pg:
        make_v1(pg, runner_files=4)
    said = run(v1, "check", databases=["default"])
    assert "cartrita_search.W003" in said
    assert "UPDATE retrieval_configs" not in said
    run(v1, "migrate", APP)
    assert "UPDATE" not in run(v1, "check", databases=["default"])


def test_what_the_migrating_role_lacks_is_named_with_the_grant_before_anything_is_touched(
    pg: psycopg.Connection, v1: dict[str, Any], manage: Manage
) -> None:
    role = sql.Identifier('the "migrator"')
    url = "postgres://{}@:{port}/{dbname}?host={host}".format(quote('the "migrator"'), **v1)
    pg.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        with connected(v1) as raw:
            make_v1(raw, runner_files=2)
            before = read_catalog(raw)

            def refused() -> str:
                done = manage("migrate", APP, DATABASE_URL=url, LOG_LEVEL="WARNING")
                assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
                assert "Nothing was changed." in done.stderr
                assert read_catalog(raw) == before
                return done.stderr

            remedy = 'GRANT CREATE ON SCHEMA public TO "the ""migrator""";'
            assert remedy in refused()
            raw.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(role))
            before = read_catalog(raw)
            said = refused()
            assert "postgres owns what has to be renamed: table schema_migrations" in said
            assert "routine similarity_search" in said
            assert 'GRANT postgres TO "the ""migrator""";' in said
    finally:
        with connected(v1) as raw:
            raw.execute(sql.SQL("DROP OWNED BY {}").format(role))
        pg.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_name_that_is_taken_stops_it_before_anything_is_touched(v1: dict[str, Any]) -> None:
    with connected(v1) as pg:
        make_v1(pg, runner_files=2)
        pg.execute("CREATE TABLE embeddings_v1 ()")
        before = read_catalog(pg)
        with pytest.raises(CommandError, match=r"Nothing was changed\. .* taken: embeddings_v1"):
            run(v1, "migrate", APP)
        assert without_bookkeeping(read_catalog(pg)) == before


def test_what_an_object_was_for_stays_with_it(v1: dict[str, Any]) -> None:
    """Its comment, its dependents, and the rows written to it meanwhile."""
    with connected(v1) as pg:
        make_v1(pg, runner_files=4)
        pg.execute("CREATE VIEW report AS SELECT count(*) AS vectors FROM embeddings")
        before = read_catalog(pg)
        run(v1, "migrate", APP)
        assert scalar(pg, "SELECT vectors FROM report") == 8
        comment = scalar(pg, "SELECT obj_description('embeddings_v1'::regclass)")
        assert comment.startswith('Was "embeddings" until')
        assert comment.endswith("\nUnified vectors")

        pg.execute(
            "INSERT INTO embeddings_v1 (source_table, source_id) VALUES ('new', gen_random_uuid())"
        )
        pg.execute(
            "INSERT INTO schema_migrations (version, checksum, description)"
            " VALUES ('0005_later.sql', 'SHA256:5', 'by the earlier runner, meanwhile')"
        )
        run(v1, "migrate", APP, "zero")
        assert without_bookkeeping(read_catalog(pg)) == before
        assert scalar(pg, "SELECT vectors FROM report") == 9
        assert scalar(pg, "SELECT max(version) FROM schema_migrations") == "0005_later.sql"


def test_a_record_of_another_shape_is_kept_too(v1: dict[str, Any]) -> None:
    """Other tools have a table of that name."""
    with connected(v1) as pg:
        pg.execute(
            "CREATE TABLE schema_migrations"
            " (version bigint PRIMARY KEY, dirty boolean, applied_at integer)"
        )
        pg.execute("INSERT INTO schema_migrations VALUES (20250101, false, 1735689600)")
        before = read_catalog(pg)
        assert "20250101" in run(v1, "verify_migrations")
        run(v1, "migrate", APP)
        assert "20250101" in run(v1, "verify_migrations")
        run(v1, "migrate", APP, "zero")
        after = without_bookkeeping(read_catalog(pg))
        del after["extension", "vector"]
        assert after == before
        assert pg.execute("TABLE schema_migrations").fetchall() == [(20250101, False, 1735689600)]


def test_everything_of_a_name_makes_room_overloads_and_aggregates_too(v1: dict[str, Any]) -> None:
    with connected(v1) as pg:
        make_v1(pg, runner_files=2)
        pg.execute(
            "CREATE FUNCTION upsert_embedding(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'"
        )
        pg.execute("CREATE PROCEDURE hybrid_search(text) LANGUAGE sql AS 'SELECT 1'")
        pg.execute("CREATE AGGREGATE similarity_search(real) (sfunc = float4larger, stype = real)")
        pg.execute("CREATE MATERIALIZED VIEW search_documents AS SELECT 1 AS one")
        pg.execute("CREATE SEQUENCE operator_actions")
        before = read_catalog(pg)
        said = run(v1, "migrate", APP)
        assert "materialized view search_documents is now search_documents_v1" in said
        assert scalar(pg, "SELECT upsert_embedding_v1(7)") == 1
        assert scalar(pg, "SELECT similarity_search_v1(x) FROM (VALUES (1.0::real)) AS v (x)") == 1
        run(v1, "migrate", APP, "zero")
        assert without_bookkeeping(read_catalog(pg)) == before


def test_a_type_of_a_name_of_ours_stops_it_before_anything_is_touched(v1: dict[str, Any]) -> None:
    with connected(v1) as pg:
        make_v1(pg)
        pg.execute("CREATE TYPE search_filter AS (one integer)")
        pg.execute("CREATE TYPE embeddings AS ENUM ('one')")
        before = read_catalog(pg)
        with pytest.raises(CommandError, match="needs: embeddings, search_filter"):
            run(v1, "migrate", APP)
        assert without_bookkeeping(read_catalog(pg)) == before
