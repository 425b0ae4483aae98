"""A v1 database's rows brought over: what comes, what does not, and runs that were killed."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import bcrypt
import psycopg
import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from psycopg import sql

from cartrita.settings import PASSWORD_HASHERS
from cartrita_search.db import IMPORT_LOCK, advisory_lock
from cartrita_search.errors import (
    DatabaseUnreachable,
    DimensionMismatch,
    InvalidArgument,
    RebuildInProgress,
    UnknownModel,
)
from cartrita_search.models import RetrievalConfig
from cartrita_search.ops.import_v1 import STEPS, ImportReport, import_v1
from cartrita_search.retrieval import keyword_search
from cartrita_search.v1.documents import NO_KEY, REASONS
from cartrita_search.v1.tables import Outcome, parse_map
from tests.conftest import Connect, Manage
from tests.pgbouncer import pgbouncer
from tests.postgres import row_versions, scalar, vector_indexes
from tests.v1 import PASSWORDS, RUNNER_FILES, make_v1

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
            (statement,) = re.findall(
                rf"^CREATE TABLE ({name} \(.*?^\);)", made, re.MULTILINE | re.DOTALL
            )
            adopted = f"{name}_v1"
            made_elsewhere = statement.removeprefix(name)
            pg.execute(
                sql.SQL("CREATE TABLE {}{}").format(
                    sql.Identifier(adopted), sql.SQL(made_elsewhere)
                )
            )
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


def run(**options: Any) -> ImportReport:
    return import_v1(**{"model": MODEL} | options)


def by_table(report: ImportReport) -> dict[str, Outcome]:
    return {outcome.table: outcome for outcome in report.outcomes}


def contents(pg: psycopg.Connection) -> list[list[Any]]:
    """All that came, without the ids and times that v2 gives by itself."""
    return [
        pg.execute(statement).fetchall()
        for statement in (
            "SELECT source_table, source_id, chunk_index, user_id, title, content, tags, metadata,"
            " content_hash, search_vector FROM search_documents ORDER BY 1, 2, 3",
            "SELECT source_table, source_id, chunk_index, user_id, embedding_model, content_hash,"
            " embedding, metadata FROM embeddings ORDER BY 1, 2, 3, 5",
            "SELECT user_id, config_name, vector_weight, keyword_weight, is_active"
            " FROM retrieval_configs ORDER BY 1, 2",
            "SELECT id, username, password, is_staff, is_superuser FROM auth_user ORDER BY 1",
        )
    ]


# --- What comes -----------------------------------------------------------------


def test_every_row_comes_with_its_owner_its_text_and_its_vector(v1: psycopg.Connection) -> None:
    report = run()
    assert {table: (done.brought, done.read) for table, done in by_table(report).items()} == {
        "retrieval_configs": (5, 5),
        "knowledge_entries": (12, 12),
        "knowledge_documents": (0, 2),
        "knowledge_chunks": (8, 8),
        "search_index": (6, 6),
        "mcp_tasks": (4, 4),
        "embeddings": (1, 8),
    }
    for statement in (
        """
        SELECT k.id::text, k.user_id, k.title, k.content, k.tags, k.created_at,
            k.embedding::text, k.metadata || jsonb_build_object(
                'category', k.category, 'source_url', k.source_url,
                'content_type', k.content_type, 'confidence_score', k.confidence_score)
        FROM knowledge_entries AS k
        EXCEPT
        SELECT d.source_id, d.user_id, d.title, d.content, d.tags, d.created_at,
            e.embedding::text, d.metadata
        FROM search_documents AS d LEFT JOIN embeddings AS e ON e.document_id = d.id
        WHERE d.source_table = 'knowledge_entries'
        """,
        """
        SELECT c.id::text, c.user_id, w.title::text, c.chunk_text, c.created_at,
            c.embedding::text,
            jsonb_build_object('document_id', w.id, 'chunk_index', c.chunk_index)
        FROM knowledge_chunks AS c JOIN knowledge_documents AS w ON w.id = c.document_id
        EXCEPT
        SELECT d.source_id, d.user_id, d.title, d.content, d.created_at, e.embedding::text,
            d.metadata
        FROM search_documents AS d LEFT JOIN embeddings AS e ON e.document_id = d.id
        WHERE d.source_table = 'knowledge_chunks'
        """,
        """
        SELECT s.id::text, s.user_id, coalesce(s.title, ''), s.content, s.tags,
            s.last_indexed_at AT TIME ZONE 'UTC', s.embedding::text
        FROM search_index AS s
        EXCEPT
        SELECT d.source_id, d.user_id, d.title, d.content, d.tags, d.created_at,
            e.embedding::text
        FROM search_documents AS d LEFT JOIN embeddings AS e ON e.document_id = d.id
        WHERE d.source_table = 'search_index'
        """,
    ):
        assert v1.execute(statement.encode()).fetchall() == []
    content = '{"page": 2}\n\n{"summary": "Page 2 is about bees."}'
    task = v1.execute(
        "SELECT title, content, metadata ->> 'status' FROM search_documents"
        " WHERE source_table = 'mcp_tasks' AND content LIKE '%%Page 2%%'"
    ).fetchone()
    assert task == ("summarise", content, "completed")
    assert {hit.source_table for hit in keyword_search("looms")} == {"knowledge_chunks"}


def test_rows_without_a_vector_await_one(v1: psycopg.Connection) -> None:
    run()
    waiting = v1.execute(
        "SELECT source_table, missing FROM vector_search_stats WHERE missing > 0 ORDER BY 1"
    ).fetchall()
    assert waiting == [
        ("knowledge_chunks", 2),
        ("knowledge_entries", 2),
        ("mcp_tasks", 2),
        ("search_index", 3),
    ]
    assert scalar(v1, "SELECT sum(stale) FROM vector_search_stats") == 0


def test_a_document_comes_itself_where_it_has_no_chunks(v1: psycopg.Connection) -> None:
    v1.execute(
        "INSERT INTO knowledge_documents (id, user_id, title, content) VALUES"
        " (7, 2, 'Whole', 'One piece of text.'), (8, 2, '', NULL)"
    )
    outcome = by_table(run())["knowledge_documents"]
    assert outcome.brought == 1
    assert outcome.skipped == {REASONS["parts"]: 2, REASONS["empty"]: 1}
    assert outcome.examples[REASONS["empty"]] == ["8"]
    row = v1.execute(
        "SELECT source_id, user_id, title, content FROM search_documents"
        " WHERE source_table = 'knowledge_documents'"
    ).fetchall()
    assert row == [("7", 2, "Whole", "One piece of text.")]


def test_a_second_run_changes_nothing_and_a_changed_row_comes_again(
    v1: psycopg.Connection,
) -> None:
    run(users=True)
    tables = ("search_documents", "embeddings", "retrieval_configs", "auth_user")
    before = [row_versions(v1, table) for table in tables]
    again = run(users=True)
    assert [row_versions(v1, table) for table in tables] == before
    for outcome in again.outcomes:
        assert (outcome.brought, outcome.updated) == (0, 0)
        assert outcome.unchanged + sum(outcome.skipped.values()) == outcome.read > 0

    v1.execute("UPDATE knowledge_entries SET title = 'Renamed', user_id = NULL WHERE id = 1")
    assert by_table(run())["knowledge_entries"].updated == 1
    found = v1.execute(
        "SELECT title, user_id FROM search_documents"
        " WHERE source_table = 'knowledge_entries' AND source_id = '1'"
    ).fetchone()
    assert found == ("Renamed", None)


def test_v1_is_only_read_and_under_a_reader_s_lock(
    v1: psycopg.Connection, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*V1_TABLES, *(f"{name}_v1" for name in ADOPTED)]
    before = [whole_table(v1, name) for name in names]
    observer = connect()
    seen: dict[str, set[str]] = {}

    def look(operation: str, name: str, subject: str = "") -> None:
        rows = observer.execute(
            "SELECT c.relname, l.mode FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation"
            " WHERE l.pid <> pg_backend_pid() AND c.relname = ANY (%s)",
            [names],
        )
        for table, mode in rows.fetchall():
            seen.setdefault(table, set()).add(mode)

    monkeypatch.setattr("cartrita_search.ops.import_v1.step", look)
    run(users=True, batch_size=2)
    assert {"knowledge_entries", "knowledge_chunks", "search_index", "users"} <= set(seen)
    assert set().union(*seen.values()) == {"AccessShareLock"}
    assert [whole_table(v1, name) for name in names] == before


def whole_table(pg: psycopg.Connection, name: str) -> list[Any]:
    return pg.execute(
        sql.SQL("SELECT xmin::text, ctid::text, t::text FROM {} AS t ORDER BY 2").format(
            sql.Identifier(name)
        )
    ).fetchall()


# --- What does not come -----------------------------------------------------------


def test_a_row_that_v2_cannot_hold_is_left_out_with_its_reason(v1: psycopg.Connection) -> None:
    v1.execute(
        """
        CREATE TABLE notes (
            key text, body text, vector vector, about json, tags text[], written timestamptz,
            updated_at timestamptz DEFAULT '2026-01-01'
        )
        """
    )
    good = "[1, 0, 0]"
    rows: list[tuple[Any, ...]] = [
        ("good", "text", good, '{"a": 1}', ["x", None], "2025-01-01"),
        ("zero", "text", "[0, 0, 0]", None, None, None),
        ("tiny", "text", "[1e-6, 0, 0]", None, None, None),
        ("four", "text", "[1, 0, 0, 0]", None, None, None),
        ("zero and empty", "", "[0, 0, 0]", None, None, None),
        ("empty", None, None, "{}", None, None),
        ("nul", "text", good, '{"a": "\\u0000"}', None, "infinity"),
        ("list", "text", good, "[1, 2]", None, None),
        ("k" * 501, "text", good, None, None, None),
        ("", "text", good, None, None, None),
        (None, "text", good, None, None, None),
        ("twice", "old", good, None, None, None),
    ]
    try:
        with v1.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO notes (key, body, vector, about, tags, written)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                rows,
            )
        v1.execute(
            "INSERT INTO notes (key, body, updated_at) VALUES ('twice', 'new', '2026-02-02')"
        )
        mapped = "table=notes,key=key,content=body,embedding=vector,metadata=about,tags=tags"
        maps = [parse_map(f"{mapped},created_at=written")]
        for dry_run in (True, False):
            (outcome,) = run(maps=maps, only=["notes"], dry_run=dry_run, batch_size=2).outcomes
            assert (outcome.brought, outcome.read) == (7, len(rows) + 1)
            assert outcome.skipped == {
                NO_KEY: 1,
                REASONS["key"]: 2,
                REASONS["zero"]: 1,
                REASONS["empty"]: 1,
                REASONS["older"]: 1,
            }
            assert outcome.vectors_left_out == {
                REASONS["zero"]: 1,
                REASONS["length"]: 1,
                REASONS["dimensions"]: 1,
            }
        stored = v1.execute(
            "SELECT d.source_id, d.content, d.tags, d.metadata, d.created_at < '2026-01-01',"
            " e.embedding::text FROM search_documents AS d"
            " LEFT JOIN embeddings AS e ON e.document_id = d.id ORDER BY 1"
        ).fetchall()
        assert stored == [
            ("four", "text", [], {}, False, None),
            ("good", "text", ["x"], {"a": 1}, True, "[1,0,0]"),
            ("list", "text", [], {"metadata": [1, 2]}, False, "[1,0,0]"),
            ("nul", "text", [], {"metadata": '{"a": "\\u0000"}'}, False, "[1,0,0]"),
            ("tiny", "text", [], {}, False, None),
            ("twice", "new", [], {}, False, None),
            ("zero", "text", [], {}, False, None),
        ]
    finally:
        v1.execute("DROP TABLE notes")


def test_a_dry_run_writes_nothing(v1: psycopg.Connection, manage: Manage) -> None:
    before = contents(v1)
    done = manage("import_v1", "--users", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert contents(v1) == before
    assert scalar(v1, "SELECT count(*) FROM source_checkpoints") == 0
    assert scalar(v1, "SELECT count(*) FROM operator_actions") == 0
    assert re.search(rf"^knowledge_entries +12 +10  {MODEL} +0$", done.stdout, re.MULTILINE)
    assert "Not knowledge_queries: a log of queries, no corpus." in done.stdout
    assert f"knowledge_documents: 2 skipped: {REASONS['parts']} (1, 2)." in done.stdout
    assert "A dry run: nothing was written." in done.stdout


def test_the_outcome_as_json_and_the_record_of_it(v1: psycopg.Connection, manage: Manage) -> None:
    done = manage("import_v1", "--tables", "knowledge_entries", "--json", "--model", MODEL)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["plan"]["brought"] == [
        {"table": "knowledge_entries", "model": MODEL, "dimensions": 1536, "rows": 12,
         "vectors": 10, "stored": 0, "notes": [], "left": []}
    ]  # fmt: skip
    assert "users" in report["plan"]["skipped"]
    (table,) = report["tables"]
    assert (table["table"], table["brought"], table["read"]) == ("knowledge_entries", 12, 12)
    action = v1.execute("SELECT action, subject, outcome FROM operator_actions").fetchone()
    assert action == ("import_v1", "knowledge_entries", "done")


# --- Old embeddings ---------------------------------------------------------------


def test_of_old_embeddings_the_newest_comes_and_a_row_s_own_vector_before_them(
    v1: psycopg.Connection,
) -> None:
    v1.execute("TRUNCATE embeddings_v1")
    own, without = (
        scalar(v1, f"SELECT id FROM search_index WHERE embedding IS {null} NULL LIMIT 1")
        for null in ("NOT", "")
    )
    absent = "00000000-0000-4000-8000-00000000000a"
    rows = [
        ("search_index", own, 1, MODEL, "2026-01-01"),
        ("search_index", own, 2, "another", "2026-01-01"),
        ("search_index", without, 3, MODEL, "2026-01-01"),
        ("search_index", without, 4, MODEL, "2026-03-03"),
        ("search_index", without, 5, None, "2026-02-02"),
        ("messages", absent, 6, MODEL, "2026-01-01"),
    ]
    for *row, updated in rows:
        v1.execute(
            "INSERT INTO embeddings_v1 (source_table, source_id, embedding, embedding_model,"
            " content_hash, metadata, updated_at)"
            " VALUES (%s, %s, array_fill(%s::real, ARRAY[1536])::vector, %s, 'hash',"
            """ '{"n": 1}', %s)""",
            [*row, updated],
        )
    v1.execute(
        "INSERT INTO embeddings_v1 (source_table, source_id, embedding_model, updated_at)"
        " VALUES ('search_index', %s, %s, '2026-09-09')",
        [without, MODEL],
    )
    for batch_size in (2, 2000):
        outcomes = {(o.table, o.model): o for o in run(batch_size=batch_size).outcomes}
        outcome = outcomes["embeddings", MODEL]
        # The one without a vector is one or the other, by the batch that it comes to be in.
        assert outcome.skipped.get(REASONS["empty"], 0) + outcome.skipped[REASONS["older"]] == 3
        assert outcome.skipped[REASONS["own"]] == 1
        assert outcome.read == 6
        came = outcome.brought, outcomes["embeddings", "another"].brought
        assert came == ((2, 1) if batch_size == 2 else (0, 0))
    vectors = v1.execute(
        "SELECT source_id, embedding_model, (embedding::real[])[1] FROM embeddings"
        " WHERE source_id = ANY (%s) AND embedding <> ANY (SELECT embedding FROM search_index"
        " WHERE embedding IS NOT NULL) AND (embedding::real[])[1] > 1",
        [[str(own), str(without), absent]],
    ).fetchall()
    assert sorted(vectors) == sorted(
        [(str(own), "another", 2.0), (str(without), MODEL, 4.0), (absent, MODEL, 6.0)]
    )
    textless = v1.execute(
        "SELECT title, content, content_hash, metadata, user_id FROM search_documents"
        " WHERE source_id = %s",
        [absent],
    ).fetchone()
    assert textless == ("", "", "hash", {"n": 1}, None)
    assert scalar(v1, "SELECT sum(stale) FROM vector_search_stats") == 0


def test_an_old_vector_counts_where_the_row_s_own_is_unusable(v1: psycopg.Connection) -> None:
    own = scalar(v1, "SELECT id FROM search_index WHERE embedding IS NOT NULL LIMIT 1")
    v1.execute(
        "UPDATE search_index SET embedding = array_fill(0::real, ARRAY[1536])::vector"
        " WHERE id = %s",
        [own],
    )
    outcome = by_table(run())
    assert outcome["search_index"].vectors_left_out == {REASONS["zero"]: 1}
    assert outcome["embeddings"].skipped[REASONS["own"]] == 2
    stored = scalar(v1, "SELECT count(*) FROM embeddings WHERE source_id = %s", [str(own)])
    assert stored == 1


# --- Models and tables ------------------------------------------------------------


def test_the_model_must_be_said_unless_there_is_but_one(v1: psycopg.Connection) -> None:
    v1.execute("TRUNCATE embeddings_v1")
    with pytest.raises(UnknownModel, match="--model NAME"):
        import_v1()
    assert contents(v1)[0] == []
    # Without vectors no model is needed.
    import_v1(only=["knowledge_documents"])
    v1.execute("INSERT INTO embedding_models (name, dimensions) VALUES ('only', 1536)")
    import_v1(only=["knowledge_entries"])
    assert scalar(v1, "SELECT DISTINCT embedding_model FROM embeddings") == "only"
    v1.execute("INSERT INTO embedding_models (name, dimensions) VALUES ('small', 3)")
    with pytest.raises(UnknownModel, match=r"\(only, small\?\)"):
        import_v1()
    with pytest.raises(DimensionMismatch, match='1536 dimensions, but model "small" has 3'):
        import_v1(model="small")


def test_old_embeddings_tell_the_model(v1: psycopg.Connection) -> None:
    import_v1()
    assert scalar(v1, "SELECT DISTINCT embedding_model FROM embeddings") == MODEL


def test_tables_that_are_not_there_or_lack_columns_are_told(v1: psycopg.Connection) -> None:
    v1.execute("DROP TABLE mcp_tasks, users CASCADE")
    v1.execute("DROP INDEX idx_knowledge_entries_embedding")
    v1.execute(
        "ALTER TABLE knowledge_entries DROP tags, DROP user_id, DROP category, DROP created_at,"
        " ALTER embedding TYPE real[] USING embedding::real[], ADD colour text"
    )
    v1.execute("ALTER TABLE search_index ALTER user_id TYPE text")
    report = run()
    assert "mcp_tasks" not in by_table(report)
    (entries,) = [s for s in report.plan.sources if s.label == "knowledge_entries"]
    assert entries.notes == [
        "embedding is of type real[]: no vector comes",
        "no owner: its rows are shared with everybody",
    ]
    assert set(entries.left) == {"embedding", "colour"}
    assert by_table(report)["knowledge_entries"].brought == 12
    # Whose a row is cannot be told: then it is not everybody's.
    assert "shared with everybody" in report.plan.skipped["search_index"]
    assert "search_index" not in by_table(report)


def test_another_table_comes_by_an_option_or_a_setting(
    v1: psycopg.Connection, manage: Manage
) -> None:
    v1.execute("CREATE SCHEMA side")
    try:
        v1.execute(
            "CREATE TABLE side.notes (no bigint PRIMARY KEY, head text, body text, remark text,"
            " vec halfvec(3), author integer, kind text)"
        )
        v1.execute("INSERT INTO side.notes VALUES (1, 'h', 'b', 'r', '[1, 0, 0]', 2, 'k')")
        v1.execute("CREATE TABLE loose AS SELECT 1 AS id, '[1, 0, 0]'::vector(3) AS vec")
        mapped = {
            "table": "side.notes", "key": "no", "title": "head", "content": "body+remark",
            "embedding": "vec", "owner": "author", "keep": "kind",
        }  # fmt: skip
        option = ",".join(f"{name}={value}" for name, value in mapped.items())
        arguments = ("import_v1", "--model", "three", "--tables", "side.notes")
        done = manage(*arguments, "--map", option)
        assert done.returncode == 0, done.stderr
        assert "Not loose: unknown, with vectors in vec: --map table=loose," in done.stdout
        row = v1.execute(
            "SELECT d.source_id, d.title, d.content, d.user_id, d.metadata, e.embedding::text"
            " FROM search_documents AS d JOIN embeddings AS e ON e.document_id = d.id"
            " WHERE d.source_table = 'side.notes'"
        ).fetchall()
        assert row == [("1", "h", "b\n\nr", 2, {"kind": "k"}, "[1,0,0]")]
        again = manage(*arguments, "--json", V1_TABLES=json.dumps([mapped]))
        assert json.loads(again.stdout)["tables"][0]["unchanged"] == 1
    finally:
        v1.execute("DROP SCHEMA side CASCADE")
        v1.execute("DROP TABLE IF EXISTS loose")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("content=body", "names no table"),
        ("table=users", "neither content nor embedding"),
        ("table=users,colour=red,content=name", "no 'colour'"),
        ("table=users,content=n%me", "percent"),
        ("table=nothing,content=body", "no table nothing"),
        ("table=users,content=body", "no column body"),
        ("table=users,content=name,owner=email", "email of type character varying"),
        ("table=users,key=is_admin,content=name", "no column is_admin that could be a key"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(
    v1: psycopg.Connection, given: str, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        run(maps=[parse_map(given)])
    assert contents(v1)[0] == []


def test_mistakes_are_one_line(
    v1: psycopg.Connection, manage: Manage, manage_environment: dict[str, str]
) -> None:
    v1.execute("TRUNCATE embeddings_v1")
    done = manage("import_v1", LOG_LEVEL="WARNING")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "--model NAME" in done.stderr
    read_only = f"{manage_environment['DATABASE_URL']}&options=-cdefault_transaction_read_only=on"
    done = manage("import_v1", "--model", MODEL, DATABASE_URL=read_only, LOG_LEVEL="WARNING")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "read-only transaction" in done.stderr
    with pytest.raises(CommandError, match="A map names no table") as refused:
        call_command("import_v1", map=["content=body"])
    assert refused.value.returncode == 1
    with pytest.raises(InvalidArgument, match="No table 'recipes'"):
        run(only=["recipes"])
    with pytest.raises(InvalidArgument, match="at least 1"):
        run(batch_size=0)


def test_nothing_of_v1_is_no_error(pg: psycopg.Connection, manage: Manage) -> None:
    done = manage("import_v1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "There is nothing of v1 to bring over in this database.\n"


def test_a_table_that_may_not_be_read_in_full_is_refused_with_the_grant(
    v1: psycopg.Connection, manage: Manage, manage_environment: dict[str, str]
) -> None:
    v1.execute('CREATE ROLE "the importer" LOGIN')
    try:
        url = manage_environment["DATABASE_URL"].replace(
            "postgres://postgres@", "postgres://the%20importer@"
        )
        assert "importer" in url
        v1.execute(
            'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "the importer"'
        )
        v1.execute('REVOKE SELECT ON mcp_tasks FROM "the importer"')
        done = manage("import_v1", DATABASE_URL=url)
        assert done.returncode == 5
        assert 'GRANT SELECT ON mcp_tasks TO "the importer";' in done.stderr
        v1.execute('GRANT SELECT ON mcp_tasks TO "the importer"')
        v1.execute("ALTER TABLE mcp_tasks ENABLE ROW LEVEL SECURITY")
        done = manage("import_v1", DATABASE_URL=url)
        assert done.returncode == 5
        assert "Row security hides rows of mcp_tasks" in done.stderr
        assert contents(v1)[0] == []
    finally:
        v1.execute('DROP OWNED BY "the importer"')
        v1.execute('DROP ROLE "the importer"')


# --- People -----------------------------------------------------------------------


@pytest.fixture
def hashers(settings: Any) -> None:
    """The project's own hashers, after the quick one of tests."""
    settings.PASSWORD_HASHERS = [*settings.PASSWORD_HASHERS, *PASSWORD_HASHERS]


def test_people_log_in_by_their_v1_password(
    v1: psycopg.Connection, hashers: None, client: Client
) -> None:
    assert "django.contrib.auth.hashers.BCryptPasswordHasher" in PASSWORD_HASHERS[1:]
    v1.execute("ALTER SEQUENCE auth_user_id_seq RESTART")
    assert by_table(run(users=True))["users"].brought == 3
    for number, (address, password) in enumerate(PASSWORDS.items(), 1):
        assert not client.login(username=address, password=password + "x")
        assert client.login(username=address, password=password)
        person = User.objects.get(pk=number)
        assert (person.username, person.email) == (address, address)
        assert not person.password.startswith("bcrypt")
        assert client.login(username=address, password=password)
    assert User.objects.create_user("next").pk == 4


def test_a_password_beyond_bcrypt_s_72_bytes_still_logs_in(
    v1: psycopg.Connection, hashers: None, client: Client
) -> None:
    password = "long " * 20
    hashed = bcrypt.hashpw(password[:72].encode(), bcrypt.gensalt(4)).decode()
    v1.execute("UPDATE users SET password_hash = %s WHERE id = 2", [hashed])
    run(users=True)
    assert client.login(username="grace@example.com", password=password)


def test_rights_names_and_times_of_people(v1: psycopg.Connection) -> None:
    v1.execute("ALTER TABLE users ALTER email DROP NOT NULL, ADD is_active boolean")
    v1.execute(
        """
        INSERT INTO users (id, name, email, password_hash, role, is_admin, is_active, created_at)
        VALUES
            (10, 'Margaret Heafield Hamilton', NULL, 'plain text', 'Moderator', false, false,
                '2020-01-01 00:00+00'),
            (11, 'Margaret Heafield Hamilton', NULL, '', 'superadmin', NULL, NULL, NULL),
            (9, 'Flannery', 'o''brien+x@example.com', '', 'user', false, true, 'infinity'),
            (12, repeat('n', 200), repeat('a', 150) || '@example.com', '', NULL, true, true, now())
        """
    )
    outcome = by_table(run(users=True))["users"]
    assert outcome.brought == 7
    assert sum(outcome.adjusted.values()) == 5
    people = {
        person.pk: (person.username, person.is_staff, person.is_superuser, person.is_active)
        for person in User.objects.all()
    }
    assert people == {
        1: ("ada@example.com", True, True, True),
        2: ("grace@example.com", False, False, True),
        3: ("Edsger@Example.com", False, False, True),
        9: ("o'brien+x@example.com", False, False, True),
        10: ("Margaret-Heafield-Hamilton", True, False, False),
        11: ("Margaret-Heafield-Hamilton-11", True, True, True),
        12: ("user-12", True, True, True),
    }
    margaret = User.objects.get(pk=10)
    assert (margaret.first_name, margaret.last_name) == ("Margaret", "Heafield Hamilton")
    assert margaret.date_joined.year == 2020
    assert not margaret.has_usable_password()


@pytest.mark.parametrize(
    ("kind", "no", "admins"), [("text", "'false'", []), ("integer", "0", [1])]
)
def test_a_flag_of_another_type_makes_nobody_an_admin_by_mistake(
    v1: psycopg.Connection, kind: str, no: str, admins: list[int]
) -> None:
    v1.execute(
        sql.SQL(
            "ALTER TABLE users ALTER is_admin DROP DEFAULT, ALTER is_admin TYPE {0}"
            " USING CASE WHEN is_admin THEN true::integer::{0} ELSE {1} END,"
            " ADD is_active {0} DEFAULT {1}"
        ).format(sql.SQL(kind), sql.SQL(no))
    )
    v1.execute("UPDATE users SET role = NULL")
    run(users=True)
    people = User.objects.order_by("pk")
    assert [person.pk for person in people if person.is_superuser] == admins
    assert {person.is_active for person in people} == {kind == "text"}


def test_accounts_that_are_there_stay_as_they_are(v1: psycopg.Connection) -> None:
    User.objects.create(pk=1, username="root", email="root@example.com")
    User.objects.create(pk=2, username="g", email="GRACE@example.com", password="kept")
    User.objects.create(pk=50, username="e", email="Edsger@example.com")
    before = list(User.objects.order_by("pk").values())
    outcome = by_table(run(users=True))["users"]
    assert list(User.objects.order_by("pk").values()) == before
    assert (outcome.brought, outcome.unchanged) == (0, 1)
    assert list(outcome.skipped.values()) == [1, 1]
    assert sorted(key for keys in outcome.examples.values() for key in keys) == ["1", "3"]


# --- Weights ----------------------------------------------------------------------


def test_weights_are_scaled_and_one_of_a_person_is_active(v1: psycopg.Connection) -> None:
    RetrievalConfig.objects.create(user_id=1, vector_weight=0.2, keyword_weight=0.8)
    v1.execute("ALTER SEQUENCE retrieval_configs_v1_id_seq RESTART WITH 100")
    v1.execute(
        "ALTER TABLE retrieval_configs_v1 DROP CONSTRAINT retrieval_configs_v1_user_id_fkey"
    )
    v1.execute(
        """
        INSERT INTO retrieval_configs_v1 (
            user_id, config_name, vector_weight, keyword_weight, max_results,
            similarity_threshold, is_active, updated_at
        )
        VALUES
            (4, 'a', 3, 1, 0, 7, true, '2020-01-01'),
            (4, 'b', 'NaN', 1, 5000, -1, true, '2021-01-01'),
            (4, 'a', 1, 1, 10, 0, true, '2019-01-01'),
            (5, '', 0, 0, NULL, NULL, false, now()),
            (1, 'spare', 0.5, 0.5, 10, 0.5, true, now())
        """
    )
    outcome = run(only=["retrieval_configs"]).outcomes[0]
    assert (outcome.brought, outcome.unchanged) == (8, 1)
    assert sorted(outcome.skipped.values()) == [1]
    rows = RetrievalConfig.objects.order_by("user_id", "config_name").values_list(
        "user_id", "config_name", "vector_weight", "keyword_weight", "max_results",
        "similarity_threshold", "is_active",
    )  # fmt: skip
    assert list(rows) == [
        (1, "default", 0.2, 0.8, 10, 0.0, True),
        (1, "spare", 0.5, 0.5, 10, 0.5, False),
        (2, "default", 0.5, 0.5, 10, 0.5, False),
        (2, "other", 0.5, 0.5, 10, 0.5, True),
        (3, "default", 0.7, 0.3, 10, 0.5, True),
        (4, "a", 0.75, 0.25, 1, 1.0, False),
        (4, "b", 0.7, 0.3, 1000, 0.0, True),
        (5, "default", 0.7, 0.3, 10, 0.0, False),
        (None, "default", 0.7, 0.3, 10, 0.5, True),
    ]
    assert {reason.split(":")[0]: count for reason, count in outcome.adjusted.items()} == {
        "the weights did not sum to 1": 2,
        "no usable weights": 3,
        "results or threshold out of range": 2,
        "another one is the person's active one": 3,
    }


# --- Runs that are interrupted ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_run_that_is_killed_is_gone_on_with(
    v1: psycopg.Connection, manage: Manage, name: str
) -> None:
    run(users=True)
    whole = contents(v1)
    forget(v1)
    killed = manage(
        *("import_v1", "--users", "--batch-size", "2"),
        DJANGO_SETTINGS_MODULE="tests.crash_settings",
        CRASH_AT=f"import_v1:{name}",
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # Whatever is there is whole, and stands as it will.
    for came, all_of_them in zip(contents(v1), whole, strict=True):
        assert [row for row in came if row not in all_of_them] == []
    again = run(users=True)
    assert contents(v1) == whole
    assert scalar(v1, "SELECT count(*) FROM source_checkpoints") == 0
    if name == "second_batch":
        assert by_table(again)["users"].resumed_after == "2"
        assert by_table(again)["users"].read == 1


def forget(pg: psycopg.Connection) -> None:
    pg.execute(
        "TRUNCATE search_documents, embeddings, embedding_models, retrieval_configs,"
        " keyword_corpora, keyword_statistics, operator_actions, auth_user CASCADE"
    )


def test_sigterm_stops_after_the_batch_in_hand(v1: psycopg.Connection, manage: Manage) -> None:
    stopped = manage(
        *("import_v1", "--tables", "knowledge_entries", "--batch-size", "5"),
        *("--model", MODEL),
        DJANGO_SETTINGS_MODULE="tests.crash_settings",
        CRASH_AT="import_v1:second_batch",
        CRASH_SIGNAL="SIGTERM",
    )
    assert stopped.returncode == 130
    assert scalar(v1, "SELECT count(*) FROM search_documents") == 10
    assert scalar(v1, "SELECT outcome FROM operator_actions") == "failed"
    again = manage("import_v1", "--tables", "knowledge_entries", "--model", MODEL)
    assert again.returncode == 0, again.stderr
    assert "an earlier run was interrupted; went on after key 10. " in again.stdout
    assert scalar(v1, "SELECT count(*) FROM search_documents") == 12


def test_one_import_at_a_time(v1: psycopg.Connection, manage: Manage, connect: Connect) -> None:
    with advisory_lock(connect(application_name="cartrita import"), IMPORT_LOCK):
        done = manage("import_v1", "--model", MODEL)
    assert done.returncode == 75
    assert "cartrita import" in done.stderr
    assert contents(v1)[0] == []


@pytest.mark.parametrize("which", ["lock", "batches"])
def test_a_lost_connection_is_one_line_or_none(
    v1: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """That of the lock is not needed to go on; that of the batches is."""

    def end(operation: str, name: str, subject: str = "") -> None:
        if name == "second_batch":
            pid = connection.connection.info.backend_pid
            if which == "lock":
                pid = scalar(
                    v1,
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'cartrita import'",
                )
            v1.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])

    with monkeypatch.context() as patch:
        patch.setattr("cartrita_search.ops.import_v1.step", end)
        if which == "lock":
            run(only=["knowledge_entries"], batch_size=5)
        else:
            with pytest.raises(DatabaseUnreachable, match="goes on after them"):
                run(only=["knowledge_entries"], batch_size=5)
            connection.close()
            assert scalar(v1, "SELECT count(*) FROM search_documents") == 5
    again = by_table(run(only=["knowledge_entries"]))["knowledge_entries"]
    assert again.resumed_after == (None if which == "lock" else "5")
    assert scalar(v1, "SELECT count(*) FROM search_documents") == 12


def test_batches_go_through_a_pooler_in_transaction_mode(
    v1: psycopg.Connection,
    database: dict[str, Any],
    manage: Manage,
    manage_environment: dict[str, str],
) -> None:
    with pgbouncer(database) as pooled:
        done = manage(
            *("import_v1", "--users", "--batch-size", "3"),
            DATABASE_URL="postgres://{user}@{host}:{port}/{dbname}".format(**pooled),
            MIGRATE_DATABASE_URL=manage_environment["DATABASE_URL"],
        )
    assert done.returncode == 0, done.stderr
    came = contents(v1)
    forget(v1)
    run(users=True)
    assert contents(v1) == came


def test_another_model_s_run_is_a_run_of_its_own(v1: psycopg.Connection) -> None:
    asked = iter([False, False, True, True, True])
    first = run(model="a", only=["knowledge_entries"], batch_size=5, stop=lambda: next(asked))
    assert first.stopped
    second = run(model="b", only=["knowledge_entries"])
    assert by_table(second)["knowledge_entries"].resumed_after is None
    last = run(model="a", only=["knowledge_entries"], restart=True)
    assert by_table(last)["knowledge_entries"].resumed_after is None
    assert by_table(last)["knowledge_entries"].read == 12
    counts = v1.execute("SELECT embedding_model, count(*) FROM embeddings GROUP BY 1 ORDER BY 1")
    assert counts.fetchall() == [("a", 10), ("b", 10)]


# --- The vector index -------------------------------------------------------------


def test_the_index_is_built_at_the_end_and_a_large_import_beside_it_is_set_aside(
    v1: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = [parse_map("table=points,content=body,embedding=at")]
    options: dict[str, Any] = {"model": "points", "maps": maps, "only": ["points"]}
    add = (
        "INSERT INTO points SELECT n, 'point ' || n, ARRAY[sin(n), cos(n), n / 1e4]::real[]"
        " FROM generate_series(%s::integer, %s) AS n"
    )
    v1.execute("CREATE TABLE points (id integer PRIMARY KEY, body text, at vector(3))")
    try:
        v1.execute(add, [1, 1200])
        report = run(**options)
        assert "HNSW" in report.index["points"]
        assert len(vector_indexes(v1)) == 1

        v1.execute(add, [1201, 2400])
        refusal = RebuildInProgress("Another session is rebuilding vector indexes.", "Wait.")
        with monkeypatch.context() as patch:
            patch.setattr("cartrita_search.ops.import_v1.finish_load", Mock(side_effect=refusal))
            with pytest.raises(RebuildInProgress, match="All rows came"):
                run(**options)
        put_aside = "SELECT count(*) FROM embeddings WHERE segment > 0"
        assert scalar(v1, put_aside) == 1200
        # The next run finds nothing to bring, and finishes what is unfinished.
        report = run(**options)
        assert by_table(report)["points"].read == 0
        visible = (
            "SELECT count(*) FROM embeddings AS e JOIN embedding_models AS m"
            " ON m.name = e.embedding_model WHERE e.segment <= m.visible_segment"
        )
        assert scalar(v1, visible) == 2400
        assert run(**options).index == {}
    finally:
        v1.execute("DROP TABLE points")
