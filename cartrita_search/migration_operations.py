"""Migration operations: SQL files put in place and taken away, and the record of it."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations import RunSQL
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from .db import read_sql, sql_checksum


class RunSQLFile(RunSQL):
    """Run a file of ``sql/``, and another one on the way back.

    ``RunSQLFile("retrieval/hybrid_search.v1.sql")`` reverses by
    ``retrieval/hybrid_search.drop.sql``. A new body, ``.v2.sql``, names
    ``.v1.sql`` as its reverse; ``reverse=None`` leaves the object in place.
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
        super().__init__(path, reverse or f"{stem}.v{int(version[1:]) - 1}.sql")
        self.sql = [read_sql(self.drop), *self.sql]
        self.reverse_sql = [read_sql(self.drop), *self.reverse_sql]

    def describe(self) -> str:
        return f"Replace by {self.path}"


class RecordMigration(Operation):
    """Keep this migration's row in ``schema_migrations``: the last operation of each.

    It runs in the migration's own transaction, so the row is there exactly when
    the migration is. The checksum is taken over the migration module and the SQL
    files that it runs.
    """

    reduces_to_sql = True
    reversible = True

    def __init__(self, version: str, description: str) -> None:
        self.version = version
        self.description = description

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return self.__class__.__qualname__, [self.version, self.description], {}

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """No model changes."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        schema_editor.execute(
            "INSERT INTO public.schema_migrations (version, checksum, description) "
            "VALUES (%s, %s, %s) "
            "ON CONFLICT (version) DO UPDATE SET applied_at = clock_timestamp(), "
            "checksum = excluded.checksum, description = excluded.description",
            [self.version, migration_checksum(self.version), self.description],
        )

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        schema_editor.execute(
            "DELETE FROM public.schema_migrations WHERE version = %s", [self.version]
        )

    def describe(self) -> str:
        return f"Record {self.version} in schema_migrations"

    @property
    def migration_name_fragment(self) -> str:
        return "record"


def migration_checksum(version: str) -> str:
    """SHA-256 (hexadecimal) of a migration of this app and of the SQL files it runs."""
    module = sys.modules[f"{__package__}.migrations.{version}"]
    texts = [inspect.getsource(module)]
    for operation in module.Migration.operations:
        if isinstance(operation, RunSQLFile):
            texts.append(read_sql(operation.path))
            if operation.reverse:
                texts.append(read_sql(operation.reverse))
    return sql_checksum("\n".join(map(sql_checksum, texts)))
