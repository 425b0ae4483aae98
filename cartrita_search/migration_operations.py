"""Migration operations: SQL files put in place and taken away, and the record of it."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import RunSQL
from django.db.migrations.operations.base import Operation
from django.db.migrations.recorder import MigrationRecorder
from django.db.migrations.state import ProjectState

from .adoption import put_back, set_aside
from .db import read_sql, sql_checksum


class RunSQLFile(RunSQL):
    """Make an object by its file of ``sql/``, and drop it by another on the way back.

    ``RunSQLFile("retrieval/hybrid_search.v1.sql")`` reverses by
    ``retrieval/hybrid_search.drop.sql``; ``reverse=None`` leaves the object in place.

    Whatever somebody else made under the object's name is set aside first, and has its
    name again on the way back. That needs a migration that is one transaction: in one
    that is not, a rerun after a crash would set aside our own.
    """

    reduces_to_sql = True

    def __init__(self, path: str, reverse: str | None = "") -> None:
        self.path = path
        self.reverse = path.split(".", maxsplit=1)[0] + ".drop.sql" if reverse == "" else reverse
        # Lists of one statement: a plain string would be split by sqlparse, which
        # strips the comments inside the function bodies.
        super().__init__(
            [read_sql(path)],
            reverse_sql=[read_sql(self.reverse)] if self.reverse else RunSQL.noop,
        )

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return self.__class__.__qualname__, [self.path], {"reverse": self.reverse}

    @property
    def files(self) -> list[str]:
        """The files that it runs, forwards and backwards."""
        return [self.path, *([self.reverse] if self.reverse else [])]

    @property
    def makes(self) -> str | None:
        """The name that the file's object takes in schema public; None: it has it already."""
        is_first = self.path.endswith(".v1.sql")
        return self.path.rsplit("/", 1)[-1].split(".")[0] if is_first else None

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        if self.makes and not schema_editor.collect_sql:
            set_aside(schema_editor.connection, [self.makes])
        super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        super().database_backwards(app_label, schema_editor, from_state, to_state)
        if self.makes and not schema_editor.collect_sql:
            put_back(schema_editor.connection, [self.makes])

    def describe(self) -> str:
        return f"Run {self.path}"

    @property
    def migration_name_fragment(self) -> str:
        return self.path.rsplit("/", 1)[-1].split(".")[0]


class ReplaceSQLFile(RunSQLFile):
    """Replace an object by its next version, and by the former one on the way back.

    ``ReplaceSQLFile("retrieval/hybrid_search.v2.sql")`` drops the object by
    ``retrieval/hybrid_search.drop.sql`` before it runs the file; reversed, it drops
    it again and runs ``.v1.sql``. Dropped rather than replaced in place, because
    ``CREATE OR REPLACE`` can change neither arguments nor result columns.
    """

    def __init__(self, path: str, reverse: str | None = "") -> None:
        stem, version, _ = path.split(".")
        self.drop = f"{stem}.drop.sql"
        former = reverse or f"{stem}.v{int(version[1:]) - 1}.sql"
        super().__init__(path, former)
        self.sql = [read_sql(self.drop), read_sql(path)]
        self.reverse_sql = [read_sql(self.drop), read_sql(former)]

    @property
    def files(self) -> list[str]:
        return [self.drop, *super().files]

    @property
    def makes(self) -> None:
        return None

    def describe(self) -> str:
        return f"Replace by {self.path}"


class CreateIndexConcurrently(RunSQLFile):
    """Build an index by its file of ``sql/``, while its table is written to.

    For a migration with ``atomic = False``. Run again after a crash it leaves a finished
    index alone, and builds one that was left invalid anew. The drop file must be
    ``DROP INDEX CONCURRENTLY IF EXISTS``.
    """

    atomic = False

    def __init__(self, path: str, reverse: str | None = "") -> None:
        super().__init__(path, reverse)
        # Each statement by itself: two in one string are a transaction.
        self.statements = [part for part in read_sql(path).split(";\n") if part]

    @property
    def makes(self) -> None:
        return None

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        statements = self.statements
        if not schema_editor.collect_sql:
            with schema_editor.connection.cursor() as cursor:
                cursor.execute(
                    "SELECT i.indisvalid FROM pg_index AS i WHERE i.indexrelid = to_regclass(%s)",
                    [f"public.{self.migration_name_fragment}"],
                )
                found = cursor.fetchone()
            if found == (False,):
                schema_editor.execute(read_sql(str(self.reverse)), params=None)
            elif found == (True,):
                statements = self.statements[1:]
        for statement in statements:
            schema_editor.execute(statement, params=None)

    def describe(self) -> str:
        return f"Build by {self.path}"


class _Record(Operation):
    """What is written to ``schema_migrations`` of the migration that this operation is in."""

    reduces_to_sql = True
    reversible = True

    def __init__(self, version: str, description: str) -> None:
        self.version = version
        self.description = description

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return self.__class__.__qualname__, [self.version, self.description], {}

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """No model changes."""

    def _write(self, schema_editor: BaseDatabaseSchemaEditor, kind: str) -> None:
        schema_editor.execute(
            "INSERT INTO public.schema_migrations"
            " (version, checksum, description, migration_type) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (version) DO UPDATE SET applied_at = clock_timestamp(),"
            " checksum = excluded.checksum, description = excluded.description,"
            " migration_type = excluded.migration_type",
            [self.version, migration_checksum(self.version), self.description, kind],
        )

    def _delete(self, app_label: str, schema_editor: BaseDatabaseSchemaEditor) -> None:
        schema_editor.execute(
            "DELETE FROM public.schema_migrations WHERE version = %s", [self.version]
        )
        if not schema_editor.collect_sql:
            # Django does so after the commit: whoever is killed in between is told ever
            # after that this migration is applied, and cannot take it back any more.
            recorder = MigrationRecorder(schema_editor.connection)
            recorder.record_unapplied(app_label, self.version)

    def describe(self) -> str:
        return f"Record {self.version} in schema_migrations"

    @property
    def migration_name_fragment(self) -> str:
        return "record"


class RecordMigration(_Record):
    """Keep this migration's row in ``schema_migrations``: the last operation of each.

    In a migration that is one transaction the row is there exactly when the migration
    is. The checksum is taken over the migration module and the SQL files that it runs.
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._write(schema_editor, "schema")

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        if schema_editor.atomic_migration:
            self._delete(app_label, schema_editor)
        else:
            self._write(schema_editor, UNFINISHED)


class RecordBeginning(_Record):
    """The first operation of a migration with ``atomic = False``: what tells a crash.

    Between it and `RecordMigration`, in either direction, the row in
    ``schema_migrations`` is of type "unfinished".
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._write(schema_editor, UNFINISHED)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._delete(app_label, schema_editor)


class KeepEarlierRecord(RunSQL):
    """Take the rows of the earlier SQL runner into ``schema_migrations``, and back.

    Its table was set aside as ``schema_migrations_v1``, whatever columns it has; rows
    that somebody has added to ours meanwhile go there on the way back.
    """

    def __init__(self) -> None:
        super().__init__([_TAKE_RECORD], reverse_sql=[_GIVE_RECORD])

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return self.__class__.__qualname__, [], {}

    def describe(self) -> str:
        return "Keep the rows of schema_migrations_v1"

    @property
    def migration_name_fragment(self) -> str:
        return "record"


#: migration_type of a migration that has begun, or is half taken back.
UNFINISHED = "unfinished"

_TAKE_RECORD = """
DO $$
BEGIN
    IF to_regclass('public.schema_migrations_v1') IS NOT NULL THEN
        INSERT INTO public.schema_migrations
            (version, applied_at, checksum, description, migration_type)
        SELECT r.row ->> 'version',
            CASE jsonb_typeof(r.row -> 'applied_at')
                WHEN 'string' THEN (r.row ->> 'applied_at')::timestamptz ELSE 'epoch'
            END,
            coalesce(r.row ->> 'checksum', ''), coalesce(r.row ->> 'description', ''),
            coalesce(r.row ->> 'migration_type', 'schema')
        FROM (SELECT to_jsonb(v) AS row FROM public.schema_migrations_v1 AS v) AS r
        WHERE r.row ->> 'version' IS NOT NULL
        ON CONFLICT (version) DO NOTHING;
    END IF;
END $$
"""
_GIVE_RECORD = """
DO $$
BEGIN
    IF to_regclass('public.schema_migrations_v1') IS NOT NULL THEN
        INSERT INTO public.schema_migrations_v1
        SELECT r.* FROM public.schema_migrations AS s,
            jsonb_populate_record(NULL::public.schema_migrations_v1, to_jsonb(s)) AS r
        WHERE s.version ~ '[.]sql$' AND NOT EXISTS (
            SELECT FROM public.schema_migrations_v1 AS v
            WHERE to_jsonb(v) ->> 'version' = s.version);
        DELETE FROM public.schema_migrations AS s
        USING public.schema_migrations_v1 AS v WHERE to_jsonb(v) ->> 'version' = s.version;
    END IF;
END $$
"""


def migration_checksum(version: str) -> str:
    """SHA-256 (hexadecimal) of a migration of this app and of the SQL files it runs.

    What counts is the texts, not their line endings or trailing blanks.
    """
    package, _ = MigrationLoader.migrations_module("cartrita_search")
    module = sys.modules[f"{package}.{version}"]
    texts = [inspect.getsource(module)]
    for operation in module.Migration.operations:
        if isinstance(operation, RunSQLFile):
            texts.extend(map(read_sql, operation.files))
    return sql_checksum("\n".join(map(sql_checksum, texts)))
